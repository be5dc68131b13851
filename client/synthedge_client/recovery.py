"""A peer that lost its keys and enrolled anew: a steward lets its old key go, its new one is compared from scratch."""

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.deciding import check_reason
from synthedge_client.rotation import retire_peer
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_client.transfers import list_transfers
from synthedge_core.errors import RefusedError
from synthedge_protocols.lifecycle import is_final


def forget_peer(site: Site, peer: str, steward: Steward, reason: str) -> None:
    """Let a peer's pinned key go; the next one shown for it counts as first seen, and must be compared.

    The old key stays on record, to read what was signed with it.

    Raises
    ------
    UsageError
        If the peer is not known here, or the reason is empty or long.
    RefusedError
        If a transfer with it is not ended: then its keys were not reset, and somebody may be in between.
    """
    check_reason(reason)
    with site.store.write() as connection:
        site.peer_public_key(connection, peer)
        open_ones = [
            t.short_id
            for t in list_transfers(connection)
            if t.peer == peer and not is_final(t.state)
        ]
        if open_ones:
            raise RefusedError(
                f"transfers with site '{peer}' are not ended ({', '.join(open_ones)}); the operator resets its keys "
                "first, and this site's agent hears of that"
            )
        retire_peer(connection, peer)
        connection.execute(sa.delete(store.peers).where(store.peers.c.site == peer))
        store.record(connection, "peer forgotten", steward.label, peer=peer, reason=reason)
