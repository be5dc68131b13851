"""One writer thread with group commit: many callers, one durable transaction for all of them.

Rules
-----
- A process writes through one `Writer`, or, if it is a single short command, on a connection with
  the execution option `WRITES`; readers open their own connections on the engine.
- A future has its result when the transaction that holds it is on disk, never before.
- Functions run one after the other in the order of `submit`, each in its own savepoint.
"""

import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from synthedge_protocols.errors import UnavailableError

__all__ = ["WRITES", "Writer", "sqlite_engine"]

T = TypeVar("T")

_MAX_GROUP = 256
_BUSY_TIMEOUT_MS = 10_000
WRITES = "synthedge_writes"
"""Execution option of a connection whose transactions take the write lock at once."""


def sqlite_engine(path: Path) -> Engine:
    """Open, or create with mode 0600, an SQLite store.

    Write-ahead log, ``synchronous=FULL`` (a commit survives a power cut), foreign keys enforced,
    ten seconds of patience with another process's lock.

    Parameters
    ----------
    path : Path
        The database file; its folder must exist.

    Raises
    ------
    UnavailableError
        If the file cannot be opened or created.
    """
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
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
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
            The function's result once it is durable, or what it or the commit raised. From
            asyncio: ``await asyncio.wrap_future(writer.submit(f))``.

        Raises
        ------
        UnavailableError
            If the writer was closed.
        """
        work = _Work(function)
        # Under the lock, so that nothing can be queued behind the end mark of `close`.
        with self._lock:
            if self._is_closed:
                raise UnavailableError("the store is closed")
            self._queue.put(work)
        return work.future

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
                if item.future.set_running_or_notify_cancel():
                    group.append(item)
                if len(group) == _MAX_GROUP or self._queue.empty():
                    break
                item = self._queue.get()
            is_open = item is not None
            if group:
                self._commit(group)

    def _commit(self, group: list["_Work[Any]"]) -> None:
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(**{WRITES: True})
                with connection.begin():
                    for work in group:
                        work.run(connection)
        except BaseException as error:  # noqa: BLE001 - or its callers would wait for ever
            # The transaction as a whole is gone, with everybody's work in it.
            for work in group:
                work.future.set_exception(error)
            return
        for work in group:
            work.settle()


class _Work(Generic[T]):
    """A function, its outcome, and the future that learns of it after the commit."""

    def __init__(self, function: Callable[[Connection], T]) -> None:
        self.future: Future[T] = Future()
        self._function = function
        self._outcome: Callable[[], None] = lambda: None

    def run(self, connection: Connection) -> None:
        """Run in a savepoint; raise only if the transaction around it broke."""
        savepoint = connection.begin_nested()
        try:
            result = self._function(connection)
        except BaseException as error:  # noqa: BLE001 - handed on to who submitted it
            savepoint.rollback()
            self._outcome = partial(self.future.set_exception, error)
        else:
            savepoint.commit()
            self._outcome = partial(self.future.set_result, result)

    def settle(self) -> None:
        """Tell the future; call after the commit."""
        self._outcome()
