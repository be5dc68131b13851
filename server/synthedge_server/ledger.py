"""Every change of the coordinator's state: one transaction, with its audit events and inbox messages."""

import asyncio
import contextlib
import copy
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Engine

from synthedge_protocols.errors import ProtocolError, UnavailableError
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.writer import Writer
from synthedge_server import store
from synthedge_server.lease import Lease
from synthedge_server.relay import Spool

T = TypeVar("T")

# Hints: a newer one makes an undelivered older one worthless.
SUPERSEDED: Final = ("profile", "proposals")
CHANNEL: Final = "synthedge_inbox"
# What PostgreSQL carries in one notification is 8000 bytes; more sites than this are all sites.
_MAX_NAMED: Final = 100

_NEXT_SEQUENCE: Final = Prepared(
    update(store.sites)
    .where(store.sites.c.site == bindparam("of_site"))
    .values(last_sequence=store.sites.c.last_sequence + 1)
    .returning(store.sites.c.last_sequence)
)
_SUPERSEDE: Final = Prepared(
    delete(store.inbox).where(
        store.inbox.c.site == bindparam("of_site"), store.inbox.c.kind == bindparam("of_kind")
    )
)
_POST: Final = Prepared(insert(store.inbox))


def system_clock() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Transaction:
    """What a change is written with; nothing of it exists until the writer has committed.

    Attributes
    ----------
    connection : Connection
        Inside a transaction of the writer thread.
    now_ms : int
        The time of the change.
    woken : set of str
        Sites whose inbox grew.
    discarded : list of bytes
        Spool keys whose bytes are to be deleted once the change is durable.
    """

    connection: Connection
    now_ms: int
    woken: set[str] = field(default_factory=set)
    discarded: list[bytes] = field(default_factory=list)

    def record(self, actor: str, action: str, subject: str, detail: str = "") -> None:
        """Add one audit event: who did what to what."""
        # A reason may quote a peer, and PostgreSQL keeps no text with a NUL.
        detail = detail.replace("\0", "\N{REPLACEMENT CHARACTER}")
        store.event_log.append(
            self.connection, self.now_ms, actor=actor, action=action, subject=subject, detail=detail
        )

    def post(self, site: str, message: wire.InboxMessage) -> None:
        """Put a message into a site's inbox under the site's next sequence number.

        Parameters
        ----------
        site : str
            An enrolled site.
        message : InboxMessage
            Its body; the sequence number is set here.
        """
        kind = message.WhichOneof("body") or ""
        ((message.sequence,),) = _NEXT_SEQUENCE.run(self.connection, of_site=site)
        if kind in SUPERSEDED:
            _SUPERSEDE.run(self.connection, of_site=site, of_kind=kind)
        _POST.run(
            self.connection,
            site=site,
            sequence=message.sequence,
            kind=kind,
            message=message.SerializeToString(),
            posted_at_ms=self.now_ms,
        )
        self.woken.add(site)

    def announce(self, sender: str = "") -> None:
        """Let the other processes on a PostgreSQL hear, once the change is durable, whose inboxes grew."""
        if self.woken and self.connection.dialect.name == "postgresql":
            sites = " ".join(sorted(self.woken)) if len(self.woken) <= _MAX_NAMED else ""
            self.connection.execute(select(func.pg_notify(CHANNEL, f"{sender} {sites}")))


class Reader:
    """One open connection for the questions of the event loop's thread; each sees what was committed before it.

    Taking one from the pool for each question costs more than the answer.

    Parameters
    ----------
    engine : Engine
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        """Lend it; nothing may be awaited before it is given back."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Take it back; one that may be broken is not kept."""
        connection = self._connection
        if connection is None:
            return
        if kind is not None and (kind is UnavailableError or not issubclass(kind, ProtocolError)):
            self.close()
        elif connection.in_transaction():
            connection.rollback()

    def close(self) -> None:
        """Give the connection up; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Ledger:
    """The coordinator's database: one writer, any number of readers.

    Parameters
    ----------
    engine : Engine
        For reading.
    writer : Writer
        For every change.
    spool : Spool
        Loses what a change discards. Should process, caller or disk go away in between, the next sweep does it.
    clock : callable
        Milliseconds since the Unix epoch; tests pass their own.
    """

    def __init__(
        self,
        engine: Engine,
        writer: Writer,
        spool: Spool,
        clock: Callable[[], int] = system_clock,
    ) -> None:
        self.engine = engine
        self.reading = Reader(engine)
        self.spool = spool
        self.clock = clock
        # When each site last called; written down by and by, see `standing.Watch`.
        self.seen: dict[str, int] = {}
        self._writer = writer
        # One, shared with the copies of `under`.
        self._names = [secrets.token_hex(8)]
        self._lease: Lease | None = None
        self._bells: dict[str, set[asyncio.Event]] = {}

    async def write(self, change: Callable[[Transaction], T]) -> T:
        """Apply a change and return once it is durable.

        Parameters
        ----------
        change : callable
            Runs in the writer's thread; what it raises undoes all it wrote and is raised here.

        Returns
        -------
        object
            What `change` returned.
        """
        transactions: list[Transaction] = []

        def apply(connection: Connection) -> T:
            if self._lease is not None:
                self._lease.require(connection)
            transactions.append(Transaction(connection, self.clock()))
            changed = change(transactions[0])
            transactions[0].announce(*self._names)
            return changed

        def spread() -> None:
            for site in (site for transaction in transactions for site in transaction.woken):
                self.wake(site)

        # A caller that goes away does not keep others from hearing of a committed change.
        try:
            result = await self._writer.write(apply, spread)
        except UnavailableError:
            # Perhaps the answer was lost and not the commit: what it announces is heard as another process's from now
            # on, or was passed over as our own a moment ago.
            self._names[:] = [secrets.token_hex(8)]
            spread()
            raise
        with contextlib.suppress(UnavailableError):
            for key in transactions[0].discarded:
                await asyncio.to_thread(self.spool.delete, key)
        return result

    def under(self, lease: Lease | None) -> "Ledger":
        """The same ledger for who keeps house: a change is refused unless this process holds the lease."""
        kept = copy.copy(self)
        kept._lease = lease
        return kept

    def hear(self, payload: str) -> None:
        """Wake the inboxes that another process announced."""
        sender, *sites = payload.split(" ")
        if sender not in self._names:
            for site in sites:
                self.wake(site or None)

    def listen(self, site: str) -> asyncio.Event:
        """Return an event that is set whenever the site's inbox grew; give it back to `unlisten`."""
        bell = asyncio.Event()
        self._bells.setdefault(site, set()).add(bell)
        return bell

    def unlisten(self, site: str, bell: asyncio.Event) -> None:
        """Forget an event of `listen`."""
        bells = self._bells[site]
        bells.discard(bell)
        if not bells:
            del self._bells[site]

    def wake(self, site: str | None = None) -> None:
        """Set the events of one site, or of all: something else than the inbox changed."""
        for listener in [site] if site is not None else list(self._bells):
            for bell in self._bells.get(listener, ()):
                bell.set()
