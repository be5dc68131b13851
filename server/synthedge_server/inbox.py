"""A site's inbox: messages by strictly increasing sequence number, kept until the site asks behind them."""

from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from synthedge_protocols.limits import Limits
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import store

_BEHIND: Final = (
    store.inbox.c.site == bindparam("of_site"),
    store.inbox.c.sequence > bindparam("after"),
)
_SIZES: Final = Prepared(
    select(store.inbox.c.sequence, func.length(store.inbox.c.message).label("n_bytes"))
    .where(*_BEHIND)
    .order_by(store.inbox.c.sequence)
    .limit(bindparam("at_most"))
)
_UP_TO: Final = Prepared(
    select(store.inbox.c.message)
    .where(*_BEHIND, store.inbox.c.sequence <= bindparam("up_to"))
    .order_by(store.inbox.c.sequence)
)


def messages_after(
    connection: Connection, site: str, after: int, limits: Limits
) -> tuple[list[wire.InboxMessage], bool]:
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
    bool
        Whether more may lie behind them.
    """
    # Sequence numbers are signed 64-bit in the database; a larger one lies behind everything.
    after = min(after, 2**63 - 1)
    # Two plain questions: one with a running sum made SQLite's memory grow by 20 kB a connected site.
    sizes = _SIZES.run(connection, of_site=site, after=after, at_most=limits.inbox_batch)
    if not sizes:
        return [], False
    n_fitting, n_bytes = 0, 0
    for size in sizes:
        n_bytes += size.n_bytes
        if n_fitting and n_bytes > limits.message_bytes:
            break
        n_fitting += 1
    rows = _UP_TO.run(connection, of_site=site, after=after, up_to=sizes[n_fitting - 1].sequence)
    is_more = n_fitting < len(sizes) or len(sizes) == limits.inbox_batch
    return [wire.InboxMessage.FromString(row.message) for row in rows], is_more
