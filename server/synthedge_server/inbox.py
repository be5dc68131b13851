"""A site's inbox: messages by strictly increasing sequence number, kept until the site asks behind them."""

from sqlalchemy import Engine, select

from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import store


def messages_after(engine: Engine, site: str, after: int, limit: int) -> list[wire.InboxMessage]:
    """Read the next messages of a site.

    Parameters
    ----------
    engine : Engine
    site : str
    after : int
        The last sequence number the site has stored.
    limit : int
        How many at most.

    Returns
    -------
    list of InboxMessage
        In the order of their sequence numbers, which may have gaps: an older hint disappears when a
        newer one of its kind is posted.
    """
    table = store.inbox
    # Sequence numbers are signed 64-bit in the database; a larger one lies behind everything.
    after = min(after, 2**63 - 1)
    with engine.connect() as connection:
        blobs = connection.execute(
            select(table.c.message)
            .where(table.c.site == site, table.c.sequence > after)
            .order_by(table.c.sequence)
            .limit(limit)
        ).scalars()
        return [wire.InboxMessage.FromString(blob) for blob in blobs]
