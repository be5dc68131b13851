"""The agent against a real coordinator: transfers from end to end, interrupted, refused, stuck, and ended."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from enrolled import enrolled, exchange, token_for, write_token
from server_fixtures import Consortium
from sites import (
    MALE_HIGH,
    edit,
    events,
    make_site,
    patients,
    queued,
    selected,
    steward,
    transfer_at,
    with_hole,
)
from synthedge_client import agent, delivery, outbound, shipping, store
from synthedge_client.agent import Agent, Attempts, run_forever
from synthedge_client.asking import request
from synthedge_client.audit import collect
from synthedge_client.cancelling import cancel
from synthedge_client.connection import Connection
from synthedge_client.donating import approve, decline, prepare
from synthedge_client.enrolment import enrol_site
from synthedge_client.gaps import choose_region, list_gaps
from synthedge_client.locks import only_one
from synthedge_client.received import load_samples
from synthedge_client.sealed_files import incoming_file, outgoing_file
from synthedge_client.site import Site, open_site
from synthedge_client.site_fill import fill_site
from synthedge_client.status import describe_transfers, summarise
from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import (
    BusyError,
    IdentityError,
    UnavailableError,
    from_status,
    status_of,
)
from synthedge_protocols.lifecycle import State
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server.operations import set_site_state

Pair = list[Site]
FOLDERS = ("outgoing", "incoming")


def ask(north: Site, rows: int = 5) -> bytes:
    return request(
        north,
        steward(),
        donor="south",
        grid=north.grid("sex x bp"),
        voxel=MALE_HIGH,
        rows=rows,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )


def give(south: Site, identifier: bytes) -> None:
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())


async def asked_and_given(north: Site, south: Site) -> bytes:
    identifier = ask(north)
    await exchange(north, south)
    give(south, identifier)
    return identifier


def states(identifier: bytes, *sites: Site) -> list[str]:
    return [transfer_at(site, identifier).state.value for site in sites]


async def eventually(condition: Callable[[], bool], within_s: float = 8.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


async def test_samples_travel_and_arrive_in_the_recipients_own_terms(pair: Pair) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    given = selected(south)
    await exchange(south, north, south)

    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]
    received = load_samples(north)
    theirs = pd.read_csv(south.settings.data)
    gone = theirs[[south.keys.tag(mrn) in given for mrn in theirs["mrn"]]]
    assert sorted(received["bp"]) == sorted(gone["bp"])
    assert set(received["sex"].astype(str)) == {"2"}
    assert set(received["progressed"].astype(str)) == {"1"}
    assert set(received["_donor"]) == {"south"}
    assert list(received.columns) == ["bp", "sex", "note", "progressed", "_donor"]
    for site in pair:
        for folder in FOLDERS:
            assert list((site.settings.folder / folder).glob("*")) == []
    assert [t["rows"] for t in collect(south).sent] == [5]
    assert [t["rows"] for t in collect(north).received] == [5]


async def test_nothing_received_is_readable_in_the_database(pair: Pair, tmp_path: Path) -> None:
    north, south = pair
    await asked_and_given(north, south)
    await exchange(south, north, south)

    files = [path for site in pair for path in site.settings.folder.glob("site.db*")]
    held = b"".join(path.read_bytes() for path in files)
    for secret in (b"s-1130", b'"bp":', b"102.0"):
        assert secret not in held
    # Somebody else waits in the folder for what is written.
    (tmp_path / ".filled.csv.new").symlink_to(tmp_path / "elsewhere")
    result = fill_site(north, tmp_path / "filled.csv", seed=1)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "filled.csv").is_symlink()
    assert (result["observed"], result["received"]) == (120, 5)
    assert (tmp_path / "filled.csv").stat().st_mode & 0o777 == 0o600
    filled = pd.read_csv(tmp_path / "filled.csv")
    assert filled["_origin"].value_counts().to_dict() == {
        "observed": 120,
        "received": 5,
        "synthetic": 5,
    }
    assert set(filled.loc[filled["_origin"] != "received", "_donor"].dropna()) == set()
    text = (tmp_path / "filled.csv").read_text().splitlines()
    assert text[1:121] == [
        f"{line},observed,," for line in north.settings.data.read_text().splitlines()[1:]
    ]


KILLS: list[tuple[Any, str, str]] = [
    # where, what is called there, at which site
    (shipping, "seal", "south"),
    (outbound, "enqueue", "south"),
    (Connection, "upload", "south"),
    (Connection, "download", "north"),
    (Connection, "release_key", "north"),
    (delivery, "_take_in", "north"),
    (delivery, "keep_samples", "north"),
]


@pytest.mark.parametrize(("where", "what", "who"), KILLS, ids=[k[1] for k in KILLS])
async def test_an_agent_killed_between_two_steps_carries_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, where: Any, what: str, who: str
) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    if who == "north":
        await exchange(south)

    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(where, what, killed)
        with pytest.raises(KilledError):
            await exchange(north if who == "north" else south)
    await exchange(south, north, south)

    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]
    assert len(load_samples(north)) == 5
    assert len(selected(south)) == 5
    assert summarise(north)["outbox_waiting"] == summarise(south)["outbox_waiting"] == 0


async def test_a_torn_download_is_begun_anew_and_not_blamed_on_the_donor(pair: Pair) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    await exchange(south)
    path = incoming_file(north, transfer_at(north, identifier))
    path.parent.mkdir()
    path.write_bytes(b"\0" * 100)

    await exchange(north)

    assert states(identifier, north) == ["ACTIVE"]


async def test_a_refused_request_is_cancelled_with_the_reason(pair: Pair) -> None:
    north, _ = pair
    with north.store.write() as connection:
        # South is told to be somebody the coordinator never heard of.
        row = {"statement_public_key": bytes(32), "hpke_key": b"", "verified_at_ms": 1}
        connection.execute(store.peers.insert().values(site="nowhere", **row))
    identifier = request(
        north,
        steward(),
        donor="nowhere",
        grid=north.grid("bp"),
        voxel=3,
        rows=5,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )

    await exchange(north)

    record = transfer_at(north, identifier)
    assert record.state is State.CANCELLED
    assert "the coordinator refused: the request names donor 'nowhere'" in (record.reason or "")
    assert summarise(north)["outbox_refused"][0].startswith("transfer-request: ")
    assert summarise(north)["outbox_waiting"] == 0
    assert [m["kind"] for m in collect(north).refused_messages] == ["transfer-request"]


async def test_a_refused_approval_goes_back_to_the_steward(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    identifier = ask(north)
    await exchange(north, south)
    monkeypatch.setattr(outbound, "commitment", lambda _: b"too short")
    give(south, identifier)

    await exchange(south)

    record = transfer_at(south, identifier)
    assert (record.state, record.has_manifest) == (State.PREPARED, False)
    assert "a manifest commitment has 32 bytes" in (record.reason or "")
    assert selected(south) == set()
    monkeypatch.undo()
    give(south, identifier)
    await exchange(south, north)
    assert states(identifier, north) == ["ACTIVE"]


async def test_rows_on_their_way_when_the_recipient_cancels_are_no_fault_of_the_donor(
    pair: Pair,
) -> None:
    north, south = pair
    identifier = ask(north)
    await exchange(north, south)
    give(south, identifier)
    await exchange(south)
    cancel(north, transfer_at(north, identifier), steward(), "found others")

    await exchange(north, south)

    assert states(identifier, north, south) == ["CANCELLED", "CANCELLED"]
    # The approval, and that the rows wait.
    late = events(north, "transfer had ended")
    assert [json.loads(details)["event"] for details in late] == ["approve", "relay"]
    assert collect(north).refused_messages == []


async def test_rows_whose_receipt_is_refused_are_deleted(
    pair: Pair, consortium: Consortium
) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    await exchange(south)
    connection = north.connect()
    worker = Agent(north, connection)
    await asyncio.to_thread(worker.receive)
    await asyncio.to_thread(worker._handle_inbox)
    await asyncio.to_thread(worker._move_transfers)
    connection.close()
    assert states(identifier, north) == ["ACTIVE"]
    consortium.clock.ahead_ms = 200 * 3_600_000  # beyond delivered_h
    await asyncio.sleep(1.2)  # the coordinator's housekeeping

    await exchange(north)

    record = transfer_at(north, identifier)
    # The coordinator put its end on record first; it holds at both sites.
    assert record.state is State.EXPIRED
    assert "time limit" in (record.reason or "")
    assert len(load_samples(north)) == 0


async def test_a_transfer_that_cannot_go_on_says_why_and_stops_no_other(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    north, south = pair
    stuck = await asked_and_given(north, south)
    table = south.settings.data
    away = table.rename(table.with_suffix(".away"))
    connection = south.connect()
    worker = Agent(south, connection)
    ticks = iter(range(1000))
    worker._attempts = Attempts(clock=lambda: float(next(ticks)) / 10)

    for _ in range(20):
        await asyncio.to_thread(worker.work)

    assert states(stuck, south) == ["APPROVED"]
    assert "south.csv" in summarise(south)["problems"][stuck.hex()[:12]]
    assert "south.csv" in describe_transfers(south)[0]["problem"]
    assert len([r for r in caplog.records if "does not go on" in r.message]) == 1
    assert len(events(south, "transfer stuck")) == 1
    away.rename(table)
    worker._attempts = Attempts()
    await asyncio.to_thread(worker.work)
    connection.close()
    assert states(stuck, south) == ["SEALED"]
    assert summarise(south)["problems"] == {}


def test_a_failing_transfer_is_tried_later_and_later_but_not_never() -> None:
    now = [0.0]
    attempts = Attempts(clock=lambda: now[0])

    class Stuck:
        id = b"x"

    tries = []
    while now[0] < 3600:
        if attempts.is_due(Stuck()):  # type: ignore[arg-type]
            tries.append(now[0])
            attempts.failed(Stuck())  # type: ignore[arg-type]
        now[0] += 1

    assert tries[:5] == [0, 2, 6, 14, 30]
    assert 300 <= tries[-1] - tries[-2] <= 301
    attempts.went_on(Stuck())  # type: ignore[arg-type]
    assert attempts.is_due(Stuck())  # type: ignore[arg-type]


async def test_a_shipment_signed_by_another_key_is_refused_and_the_donor_hears_of_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    await exchange(south)
    release = Connection.release_key

    def tampered(self: Connection, request: pb.SignedStatement) -> Any:
        signed = release(self, request)
        signed.signature = bytes(64)
        return signed

    monkeypatch.setattr(Connection, "release_key", tampered)
    await exchange(north, south)

    for site in pair:
        record = transfer_at(site, identifier)
        assert (record.state, record.reason) == (
            State.REFUSED,
            "transfer could not be authenticated",
        )
    assert len(load_samples(north)) == 0
    assert not outgoing_file(south, transfer_at(south, identifier)).exists()


@pytest.mark.parametrize("lie", ["rows", "token", "features", "digest", "donor", "nobody positive"])
async def test_a_delivery_that_deviates_from_what_was_approved_is_refused_whole(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    north, south = pair
    honest = outbound.build_payload

    def dishonest(*arguments: Any, **more: Any) -> Any:
        from synthedge_protocols.v1 import statements_pb2 as pb

        payload = honest(*arguments, **more)
        manifest = pb.Manifest.FromString(payload.manifest)
        batch = pb.SampleBatch.FromString(payload.samples)
        if lie == "rows":
            del batch.samples[0]
        elif lie == "token":
            batch.samples[0].token = batch.samples[1].token
        elif lie == "features":
            manifest.features[:] = ["sex", "bp"]
        elif lie == "donor":
            manifest.donor = "west"
        elif lie == "nobody positive":
            batch.samples[0].positive = False
        payload.samples = batch.SerializeToString(deterministic=True)
        if lie != "digest":
            manifest.rows_digest = outbound.sha256(payload.samples)
        else:
            manifest.rows_digest = bytes(32)
        payload.manifest = manifest.SerializeToString(deterministic=True)
        return payload

    monkeypatch.setattr(outbound, "build_payload", dishonest)
    identifier = await asked_and_given(north, south)
    await exchange(south, north, south)

    assert states(identifier, north, south) == ["REFUSED", "REFUSED"]
    assert len(load_samples(north)) == 0


async def test_what_the_gate_refuses_is_deleted_on_both_sides(pair: Pair) -> None:
    north, south = pair
    given = pd.read_csv(south.settings.data)
    # Eight of south's patients have been north's before.
    edit(north, bp=[*pd.read_csv(north.settings.data)["bp"][:-8], *given["bp"][56:64]])
    identifier = await asked_and_given(north, south)
    await exchange(south, north, south)

    for site in pair:
        record = transfer_at(site, identifier)
        assert record.state is State.REFUSED
        assert record.reason == (
            "5 of 5 rows are patients this site already has (5 the same, 0 nearly the same)"
        )
    assert len(load_samples(north)) == 0
    assert [list((s.settings.folder / f).glob("*")) for s in pair for f in FOLDERS] == [[]] * 4


async def test_a_patient_the_recipient_has_is_left_out_and_the_donor_hears_how_many_were_kept(
    pair: Pair,
) -> None:
    north, south = pair
    given = pd.read_csv(south.settings.data)
    # Five of south's eight patients of the region consent, and one of them has been north's before.
    edit(south, consent=["withdrawn" if 56 <= i < 59 else "active" for i in range(len(given))])
    edit(north, bp=[*pd.read_csv(north.settings.data)["bp"][:-1], given["bp"][60]])
    identifier = await asked_and_given(north, south)
    await exchange(south, north, south)

    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]
    record = transfer_at(north, identifier)
    assert record.rows == len(load_samples(north)) == 4
    assert "1 of 5 rows are patients this site already has" in (record.reason or "")
    assert given["bp"][60] not in set(load_samples(north)["bp"])


async def test_a_consent_lost_while_the_bytes_wait_stops_the_upload(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)

    def unreachable(*_: object) -> None:
        raise UnavailableError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "upload", unreachable)
        with pytest.raises(UnavailableError):
            await exchange(south)
    assert states(identifier, south) == ["SEALED"]
    edit(south, consent="withdrawn")
    await exchange(south)

    assert states(identifier, south) == ["PREPARED"]
    assert list((south.settings.folder / "outgoing").glob("*")) == []
    edit(south, consent="active")
    give(south, identifier)
    await exchange(south, north, south)
    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]


async def test_a_prepared_transfer_lapses_when_nobody_approves_it(pair: Pair) -> None:
    north, south = pair
    identifier = ask(north)
    await exchange(north, south)
    prepare(south, transfer_at(south, identifier), "ada")
    with south.store.write() as connection:
        long_ago = store.now_ms() - 200 * 3_600_000
        connection.execute(store.transfers.update().values(changed_at_ms=long_ago))

    await exchange(south)

    record = transfer_at(south, identifier)
    assert (record.state, record.has_manifest) == (State.REQUESTED, False)
    assert selected(south) == set()


async def test_an_expired_request_ends_on_both_sides(pair: Pair, consortium: Consortium) -> None:
    north, south = pair
    identifier = ask(north)
    await exchange(north, south)
    prepare(south, transfer_at(south, identifier), "ada")
    consortium.clock.ahead_ms = 1000 * 3_600_000
    await asyncio.sleep(1.2)
    consortium.clock.ahead_ms = 0  # certificates have not aged

    await exchange(north, south)

    assert states(identifier, north, south) == ["EXPIRED", "EXPIRED"]
    assert selected(south) == set()


async def test_a_declined_request_tells_the_recipient_why(pair: Pair) -> None:
    north, south = pair
    identifier = ask(north)
    await exchange(north, south)
    decline(south, transfer_at(south, identifier), steward(), "not available")
    await exchange(south, north)

    assert states(identifier, north, south) == ["DECLINED", "DECLINED"]
    assert describe_transfers(north)[0]["reason"] == "not available"


async def test_a_suspended_site_keeps_what_it_wanted_to_send(
    pair: Pair, consortium: Consortium
) -> None:
    north, _ = pair
    identifier = ask(north)
    set_site_state(consortium.folder, "north", "suspended")
    with pytest.raises(IdentityError, match="is suspended"):
        await exchange(north)
    connection = north.connect()
    with pytest.raises(IdentityError, match="is suspended"):
        await asyncio.to_thread(Agent(north, connection).work)
    connection.close()

    assert states(identifier, north) == ["REQUESTED"]
    assert summarise(north)["outbox_waiting"] == 1
    assert summarise(north)["outbox_refused"] == []


async def test_a_running_agent_meets_a_peer_that_enrols_later(
    pair: Pair, consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, _ = pair
    monkeypatch.setattr(agent, "REFRESH_PEERS_S", 0.2)
    stop = threading.Event()
    running = asyncio.create_task(asyncio.to_thread(run_forever, north, north.connect(), stop))
    folder = make_site(tmp_path, "west", patients("w"))
    await asyncio.to_thread(enrol_site, folder, write_token(folder, token_for(consortium, "west")))

    await eventually(lambda: "west" in {p["site"] for p in north.list_peers()})
    stop.set()
    await running


async def test_running_agents_carry_a_transfer_by_themselves(pair: Pair) -> None:
    north, south = pair
    stop = threading.Event()
    running = [
        asyncio.create_task(asyncio.to_thread(run_forever, site, site.connect(), stop))
        for site in pair
    ]
    identifier = ask(north)
    await eventually(lambda: len(describe_transfers(south)) == 1)
    give(south, identifier)
    await eventually(lambda: states(identifier, north, south) == ["ACTIVE", "ACTIVE"])
    stop.set()
    await asyncio.gather(*running)

    assert queued(north) == queued(south) == []


async def test_an_agent_whose_inbox_breaks_does_not_run_on_deaf(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, _ = pair

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Agent, "follow", broken)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(
            asyncio.to_thread(run_forever, north, north.connect(), threading.Event()), 10
        )


async def test_one_site_has_one_agent(pair: Pair) -> None:
    with (
        open_site(pair[0].settings.folder) as again,
        only_one(pair[0], "agent"),
        pytest.raises(RefusedError, match="runs already"),
        only_one(again, "agent"),
    ):
        pass


async def test_three_reports_show_the_hole_and_who_could_fill_it(
    coordinator: Consortium, tmp_path: Path
) -> None:
    tables = {
        "north": patients("n", with_hole(30), np.full((2, 4), 30)),
        "south": patients("s", np.full((2, 4), 30), np.full((2, 4), 30)),
        "west": patients("w", np.full((2, 4), 25), np.full((2, 4), 30)),
    }
    async with enrolled(coordinator, tmp_path, **tables) as (north, _, _):
        await exchange(north)
        first = list_gaps(north)[0]

        assert (first.id, first.status) == ("sex x bp/7", "confirmed")
        assert {p.donor for p in first.proposals} == {"south", "west"}
        region = choose_region(north, first.id, None)
        assert region.donor == first.proposals[0].donor


def test_an_agent_waits_as_long_as_a_busy_coordinator_asks_and_keeps_what_waits() -> None:
    error = from_status(*status_of(BusyError("too much at a time", 30.0)))
    assert isinstance(error, UnavailableError)  # so that the outbox keeps the statement
    assert agent._wait_s(error) == pytest.approx(30.0, abs=0.01)
    assert agent._wait_s(BusyError("too much at a time", 0.1)) == agent.RECONNECT_S
    assert agent._wait_s(UnavailableError("away")) == agent.RECONNECT_S
