"""The version of a database's tables: made with them, checked whenever it is opened.

A program that opened tables of another version would work with half of them; it refuses instead.
"""

from typing import Final

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, inspect, select, update

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.writer import WRITES

__all__ = ["found_version", "note_version", "open_tables"]

_TABLE: Final = "schema_version"


def open_tables(
    engine: Engine,
    metadata: MetaData,
    version: int,
    name: str,
    *,
    make: bool = True,
    if_older: str | None = None,
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
    if_older : str, optional
        What a user does about tables of an earlier version.

    Raises
    ------
    UnavailableError
        If the database has tables of another version, or none where there should be some.
    """
    table = _table(metadata)
    with engine.connect() as connection:
        found = found_version(connection)
    if found is None and make:
        # With the write lock: another process may be making the very same tables.
        with (
            engine.connect().execution_options(**{WRITES: True}) as connection,
            connection.begin(),
        ):
            found = found_version(connection)
            if found is None:
                metadata.create_all(connection)
                connection.execute(table.insert().values(version=version))
                found = version
    if found != version:
        holds = "is empty" if found is None else f"has tables of version {found or 'unknown'}"
        advice = "use the program that wrote it, or restore a backup that this one wrote"
        if if_older is not None and found is not None and 0 < found < version:
            advice = if_older
        raise UnavailableError(
            f"{name} {holds}, this program works with version {version}; {advice}"
        )


def found_version(connection: Connection) -> int | None:
    """Version of the tables that are there; None if there are none, 0 if nothing says so."""
    names = inspect(connection).get_table_names()
    if _TABLE in names:
        return int(connection.execute(select(_table(MetaData()).c.version)).scalar_one())
    return 0 if names else None


def note_version(connection: Connection, version: int) -> None:
    """Write down which version the tables are of now, in the transaction that changed them."""
    connection.execute(update(_table(MetaData())).values(version=version))


def _table(metadata: MetaData) -> Table:
    found = metadata.tables.get(_TABLE)
    if found is None:
        found = Table(_TABLE, metadata, Column("version", Integer, primary_key=True))
    return found
