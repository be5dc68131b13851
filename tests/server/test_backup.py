"""`backup` and `restore`: a coordinator in one file, on the same kind of database or the other one."""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from coordinator_processes import coordinator_command, free_ports, serving
from postgres_server import PostgresServer
from server_fixtures import (
    LIMITS,
    Clock,
    Consortium,
    kinds,
    new_folder,
    request_of,
    ship,
)
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import IdentityError, UnavailableError, VerificationError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import archive, store
from synthedge_server.backup import back_up
from synthedge_server.doctor import examine
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.operations import change, reading, rows
from synthedge_server.relay import spool_key
from synthedge_server.restore import restore
from synthedge_server.serve import running

PAYLOAD = bytes(50_000)


def contents(folder: CoordinatorFolder) -> dict[str, list[Any]]:
    """Every row of every table."""
    with reading(folder) as engine, engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table)).mappings()))
            for table in store.METADATA.sorted_tables
        }


def files(folder: CoordinatorFolder) -> dict[str, bytes]:
    """Keys, certificates and sealed bytes."""
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in folder.path.rglob("*")
        if path.is_file()
        and not path.name.startswith(("coordinator.", "serve.lock"))
        and path.suffix != ".boot"
    }


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Nothing was left behind in a folder."""
    yield
    assert not path.exists() or list(path.iterdir()) == []


def test_a_backup_into_a_folder_is_named_by_consortium_and_time(tmp_path: Path) -> None:
    old, backups = new_folder(tmp_path / "old"), tmp_path / "backups"
    backups.mkdir()
    about = back_up(old, backups)
    (made,) = backups.iterdir()
    assert re.fullmatch(r"test-consortium-\d{4}-\d\d-\d\dT\d{6}Z\.backup", made.name)
    assert about["file"] == str(made)
    restore(made, CoordinatorFolder(tmp_path / "new"))


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Of a coordinator that nobody has called yet."""
    path = tmp_path / "backup"
    back_up(new_folder(tmp_path / "old"), path)
    return path


async def test_a_backup_taken_while_it_runs_holds_one_moment_with_its_sealed_bytes(
    coordinator: Consortium, tmp_path: Path
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    done, begun = await ship(north, south, PAYLOAD), await ship(north, south, PAYLOAD)
    await south.upload(done.identifier, done.ciphertext)
    await south.upload(begun.identifier, begun.ciphertext, until=20_000)
    await coordinator.everybody_is_told()
    path, new = tmp_path / "backup", CoordinatorFolder(tmp_path / "new")

    about = back_up(coordinator.folder, path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert (about["sites"], about["sealed_files"], about["has_ca"]) == (3, 2, True)
    before = contents(coordinator.folder)
    restore(path, new)
    assert contents(new) == before
    assert files(new) == files(coordinator.folder)
    for name in ("ca/ca.key", "tls.key", "log.passphrase"):
        assert (new.path / name).stat().st_mode & 0o777 == 0o600
    # Those of an upload that is not complete are no loss: the donor goes on.
    for sealed in new.spool.iterdir():
        sealed.unlink()
    lost = spool_key(done.identifier, done.sealed.ciphertext_digest).hex()[:12]
    found = [p.subject for p in examine(new) if "sealed bytes of a transfer are missing" in p.what]
    assert found == [f"spool/{lost}"]


@pytest.mark.slow
async def test_backups_taken_while_transfers_come_and_go_hold_the_bytes_their_records_tell_of(
    coordinator: Consortium, tmp_path: Path
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    stop = asyncio.Event()

    async def come_and_go() -> None:
        waiting: list[bytes] = []
        while not stop.is_set():
            shipped = await ship(north, south, PAYLOAD)
            await south.upload(shipped.identifier, shipped.ciphertext)
            waiting.append(shipped.identifier)
            if len(waiting) > 2:
                ending = pb.Ending(transfer_id=waiting.pop(0), state="CANCELLED", reason="enough")
                await north.submit(north.sign_as_steward(ending))

    coming = asyncio.create_task(come_and_go())
    n_complete = 0
    for n in range(12):
        path, new = tmp_path / f"backup {n}", CoordinatorFolder(tmp_path / f"new {n}")
        await asyncio.to_thread(back_up, coordinator.folder, path)
        await asyncio.to_thread(restore, path, new)
        complete = store.uploads.c.completed_at_ms.is_not(None)
        for upload in rows(new, sa.select(store.uploads).where(complete)):
            key = spool_key(upload["transfer_id"], upload["ciphertext_digest"])
            assert (new.spool / key.hex()).stat().st_size == upload["ciphertext_bytes"]
            n_complete += 1
    stop.set()
    await coming
    assert n_complete


def test_a_backup_with_any_byte_changed_or_missing_restores_nothing(
    backup: Path, tmp_path: Path
) -> None:
    data = backup.read_bytes()
    for place in [0, 40, len(data) - 1, *range(1, len(data), len(data) // 40)]:
        changed = bytearray(data)
        changed[place] ^= 1
        backup.write_bytes(changed)
        with unchanged(tmp_path / "new"), pytest.raises((VerificationError, UsageError)):
            restore(backup, CoordinatorFolder(tmp_path / "new"))
    for part in (data[:-1], data[: len(data) // 2], data[:10], b""):
        backup.write_bytes(part)
        with unchanged(tmp_path / "new"), pytest.raises((VerificationError, UsageError)):
            restore(backup, CoordinatorFolder(tmp_path / "new"))


@pytest.mark.parametrize(
    "name", ["files/{}", "files/../../escaped", "files//{}", "/{}", "files/./x"]
)
def test_a_forged_backup_writes_nothing_outside_the_folder(tmp_path: Path, name: str) -> None:
    escaped = tmp_path / "escaped"
    forged = tmp_path / "forged"
    with archive.writing(forged) as writer:
        writer.add_bytes(
            "backup.json", json.dumps({"schema_version": store.SCHEMA_VERSION}).encode()
        )
        writer.add_bytes(name.format(escaped), b"not wanted")
    with pytest.raises(VerificationError, match="an entry that no backup has"):
        restore(forged, CoordinatorFolder(tmp_path / "restored"))
    assert not escaped.exists()


def test_nothing_is_overwritten(backup: Path, tmp_path: Path) -> None:
    old = CoordinatorFolder(tmp_path / "old")
    with pytest.raises(UsageError, match="exists already"):
        back_up(old, backup)
    with unchanged(old.spool), pytest.raises(UsageError, match="would be in the next backup"):
        back_up(old, old.spool / "backup")
    with pytest.raises(UsageError, match="is not empty; name a new folder"):
        restore(backup, old)
    with pytest.raises(UsageError, match="is no backup of a coordinator"):
        restore(old.settings, CoordinatorFolder(tmp_path / "new"))
    with unchanged(tmp_path / "new"), pytest.raises(UnavailableError, match="cannot be reached"):
        restore(
            backup, CoordinatorFolder(tmp_path / "new"), database="postgresql://me@127.0.0.1:1/x"
        )


def test_a_ca_that_was_moved_away_and_the_superlinks_database_are_not_in_the_backup(
    tmp_path: Path,
) -> None:
    folder = new_folder(tmp_path / "old")
    (folder.path / "ca").rename(tmp_path / "safe")
    # Half of a database that is being written, which the SuperLink makes anew.
    folder.flower.mkdir()
    (folder.flower / "superlink.db-wal").touch()
    (folder.flower / "superlink.pem").touch()
    told = coordinator_command("backup", str(tmp_path / "backup"), f"--dir={folder.path}")
    assert "the CA's key is not in it" in told
    told = coordinator_command("restore", str(tmp_path / "backup"), str(tmp_path / "new"))
    assert "put ca/ back into" in told
    assert not (tmp_path / "new" / "ca").exists()
    assert [path.name for path in (tmp_path / "new" / "flower").iterdir()] == ["superlink.pem"]


def test_a_backup_of_another_release_names_it(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SCHEMA_VERSION", store.SCHEMA_VERSION + 1)
    with (
        unchanged(tmp_path / "new"),
        pytest.raises(UnavailableError, match=r"restore it with release .*database upgrade"),
    ):
        restore(backup, CoordinatorFolder(tmp_path / "new"))


def test_a_log_that_was_changed_before_is_restored_as_it_was_and_named(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "old")
    change(folder, lambda t: t.record("operator", "invited", "north"))
    change(folder, lambda t: t.connection.execute(
        sa.update(store.events).where(store.events.c.id == 2).values(subject="south")
    ))  # fmt: skip
    back_up(folder, tmp_path / "backup")
    about = restore(tmp_path / "backup", CoordinatorFolder(tmp_path / "new"))
    assert about["log_problem"] == "entry 2 of the audit log was changed"


@pytest.mark.slow
def test_a_restore_that_fails_leaves_the_database_empty_for_the_next_one(
    postgres: PostgresServer, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, new = postgres.new_database(), CoordinatorFolder(tmp_path / "new")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with unchanged(new.path), monkeypatch.context() as patch:
        patch.setattr("synthedge_server.restore._count_on", full)
        with pytest.raises(UnavailableError, match="cannot be written: No space left on device"):
            restore(backup, new, database=url)
    assert restore(backup, new, database=url)["log_problem"] is None


@pytest.mark.slow
async def test_a_coordinator_moves_from_sqlite_to_postgresql_and_back(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    old = new_folder(tmp_path / "old")
    consortium = Consortium(old, Clock())
    async with running(old, clock=consortium.clock, limits=LIMITS) as started:
        consortium.listens(started)
        north, south, _ = await consortium.reporting("north", "south", "west")
        await north.submit(north.sign_as_steward(request_of(north, "south")))
        question = wire.CompareRequest(inbox_after=99)
        question.challenge = (await south.stub.Compare(question)).challenge
        assert (await south.stub.Compare(question)).reason  # a numbered row, too
        await consortium.close()
    before = contents(old)
    back_up(old, tmp_path / "first")
    moved = CoordinatorFolder(tmp_path / "moved")
    restore(tmp_path / "first", moved, database=postgres.new_database())
    assert contents(moved) == before
    change(
        moved,
        lambda t: t.connection.execute(
            sa.insert(store.divergences).values(
                site="north", found_at_ms=1, reason="", inbox_after=0, transfers="[]"
            )
        ),
    )
    change(moved, lambda t: t.connection.execute(
        sa.delete(store.divergences).where(store.divergences.c.site == "north")
    ))  # fmt: skip
    back_up(moved, tmp_path / "second")
    returned = CoordinatorFolder(tmp_path / "returned")
    restore(tmp_path / "second", returned)
    assert contents(returned) == before


@pytest.mark.slow
async def test_sites_go_on_at_a_coordinator_restored_on_a_fresh_machine(tmp_path: Path) -> None:
    ports = free_ports(2)
    old = new_folder(tmp_path / "old", sites_port=ports[0], enrolment_port=ports[1])
    consortium = Consortium(old, Clock())
    consortium.sites_port, consortium.enrolment_port = ports
    async with serving(old):
        north, south, west = await consortium.reporting("north", "south", "west")
        shipped = await ship(north, south, PAYLOAD)
        await south.upload(shipped.identifier, shipped.ciphertext)
        coordinator_command("backup", str(tmp_path / "backup"), f"--dir={old.path}")
        later = west.sign_as_steward(request_of(west, "south"))
        await west.submit(later)

    told = coordinator_command("restore", str(tmp_path / "backup"), str(tmp_path / "new"))
    assert "frozen when they call" in told
    consortium.folder = new = CoordinatorFolder(tmp_path / "new")
    async with serving(new):
        for hospital in (north, south, west):
            consortium.connect(hospital)
        # What was on its way arrives.
        assert await north.download(shipped.identifier) == shipped.ciphertext
        assert await north.release_key(shipped.identifier) == shipped.shipment
        assert kinds(await north.inbox())[-1] == "shipment"
        await consortium.enrol("east")
        # Who was told more than the backup knows is found.
        mine = sa.select(store.statements.c.digest).where(store.statements.c.site == "west")
        sent = [row["digest"] for row in rows(new, mine)]
        question = wire.CompareRequest(sent=[*sent, hashlib.sha256(later.statement).digest()])
        question.challenge = (await west.stub.Compare(question)).challenge
        assert "coordinator's database is older" in (await west.stub.Compare(question)).reason
        with pytest.raises(IdentityError, match="suspended"):
            await west.submit(later)
        coordinator_command("sites", "recover", "west", f"--dir={new.path}")
        await west.submit(later)
        assert (await south.inbox())[-1].statement == later
        await consortium.close()
