"""A database of an earlier version brought to this program's, by Alembic's revisions, in one transaction.

Only the operator's command does this, and only while nobody else works on the database. The version that counts is the
one in ``schema_version``, with which databases have been made since the first release.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sqlalchemy import Connection, Engine

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.schema import found_version, note_version
from synthedge_protocols.writer import WRITES
from synthedge_server import migrations, store
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.locks import alone
from synthedge_server.settings import Settings, read_settings


def upgrade_database(folder: CoordinatorFolder) -> tuple[int, int]:
    """Bring a folder's database to the version this program works with; return the old and the new one.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's.
    RefusedError
        If a coordinator runs on it.
    UnavailableError
        If the database cannot be opened, or no revision leads from its tables to this program's.
    """
    settings = read_settings(folder.settings)
    with alone(folder), _alone_on_database(folder, settings):
        engine = store.engine_of(folder, settings)
        try:
            return upgrade_tables(engine)
        finally:
            engine.dispose()


def _alone_on_database(
    folder: CoordinatorFolder, settings: Settings
) -> AbstractContextManager[None]:
    if settings.database is None:
        return nullcontext()
    from synthedge_server.postgres import alone_on

    return alone_on(settings.database, store.postgres_arguments(folder, settings))


def upgrade_tables(engine: Engine) -> tuple[int, int]:
    """Do what `upgrade_database` does, to tables that nobody else uses."""
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        if is_sqlite:
            # Before the transaction, in which it would not count: a table that is made anew is dropped in between.
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA foreign_keys=OFF")
            cursor.close()
        with connection.begin():
            store.take_time(connection)
            found = found_version(connection)
            if not found or found > store.SCHEMA_VERSION:
                raise UnavailableError(
                    f"the database has tables of version {found or 'unknown'}, this program knows "
                    f"1 to {store.SCHEMA_VERSION}; use the program that wrote it, or restore a backup"
                )
            _run_revisions(connection, found)
            if is_sqlite:
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                if broken is not None:
                    raise UnavailableError(
                        f"the database was not changed: a row of its table '{broken[0]}' refers to one that is not "
                        "there; restore a backup"
                    )
    return found, store.SCHEMA_VERSION


def _run_revisions(connection: Connection, found: int) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    here = str(Path(migrations.__file__).parent)
    script = ScriptDirectory(here, version_locations=[here])
    newer = list(script.iterate_revisions(str(store.SCHEMA_VERSION), str(found)))
    with Operations.context(MigrationContext.configure(connection)):
        for revision in reversed(newer):
            revision.module.upgrade()
            note_version(connection, int(revision.revision))
