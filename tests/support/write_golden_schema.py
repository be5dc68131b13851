"""Write a golden database of the present version of the coordinator's tables: what migrations are tested with.

    python tests/support/write_golden_schema.py

Run it before the tables change, once a version; a golden file is never written again. Every table has one row, all of
them refer to each other.
"""

import sys
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from synthedge_server import store

GOLDEN: Final = Path(__file__).parents[1] / "server" / "golden"
_VALUES: Final = {int: "1", float: "1.5", str: "'north'", bool: "true"}
_BYTES: Final = {"sqlite": "X'0102'", "postgresql": r"'\x0102'"}


def golden(version: int, dialect: str) -> Path:
    return GOLDEN / f"tables_{version}.{dialect}.sql"


def golden_versions() -> list[int]:
    return sorted(
        int(path.stem.split("_")[1].split(".")[0]) for path in GOLDEN.glob("*.sqlite.sql")
    )


def statements(version: int, dialect: Any) -> list[str]:
    made = [
        "CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY)",
        f"INSERT INTO schema_version VALUES ({version})",  # noqa: S608
    ]
    for table in store.METADATA.sorted_tables:
        if table.name == "schema_version":
            continue
        made.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        indexes = sorted(table.indexes, key=lambda index: index.name or "")
        made += [str(CreateIndex(index).compile(dialect=dialect)) for index in indexes]
        values = ", ".join(_value(column, dialect.name) for column in table.columns)
        made.append(f"INSERT INTO {table.name} VALUES ({values})")  # noqa: S608
    return [" ".join(statement.split()) for statement in made]


def _value(column: sa.Column[Any], dialect: str) -> str:
    kind = column.type.python_type
    return _BYTES[dialect] if kind is bytes else _VALUES[kind]


def main() -> int:
    for dialect in (sqlite.dialect(), postgresql.dialect()):  # type: ignore[no-untyped-call]
        path = golden(store.SCHEMA_VERSION, dialect.name)
        if path.exists():
            sys.stderr.write(f"{path} exists; raise store.SCHEMA_VERSION with the tables\n")
            return 1
        path.parent.mkdir(exist_ok=True)
        text = ";\n".join(statements(store.SCHEMA_VERSION, dialect)) + ";\n"
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
