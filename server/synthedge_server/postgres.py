"""PostgreSQL as the coordinator's database: how it is opened, what is waited for, what an error is called.

Rules
-----
* A transaction that writes holds one advisory lock: writers of several processes run one after the other, so that the
  audit log stays one chain and messages become visible in the order of their numbers.
* Everything else can write nothing; with the option `SNAPSHOT` its statements read one moment.
* What a caller hears of a failure names no host, user or database; the operator's log and the commands do.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.engine.interfaces import ExceptionContext

from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import MalformedError, UnavailableError
from synthedge_protocols.writer import SNAPSHOT, WRITES
from synthedge_server.log import log

WRITE_LOCK: Final = 0x5EDE_0001
"""Held by the transaction that writes."""
RUN_LOCK: Final = 0x5EDE_0002
"""Shared by running coordinators; taken alone by who changes the tables."""
_OLDEST: Final = 13
_CONNECT_S: Final = 5
# Only who says so writes, see `begin` below.
_OPTIONS: Final = "-c statement_timeout=30s -c lock_timeout=20s -c default_transaction_read_only=on"
# A write takes milliseconds. Who holds the lock and stalls for longer is cut off by the server, so that others go on.
_BEGIN_WRITE: Final = (
    f"SELECT pg_advisory_xact_lock({WRITE_LOCK}),"
    " set_config('idle_in_transaction_session_timeout', '15s', true)"
)
_QUIET_S: Final = 10.0
_DOWN_S: Final = 1.0
# A server that is frozen, with a machine or a pooler that still takes what is sent, is waited for no longer. Readers
# wait on the event loop; writers longer than the server lets a statement take.
_READER_WAITS_S: Final = 5.0
_WRITER_WAITS_S: Final = 35.0


def connect_arguments(url: str, password: str | None = None) -> dict[str, Any]:
    """What psycopg is called with for a URL; what the URL says goes before our defaults.

    Parameters
    ----------
    url : str
        As in coordinator.toml, checked.
    password : str, optional
        Else libpq finds it.
    """
    parts = make_url(url)
    arguments: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "application_name": "synthedge-coordinator",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        **parts.translate_connect_args(username="user", database="dbname"),
        **parts.query,
    }
    arguments["options"] = f"{_OPTIONS} {arguments.get('options', '')}".strip()
    if password is not None:
        arguments["password"] = password
    return arguments


class SilentError(psycopg.OperationalError):
    """The server says nothing."""


class PatientConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server says nothing, instead of waiting for ever.

    Attributes
    ----------
    patience_s : float or None
        How long one statement is waited for. Unit: seconds; None: for ever.
    """

    patience_s: float | None = _READER_WAITS_S

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Do what psycopg does, for so long."""
        patience_s = self.patience_s
        if patience_s is None or timeout is not None:
            return super().wait(gen, interval, timeout)
        started_s = time.monotonic()
        try:
            return super().wait(gen, interval, patience_s)
        except psycopg.OperationalError:
            if time.monotonic() - started_s < patience_s:
                raise
        # What the server may still answer is nobody's answer any more.
        self.close()
        raise SilentError(f"the server said nothing for {patience_s:g} s")


def postgres_engine(url: str, arguments: dict[str, Any]) -> Engine:
    """Open a database that is there, of a version and encoding that will do.

    Parameters
    ----------
    url : str
        As in coordinator.toml, for messages.
    arguments : dict
        From `connect_arguments`.

    Raises
    ------
    UnavailableError
        If it cannot be reached, refuses the user, does not exist, or will not do; of any use of the engine, if it
        cannot be reached then.
    """
    _look(url, arguments)
    engine = create_engine(
        URL.create("postgresql+psycopg"),
        connect_args=arguments,
        pool_pre_ping=True,
        hide_parameters=True,
    )
    down_until = told = 0.0

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Dialect, _record: Any, _args: Any, arguments: dict[str, Any]) -> Any:
        nonlocal down_until
        started_s = time.monotonic()
        if started_s < down_until:
            # Everybody would wait for the same time-out, one after the other.
            raise UnavailableError(_AWAY)
        try:
            return PatientConnection.connect(**arguments)
        except psycopg.OperationalError:
            # At most half of the time goes into waiting.
            ended_s = time.monotonic()
            down_until = ended_s + max(_DOWN_S, ended_s - started_s)
            raise

    @event.listens_for(engine, "checkin")
    def returned(connection: Any, _record: Any) -> None:
        if connection is not None:
            connection.patience_s = _READER_WAITS_S

    @event.listens_for(engine, "handle_error")
    def explain(context: ExceptionContext) -> None:
        nonlocal down_until, told
        error = context.original_exception
        if context.is_pre_ping:
            # Another connection is made; but not at once where not even a ping is answered: a statement may be slow.
            if isinstance(error, SilentError):
                down_until = time.monotonic() + _READER_WAITS_S
            return
        if isinstance(error, psycopg.DataError):
            raise MalformedError("a text holds characters that no database keeps") from None
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise UnavailableError(
                f"the database's user may not do this ({_first_line(error)}); make it the owner of the database "
                "(createdb --owner USER)"
            ) from None
        if isinstance(error, _GONE + _TAKES_NO_CHANGE):
            if time.monotonic() - told > _QUIET_S:
                told = time.monotonic()
                log(
                    "database-failed",
                    level=logging.ERROR,
                    error=type(error).__name__,
                    reason=_first_line(error),
                )
            raise UnavailableError(
                READ_ONLY if isinstance(error, _TAKES_NO_CHANGE) else _AWAY
            ) from None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        writes, snapshot = options.get(WRITES, False), options.get(SNAPSHOT, False)
        raw: Any = connection.connection.dbapi_connection
        # A read of one statement needs no transaction, which costs two more trips to the server and back.
        raw.autocommit = not writes and not snapshot
        # A writer must see what was committed while it waited for the lock; a snapshot would be older.
        level = psycopg.IsolationLevel
        raw.isolation_level = level.READ_COMMITTED if writes else level.REPEATABLE_READ
        raw.read_only = not writes
        raw.patience_s = _WRITER_WAITS_S if writes or snapshot else _READER_WAITS_S
        if writes:
            connection.exec_driver_sql(_BEGIN_WRITE)

    return engine


_AWAY: Final = (
    "the coordinator's database cannot be used now; nothing was half-written: try again in a moment"
)
READ_ONLY: Final = (
    "the coordinator's database takes no change now: it is a standby, or read-only; nothing was half-written: "
    "try again in a moment"
)
_GONE: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
)
# The second one: no transaction that writes can be begun on a standby.
_TAKES_NO_CHANGE: Final = (
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.FeatureNotSupported,
)


def is_in_the_open(connection: Connection) -> bool:
    """Whether a connection leaves the machine without TLS that knows whom it speaks to."""
    info = connection.connection.dbapi_connection.info  # type: ignore[union-attr]
    is_here = info.host.startswith("/") or info.host in ("localhost", "127.0.0.1", "::1")
    return not is_here and info.get_parameters().get("sslmode") not in ("verify-ca", "verify-full")


@contextmanager
def alone_on(url: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Keep coordinators from running on a database.

    Raises
    ------
    RefusedError
        If one runs.
    UnavailableError
        As `postgres_engine`.
    """
    _look(url, arguments)
    with psycopg.connect(**arguments, autocommit=True) as connection:
        found = connection.execute(f"SELECT pg_try_advisory_lock({RUN_LOCK})").fetchone()
        if found != (True,):
            raise RefusedError(f"a coordinator runs on {url}; stop all its processes before")
        yield


def _look(url: str, arguments: dict[str, Any]) -> None:
    name = f"the coordinator's database {url}"
    try:
        with psycopg.connect(**arguments) as connection:
            version = connection.info.server_version // 10_000
            encoding = connection.execute("SHOW server_encoding").fetchone()
    except (psycopg.Error, UnicodeError) as error:
        raise UnavailableError(f"{name} {_why(_first_line(error))}") from None
    if version < _OLDEST:
        raise UnavailableError(
            f"{name} runs on PostgreSQL {version}; {_OLDEST} or a later one is needed"
        )
    if encoding != ("UTF8",):
        raise UnavailableError(
            f"{name} keeps text as {encoding and encoding[0]}; make one with UTF8 "
            f"(createdb --encoding UTF8 --template template0 NAME)"
        )


def _why(line: str) -> str:
    # Before somebody is let in libpq gives no code, only a sentence.
    if (
        re.search("certificate|SSL|no encryption|private key", line)
        and "authentication" not in line
    ):
        return (
            f"cannot be reached by TLS: {line}; check sslmode in 'database' of coordinator.toml, and name the file of "
            "the certificate authority by sslrootcert there"
        )
    if "password" in line or "authentication" in line or "pg_hba" in line or "role" in line:
        return (
            f"lets nobody in: {line}; check the user in 'database' of coordinator.toml and the password "
            "(PGPASSFILE, PGPASSWORD or database_password_file)"
        )
    if re.search('database ".*" does not exist', line):
        return f"is not there: {line}; make it with createdb, or correct 'database' in coordinator.toml"
    return f"cannot be reached: {line}; check that PostgreSQL runs there, and 'database' in coordinator.toml"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
