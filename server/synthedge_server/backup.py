"""A coordinator in one file: one moment's database, the settings and keys, and the sealed bytes of that moment.

It is taken while `serve` runs. Tables are written row by row as JSON, so that another kind of database can take them.
"""

import base64
import json
import resource
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from sqlalchemy import Connection, LargeBinary, Table, select

from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError
from synthedge_server import store
from synthedge_server.archive import ArchiveWriter, writing
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import system_clock
from synthedge_server.operations import reading
from synthedge_server.relay import spooled
from synthedge_server.settings import Settings, read_settings
from synthedge_server.transfer_records import spool_keys

ABOUT: Final = "backup.json"
FILES: Final = "folder"
TABLES: Final = "tables"
_BATCH: Final = 500
_TRIES: Final = 5


def back_up(folder: CoordinatorFolder, output: Path) -> dict[str, Any]:
    """Write a backup of a coordinator, beside a running `serve` or without one.

    Parameters
    ----------
    folder : CoordinatorFolder
    output : Path
        A new file, of mode 0600: it holds private keys. A folder gets one named by consortium and time (UTC), so that
        timers need no shell.

    Returns
    -------
    dict
        What it holds: ``consortium``, ``sites``, ``events``, ``sealed_files``, ``has_ca`` (false if the CA's folder was
        moved away) and ``made_at_ms``; and ``file``, its path.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's, or the file exists, or would lie in the folder.
    UnavailableError
        If the database cannot be opened, or the file not written.
    """
    settings = read_settings(folder.settings)
    if output.is_dir():
        moment = datetime.fromtimestamp(system_clock() / 1000, UTC)
        output /= f"{settings.consortium}-{moment:%Y-%m-%dT%H%M%SZ}.backup"
    if folder.path.resolve() in output.resolve().parents:
        raise UsageError(
            f"{output} lies in the coordinator's folder, and would be in the next backup; name a place outside of it, "
            "best on another disk"
        )
    with ExitStack() as stack, writing(output) as archive:
        opened: dict[str, BinaryIO] = {}
        tables: dict[str, IO[bytes]] = {}
        about: dict[str, Any] = {"consortium": settings.consortium}
        for tries_left in reversed(range(_TRIES)):
            # Files first, records then: what a record of the snapshot tells of is held open, whatever is deleted.
            _open_spool(folder, opened, stack)
            about["made_at_ms"] = system_clock()
            with reading(folder) as engine, engine.connect() as connection:
                wanted = {key.hex() for key in spool_keys(connection)}
                complete = {key.hex() for key in spool_keys(connection, complete=True)}
                tables, counts = _dump(connection, output.parent, stack)
            _open_spool(folder, opened, stack)
            if complete <= opened.keys():
                break
            if not tries_left:
                raise UnavailableError(
                    "sealed bytes that the database tells of are missing in spool/; run 'doctor'"
                )
        about |= {
            "program": version("synthedge-federation"),
            "schema_version": store.SCHEMA_VERSION,
            "sites": counts["sites"],
            "events": counts["events"],
            "sealed_files": len(wanted & opened.keys()),
            "has_ca": folder.ca_key.exists(),
        }
        archive.add_bytes(ABOUT, json.dumps(about).encode())
        for name, rows in tables.items():
            archive.add(f"{TABLES}/{name}.jsonl", rows)  # type: ignore[arg-type]
        for key in sorted(wanted & opened.keys()):
            archive.add(f"{FILES}/spool/{key}", opened[key])
        _add_files(archive, folder, settings)
    return about | {"file": str(output)}


def _dump(
    connection: Connection, scratch: Path, stack: ExitStack
) -> tuple[dict[str, IO[bytes]], dict[str, int]]:
    """Write every table of one snapshot into a file of its own; also how many rows each has."""
    files: dict[str, IO[bytes]] = {}
    counts: dict[str, int] = {}
    for table in store.METADATA.sorted_tables:
        if table.name == "schema_version":
            continue
        file = stack.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115
        counts[table.name] = 0
        for row in connection.execution_options(yield_per=_BATCH).execute(select(table)):
            file.write(json.dumps(encoded(table, row)).encode() + b"\n")
            counts[table.name] += 1
        files[table.name] = file
    return files, counts


def encoded(table: Table, row: Any) -> list[Any]:
    """A row as JSON has it: bytes in base64, the rest as it is, in the order of the table's columns."""
    return [
        base64.b64encode(value).decode()
        if value is not None and isinstance(column.type, LargeBinary)
        else value
        for column, value in zip(table.columns, row, strict=True)
    ]


def decoded(table: Table, values: list[Any]) -> dict[str, Any]:
    """The row that `encoded` wrote."""
    return {
        column.name: base64.b64decode(value)
        if value is not None and isinstance(column.type, LargeBinary)
        else value
        for column, value in zip(table.columns, values, strict=True)
    }


def _open_spool(folder: CoordinatorFolder, files: dict[str, BinaryIO], stack: ExitStack) -> None:
    """Open what is not open yet: a file that is deleted meanwhile can still be read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for key in spooled(folder.spool) if folder.spool.exists() else ():
        name = key.hex()
        if name not in files:
            with suppress(FileNotFoundError):
                files[name] = stack.enter_context((folder.spool / name).open("rb"))


def _add_files(archive: ArchiveWriter, folder: CoordinatorFolder, settings: Settings) -> None:
    for path in _files(folder, settings):
        with path.open("rb") as file:
            name = path.relative_to(folder.path)
            archive.add(f"{FILES}/{name}", file, mode=path.stat().st_mode & 0o777)


def _files(folder: CoordinatorFolder, settings: Settings) -> Iterator[Path]:
    """Settings, keys and certificates: everything that is no database, no lock and no sealed bytes."""
    password = settings.database_password_file
    databases = (folder.database.name, folder.superlink_database.name)
    others = {folder.lock, folder.path / password if password else None}
    for path in sorted(folder.path.rglob("*")):
        is_other = (
            path in others
            or path.name.startswith(databases)
            or path.suffix in (".boot", ".new", ".lock")
            or folder.spool in path.parents
        )
        if path.is_file() and not path.is_symlink() and not is_other:
            yield path
