"""Sites watch the coordinator's audit log: it can grow, but neither change nor be told in two versions."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from enrolled import coordinating, exchange
from server_fixtures import Consortium
from sites import events
from synthedge_client import log_heads, store
from synthedge_client.log_heads import alarms, clear_alarms
from synthedge_client.site import Site
from synthedge_protocols.checkpoints import SignedCheckpoint
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.operations import change


@pytest.fixture(autouse=True)
def _witness_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_heads, "WITNESS_EVERY_MS", 0)


def alarms_of(site: Site) -> list[str]:
    with site.store.read() as connection:
        return [alarm["what"] for alarm in alarms(connection)]


def copy_database(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def last_witnessed(site: Site) -> pb.SignedStatement:
    with site.store.read() as connection:
        blob = connection.execute(
            sa.select(store.outbox.c.statement)
            .where(store.outbox.c.kind == "witnessed-head")
            .order_by(store.outbox.c.id.desc())
            .limit(1)
        ).scalar_one()
    return pb.SignedStatement.FromString(blob)


async def test_sites_countersign_heads_and_find_that_they_were_shown_one_history(
    pair: list[Site],
) -> None:
    north, south = pair
    await exchange(north, south, north, south)
    for site, other in ((north, south), (south, north)):
        assert alarms_of(site) == []
        with site.store.read() as connection:
            seen = connection.execute(sa.select(store.peer_heads)).one()
            assert (seen.site, seen.is_compared) == (other.settings.id, True)
            n_heads = connection.execute(
                sa.select(sa.func.count()).select_from(store.coordinator_heads)
            ).scalar_one()
        assert n_heads >= 2


async def test_a_coordinator_that_shows_two_histories_is_caught_by_the_first_head_that_crosses(
    consortium: Consortium, pair: list[Site], tmp_path: Path
) -> None:
    north, south = pair
    folder = CoordinatorFolder(tmp_path / "coordinator")
    twin = CoordinatorFolder(tmp_path / "twin")
    shutil.copytree(
        folder.path, twin.path, ignore=shutil.ignore_patterns("coordinator.db*", "*.lock")
    )
    copy_database(folder.database, twin.database)
    await exchange(north)
    async with coordinating(twin) as other_face:
        with south.store.write() as connection:
            store.set_fact(connection, "address", f"127.0.0.1:{other_face.sites_port}")
        await exchange(south, south)
    message = wire.InboxMessage(statement=last_witnessed(south))
    await asyncio.to_thread(change, folder, lambda t: t.post("north", message))
    await exchange(north)
    assert "site 'south' was shown another history" in alarms_of(north)[0]
    # Both heads are kept, signed by the coordinator: nobody has to believe north.
    with north.store.read() as connection:
        (alarm,) = alarms(connection)
        assert SignedCheckpoint.parse(alarm["note"]).checkpoint.origin.endswith("/coordinator")
    with north.store.write() as connection:
        clear_alarms(connection, "ada")
    assert alarms_of(north) == []
    assert len(events(north, "coordinator log diverged")) == 1


async def test_a_history_that_was_cut_back_is_noticed(
    consortium: Consortium, pair: list[Site], tmp_path: Path
) -> None:
    north, south = pair
    before = tmp_path / "before.db"
    copy_database(CoordinatorFolder(tmp_path / "coordinator").database, before)
    await exchange(north, south, north)
    old = CoordinatorFolder(tmp_path / "restored")
    shutil.copytree(
        tmp_path / "coordinator",
        old.path,
        ignore=shutil.ignore_patterns("coordinator.db*", "*.lock"),
    )
    shutil.copy(before, old.database)
    async with coordinating(old) as restored:
        with north.store.write() as connection:
            store.set_fact(connection, "address", f"127.0.0.1:{restored.sites_port}")
        channel = replace(north).connect()  # the address was read before
        try:
            await asyncio.to_thread(log_heads.exchange_heads, north, channel)
        finally:
            channel.close()
    assert "the coordinator's own newest head" in alarms_of(north)[0]
