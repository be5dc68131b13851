"""Whether this process does its work: its event loop turns, housekeeping goes on, changes are taken, there is room."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from sqlalchemy import false, update
from sqlalchemy.exc import SQLAlchemyError

from synthedge_protocols.errors import ProtocolError
from synthedge_server import store
from synthedge_server.ledger import Ledger, Transaction

_EVERY_S: Final = 2.0
_WRITE_S: Final = 5.0
# Longer than the authority may take for the coordinator's own certificate, which housekeeping waits for.
_STILL_S: Final = 45.0
_ROOM_BYTES: Final = 20_000_000


class Health:
    """What probes are told.

    Parameters
    ----------
    ledger : Ledger
    folder : Path
        On the disk that needs room.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self, ledger: Ledger, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger, self._folder, self._clock = ledger, folder, clock
        self._ticked = self._looked = clock()
        self._found = "the coordinator is starting"

    def ticked(self) -> None:
        """Note that housekeeping went round once."""
        self._ticked = self._clock()

    @property
    def housekeeping_age_s(self) -> float:
        """Seconds since housekeeping last went round."""
        return self._clock() - self._ticked

    def stuck(self) -> str:
        """Say what only a new start mends; empty: nothing. May be asked from any thread."""
        if self._clock() - self._looked > _STILL_S:
            return "the event loop stands still"
        if self.housekeeping_age_s > _STILL_S:
            return f"housekeeping stands still for {self.housekeeping_age_s:.0f} s"
        return ""

    def problem(self) -> str:
        """Say why sites cannot be served now; empty: they can. May be asked from any thread."""
        return self.stuck() or self._found

    async def watch(self, tell: Callable[[bool], Awaitable[None]]) -> None:
        """Look every two seconds, and tell whether sites can be served, until cancelled."""
        while True:
            self._found = await self._look()
            self._looked = self._clock()
            await tell(not self.problem())
            await asyncio.sleep(_EVERY_S)

    async def _look(self) -> str:
        free = shutil.disk_usage(self._folder).free
        if free < _ROOM_BYTES:
            return f"{free // 1_000_000} MB are free on the disk of {self._folder}"
        try:
            async with asyncio.timeout(_WRITE_S):
                await self._ledger.write(_touch)
        except (TimeoutError, ProtocolError, SQLAlchemyError):
            return "the database takes no change"
        return ""


def _touch(transaction: Transaction) -> None:
    # Changes nothing, and is refused by a database that takes no change.
    transaction.connection.execute(update(store.sites).where(false()).values(reason=None))
