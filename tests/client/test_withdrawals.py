"""Withdrawals between a donor and a recipient, over a real coordinator."""

import asyncio
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from enrolled import exchange
from server_fixtures import Consortium
from sites import MALE_HIGH, edit, events, queued, steward, transfer_at
from synthedge_client import store
from synthedge_client.asking import request
from synthedge_client.donating import approve, prepare
from synthedge_client.purging import purge_transfer
from synthedge_client.received import load_samples, load_with_tokens
from synthedge_client.received_files import export_received
from synthedge_client.site import Site
from synthedge_client.site_fill import fill_site
from synthedge_client.status import summarise
from synthedge_client.withdrawal_status import describe_withdrawals
from synthedge_client.withdrawals import (
    correct_patient,
    missing_patients,
    report_fields,
    withdraw_patient,
    withdraw_transfer,
)
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.errors import IdentityError, LifecycleError
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store as server_store
from synthedge_server.operations import reading, recover_site
from synthedge_server.status import read_status

Pair = list[Site]
HOUR_MS = 3_600_000


def ask(north: Site) -> bytes:
    return request(
        north,
        steward(),
        donor="south",
        grid=north.grid("sex x bp"),
        voxel=MALE_HIGH,
        rows=5,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )


async def delivered(north: Site, south: Site) -> bytes:
    """Five rows of south, active at north."""
    identifier = ask(north)
    await exchange(north, south)
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())
    await exchange(south, north, south)
    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]
    return identifier


def states(identifier: bytes, *sites: Site) -> list[str]:
    return [transfer_at(site, identifier).state.value for site in sites]


def ledger(south: Site) -> dict[bytes, str]:
    """Which patient each token stands for: only the donor's keys tell."""
    with south.store.read() as connection:
        rows = connection.execute(sa.select(store.disclosed.c.token, store.disclosed.c.patient))
        return {
            token: south.keys.decrypt(patient, b"patient" + token).decode()
            for token, patient in rows
        }


def one_given(south: Site) -> tuple[bytes, str]:
    return min(ledger(south).items())


def tokens_at(north: Site) -> list[bytes]:
    return load_with_tokens(north)[1]


def later(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    now = store.now_ms()
    monkeypatch.setattr(store, "now_ms", lambda: now + int(hours * HOUR_MS))


def coordinators(consortium: Consortium) -> list[Any]:
    with reading(consortium.folder) as engine, engine.connect() as connection:
        return list(connection.execute(sa.select(server_store.withdrawals)).all())


async def test_a_withdrawn_patients_row_is_purged_and_signed_for(
    pair: Pair, consortium: Consortium, tmp_path: Path
) -> None:
    north, south = pair
    identifier = await delivered(north, south)
    fill_site(north, tmp_path / "filled.csv", seed=1)
    export_received(north, tmp_path / "rows.csv")
    (tmp_path / "rows.csv").unlink()
    export_received(north, tmp_path / "pipe.csv")
    (tmp_path / "pipe.csv").unlink()
    os.mkfifo(tmp_path / "pipe.csv")  # reading it would never end, and the agent with it
    token, patient = one_given(south)

    done = withdraw_patient(south, patient)

    assert (done.rows, done.recipients, done.taken_back) == (1, ("north",), 0)
    await exchange(south, north, south)
    assert token not in tokens_at(north)
    assert len(tokens_at(north)) == 4
    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]
    for site in pair:
        (entry,) = describe_withdrawals(site)
        assert (entry["state"], entry["overdue"]) == ("PURGED", False)
        assert entry["report"]["rows_purged"] == 1
        copies = [(c["name"], c["kind"], c["rows"], c["state"]) for c in entry["report"]["copies"]]
        assert copies == [
            ("filled.csv", "fill", 1, "there"),
            ("rows.csv", "export", 1, "gone"),
            ("pipe.csv", "export", 1, "changed"),
        ]
    (tmp_path / "pipe.csv").unlink()
    assert summarise(north)["files_to_delete"] == [
        f"{(tmp_path / 'filled.csv').resolve()} holds withdrawn rows"
    ]
    (settled,) = coordinators(consortium)
    assert (settled.state, settled.statement) == ("PURGED", None)
    # What is written now no longer holds the row, and the patient is not given again.
    assert fill_site(north, tmp_path / "again.csv", seed=1)["received"] == 4
    again = ask(north)
    await exchange(north, south)
    payload_rows = prepare_or_none(south, again)
    assert patient not in [ledger(south).get(t) for t in payload_rows]


def prepare_or_none(south: Site, identifier: bytes) -> list[bytes]:
    """Tokens of what south prepares, empty where too few patients are left."""
    try:
        payload = prepare(south, transfer_at(south, identifier), "ada")
    except RefusedError:
        return []
    return [s.token for s in pb.SampleBatch.FromString(payload.samples).samples]


async def test_a_changed_consent_column_withdraws_by_itself(pair: Pair) -> None:
    north, south = pair
    identifier = await delivered(north, south)
    given = set(ledger(south).values())
    table = pd.read_csv(south.settings.data)
    edit(south, consent=["withdrawn" if mrn in given else "active" for mrn in table["mrn"]])

    await exchange(south, north, south)

    assert tokens_at(north) == []
    assert load_samples(north).empty
    assert states(identifier, north, south) == ["PURGED", "PURGED"]
    (entry,) = describe_withdrawals(south)
    assert (entry["state"], entry["report"]["rows_purged"]) == ("PURGED", 5)


async def test_a_table_that_was_cut_short_deletes_nothing_elsewhere(pair: Pair) -> None:
    north, south = pair
    await delivered(north, south)
    table = pd.read_csv(south.settings.data)
    given = set(ledger(south).values())
    table[~table["mrn"].isin(given)].to_csv(south.settings.data, index=False)

    await exchange(south, north)

    assert len(tokens_at(north)) == 5
    assert missing_patients(south) == summarise(south)["delivered_patients_not_in_table"] == 5
    # Who is not in the table any more can still withdraw, by name.
    withdraw_patient(south, one_given(south)[1])
    await exchange(south, north)
    assert len(tokens_at(north)) == 4
    assert missing_patients(south) == 4


async def test_only_the_named_purpose_is_withdrawn(pair: Pair) -> None:
    north, south = pair
    await delivered(north, south)
    _, patient = one_given(south)

    assert withdraw_patient(south, patient, purpose="DUO:0000011").notices == ()
    await exchange(south, north)
    assert len(tokens_at(north)) == 5
    # Disease-specific research is part of health research.
    assert withdraw_patient(south, patient, purpose="DUO:0000006").rows == 1
    await exchange(south, north)
    assert len(tokens_at(north)) == 4


async def test_undelivered_rows_are_taken_back(pair: Pair, consortium: Consortium) -> None:
    north, south = pair
    identifier = ask(north)
    await exchange(north, south)
    prepare(south, transfer_at(south, identifier), "ada")
    _, patient = one_given(south)
    assert withdraw_patient(south, patient).taken_back == 1
    assert states(identifier, south) == ["REQUESTED"]

    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())
    other = one_given(south)[1]
    assert other != patient
    assert withdraw_patient(south, other).taken_back == 1
    await exchange(south, north)
    assert states(identifier, south) == ["PREPARED"]
    assert coordinators(consortium) == []
    assert tokens_at(north) == []


async def test_rows_on_their_way_are_revoked_for_all_three(
    pair: Pair, consortium: Consortium
) -> None:
    north, south = pair
    identifier = ask(north)
    await exchange(north, south)
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())
    await exchange(south)
    assert states(identifier, south) == ["RELAYED"]

    withdraw_patient(south, one_given(south)[1])
    await exchange(south, north, south)

    assert states(identifier, north, south) == ["REVOKED", "REVOKED"]
    assert tokens_at(north) == []
    (entry,) = describe_withdrawals(south)
    assert (entry["state"], entry["report"]["rows_not_held"]) == ("PURGED", 1)
    for folder in ("incoming", "outgoing"):
        for site in pair:
            assert list((site.settings.folder / folder).glob("*")) == []
    assert list(consortium.folder.spool.iterdir()) == []


async def test_an_offline_recipient_gets_the_withdrawal_first(pair: Pair) -> None:
    north, south = pair
    await delivered(north, south)
    token, patient = one_given(south)
    withdraw_patient(south, patient)
    await exchange(south)
    connection = north.connect()
    try:
        first = (await asyncio.to_thread(lambda: list(connection.inbox(0, follow=False))))[0]
    finally:
        connection.close()

    # Before everything that waited longer, and outside the sequence that tells what was stored.
    assert (first.WhichOneof("body"), first.sequence) == ("withdrawal", 0)
    assert token not in first.SerializeToString()


async def test_nothing_is_filled_or_exported_before_a_withdrawal_is_carried_out(
    pair: Pair, tmp_path: Path
) -> None:
    from synthedge_client.purging import carry_out_notices, keep_notice

    north, south = pair
    await delivered(north, south)
    withdraw_patient(south, one_given(south)[1])
    signed = queued(south)[-1]

    assert keep_notice(north, signed)
    with pytest.raises(RefusedError, match="1 withdrawals of received rows are not carried out"):
        fill_site(north, tmp_path / "filled.csv", seed=1)
    with pytest.raises(RefusedError, match="not carried out"):
        export_received(north, tmp_path / "rows.csv")
    assert carry_out_notices(north)
    assert fill_site(north, tmp_path / "filled.csv", seed=1)["received"] == 4
    # The same notice again changes nothing.
    n_queued = len(queued(north))
    assert not keep_notice(north, signed)
    assert not carry_out_notices(north)
    assert len(queued(north)) == n_queued


async def test_nothing_is_filled_while_the_inbox_may_hide_a_withdrawal(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    await delivered(north, south)
    later(monkeypatch, 169)
    with pytest.raises(RefusedError, match=r"within the last 168 hours.*run --once"):
        fill_site(north, tmp_path / "filled.csv", seed=1)
    with north.store.write() as connection:
        store.set_fact(connection, "inbox_read_at_ms", str(store.now_ms()))
    assert fill_site(north, tmp_path / "filled.csv", seed=1)["received"] == 5
    # A site that received nothing needs nobody's leave.
    assert fill_site(south, tmp_path / "filled-south.csv", seed=1)["received"] == 0


async def test_overdue_is_shown_everywhere_and_only_a_receipt_ends_it(
    pair: Pair, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    await delivered(north, south)
    withdraw_patient(south, one_given(south)[1])
    await exchange(south)
    consortium.clock.ahead_ms = 73 * HOUR_MS
    status = read_status(consortium.folder, now_ms=consortium.clock())
    assert [w["recipient"] for w in status["withdrawals_overdue"]] == ["north"]
    consortium.clock.ahead_ms = 0
    with monkeypatch.context() as patch:
        later(patch, 73)
        assert summarise(south)["withdrawals_overdue"][0].startswith("OVERDUE: withdrawal ")
        assert describe_withdrawals(south)[0]["state"] == "NOTIFIED"

    await exchange(north, south)
    assert describe_withdrawals(south)[0]["state"] == "PURGED"
    assert read_status(consortium.folder)["withdrawals_open"] == []


async def test_a_corrected_row_replaces_the_old_one_under_its_token(
    pair: Pair, tmp_path: Path
) -> None:
    north, south = pair
    await delivered(north, south)
    fill_site(north, tmp_path / "filled.csv", seed=1)
    token, patient = one_given(south)
    table = pd.read_csv(south.settings.data)
    edit(
        south,
        bp=[
            177.0 if mrn == patient else bp
            for mrn, bp in zip(table["mrn"], table["bp"], strict=True)
        ],
    )

    assert correct_patient(south, patient).rows == 1
    await exchange(south, north, south)

    rows, tokens = load_with_tokens(north)
    assert rows["bp"][tokens.index(token)] == 177
    assert (rows["bp"] == 177).sum() == 1
    (entry,) = describe_withdrawals(south)
    assert (entry["report"]["rows_corrected"], entry["report"]["rows_purged"]) == (1, 0)
    assert "before a correction" in summarise(north)["files_to_delete"][0]
    # The row may be withdrawn later, as any other.
    withdraw_patient(south, patient)
    await exchange(south, north)
    assert token not in tokens_at(north)


@pytest.mark.parametrize("change", [{"bp": 75.0}, {"progressed": 0}, {"consent": "no"}])
async def test_a_correction_that_no_longer_answers_the_request_purges(
    pair: Pair, change: dict[str, Any]
) -> None:
    north, south = pair
    await delivered(north, south)
    token, patient = one_given(south)
    table = pd.read_csv(south.settings.data)
    for column, value in change.items():
        changed = [
            value if m == patient else v for m, v in zip(table["mrn"], table[column], strict=True)
        ]
        edit(south, **{column: changed})
    correct_patient(south, patient)
    await exchange(south, north, south)
    assert token not in tokens_at(north)
    assert len(tokens_at(north)) == 4


async def test_a_donors_steward_withdraws_a_whole_transfer(pair: Pair) -> None:
    north, south = pair
    identifier = await delivered(north, south)

    done = withdraw_transfer(south, transfer_at(south, identifier), steward(), "ethics board")
    await exchange(south, north, south)

    assert done.rows == 5
    assert tokens_at(north) == []
    assert states(identifier, north, south) == ["PURGED", "PURGED"]
    (entry,) = describe_withdrawals(north)
    assert (entry["reason"], entry["report"]["rows_purged"]) == ("ethics board", 5)
    with pytest.raises(UsageError, match="write 1 to 2000"):
        withdraw_transfer(south, transfer_at(south, identifier), steward(), "")


async def test_a_recipients_steward_purges_and_the_donor_is_told(
    pair: Pair, tmp_path: Path
) -> None:
    north, south = pair
    identifier = await delivered(north, south)
    export_received(north, tmp_path / "rows.csv")

    report = purge_transfer(north, transfer_at(north, identifier), steward(), "study ended")
    await exchange(north, south)

    assert (report.rows_purged, [c.name for c in report.copies]) == (5, ["rows.csv"])
    assert states(identifier, north, south) == ["PURGED", "PURGED"]
    (told,) = map(json.loads, events(south, "purge reported"))
    assert (told["rows_purged"], told["copies"][0]["name"]) == (5, "rows.csv")
    with pytest.raises(LifecycleError, match="PURGED"):
        purge_transfer(north, transfer_at(north, identifier), steward(), "again")
    # Files written before are still the patient's business.
    withdraw_patient(south, one_given(south)[1])
    await exchange(south, north, south)
    (entry,) = describe_withdrawals(south)
    assert (entry["report"]["rows_not_held"], entry["report"]["copies"][0]["rows"]) == (1, 1)


async def test_rows_past_their_retention_are_purged_by_the_agent(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    identifier = await delivered(north, south)
    with north.store.write() as connection:
        past = store.now_ms() - 366 * 24 * HOUR_MS
        connection.execute(store.transfers.update().values(changed_at_ms=past))

    await exchange(north, south)

    assert tokens_at(north) == []
    assert states(identifier, north, south) == ["PURGED", "PURGED"]
    assert "365 days of retention" in (transfer_at(south, identifier).reason or "")


async def test_purged_rows_are_gone_from_the_disk(pair: Pair) -> None:
    north, south = pair
    await delivered(north, south)
    with north.store.read() as connection:
        blobs = list(connection.execute(sa.select(store.received.c.sample)).scalars())

    withdraw_transfer(south, donated(south), steward(), "ethics board")
    await exchange(south, north)

    files = b"".join(path.read_bytes() for path in north.settings.folder.glob("site.db*"))
    assert not any(blob in files for blob in blobs)


def donated(south: Site) -> Any:
    with south.store.read() as connection:
        (identifier,) = connection.execute(sa.select(store.transfers.c.transfer_id)).scalars()
    return transfer_at(south, identifier)


async def test_nobody_but_the_donor_learns_who_or_how_many_withdrew(
    pair: Pair, consortium: Consortium
) -> None:
    north, south = pair
    await delivered(north, south)
    held = list(ledger(south).items())
    for _, patient in held[:2]:
        withdraw_patient(south, patient)
    withdraw_transfer(south, donated(south), steward(), "ethics board")
    notices = [pb.Statement.FromString(s.statement) for s in queued(south)]
    sizes = {len(n.payload) for n in notices}
    await exchange(south, north, south)

    assert len(notices) == 3
    assert len(sizes) == 1
    disk = b"".join(p.read_bytes() for p in consortium.folder.path.rglob("*") if p.is_file())
    other = b"".join(p.read_bytes() for p in north.settings.folder.rglob("*") if p.is_file())
    for token, patient in held:
        assert token not in disk
        assert token.hex().encode() not in disk
        assert patient.encode() not in disk + other
    for site in pair:
        with site.store.read() as connection:
            details = " ".join(connection.execute(sa.select(store.events.c.details)).scalars())
        assert not any(token.hex() in details or patient in details for token, patient in held)


async def test_a_withdrawal_of_somebody_elses_rows_is_refused(pair: Pair) -> None:
    from synthedge_client.purging import carry_out_notices, keep_notice

    north, south = pair
    identifier = await delivered(north, south)
    withdraw_patient(south, one_given(south)[1])
    signed = queued(south)[-1]
    # The rows came from another donor, as far as north knows.
    with north.store.write() as connection:
        connection.execute(store.received.update().values(transfer_id=b"another donor's transfer"))

    assert keep_notice(north, signed)
    assert not carry_out_notices(north)
    with north.store.read() as connection:
        assert (
            connection.execute(sa.select(sa.func.count()).select_from(store.received)).scalar_one()
            == 5
        )
    (entry,) = describe_withdrawals(north)
    assert "rows of another transfer; nothing was deleted" in entry["problem"]
    assert entry["state"] == "NOTIFIED"
    assert states(identifier, north) == ["ACTIVE"]


def test_a_patient_nobody_knows_cannot_withdraw(pair: Pair) -> None:
    south = pair[1]
    with pytest.raises(UsageError, match="neither the table nor the ledger") as refused:
        withdraw_patient(south, "nobody-123")
    assert "nobody-123" not in str(refused.value)
    with pytest.raises(UsageError, match="Data Use Ontology"):
        withdraw_patient(south, "s-1130", purpose="research")
    with pytest.raises(RefusedError, match="nothing to correct"):
        correct_patient(south, "s-1130")


@pytest.mark.parametrize("killed_in", ["keep_notice", "seal_to_peer", "send_waiting"])
async def test_killed_anywhere_a_withdrawal_is_carried_out_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    from synthedge_client import agent, purging

    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    north, south = pair
    await delivered(north, south)
    token, patient = one_given(south)
    withdraw_patient(south, patient)
    await exchange(south)
    with monkeypatch.context() as patched:
        patched.setattr(purging if killed_in == "seal_to_peer" else agent, killed_in, killed)
        with pytest.raises(KilledError):
            await exchange(north)
    # Before its receipt is written, nothing is deleted: both are one transaction.
    assert (token in tokens_at(north)) == (killed_in != "send_waiting")
    await exchange(north, south)

    assert token not in tokens_at(north)
    assert len(tokens_at(north)) == 4
    assert len(events(north, "withdrawal carried out")) == 1
    assert len(events(south, "withdrawal settled")) == 1
    assert describe_withdrawals(south)[0]["report"]["rows_purged"] == 1


async def test_a_withdrawal_reaches_a_recipient_that_changed_its_keys(pair: Pair) -> None:
    from synthedge_client.rotation import rotate

    north, south = pair
    await delivered(north, south)
    # South's notice is sealed before it hears of north's new sealing key, north's receipt after.
    withdraw_patient(south, one_given(south)[1])
    rotate(north, steward(), sealing_only=True)
    await exchange(north, south)
    rotate(south, steward(), sealing_only=True)
    await exchange(south, north, south)

    assert len(tokens_at(north)) == 4
    (entry,) = describe_withdrawals(south)
    assert (entry["state"], entry["report"]["rows_purged"]) == ("PURGED", 1)


@pytest.mark.parametrize("is_key_lost", [False, True])
async def test_a_withdrawal_that_waited_while_keys_changed_twice_is_carried_out(
    pair: Pair, is_key_lost: bool
) -> None:
    """If the key is gone, nobody can read which row is meant, and all of the transfer go."""
    from synthedge_client.rotation import forget_hpke_keys, rotate

    north, south = pair
    rotate(north, steward(), sealing_only=True)
    await exchange(north, south)
    identifier = await delivered(north, south)
    sealed_to = north.hpke_key.key_id
    withdraw_patient(south, one_given(south)[1])
    for _ in range(2):
        rotate(north, steward(), sealing_only=True)
        await exchange(north)
    forget_hpke_keys(north)
    if is_key_lost:
        north.keys._file("hpke", sealed_to).unlink()

    await exchange(south, north, south)

    assert len(tokens_at(north)) == (0 if is_key_lost else 4)
    (entry,) = describe_withdrawals(south)
    assert (entry["state"], entry["report"]["rows_purged"]) == ("PURGED", 5 if is_key_lost else 1)
    if is_key_lost:
        await exchange(north, south)
        assert states(identifier, north, south) == ["PURGED", "PURGED"]


@pytest.mark.parametrize("whole", [False, True])
async def test_withdrawn_rows_do_not_come_back_with_a_backup(
    pair: Pair, consortium: Consortium, whole: bool
) -> None:
    from synthedge_client.divergence import recover

    north, south = pair
    identifier = await delivered(north, south)
    with sqlite3.connect(north.settings.database) as database:
        backup = b"".join(line.encode() + b"\n" for line in database.iterdump())
    if whole:
        withdraw_transfer(south, donated(south), steward(), "ethics board")
    else:
        withdraw_patient(south, one_given(south)[1])
    await exchange(south, north, south)
    north.store.close()
    for path in north.settings.folder.glob("site.db*"):
        path.unlink()
    with sqlite3.connect(north.settings.database) as database:
        database.executescript(backup.decode())
    assert len(tokens_at(north)) == 5

    with pytest.raises((RefusedError, IdentityError)):
        await exchange(north)
    recover_site(consortium.folder, "north")
    recover(north, steward())
    await exchange(north, south)

    assert tokens_at(north) == []
    assert states(identifier, north) == ["REVOKED"]


def test_of_very_many_files_a_peer_names_only_the_first_are_kept() -> None:
    report = pb.PurgeReport(
        rows_purged=1, copies=[pb.HeldCopy(name=f"{i}\x1b[2J") for i in range(1_003)]
    )
    fields = report_fields(report)
    assert [copy["name"] for copy in fields["copies"]] == [f"{i} [2J" for i in range(1_000)]
    assert fields["copies_not_kept"] == 3
