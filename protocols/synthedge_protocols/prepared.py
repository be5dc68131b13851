"""A statement that is built and compiled once, then run on the driver's own cursor.

SQLAlchemy builds, compiles and begins anew at every call: 270 us for a look-up that SQLite answers in 3. What stands
in the way of every call of a peer is prepared; everything else stays with SQLAlchemy.
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from sqlalchemy import Connection, Executable
from sqlalchemy.sql.elements import ClauseElement

__all__ = ["Prepared", "translated"]

# Other drivers begin by themselves, without what SQLAlchemy's own beginning sets for the transaction.
_NEEDS_NO_BEGIN: Final = "sqlite"


class Prepared:
    """One statement over columns whose values the drivers take and give as they are: text, numbers, bytes.

    Parameters
    ----------
    statement : Executable
        Of SQLAlchemy; what differs from run to run stands in it as `bindparam`. No ``IN`` over a list.
    """

    def __init__(self, statement: Executable) -> None:
        self._statement: Final = statement
        self._texts: dict[str, tuple[str, Sequence[str] | None, dict[str, Any]]] = {}
        self._row: Callable[[Any], Any] | None = None

    def run(self, connection: Connection, **values: Any) -> list[Any]:
        """Run it.

        Parameters
        ----------
        connection : Connection
            A change needs one in whose transaction it is made; a question may be asked on any.
        **values
            By the names of the statement's parameters.

        Returns
        -------
        list of named tuple
            The rows it returns; empty if it returns none.

        Raises
        ------
        Exception
            What SQLAlchemy raises for the same statement.
        """
        text, order, fixed = self._texts.get(connection.dialect.name) or self._compile(connection)
        given = {**fixed, **values} if fixed else values
        if connection.dialect.name != _NEEDS_NO_BEGIN and not connection.in_transaction():
            connection.begin()
        driver: Any = connection.connection.dbapi_connection
        try:
            cursor = driver.execute(
                text, given if order is None else [given[name] for name in order]
            )
            if cursor.description is None:
                return []
            if self._row is None:
                self._row = _row_of([column[0] for column in cursor.description])
            return list(map(self._row, cursor.fetchall()))
        except connection.dialect.loaded_dbapi.Error as error:
            translated(connection, error, text)

    def one(self, connection: Connection, **values: Any) -> Any:
        """Run it; return the first row, or None if there is none."""
        rows = self.run(connection, **values)
        return rows[0] if rows else None

    def _compile(self, connection: Connection) -> tuple[str, Sequence[str] | None, dict[str, Any]]:
        assert isinstance(self._statement, ClauseElement)  # noqa: S101 - what every statement is
        compiled = self._statement.compile(dialect=connection.dialect)
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        prepared = (str(compiled), getattr(compiled, "positiontup", None), fixed)
        self._texts[connection.dialect.name] = prepared
        return prepared


def translated(connection: Connection, error: Exception, statement: str) -> NoReturn:
    """Raise what SQLAlchemy raises where it meets this error of the driver.

    To run the statement again by SQLAlchemy instead would be wrong: PostgreSQL answers only that the transaction has
    failed, and SQLite may have rolled all of it back, so that the statement would count alone.
    """
    connection._handle_dbapi_exception(error, statement, None, None, None)


def _row_of(names: list[str]) -> Callable[[Any], Any]:
    # Without the count of `_make`, which costs as much as the row.
    return partial(tuple.__new__, namedtuple("Row", names))
