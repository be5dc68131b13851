"""The agent: the site's one connection. It sends the outbox, takes in the inbox, ships and fetches sealed bytes.

Rules
-----
* All state is in the site's database: the agent may be killed at any point and carries on where it was.
* The agent holds no steward's key: it can carry out decisions and standing policies, not make them.
* A transfer that cannot go on is kept with its problem, logged when the problem changes, and tried again later and
  later; it never stops the others.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from synthedge_client import divergence, inbound, ledger_check, store
from synthedge_client.connection import Connection
from synthedge_client.delivery import fetch
from synthedge_client.donating import lapse
from synthedge_client.duties import Duties
from synthedge_client.inbox import keep_message, note_refused
from synthedge_client.log_heads import exchange_heads
from synthedge_client.outbox import send_waiting
from synthedge_client.purging import keep_notice, note_inbox_read
from synthedge_client.renewal import Renewer
from synthedge_client.sealed_files import sweep
from synthedge_client.shipping import ship
from synthedge_client.site import Site
from synthedge_client.standing_work import StandingWork
from synthedge_client.transfers import Transfer, list_transfers, note_problem
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import (
    BusyError,
    DeadlineError,
    ProtocolError,
    UnavailableError,
    VerificationError,
)
from synthedge_protocols.lifecycle import State
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

log = logging.getLogger(__name__)

POLL_S = 0.2
RECONNECT_S = 2.0
# How long a peer that enrols may stay unknown to the agents that run already.
REFRESH_PEERS_S = 10.0
READ_INBOX_S = 60.0
# How often the coordinator's audit log is checked to have only grown.
HEADS_EVERY_S = 60.0
FIRST_RETRY_S = 2.0
LAST_RETRY_S = 300.0

_UNDER_WAY = (State.PREPARED, State.APPROVED, State.SEALED, State.RELAYED, State.DELIVERED)
_AGENT_MOVES = {
    "donor": (State.APPROVED, State.SEALED),
    "recipient": (State.RELAYED, State.DELIVERED),
}


@dataclass
class Attempts:
    """When a transfer that could not go on is tried again: twice as long after every failure, up to a limit."""

    clock: Callable[[], float] = time.monotonic
    _failed: dict[bytes, tuple[float, float]] = field(default_factory=dict)

    def is_due(self, transfer: Transfer) -> bool:
        """Whether a transfer may be tried now."""
        return self._failed.get(transfer.id, (0.0, 0.0))[0] <= self.clock()

    def failed(self, transfer: Transfer) -> None:
        """Put the next try off."""
        wait_s = self._failed.get(transfer.id, (0.0, FIRST_RETRY_S))[1]
        self._failed[transfer.id] = (self.clock() + wait_s, min(2 * wait_s, LAST_RETRY_S))

    def went_on(self, transfer: Transfer) -> None:
        """Forget earlier failures."""
        self._failed.pop(transfer.id, None)


class Agent:
    """One running agent.

    Parameters
    ----------
    site : Site
    connection : Connection
        Not closed here.
    """

    def __init__(self, site: Site, connection: Connection) -> None:
        self._site = site
        self._connection = connection
        self._attempts = Attempts()
        self._standing = StandingWork()
        self._has_compared = False
        self._directory_version = b""
        self._duties = Duties()

    def receive(self) -> None:
        """Store what waits in the inbox at the coordinator, after both ends compared their records.

        Raises
        ------
        RefusedError
            If they differ: the site is frozen.
        """
        divergence.compare(self._site, self._connection)
        for message in self._connection.inbox(self._last_sequence(), follow=False):
            self._keep(message)
        note_inbox_read(self._site)

    def follow(self, stop: threading.Event, wake: threading.Event) -> None:
        """Store what arrives, as it arrives, until `stop` is set; reconnects for as long as it takes."""
        told = ""
        while not stop.is_set():
            channel, wait_s = self._connection.channel_id, RECONNECT_S
            try:
                # The coordinator may be back with another database than the one it went with.
                divergence.compare(self._site, self._connection)
                for message in self._connection.inbox(self._last_sequence(), follow=True):
                    self._keep(message)
                    told = ""
                    wake.set()
            except (ProtocolError, sa.exc.OperationalError) as error:
                if channel != self._connection.channel_id:
                    continue  # the certificate was renewed
                if not stop.is_set() and told != (told := _in_words(error)):
                    log.warning("inbox stream ended (%s); connecting again", told)
                wait_s = _wait_s(error)
            stop.wait(wait_s)

    def refresh_peers(self, *, anew: bool = False) -> None:
        """Learn of sites that enrolled, and of keys that changed, since the last time or from the start."""
        refused = []
        for part in self._connection.directory(b"" if anew else self._directory_version):
            with self._site.store.write() as transaction:
                refused += inbound.pin_peers(
                    transaction, self._site.settings, part, self._site.consortium
                )
            self._directory_version = part.version
        for problem in refused:
            log.error("%s", problem)

    def work(self) -> bool:
        """One pass over everything that waits; True if anything was done.

        Raises
        ------
        UnavailableError, DeadlineError
            If the coordinator is not reached, or too slow.
        IdentityError
            If it does not accept this site.
        """
        self._site = self._site.refreshed()
        withdrawn = self._duties.first(self._site)
        handled = self._handle_inbox() | self._standing.carry_out(self._site)
        if not self._has_compared or ledger_check.has_waiting_report(self._site):
            ledger_check.compare(self._site, self._connection)
            self._has_compared = True
        sent = send_waiting(self._site, self._connection)
        moved = self._move_transfers()
        owed = self._duties.then(self._site)
        return withdrawn or handled or sent or moved or owed

    def _last_sequence(self) -> int:
        with self._site.store.read() as transaction:
            last: int | None = transaction.execute(
                sa.select(sa.func.max(store.inbox.c.sequence))
            ).scalar_one()
        return last or 0

    def _keep(self, message: wire.InboxMessage) -> None:
        if message.WhichOneof("body") == "withdrawal":
            self._keep_notice(message.withdrawal)
            return
        try:
            with self._site.store.write() as transaction:
                keep_message(transaction, message)
        except VerificationError as error:
            with self._site.store.write() as transaction:
                note_refused(transaction, str(error))
            raise

    def _keep_notice(self, signed: pb.SignedStatement) -> None:
        try:
            keep_notice(self._site, signed)
        except ProtocolError as error:
            log.error("a withdrawal that is none was not stored: %s", error)

    def _handle_inbox(self) -> bool:
        with self._site.store.read() as transaction:
            blobs = transaction.execute(
                sa.select(store.inbox.c.message)
                .where(store.inbox.c.handled_at_ms.is_(None))
                .order_by(store.inbox.c.sequence)
            ).scalars()
            messages = [wire.InboxMessage.FromString(blob) for blob in blobs]
            peers = set(transaction.execute(sa.select(store.peers.c.site)).scalars())
        if any(_signer(message) not in (None, *peers) for message in messages):
            self.refresh_peers(anew=True)  # the signer may have enrolled a moment ago
        for message in messages:
            inbound.apply(self._site, message)
        return bool(messages)

    def _move_transfers(self) -> bool:
        with self._site.store.read() as transaction:
            # Not the finished ones: years of them would be decoded five times a second.
            transfers = list_transfers(transaction, _UNDER_WAY)
        sweep(self._site, transfers)
        progress = False
        for transfer in transfers:
            if transfer.state is State.PREPARED and transfer.role == "donor":
                progress |= self._lapse_if_late(transfer)
            elif transfer.gate is not None and transfer.state is State.DELIVERED:
                continue  # it passed the gate and waits for this site's steward
            elif transfer.state in _AGENT_MOVES[transfer.role] and self._attempts.is_due(transfer):
                progress |= self._try(transfer)
        return progress

    def _lapse_if_late(self, transfer: Transfer) -> bool:
        site = self._site.under(transfer.dictionary_digest)
        limit_ms = site.dictionary.policy.prepared_h * 3_600_000
        if store.now_ms() - transfer.changed_at_ms <= limit_ms:
            return False
        with self._site.store.write() as transaction:
            lapse(transaction, transfer, "agent", "not approved within the dictionary's time limit")
        return True

    def _try(self, transfer: Transfer) -> bool:
        take = ship if transfer.role == "donor" else fetch
        try:
            # A transfer finishes under the dictionary it was requested with.
            site = self._site.under(transfer.dictionary_digest)
            progress = take(site, self._connection, transfer)
        except (UnavailableError, DeadlineError):
            raise
        except (ProtocolError, SynthEdgeError, OSError) as error:
            self._attempts.failed(transfer)
            problem = _in_words(error)
            if problem != transfer.problem:
                log.error("transfer %s does not go on: %s", transfer.short_id, problem)
                with self._site.store.write() as transaction:
                    note_problem(transaction, transfer, problem)
            return False
        if progress:
            self._attempts.went_on(transfer)
        else:
            self._attempts.failed(transfer)
        return progress


def run_once(site: Site, connection: Connection) -> None:
    """Exchange everything that can be exchanged now.

    Raises
    ------
    UnavailableError, DeadlineError, IdentityError
        If the coordinator cannot be reached or does not know this site.
    """
    agent = Agent(site, connection)
    divergence.compare(site, connection)
    Renewer().look_after(site, connection)
    agent.refresh_peers()
    progress = True
    while progress:
        agent.receive()
        progress = agent.work()
    exchange_heads(site, connection)
    agent.work()


def run_forever(site: Site, connection: Connection, stop: threading.Event) -> None:
    """Work until `stop` is set, reconnecting for as long as it takes; closes the connection."""
    divergence.refuse_if_frozen(site)
    agent, wake = Agent(site, connection), threading.Event()
    broken: list[BaseException] = []

    def follow() -> None:
        try:
            agent.follow(stop, wake)
        except BaseException as error:  # noqa: BLE001 - handed to the caller: a deaf agent must not run on
            if not stop.is_set():
                broken.append(error)
                stop.set()
                wake.set()

    follower = threading.Thread(target=follow, name="inbox", daemon=True)
    follower.start()
    heads_at, refresh_at, read_at, told, renewer = 0.0, 0.0, 0.0, "", Renewer()
    while not stop.is_set():
        try:
            renewer.look_after(site, connection)
            if time.monotonic() >= heads_at:
                exchange_heads(site, connection)
                heads_at = time.monotonic() + HEADS_EVERY_S
            if time.monotonic() >= refresh_at:
                agent.refresh_peers()
                refresh_at = time.monotonic() + REFRESH_PEERS_S
            if time.monotonic() >= read_at:
                # The open stream never ends: only a whole reading shows that no withdrawal waits.
                agent.receive()
                read_at = time.monotonic() + READ_INBOX_S
            if not agent.work():
                wake.wait(POLL_S)
                wake.clear()
            told = ""
        except (ProtocolError, sa.exc.OperationalError) as error:
            if told != (told := _in_words(error)):
                log.warning("%s; trying again every %.0f s", told, RECONNECT_S)
            stop.wait(_wait_s(error))
    connection.close()
    follower.join(timeout=5.0)
    if broken:
        raise broken[0]


def _wait_s(error: Exception) -> float:
    """How long to leave the coordinator alone: as long as it asks for, if it does."""
    return max(RECONNECT_S, error.wait_s) if isinstance(error, BusyError) else RECONNECT_S


def _signer(message: wire.InboxMessage) -> str | None:
    """Which site a statement says it is from; None for anything else."""
    if message.WhichOneof("body") != "statement":
        return None
    try:
        return pb.Statement.FromString(message.statement.statement).signer_site
    except DecodeError:
        return None


def _in_words(error: Exception) -> str:
    """One sentence; of an error that is not ours only what cannot hold a value."""
    if isinstance(error, OSError):
        return f"the site's folder: {error.strerror}"
    if isinstance(error, sa.exc.OperationalError):
        return "the site's database could not be written"
    return str(error)
