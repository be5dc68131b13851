"""A steward of either side calls a transfer off; the reason reaches the other side.

Rules
-----
* Where rows may be on their way, the donor's record moves only when the coordinator has taken the word in: the
  recipient may have been faster, and then its rows are to be withdrawn, not to be forgotten about.
"""

import sqlalchemy as sa

from synthedge_client import outbound
from synthedge_client.deciding import check_reason
from synthedge_client.donating import forget_selection
from synthedge_client.keystore import Steward
from synthedge_client.received import delete_samples
from synthedge_client.site import Site
from synthedge_client.transfers import Transfer, get_transfer, move, note_problem
from synthedge_protocols.lifecycle import Event, Party, State, advance, is_final
from synthedge_protocols.v1 import statements_pb2 as pb

_ON_ITS_WAY = (State.SEALED, State.RELAYED)


def cancel(site: Site, transfer: Transfer, steward: Steward, reason: str) -> None:
    """Sign and queue the end of a transfer.

    Raises
    ------
    LifecycleError
        If the lifecycle table does not let this side cancel any more.
    UsageError
        If the reason is empty or too long.
    """
    check_reason(reason)
    party = Party(transfer.role)
    advance(transfer.state, Event.CANCEL, party, at=party)
    site = site.under(transfer.dictionary_digest)
    with site.store.write() as connection:
        signed = steward.sign(
            site,
            pb.Ending(transfer_id=transfer.id, state=State.CANCELLED.value, reason=reason),
        )
        if party is Party.RECIPIENT or transfer.state not in _ON_ITS_WAY:
            _end(connection, transfer, steward.label, reason)
        outbound.enqueue(connection, "ending", signed, steward.label)


def took_effect(connection: sa.Connection, signed: pb.SignedStatement, who: str) -> None:
    """Move the donor's record once the coordinator has taken its cancellation in."""
    ending = pb.Ending.FromString(pb.Statement.FromString(signed.statement).payload)
    if ending.state != State.CANCELLED.value:
        return
    transfer = get_transfer(connection, ending.transfer_id)
    if not is_final(transfer.state):
        _end(connection, transfer, who, ending.reason)


def was_refused(connection: sa.Connection, signed: pb.SignedStatement, reason: str) -> None:
    """Say that a cancellation came too late, where the transfer goes on."""
    ending = pb.Ending.FromString(pb.Statement.FromString(signed.statement).payload)
    transfer = get_transfer(connection, ending.transfer_id)
    if ending.state == State.CANCELLED.value and not is_final(transfer.state):
        note_problem(
            connection,
            transfer,
            f"it could not be cancelled any more ({reason}); withdraw its rows instead",
        )


def _end(connection: sa.Connection, transfer: Transfer, who: str, reason: str) -> None:
    # Between the steward's word and the coordinator's, a lost consent may have taken it back to PREPARED.
    went_back = transfer.role == "donor" and transfer.state is State.PREPARED
    move(
        connection,
        transfer,
        Event.DECLINE if went_back else Event.CANCEL,
        Party(transfer.role),
        who,
        reason=reason,
        payload=None,
    )
    if transfer.role == "recipient":
        delete_samples(connection, transfer)
    elif transfer.state not in _ON_ITS_WAY:
        forget_selection(connection, transfer)
