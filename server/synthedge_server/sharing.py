"""Several processes on one PostgreSQL: one keeps house, and each hears what the others change."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.writer import Writer
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.lease import Lease
from synthedge_server.ledger import Ledger
from synthedge_server.settings import Settings
from synthedge_server.store import postgres_arguments

if TYPE_CHECKING:  # the driver is loaded where it is used
    from synthedge_server.listening import Listener


@dataclass(frozen=True, slots=True)
class Shared:
    """What a process needs that shares its database with others.

    Attributes
    ----------
    lease : Lease
        Who keeps house.
    listener : Listener
        Hears what the others change.
    listening : Task
        The listener's; it ends by an error only.
    """

    lease: Lease
    listener: "Listener"
    listening: asyncio.Task[None]


@asynccontextmanager
async def sharing(
    folder: CoordinatorFolder, settings: Settings, ledger: Ledger, writer: Writer
) -> AsyncIterator[Shared | None]:
    """Take part in the work of all processes on a database for as long as the body runs; None where there is only one.

    Raises
    ------
    RefusedError
        If the database is being upgraded.
    UnavailableError
        If it is away.
    """
    if settings.database is None:
        yield None
        return
    from synthedge_server.listening import Listener

    listener = Listener(postgres_arguments(folder, settings), ledger)
    listening = asyncio.create_task(listener.run(await listener.connect()))
    lease = Lease(writer)
    try:
        yield Shared(lease, listener, listening)
    finally:
        with contextlib.suppress(UnavailableError):
            await lease.give_up()
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError, RefusedError):
            await listening
