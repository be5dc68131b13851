"""A site that pauses, resumes or leaves, by its steward's will.

What each standing does to transfers is one table, `synthedge_protocols.standing`. A site that left still owes: its
agent goes on carrying out withdrawals and purging rows whose retention ends, and it may still withdraw its own.
"""

from typing import Any

import sqlalchemy as sa

from synthedge_client import outbound, store
from synthedge_client.deciding import check_reason
from synthedge_client.site import Site
from synthedge_client.standing import STANDING, own_standing
from synthedge_client.stewards import Steward
from synthedge_client.transfers import list_transfers
from synthedge_core.errors import RefusedError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.standing import ACTIONS, Standing
from synthedge_protocols.v1 import statements_pb2 as pb


def change_standing(site: Site, action: str, steward: Steward, reason: str) -> dict[str, Any]:
    """Sign that this site pauses, resumes or leaves; the agent hands it in.

    Parameters
    ----------
    site : Site
    action : str
        ``suspend``, ``resume`` or ``leave``.
    steward : Steward
    reason : str
        Goes to every site that shares an open or active transfer.

    Returns
    -------
    dict
        The new standing, and what this site still holds of others and others of it.

    Raises
    ------
    RefusedError
        If it left already, or does not stand as the action presumes.
    UsageError
        If the reason is empty or long.
    """
    check_reason(reason)
    standing = ACTIONS[action]
    with site.store.write() as connection:
        before = own_standing(connection)
        if before is Standing.LEFT:
            raise RefusedError("this site left the consortium; its operator can let it enrol anew")
        if before is standing:
            raise RefusedError(f"this site is {standing} already")
        signed = steward.sign(site, pb.SiteLeaving(action=action, reason=reason))
        outbound.enqueue(connection, "site-leaving", signed, steward.label)
        store.set_fact(connection, STANDING, standing.value)
        store.record(connection, f"site {standing}", steward.label, reason=reason)
        return {"standing": standing.value} | obligations(connection)


def obligations(connection: sa.Connection) -> dict[str, Any]:
    """What binds this site beyond its leaving, for its steward.

    Returns
    -------
    dict
        ``holds_rows_of`` and ``rows_held_by``: peers with how many active transfers.
    """
    held: dict[str, int] = {}
    given: dict[str, int] = {}
    for transfer in list_transfers(connection):
        if transfer.state is State.ACTIVE:
            counts = held if transfer.role == "recipient" else given
            counts[transfer.peer] = counts.get(transfer.peer, 0) + 1
    return {"holds_rows_of": held, "rows_held_by": given}
