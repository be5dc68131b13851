"""One writer thread with group commit: many callers, one durable transaction for all of them.

Rules
-----
- A process writes through one `Writer`, or, if it is a single short command, on a connection with
  the execution option `WRITES`; readers open their own connections on the engine.
- A future has its result when the transaction that holds it is on disk, never before.
- Functions run one after the other in the order of `submit`, each in its own savepoint.
"""

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.pool import ConnectionPoolEntry

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.prepared import translated

__all__ = ["SNAPSHOT", "WRITES", "Writer", "sqlite_engine"]

T = TypeVar("T")

_BUSY_TIMEOUT_MS = 10_000
_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})
_HELD = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
WRITES = "synthedge_writes"
"""Execution option of a connection whose transactions take the write lock at once."""
SNAPSHOT = "synthedge_snapshot"
"""Execution option of a connection whose statements all read one moment, where that costs more than a read each."""


def sqlite_engine(path: Path, name: str | None = None) -> Engine:
    """Open, or create with mode 0600, an SQLite store.

    Write-ahead log, ``synchronous=FULL`` (a commit survives a power cut), foreign keys enforced,
    ten seconds of patience with another process's lock. A longer lock, a full or failing disk, and a damaged file,
    are reported as such, whatever was being done.

    Parameters
    ----------
    path : Path
        The database file; its folder must exist.
    name : str, optional
        What whoever uses the engine hears of failures calls it, where that is not for others; else its path.

    Raises
    ------
    UnavailableError
        If the file cannot be opened or created; of any use of the engine, if its disk is full or another program
        holds it.
    """
    name = name or str(path)
    try:
        # SQLite gives its log the mode of the database, so this covers both.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise UnavailableError(f"the store '{path}' cannot be opened: {error.strerror}") from None
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        # The driver's own idea of when to begin breaks savepoints: switch it off, begin below.
        if isinstance(connection, sqlite3.Connection):
            connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "handle_error")
    def explain(context: ExceptionContext) -> None:
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
        if code in _NO_ROOM:
            raise UnavailableError(
                f"the store '{name}' cannot be written now ({context.original_exception}); nothing was half-written: "
                "make room on its disk, or check it, and try again"
            ) from None
        if code in _HELD:
            raise UnavailableError(
                f"the store '{name}' is held by another program for longer than {_BUSY_TIMEOUT_MS / 1000:g} s; nothing "
                "was half-written: end that one (a command that was stopped, a shell on the file), and try again"
            ) from None
        if code in _DAMAGED:
            raise UnavailableError(
                f"the store '{name}' is damaged ({context.original_exception}); restore it from a backup"
            ) from None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Only the writer takes the write lock at once; a reader must never wait for it.
        immediate = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


class Writer:
    """The only writer of a store.

    Parameters
    ----------
    engine : Engine
        SQLite from `sqlite_engine`, or PostgreSQL. Stays the caller's to dispose of.
    committed : callable
        Told of every durable transaction in the writer's thread: how many changes, how many seconds.
    """

    MAX_GROUP: ClassVar[int] = 256
    """Changes in one transaction at most."""

    def __init__(
        self, engine: Engine, committed: Callable[[int, float], None] = lambda n, seconds: None
    ) -> None:
        self._engine = engine
        self._committed = committed
        self._queue: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[Connection], T]) -> Future[T]:
        """Queue one unit of work.

        Parameters
        ----------
        function : callable
            Takes the connection and returns a plain value. It runs in a savepoint: if it raises,
            its own changes are undone and nobody else's. It must not commit, nor wait for
            another future of this writer.

        Returns
        -------
        Future
            The function's result once it is durable, or what it or the commit raised.

        Raises
        ------
        UnavailableError
            If the writer was closed.
        """
        future: Future[T] = Future()
        self._enqueue(_Work(function, future))
        return future

    async def write(
        self, function: Callable[[Connection], T], committed: Callable[[], None] = lambda: None
    ) -> T:
        """Do what `submit` does, for callers on an event loop.

        The loop is woken once a transaction instead of once a change: with 64 callers that is a
        third of the time. A caller that goes away does not stop the change.

        Parameters
        ----------
        function : callable
            As `submit`'s.
        committed : callable
            Called on the loop once the function's change is durable, whether or not the caller still waits;
            must not raise.

        Returns
        -------
        object
            The function's result, once it is durable.

        Raises
        ------
        UnavailableError
            If the writer was closed; else whatever the function or the commit raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue(_Work(function, future, loop, committed))
        return await future

    def _enqueue(self, work: "_Work[Any]") -> None:
        # Under the lock, so that nothing can be queued behind the end mark of `close`.
        with self._lock:
            if self._is_closed:
                raise UnavailableError("the store is closed")
            self._queue.put(work)

    def close(self) -> None:
        """Finish what was queued, then stop; safe to call twice."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            group: list[_Work[Any]] = []
            item = self._queue.get()
            while item is not None:
                if item.begin():
                    group.append(item)
                if len(group) == self.MAX_GROUP or self._queue.empty():
                    break
                item = self._queue.get()
            is_open = item is not None
            if group:
                self._commit(group)

    def _commit(self, group: list["_Work[Any]"]) -> None:
        start = time.perf_counter()
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(**{WRITES: True})
                with connection.begin():
                    savepoint = _Savepoint(connection)
                    for work in group:
                        work.run(connection, savepoint)
            self._committed(len(group), time.perf_counter() - start)
        except BaseException as error:  # noqa: BLE001 - or its callers would wait for ever
            # The transaction as a whole is gone, with everybody's work in it.
            if isinstance(error, PendingRollbackError):  # its connection broke in the middle
                error = UnavailableError("the store was lost in the middle of a change; try again")
            for work in group:
                work.fail(error)
        on_loops: dict[asyncio.AbstractEventLoop, list[_Work[Any]]] = {}
        for work in group:
            if work.loop is None:
                work.settle()
            else:
                on_loops.setdefault(work.loop, []).append(work)
        for loop, works in on_loops.items():
            # A loop that was closed meanwhile has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle_all, works)


class _Work(Generic[T]):
    """A function, its outcome, and the future that learns of it after the commit."""

    def __init__(
        self,
        function: Callable[[Connection], T],
        future: Future[T] | asyncio.Future[T],
        loop: asyncio.AbstractEventLoop | None = None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = loop
        self._committed: Callable[[], None] | None = committed
        self._future = future
        self._function = function
        self._outcome: Callable[[], None] = lambda: None

    def begin(self) -> bool:
        """Whether somebody still wants it; from here on it cannot be cancelled."""
        # An event loop's future may only be touched there: its work is done in any case.
        future = self._future
        return not isinstance(future, Future) or future.set_running_or_notify_cancel()

    def run(self, connection: Connection, savepoint: "_Savepoint") -> None:
        """Run in a savepoint; raise only if the transaction around it broke."""
        savepoint.execute("SAVEPOINT work")
        try:
            result = self._function(connection)
        except BaseException as error:  # noqa: BLE001 - handed on to who submitted it
            try:
                savepoint.execute("ROLLBACK TO SAVEPOINT work")
                savepoint.execute("RELEASE SAVEPOINT work")
            except Exception:
                # SQLite gives the whole transaction up when its disk is full: that is what everybody is told.
                if isinstance(error, UnavailableError):
                    raise error from None
                raise
            self.fail(error)
        else:
            savepoint.execute("RELEASE SAVEPOINT work")
            self._outcome = partial(self._future.set_result, result)

    def fail(self, error: BaseException) -> None:
        """Note what was raised instead of a result."""
        self._committed = None
        self._outcome = partial(self._future.set_exception, error)

    def settle(self) -> None:
        """Tell the future, if somebody still waits; call after the commit, on the loop if it has one."""
        if self._committed is not None:
            self._committed()
        if not self._future.done():
            self._outcome()


def _settle_all(works: list[_Work[Any]]) -> None:
    for work in works:
        work.settle()


class _Savepoint:
    """The savepoint's three statements on the driver's own cursor.

    `Connection.begin_nested` costs 37 us a change, four times what an insert does; this costs 0.7.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cursor = connection.connection.cursor()

    def execute(self, statement: str) -> None:
        """Run one of them; what fails is raised as SQLAlchemy's error."""
        try:
            self._cursor.execute(statement)
        except self._connection.dialect.loaded_dbapi.Error as error:
            translated(self._connection, error, statement)
