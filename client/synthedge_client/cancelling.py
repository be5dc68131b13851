"""A steward of either side calls a transfer off; the reason reaches the other side.

Where the recipient was faster, the coordinator's order holds: its receipt brings the donor's record on again (see
`lifecycle`), and the rows are to be withdrawn.
"""

from synthedge_client import outbound
from synthedge_client.deciding import check_reason
from synthedge_client.donating import forget_selection
from synthedge_client.received import delete_samples
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_client.transfers import Transfer, get_transfer, move
from synthedge_protocols.lifecycle import Event, Party, State
from synthedge_protocols.v1 import statements_pb2 as pb


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
    site = site.under(transfer.dictionary_digest)
    with site.store.write() as connection:
        transfer = get_transfer(connection, transfer.id)  # the agent may have taken it on meanwhile
        signed = steward.sign(
            site,
            pb.Ending(transfer_id=transfer.id, state=State.CANCELLED.value, reason=reason),
        )
        move(
            connection,
            transfer,
            Event.CANCEL,
            party,
            steward.label,
            reason=reason,
            payload=None,
        )
        if party is Party.RECIPIENT:
            delete_samples(connection, transfer)
        elif transfer.state is State.APPROVED:
            # Once bytes may have left, who was selected stays on record: the recipient may have been faster.
            forget_selection(connection, transfer)
        outbound.enqueue(connection, "ending", signed, steward.label)
