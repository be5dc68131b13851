"""The agent: the site's one connection. It sends the outbox, takes in the inbox, ships and fetches sealed bytes.

Rules
-----
* All state is in the site's database: the agent may be killed at any point and carries on where it was.
* A statement leaves the outbox when the coordinator's receipt is stored; sending one twice changes nothing there.
* The agent holds no steward's key: it can carry out decisions, not make them.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator

import sqlalchemy as sa

from synthedge_client import inbound, store
from synthedge_client.connection import Connection
from synthedge_client.delivery import fetch, ship
from synthedge_client.site import Site
from synthedge_client.transfers import list_transfers, outgoing_file
from synthedge_protocols.errors import DeadlineError, IdentityError, ProtocolError, UnavailableError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

log = logging.getLogger(__name__)

POLL_S = 0.2
RECONNECT_S = 2.0


def run_once(site: Site, connection: Connection) -> None:
    """Exchange everything that can be exchanged now.

    Raises
    ------
    UnavailableError, DeadlineError, IdentityError
        If the coordinator cannot be reached or does not know this site.
    """
    _refresh_peers(site, connection)
    progress = True
    while progress:
        for message in connection.inbox(_last_sequence(site), follow=False):
            _keep(site, message)
        progress = work(site, connection)


def run_forever(site: Site, connection: Connection, stop: threading.Event) -> None:
    """Work until `stop` is set, reconnecting for as long as it takes."""
    wake = threading.Event()
    follower = threading.Thread(target=_follow, args=(site, connection, stop, wake), daemon=True)
    follower.start()
    while not stop.is_set():
        try:
            if not work(site, connection):
                wake.wait(POLL_S)
                wake.clear()
        except (UnavailableError, DeadlineError) as error:
            log.warning("coordinator not reached (%s); trying again in %.0f s", error, RECONNECT_S)
            stop.wait(RECONNECT_S)
    connection.close()
    follower.join(timeout=5.0)


def work(site: Site, connection: Connection) -> bool:
    """One pass over everything that waits; True if anything was done."""
    handled = _handle_inbox(site, connection)
    sent = _send_outbox(site, connection)
    return _move_transfers(site, connection) or handled or sent


def _follow(
    site: Site, connection: Connection, stop: threading.Event, wake: threading.Event
) -> None:
    while not stop.is_set():
        try:
            _refresh_peers(site, connection)
            for message in connection.inbox(_last_sequence(site), follow=True):
                _keep(site, message)
                wake.set()
        except (UnavailableError, DeadlineError) as error:
            if not stop.is_set():
                log.info("inbox stream ended (%s)", error)
        except ProtocolError as error:
            log.error("%s", error)
            if isinstance(error, IdentityError):
                log.error("the coordinator does not accept this site; run 'synthedge site doctor'")
        stop.wait(RECONNECT_S)


def _refresh_peers(site: Site, connection: Connection) -> None:
    directory = connection.directory()
    with site.store.write() as transaction:
        inbound.pin_peers(transaction, site.settings, directory, site.consortium)


def _last_sequence(site: Site) -> int:
    with site.store.read() as transaction:
        return transaction.execute(sa.select(sa.func.max(store.inbox.c.sequence))).scalar_one() or 0


def _keep(site: Site, message: wire.InboxMessage) -> None:
    with site.store.write() as transaction:
        known = transaction.execute(
            sa.select(store.inbox.c.sequence).where(store.inbox.c.sequence == message.sequence)
        ).first()
        if known is None:
            transaction.execute(
                store.inbox.insert().values(
                    sequence=message.sequence, message=message.SerializeToString()
                )
            )


def _waiting_messages(site: Site) -> list[wire.InboxMessage]:
    with site.store.read() as transaction:
        blobs = transaction.execute(
            sa.select(store.inbox.c.message)
            .where(store.inbox.c.handled_at_ms.is_(None))
            .order_by(store.inbox.c.sequence)
        ).scalars()
        return [wire.InboxMessage.FromString(blob) for blob in blobs]


def _handle_inbox(site: Site, connection: Connection) -> bool:
    messages = _waiting_messages(site)
    if any(m.WhichOneof("body") == "statement" for m in messages):
        _refresh_peers(site, connection)  # the signer may have enrolled after this agent started
    for message in messages:
        inbound.apply(site, message)
    return bool(messages)


def _send_outbox(site: Site, connection: Connection) -> bool:
    with site.store.read() as transaction:
        waiting = transaction.execute(
            sa.select(store.outbox)
            .where(store.outbox.c.sent_at_ms.is_(None) & store.outbox.c.refusal.is_(None))
            .order_by(store.outbox.c.id)
        ).all()
    for row in waiting:
        refusal: str | None = None
        try:
            connection.submit(pb.SignedStatement.FromString(row.statement))
        except (UnavailableError, DeadlineError):
            raise
        except ProtocolError as error:
            refusal = str(error)
            log.error("the coordinator refused a %s: %s", row.kind, refusal)
        with site.store.write() as transaction:
            transaction.execute(
                store.outbox.update()
                .where(store.outbox.c.id == row.id)
                .values(sent_at_ms=None if refusal else store.now_ms(), refusal=refusal)
            )
            store.record(
                transaction,
                "refused by the coordinator" if refusal else "sent",
                "agent",
                kind=row.kind,
                **({"reason": refusal} if refusal else {}),
            )
    return bool(waiting)


def _move_transfers(site: Site, connection: Connection) -> bool:
    with site.store.read() as transaction:
        transfers = list_transfers(transaction)
    progress = False
    for transfer in transfers:
        if transfer.role == "donor":
            if transfer.state in (State.APPROVED, State.SEALED):
                progress |= ship(site, connection, transfer)
            elif transfer.state in (State.ACTIVE, State.REFUSED):
                outgoing_file(site, transfer).unlink(missing_ok=True)
        elif transfer.state in (State.RELAYED, State.DELIVERED):
            progress |= fetch(site, connection, transfer)
    return progress


@contextlib.contextmanager
def agent_lock(site: Site) -> Iterator[None]:
    """Hold the site's agent lock: two agents on one database would do the work twice.

    Raises
    ------
    RefusedError
        If an agent runs already.
    """
    import fcntl

    from synthedge_core.errors import RefusedError

    path = site.settings.folder / "agent.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"an agent of site '{site.settings.id}' runs already on {path.parent}; stop it first"
            ) from None
        yield
