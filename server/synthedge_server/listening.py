"""What other processes on the same PostgreSQL changed, heard at once: LISTEN and NOTIFY.

The connection also holds the lock that says a coordinator runs here, so that nobody changes the tables beneath it.
"""

import asyncio
import contextlib
from typing import Any, Final

import psycopg

from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import UnavailableError
from synthedge_server import store
from synthedge_server.ledger import CHANNEL, Ledger
from synthedge_server.log import log
from synthedge_server.postgres import READ_ONLY, RUN_LOCK

_AGAIN_S: Final = 1.0
_CHECK_S: Final = 10.0


class Listener:
    """One connection that listens, made anew whenever it breaks.

    Parameters
    ----------
    arguments : dict
        What psycopg connects with.
    ledger : Ledger
        Its inboxes are woken.

    Attributes
    ----------
    is_up : bool
        Whether it hears; else somebody has to look.
    """

    def __init__(self, arguments: dict[str, Any], ledger: Ledger) -> None:
        self._arguments = arguments
        self._ledger = ledger
        self.is_up = False

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """Connect and begin to listen.

        Raises
        ------
        RefusedError
            If the tables are being upgraded, or are of another version by now.
        UnavailableError
            If the database is away, or a standby.
        """
        try:
            async with asyncio.timeout(_CHECK_S):
                return await self._connect()
        except (psycopg.Error, TimeoutError):
            raise UnavailableError("the coordinator's database cannot be used now") from None

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True)
        try:
            found = await connection.execute(f"SELECT pg_try_advisory_lock_shared({RUN_LOCK})")
            if await found.fetchone() != (True,):
                raise RefusedError("the database is being upgraded; start again when that is done")
            found = await connection.execute("SELECT pg_is_in_recovery()")
            if await found.fetchone() != (False,):
                raise UnavailableError(READ_ONLY)
            found = await connection.execute("SELECT version FROM schema_version")
            if await found.fetchone() != (store.SCHEMA_VERSION,):
                raise RefusedError("the database's tables are of another version now; start again")
            await connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            await connection.close()
            raise
        return connection

    async def run(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Listen until cancelled, first on a connection of `connect`; raises RefusedError as that."""
        while True:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with connection:
                    self.is_up = True
                    # Whatever happened while nobody listened.
                    self._ledger.wake()
                    while True:
                        async for note in connection.notifies(timeout=_CHECK_S):
                            self._ledger.hear(note.payload)
                        async with asyncio.timeout(_CHECK_S):
                            await connection.execute("SELECT 1")
            self.is_up = False
            log("listening-again")
            while True:
                await asyncio.sleep(_AGAIN_S)
                with contextlib.suppress(UnavailableError):
                    connection = await self.connect()
                    break
