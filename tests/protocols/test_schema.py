from pathlib import Path

import pytest
import sqlalchemy as sa

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.schema import open_tables
from synthedge_protocols.writer import sqlite_engine


def tables() -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table("rows", metadata, sa.Column("n", sa.Integer, primary_key=True))
    return metadata


def test_a_database_opens_with_the_version_it_was_made_with(tmp_path: Path) -> None:
    engine, metadata = sqlite_engine(tmp_path / "a.db"), tables()
    for _ in range(2):
        open_tables(engine, metadata, 1, "the store")
    assert set(sa.inspect(engine).get_table_names()) == {"rows", "schema_version"}
    engine.dispose()


@pytest.mark.parametrize("version", [1, 3])
def test_tables_of_another_version_are_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    engine = sqlite_engine(tmp_path / "a.db")
    open_tables(engine, tables(), 2, "the store")
    more = tables()
    sa.Table("new", more, sa.Column("n", sa.Integer))
    with pytest.raises(UnavailableError, match=f"the store has tables of version 2.*{version};"):
        open_tables(engine, more, version, "the store")
    assert "new" not in sa.inspect(engine).get_table_names()
    engine.dispose()


def test_tables_that_name_no_version_are_refused(tmp_path: Path) -> None:
    engine, metadata = sqlite_engine(tmp_path / "a.db"), tables()
    metadata.create_all(engine)
    with pytest.raises(UnavailableError, match="version unknown"):
        open_tables(engine, metadata, 1, "the store")
    engine.dispose()


def test_an_empty_database_where_one_should_be_is_refused(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "a.db")
    with pytest.raises(UnavailableError, match="the store is empty"):
        open_tables(engine, tables(), 1, "the store", make=False)
    engine.dispose()
