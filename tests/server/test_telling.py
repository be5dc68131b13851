"""Sites are told in batches: after many reports once, after a restart still, and nothing twice."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import pytest
from sqlalchemy import select

from server_fixtures import (
    DICTIONARY_TOML,
    LIMITS,
    Clock,
    Consortium,
    counts_of_site,
    gap_report,
    kinds,
    new_folder,
)
from synthedge_core.match_strategies import SiteReport
from synthedge_server import dictionaries, store, telling
from synthedge_server.operations import change, reading
from synthedge_server.registry import Conclusion, Registry
from synthedge_server.serve import Coordinator, running


def details_of_tellings(coordinator: Consortium) -> list[str]:
    events = store.events
    with reading(coordinator.folder) as engine, engine.connect() as connection:
        found = select(events.c.detail).where(events.c.action == "matched")
        return list(connection.execute(found.order_by(events.c.id)).scalars())


def telling_of(coordinator: Consortium) -> telling.Telling:
    assert coordinator.telling is not None
    return coordinator.telling


async def test_many_reports_are_told_of_once(coordinator: Consortium) -> None:
    hospitals = [await coordinator.enrol(name) for name in ("north", "south", "west", "east")]
    async with telling_of(coordinator)._alone:  # as if a telling went on meanwhile
        for i, hospital in enumerate(hospitals):
            await hospital.submit(hospital.sign_as_steward(gap_report(*counts_of_site(i))))
    await coordinator.everybody_is_told()

    assert details_of_tellings(coordinator) == ["4 sites have reported; 8 messages"]
    for hospital in hospitals:
        assert kinds(await hospital.inbox()) == ["profile", "proposals"]


async def test_a_site_is_not_told_again_what_it_knows(coordinator: Consortium) -> None:
    north, *_ = await coordinator.reporting("north", "south", "west")
    before = await north.inbox()
    same = gap_report(*counts_of_site(0, hole=7))  # another release of the same counts

    await north.submit(north.sign_as_steward(same))
    await coordinator.everybody_is_told()

    assert await north.inbox() == before
    assert details_of_tellings(coordinator)[-1] == "3 sites have reported; 0 messages"


async def test_the_next_telling_waits_ten_times_what_the_last_one_took(
    coordinator: Consortium,
) -> None:
    north, *_ = await coordinator.reporting("north", "south", "west")
    teller = telling_of(coordinator)
    teller._not_before_s += 3600
    await north.submit(north.sign_as_steward(gap_report(*counts_of_site(5))))

    assert not await teller.tell_if_due()
    teller._not_before_s = 0.0
    assert await teller.tell_if_due()


async def test_what_was_told_half_is_told_by_the_next_process(tmp_path: Path) -> None:
    async def never(self: Coordinator) -> None:
        await asyncio.Event().wait()

    folder, clock = new_folder(tmp_path / "coordinator"), Clock()
    consortium = Consortium(folder, clock)
    with mock.patch.object(Coordinator, "_keep_telling", never):
        async with running(folder, clock=clock, limits=LIMITS) as started:
            consortium.listens(started)
            hospitals = [await consortium.enrol(name) for name in ("north", "south", "west")]
            for i, hospital in enumerate(hospitals):
                await hospital.submit(hospital.sign_as_steward(gap_report(*counts_of_site(i))))
            with (
                mock.patch.object(telling, "_SLICE", 1),
                mock.patch.object(telling, "_note", side_effect=OSError("dies here")),
                pytest.raises(OSError, match="dies here"),
            ):
                await started._telling.tell_if_due()
            before = [message.sequence for message in await hospitals[0].inbox()]
            await consortium.close()

    async with running(folder, clock=clock, limits=LIMITS) as started:
        consortium.listens(started)
        consortium.connect(hospitals[0])
        await consortium.everybody_is_told()
        assert details_of_tellings(consortium) == ["3 sites have reported; 0 messages"]
        assert [message.sequence for message in await hospitals[0].inbox()] == before
        await consortium.close()


async def test_a_new_dictionary_ends_what_is_told_of_the_old_one(
    coordinator: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, *others = [await coordinator.enrol(name) for name in ("north", "south", "west")]
    conclusions = Registry.conclusions
    second = DICTIONARY_TOML.replace("rows_per_transfer = 20", "rows_per_transfer = 10")

    def interrupted(registry: Registry, reports: Mapping[str, SiteReport]) -> Iterator[Conclusion]:
        first, *rest = conclusions(registry, reports)
        yield first
        change(coordinator.folder, lambda t: dictionaries.add(t, second))
        yield from rest

    monkeypatch.setattr(Registry, "conclusions", interrupted)
    monkeypatch.setattr(telling, "_SLICE", 1)
    async with telling_of(coordinator)._alone:
        for i, hospital in enumerate((north, *others)):
            await hospital.submit(hospital.sign_as_steward(gap_report(*counts_of_site(i))))
    while kinds(await others[-1].inbox()) != ["dictionary"]:
        await telling_of(coordinator).tell_if_due()

    assert kinds(await north.inbox()) == ["profile", "proposals", "dictionary"]
    assert kinds(await others[0].inbox()) == ["dictionary"]
    assert details_of_tellings(coordinator) == []
