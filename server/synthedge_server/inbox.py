"""A site's inbox: messages by strictly increasing sequence number, kept until the site asks behind them."""

from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from synthedge_protocols.limits import Limits
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import store

_SIZE: Final = func.length(store.inbox.c.message)
_NEXT: Final = (
    select(
        store.inbox.c.sequence,
        store.inbox.c.message,
        # Bytes of the messages before it.
        (func.sum(_SIZE).over(order_by=store.inbox.c.sequence) - _SIZE).label("behind"),
    )
    .where(store.inbox.c.site == bindparam("of_site"), store.inbox.c.sequence > bindparam("after"))
    .order_by(store.inbox.c.sequence)
    .limit(bindparam("at_most"))
    .subquery()
)
_AFTER: Final = Prepared(
    select(_NEXT.c.message).where(_NEXT.c.behind < bindparam("n_bytes")).order_by(_NEXT.c.sequence)
)


def messages_after(
    connection: Connection, site: str, after: int, limits: Limits
) -> list[wire.InboxMessage]:
    """Read the next messages of a site.

    Parameters
    ----------
    connection : Connection
    site : str
    after : int
        The last sequence number the site has stored.
    limits : Limits
        How many at most; and no more than fill one of the largest messages, since a slow reader keeps them here.

    Returns
    -------
    list of InboxMessage
        Empty only if nothing lies there. In the order of their sequence numbers, which may have gaps: an older
        hint disappears when a newer one of its kind is posted.
    """
    # Sequence numbers are signed 64-bit in the database; a larger one lies behind everything.
    after = min(after, 2**63 - 1)
    rows = _AFTER.run(
        connection,
        of_site=site,
        after=after,
        at_most=limits.inbox_batch,
        n_bytes=limits.message_bytes,
    )
    return [wire.InboxMessage.FromString(row.message) for row in rows]
