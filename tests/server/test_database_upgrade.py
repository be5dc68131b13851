"""Databases of every earlier version of the tables, brought to the newest one."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from typer.testing import CliRunner

from postgres_server import PostgresServer
from server_fixtures import new_folder
from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.writer import WRITES
from synthedge_server import store
from synthedge_server.cli import app
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.locks import alone
from synthedge_server.settings import read_settings
from synthedge_server.upgrade import upgrade_database
from write_golden_schema import golden, golden_versions

OLDER = [version for version in golden_versions() if version < store.SCHEMA_VERSION]


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return new_folder(tmp_path / "coordinator")


def older(folder: CoordinatorFolder, version: int) -> None:
    """Put a golden database of an earlier version into the folder."""
    folder.database.unlink()
    with closing(sqlite3.connect(folder.database)) as database:
        database.executescript(golden(version, "sqlite").read_text("utf-8"))


def open_database(folder: CoordinatorFolder) -> None:
    store.open_database(folder, read_settings(folder.settings)).dispose()


def differences(engine: sa.Engine) -> list[object]:
    """What Alembic would still change to reach the tables of `store`."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [
            change
            for change in compare_metadata(context, store.METADATA)
            if getattr(change[1], "name", "") != "schema_version"
        ]


def rows(engine: sa.Engine) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            name: [
                tuple(row)
                for row in connection.execute(sa.select(sa.text("*")).select_from(sa.table(name)))
            ]
            for name in sa.inspect(connection).get_table_names()
            if name != "schema_version"
        }


@pytest.mark.parametrize("version", OLDER)
def test_an_older_database_becomes_the_newest_with_every_row_kept(
    folder: CoordinatorFolder, version: int
) -> None:
    older(folder, version)
    engine = store.engine_of(folder, read_settings(folder.settings))
    before = rows(engine)
    assert all(len(found) == 1 for found in before.values())
    assert upgrade_database(folder) == (version, store.SCHEMA_VERSION)
    open_database(folder)
    assert differences(engine) == []
    after = rows(engine)
    # What a revision adds to a table it adds behind its columns; what it does more is tested by itself.
    assert {name: [row[: len(before[name][0])] for row in after[name]] for name in before} == before
    engine.dispose()
    assert upgrade_database(folder) == (store.SCHEMA_VERSION, store.SCHEMA_VERSION)


@pytest.mark.slow
@pytest.mark.parametrize("version", OLDER)
def test_an_older_database_on_postgresql_becomes_the_newest_with_every_row_kept(
    postgres: PostgresServer, tmp_path: Path, version: int
) -> None:
    folder = new_folder(tmp_path / "coordinator", database=postgres.new_database())
    engine = store.engine_of(folder, read_settings(folder.settings))
    writing = engine.execution_options(**{WRITES: True})
    with writing.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        connection.exec_driver_sql(golden(version, "postgresql").read_text("utf-8"))
    before = rows(engine)
    assert upgrade_database(folder) == (version, store.SCHEMA_VERSION)
    open_database(folder)
    assert differences(engine) == []
    after = rows(engine)
    assert {name: [row[: len(before[name][0])] for row in after[name]] for name in before} == before
    engine.dispose()


def test_commands_refuse_an_older_database_and_name_the_command_that_upgrades_it(
    folder: CoordinatorFolder,
) -> None:
    older(folder, 1)
    with pytest.raises(
        UnavailableError, match=r"version 1, .*run 'synthedge-coordinator database upgrade --dir "
    ):
        open_database(folder)


def test_a_newer_database_is_refused_by_everything(folder: CoordinatorFolder) -> None:
    with closing(sqlite3.connect(folder.database)) as database:
        database.execute("UPDATE schema_version SET version = 99")
        database.commit()
    for use in (open_database, upgrade_database):
        with pytest.raises(UnavailableError, match=r"tables of version 99.* use the program that"):
            use(folder)


def test_nothing_is_upgraded_while_a_coordinator_runs(folder: CoordinatorFolder) -> None:
    older(folder, 1)
    with alone(folder), pytest.raises(RefusedError, match="another coordinator runs"):
        upgrade_database(folder)


def test_an_upgrade_that_fails_changes_nothing(folder: CoordinatorFolder) -> None:
    older(folder, 1)
    with closing(sqlite3.connect(folder.database)) as database:
        database.execute("DELETE FROM sites")
        database.commit()
    with pytest.raises(UnavailableError, match="refers to one that is not there"):
        upgrade_database(folder)
    with closing(sqlite3.connect(folder.database)) as database:
        assert database.execute("SELECT version FROM schema_version").fetchall() == [(1,)]


def test_the_command_says_what_it_did(folder: CoordinatorFolder) -> None:
    older(folder, 1)
    done = CliRunner().invoke(app, ["database", "upgrade", "--json", "--dir", str(folder.path)])
    assert json.loads(done.stdout)["data"] == {"from": 1, "to": store.SCHEMA_VERSION}
