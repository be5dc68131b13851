"""The recipient's last word on a delivery: taken in or deleted, with the receipt that says so.

Rules
-----
* What the gate refused is deleted at once. What passed it waits, encrypted and outside every fill, for a steward;
  only a standing policy or the request itself may stand in for one.
* The rows and the receipt change in one transaction.
"""

import sqlalchemy as sa

from synthedge_client import outbound, store
from synthedge_client.deciding import Decider, check_reason
from synthedge_client.received import delete_samples
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_client.transfers import Transfer, move
from synthedge_protocols.errors import LifecycleError
from synthedge_protocols.lifecycle import Event, Party, State
from synthedge_protocols.v1 import statements_pb2 as pb


def accept(site: Site, transfer: Transfer, decider: Decider) -> None:
    """Take a delivery in that passed the gate.

    Raises
    ------
    LifecycleError
        If no delivery of this transfer waits here.
    """
    site = site.under(transfer.dictionary_digest)
    with site.store.write() as connection:
        settle(site, connection, transfer, decider, accepted=True, reason=_findings(transfer))


def refuse(site: Site, transfer: Transfer, steward: Steward, reason: str) -> None:
    """Delete a delivery that passed the gate; the reason reaches the donor.

    Raises
    ------
    LifecycleError
        If no delivery of this transfer waits here.
    UsageError
        If the reason is empty or too long.
    """
    _findings(transfer)
    check_reason(reason)
    site = site.under(transfer.dictionary_digest)
    with site.store.write() as connection:
        settle(site, connection, transfer, steward, accepted=False, reason=reason)


def settle(
    site: Site,
    connection: sa.Connection,
    transfer: Transfer,
    decider: Decider,
    *,
    accepted: bool,
    reason: str,
    rows: int = 0,
    ciphertext_digest: bytes | None = None,
) -> None:
    """Sign the receipt of a delivery and move the transfer; refused rows are deleted.

    Parameters
    ----------
    rows : int
        How many were kept, where the record of the transfer does not say yet.
    ciphertext_digest : bytes, optional
        Of what was opened; that of the stored shipment if left out.
    """
    if not accepted:
        delete_samples(connection, transfer)
    n_rows = (transfer.rows or rows) if accepted else 0
    signed = decider.sign(
        site,
        pb.Receipt(
            transfer_id=transfer.id,
            ciphertext_digest=ciphertext_digest or _shipped_digest(connection, transfer),
            rows=n_rows,
            accepted=accepted,
            reason=reason,
        ),
    )
    event = Event.ACCEPT if accepted else Event.REFUSE
    move(connection, transfer, event, Party.RECIPIENT, decider.label, reason=reason, rows=n_rows)
    outbound.enqueue(connection, "receipt", signed, decider.label)


def _findings(transfer: Transfer) -> str:
    if transfer.role != "recipient" or transfer.state is not State.DELIVERED or not transfer.gate:
        raise LifecycleError(
            f"transfer {transfer.short_id} is {transfer.state} and this site its {transfer.role}; "
            "only a delivery that passed this site's gate can be accepted or refused"
        )
    return transfer.gate


def _shipped_digest(connection: sa.Connection, transfer: Transfer) -> bytes:
    blob = connection.execute(
        sa.select(store.transfers.c.shipment).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    statement = pb.Statement.FromString(pb.SignedStatement.FromString(blob).statement)
    return pb.Shipment.FromString(statement.payload).ciphertext_digest
