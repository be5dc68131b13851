"""The version of a database's tables: made with them, checked whenever it is opened.

A program that opened tables of another version would work with half of them; it refuses instead.
"""

from typing import Final

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, inspect, select

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.writer import WRITES

__all__ = ["open_tables"]

_TABLE: Final = "schema_version"


def open_tables(
    engine: Engine, metadata: MetaData, version: int, name: str, *, make: bool = True
) -> None:
    """Make the tables of a new database, or check the version of the ones it has.

    Parameters
    ----------
    engine : Engine
    metadata : MetaData
        All tables; gets one more, for the version.
    version : int
        What this program knows, 1 or more; raised with every change of the tables.
    name : str
        What users know the database as.
    make : bool
        Whether an empty database is a new one; else it is one that got lost.

    Raises
    ------
    UnavailableError
        If the database has tables of another version, or none where there should be some.
    """
    table = metadata.tables.get(_TABLE)
    if table is None:
        table = Table(_TABLE, metadata, Column("version", Integer, primary_key=True))
    with engine.connect() as connection:
        found = _version(connection, table)
    if found is None and make:
        # With the write lock: another process may be making the very same tables.
        with (
            engine.connect().execution_options(**{WRITES: True}) as connection,
            connection.begin(),
        ):
            found = _version(connection, table)
            if found is None:
                metadata.create_all(connection)
                connection.execute(table.insert().values(version=version))
                found = version
    if found != version:
        holds = "is empty" if found is None else f"has tables of version {found or 'unknown'}"
        raise UnavailableError(
            f"{name} {holds}, this program works with version {version}; "
            "use the program that wrote it, or restore a backup that this one wrote"
        )


def _version(connection: Connection, table: Table) -> int | None:
    """Version of the tables that are there; None if there are none, 0 if nothing says so."""
    names = inspect(connection).get_table_names()
    if _TABLE in names:
        return int(connection.execute(select(table.c.version)).scalar_one())
    return 0 if names else None
