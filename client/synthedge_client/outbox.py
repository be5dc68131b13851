"""Sending what was queued, in the order it was queued, and what a refusal by the coordinator means here.

Rules
-----
* A statement leaves the outbox when the coordinator's receipt is stored; sending one twice changes nothing there.
* A statement the coordinator refuses for good is kept with the reason, and its transfer goes where this site alone
  can take it: a refused request is cancelled, a refused approval or shipment goes back to the steward, rows whose
  receipt is refused are deleted. No transfer waits for ever for an answer that cannot come.
* A gap report waits while the release ledger is frozen (see `ledger_check`).
* A coordinator that is not there, too slow, broken, or does not accept this site has refused nothing.
"""

import logging

import sqlalchemy as sa

from synthedge_client import rotation, store
from synthedge_client.connection import Connection
from synthedge_client.donating import withdraw_approval
from synthedge_client.received import delete_samples
from synthedge_client.releases import is_frozen
from synthedge_client.site import Site
from synthedge_client.transfers import get_transfer, move, request_id
from synthedge_protocols.errors import (
    DeadlineError,
    IdentityError,
    ProtocolError,
    UnavailableError,
)
from synthedge_protocols.lifecycle import Event, Party, State
from synthedge_protocols.v1 import statements_pb2 as pb

log = logging.getLogger(__name__)

_PAYLOADS: dict[str, type[pb.Approval] | type[pb.Shipment] | type[pb.Receipt]] = {
    "approval": pb.Approval,
    "shipment": pb.Shipment,
    "receipt": pb.Receipt,
}


def send_waiting(site: Site, connection: Connection) -> bool:
    """Hand over everything that waits; True if anything did.

    Raises
    ------
    UnavailableError, DeadlineError
        If the coordinator is not reached, too slow, or failed internally; what waits stays queued.
    IdentityError
        If it does not accept this site now.
    """
    with site.store.read() as transaction:
        waiting = transaction.execute(
            sa.select(store.outbox)
            .where(store.outbox.c.sent_at_ms.is_(None) & store.outbox.c.refusal.is_(None))
            .order_by(store.outbox.c.id)
        ).all()
        if is_frozen(transaction):
            waiting = [row for row in waiting if row.kind != "gap-report"]
    for row in waiting:
        signed = pb.SignedStatement.FromString(row.statement)
        refusal = _submit(connection, signed)
        with site.store.write() as transaction:
            transaction.execute(
                store.outbox.update()
                .where(store.outbox.c.id == row.id)
                .values(sent_at_ms=None if refusal else store.now_ms(), refusal=refusal)
            )
            if refusal is None:
                store.record(transaction, "sent", "agent", kind=row.kind)
                continue
            log.error("the coordinator refused a %s: %s", row.kind, refusal)
            store.record(
                transaction, "refused by the coordinator", "agent", kind=row.kind, reason=refusal
            )
            _take_back(transaction, row.kind, signed, f"the coordinator refused: {refusal}")
    return bool(waiting)


def _submit(connection: Connection, signed: pb.SignedStatement) -> str | None:
    """Send one statement; the reason if it is refused for good."""
    try:
        connection.submit(signed)
    except (UnavailableError, DeadlineError):
        raise
    except IdentityError as error:
        # Of this statement, or of the site as a whole, suspended for example? A harmless question tells.
        connection.dictionary()
        return str(error)
    except ProtocolError as error:
        if type(error) is ProtocolError:
            raise UnavailableError(str(error)) from None
        return str(error)
    return None


def _take_back(
    transaction: sa.Connection, kind: str, signed: pb.SignedStatement, reason: str
) -> None:
    """Give the transfer of a refused statement a state of its own."""
    if kind == "transfer-request":
        transfer = get_transfer(transaction, request_id(signed))
        if transfer.state is State.REQUESTED:
            move(transaction, transfer, Event.CANCEL, Party.RECIPIENT, "agent", reason=reason)
        return
    if kind == rotation.KIND:
        rotation.take_back(transaction)
    if kind not in _PAYLOADS:
        return  # a report or an ending: the ledger, or the transfer's end, stands as it is
    payload = pb.Statement.FromString(signed.statement).payload
    transfer = get_transfer(transaction, _PAYLOADS[kind].FromString(payload).transfer_id)
    if kind == "receipt":
        if transfer.state is State.ACTIVE:
            # The consortium has no record that these rows are here: no withdrawal would ever reach them.
            delete_samples(transaction, transfer)
            move(transaction, transfer, Event.PURGE, Party.RECIPIENT, "agent", reason=reason)
    elif transfer.state in (State.APPROVED, State.SEALED):
        withdraw_approval(transaction, transfer, reason)
