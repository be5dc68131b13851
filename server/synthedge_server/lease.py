"""The right to keep house, held by one of several processes on one database at a time.

Every new holder raises the lease's epoch, and every write of the housekeeping looks, in its own transaction, whether
its epoch is still the newest one: a holder that was stalled and taken for dead can do nothing when it wakes up.
"""

import secrets
import time
from typing import Final

from sqlalchemy import Connection, func, insert, select, update

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.writer import Writer
from synthedge_server import store

LEASE_S: Final = 10.0
_RENEW_S: Final = 3.0
_NAME: Final = "housekeeping"


class NotKeeperError(UnavailableError):
    """Another process keeps house by now."""


class Lease:
    """One process's claim.

    Parameters
    ----------
    writer : Writer
        Of a database that several processes work on.
    seconds : float
        How long the lease is good for after it was renewed.
    """

    def __init__(self, writer: Writer, seconds: float = LEASE_S) -> None:
        self._writer = writer
        self._seconds = seconds
        self._holder = secrets.token_hex(8)
        self._epoch: int | None = None
        self._renew_at_s = 0.0

    async def hold(self) -> bool:
        """Renew the lease, or take it if it is nobody's; tell whether this process holds it."""
        if self._epoch is None or time.monotonic() >= self._renew_at_s:
            self._renew_at_s = time.monotonic() + min(_RENEW_S, self._seconds / 3)
            # What is under way goes on while the lease is renewed.
            self._epoch = await self._writer.write(self._take)
        return self._epoch is not None

    async def give_up(self) -> None:
        """Let another process have it at once."""
        if self._epoch is not None:
            await self._writer.write(self._release)
            self._epoch = None

    def require(self, connection: Connection) -> None:
        """Raise NotKeeperError unless this process holds the newest epoch, in the transaction of a write."""
        newest = connection.execute(select(store.leases.c.epoch)).scalar_one_or_none()
        if self._epoch is None or newest != self._epoch:
            self._epoch = None
            raise NotKeeperError("another process keeps house now")

    def _take(self, connection: Connection) -> int | None:
        table = store.leases
        # The database's clock: the processes' machines may disagree about the time.
        now_ms = int(connection.execute(select(_NOW_MS)).scalar_one())
        until = {"until_ms": now_ms + int(self._seconds * 1000)}
        row = connection.execute(select(table)).one_or_none()
        if row is None:
            connection.execute(
                insert(table).values(lease=_NAME, epoch=1, holder=self._holder, **until)
            )
            return 1
        if row.holder == self._holder:
            connection.execute(update(table).values(**until))
            return int(row.epoch)
        if now_ms < row.until_ms:
            return None
        connection.execute(update(table).values(epoch=row.epoch + 1, holder=self._holder, **until))
        return int(row.epoch) + 1

    def _release(self, connection: Connection) -> None:
        connection.execute(
            update(store.leases).where(store.leases.c.holder == self._holder).values(until_ms=0)
        )


_NOW_MS: Final = func.extract("epoch", func.clock_timestamp()) * 1000
