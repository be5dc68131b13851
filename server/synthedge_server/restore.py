"""A coordinator made anew from a backup, in a new folder, on either kind of database."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqlalchemy import Connection, Engine, Table, func, insert, select

from synthedge_protocols.errors import UnavailableError, VerificationError
from synthedge_protocols.writer import WRITES
from synthedge_server import store
from synthedge_server.archive import entries
from synthedge_server.backup import ABOUT, FILES, decoded
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.settings import check_database, parse_settings, settings_toml

_BATCH: Final = 500


def restore(
    backup: Path,
    folder: CoordinatorFolder,
    *,
    database: str | None = None,
    database_password_file: str | None = None,
) -> dict[str, Any]:
    """Make a coordinator's folder and database from a backup.

    Parameters
    ----------
    backup : Path
    folder : CoordinatorFolder
        Must not exist, or be empty.
    database, database_password_file : str, optional
        See `Settings`; the database must be empty. Without one, SQLite in the folder.

    Returns
    -------
    dict
        What was restored, as `backup.back_up` told, and ``log_problem``: why the audit log does not verify, or None. It
        is restored as it was, for people to look at.

    Raises
    ------
    UsageError
        If the folder or the database holds something already, or the file is no backup.
    VerificationError
        If the backup was changed.
    UnavailableError
        If it is of another version of the tables, the database cannot be reached, or the disk is full.
    """
    if database is not None:
        check_database(database)
    files = entries(backup)
    about = _about(backup, files)
    with folder.being_made():
        settings_text = ""
        rows = folder.path / ".rows"
        for entry, content in files:
            kind, _, name = entry.name.partition("/")
            if entry.name == f"{FILES}/{folder.settings.name}":
                settings_text = content.read().decode()
            else:
                _write((folder.path if kind == FILES else rows) / name, content, entry.mode)
        settings = replace(
            parse_settings(settings_text),
            database=database,
            database_password_file=database_password_file,
        )
        engine = store.open_database(folder, settings, make=True)
        try:
            _load(engine, rows)
            about["log_problem"] = _log_problem(engine)
        finally:
            engine.dispose()
        shutil.rmtree(rows)
        # Last: a folder without settings is not a coordinator's.
        folder.settings.write_text(settings_toml(settings), "utf-8")
        os.sync()
    return about


def _about(backup: Path, files: Any) -> dict[str, Any]:
    entry, content = next(files)
    about: dict[str, Any] = json.load(content) if entry.name == ABOUT else {}
    version = about.get("schema_version")
    if version != store.SCHEMA_VERSION:
        raise UnavailableError(
            f"{backup} holds tables of version {version}, this program works with {store.SCHEMA_VERSION}; restore it "
            f"with release {about.get('program')}, then run 'synthedge-coordinator database upgrade'"
        )
    return about


def _write(path: Path, content: BinaryIO, mode: int) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file)


def _load(engine: Engine, rows: Path) -> None:
    """Fill the tables, or take them away again, so that another try finds the database as empty as this one did."""
    writing = engine.execution_options(**{WRITES: True})
    try:
        with writing.begin() as connection:
            store.take_time(connection)
            for table in store.METADATA.sorted_tables:
                if table.name != "schema_version":
                    _load_table(connection, table, rows / f"{table.name}.jsonl")
            _count_on(connection)
    except BaseException:
        with suppress(UnavailableError), writing.begin() as connection:
            store.METADATA.drop_all(connection)
        raise


def _log_problem(engine: Engine) -> str | None:
    with engine.connect() as connection:
        try:
            store.event_log.verify(connection)
        except VerificationError as error:
            return str(error)
    return None


def _load_table(connection: Connection, table: Table, path: Path) -> None:
    with path.open(encoding="utf-8") as lines:
        while batch := [decoded(table, json.loads(line)) for line in islice(lines, _BATCH)]:
            connection.execute(insert(table), batch)


def _count_on(connection: Connection) -> None:
    """Let PostgreSQL number new rows behind the restored ones."""
    if connection.dialect.name != "postgresql":
        return
    for table in store.METADATA.sorted_tables:
        column = table.autoincrement_column
        if column is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            highest = select(func.max(column)).scalar_subquery()
            connection.execute(select(func.setval(sequence, highest)))
