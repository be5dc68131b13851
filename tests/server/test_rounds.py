"""Rounds of discovery at a real coordinator, over the sites' own connections, hostile answers included."""

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import select

from server_fixtures import (
    DIGEST,
    TIMEOUT_S,
    Consortium,
    Hospital,
    as_protocol_error,
    counts_of_site,
    eventually,
    gap_report,
    new_folder,
)
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import MalformedError, PolicyError, UnavailableError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import operations, store
from synthedge_server.discovery import run_round
from synthedge_server.registries import Registries
from synthedge_server.rounds import close_round, open_round

pytestmark = pytest.mark.slow


def answer_of(hospital: Hospital, asked: wire.DiscoveryRound, **said: Any) -> pb.SignedStatement:
    fields = {"round_id": asked.round_id, "dictionary_digest": asked.dictionary_digest, **said}
    return hospital.sign(pb.DiscoveryAnswer(**fields), dictionary_digest=b"")


def report_of(hospital: Hospital, i_site: int = 0) -> pb.SignedStatement:
    return hospital.sign_as_steward(gap_report(*counts_of_site(i_site)))


def opened(coordinator: Consortium, *sites: str) -> wire.DiscoveryRound:
    return operations.change(
        coordinator.folder, lambda t: open_round(t, "channel", sites or None, 60.0)
    )


def closed(coordinator: Consortium, asked: wire.DiscoveryRound) -> dict[str, tuple[str, str]]:
    rows = operations.change(coordinator.folder, lambda t: close_round(t, asked.round_id, {}))
    return {row["site"]: (row["outcome"], row["reason"]) for row in rows}


async def test_a_round_opened_by_a_command_reaches_open_streams_and_tells_what_came_back(
    coordinator: Consortium,
) -> None:
    north, south, _ = [await coordinator.enrol(name) for name in ("north", "south", "west")]

    async def answer(hospital: Hospital, **said: Any) -> None:
        stream = hospital.stub.Inbox(wire.InboxRequest(follow=True), timeout=TIMEOUT_S)
        async with as_protocol_error():
            message = await stream.read()
        await hospital.submit(answer_of(hospital, message.round, **said))
        stream.cancel()

    answering = [
        asyncio.create_task(answer(north, report=report_of(north))),
        asyncio.create_task(answer(south, refusal="paused")),
    ]
    data = await asyncio.to_thread(run_round, coordinator.folder, "channel", None, 2.5)
    await asyncio.gather(*answering)
    assert [(row["site"], row["outcome"]) for row in data["sites"]] == [
        ("north", "ok"),
        ("south", "refused"),
        ("west", "timed out"),
    ]
    assert data["dictionary"] == DIGEST.hex()


async def test_what_cannot_be_taken_in_is_told_and_a_good_answer_still_counts(
    coordinator: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = await coordinator.enrol("north"), await coordinator.enrol("south")
    asked = opened(coordinator)
    await north.submit(answer_of(north, asked, report=report_of(south)))
    await south.submit(answer_of(south, asked, refusal="no such reason\x1b[31m"))
    found = closed(coordinator, asked)
    assert found["north"][0] == "rejected"
    assert "'south'" in found["north"][1]
    assert found["south"] == (
        "refused",
        "for a reason this coordinator does not know: 'no such reason\\x1b[31m'",
    )
    good = answer_of(north, asked, report=report_of(north))
    with monkeypatch.context() as patched:
        patched.setattr(Registries, "accept", Mock(side_effect=UnavailableError("disk is full")))
        with pytest.raises(UnavailableError, match="disk is full"):
            await north.submit(good)
    await north.submit(good)
    await north.submit(answer_of(north, asked, refusal="paused"))
    assert closed(coordinator, asked)["north"] == ("ok", "")


async def test_answers_that_make_no_sense_are_refused(coordinator: Consortium) -> None:
    north, south = await coordinator.enrol("north"), await coordinator.enrol("south")
    asked, report = opened(coordinator, "north"), report_of(north)
    for error, said in (
        (MalformedError, {}),
        (MalformedError, {"report": report, "refusal": "paused"}),
        (MalformedError, {"refusal": "paused", "dictionary_digest": b"x" * 32}),
        (PolicyError, {"refusal": "paused", "round_id": b"x" * 16}),
        (PolicyError, {"refusal": "paused", "round_id": b""}),
    ):
        with pytest.raises(error):
            await north.submit(answer_of(north, asked, **said))
    with pytest.raises(PolicyError, match="was not asked in"):
        await south.submit(answer_of(south, asked, refusal="paused"))
    # A housekeeping writes down by and by who called.
    called = select(store.sites.c.site).where(store.sites.c.last_seen_ms.is_not(None))
    await eventually(lambda: {"site": "north"} in operations.rows(coordinator.folder, called))
    assert closed(coordinator, asked)["north"][0] == "timed out"


async def test_a_flower_round_without_a_superlink_says_how_to_start_one_and_opens_nothing(
    coordinator: Consortium,
) -> None:
    await coordinator.enrol("north")
    with pytest.raises(UnavailableError, match="run 'synthedge-coordinator flower serve'"):
        await asyncio.to_thread(run_round, coordinator.folder, "flower", None, 5.0)
    assert operations.rows(coordinator.folder, select(store.rounds)) == []


def test_a_round_that_no_coordinator_would_hear_the_answers_of_is_not_opened(
    tmp_path: Path,
) -> None:
    folder = new_folder(tmp_path / "coordinator")
    with pytest.raises(UnavailableError, match="start 'synthedge-coordinator serve'"):
        run_round(folder, "channel", None, 5.0)
    assert operations.rows(folder, select(store.rounds)) == []


async def test_no_site_is_not_every_site(coordinator: Consortium) -> None:
    await coordinator.enrol("north")
    with pytest.raises(UsageError, match="no site was named"):
        await asyncio.to_thread(run_round, coordinator.folder, "channel", [], 5.0)


async def test_a_round_lasts_more_than_no_time_and_at_most_a_day(coordinator: Consortium) -> None:
    await coordinator.enrol("north")
    for timeout_s in (0.0, -1.0, float("nan"), 86_401.0):
        with pytest.raises(UsageError, match="at most a day"):
            await asyncio.to_thread(run_round, coordinator.folder, "channel", None, timeout_s)
