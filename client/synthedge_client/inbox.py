"""Messages of the inbox, stored as they arrive, under sequence numbers that cannot silence a site.

A site asks for what lies behind the last number it stored. One huge number, by a fault or on purpose, would make it
ask behind everything that ever comes. Numbers therefore only grow, and by little: the coordinator counts by one, and
a gap is a hint that a newer one replaced before it was fetched.
"""

import json

import sqlalchemy as sa

from synthedge_client import store
from synthedge_protocols.errors import VerificationError
from synthedge_protocols.v1 import coordinator_pb2 as wire

MAX_GAP = 100_000
"""Hints that may have been replaced between two messages: years of them at one a minute and site."""


def keep_message(connection: sa.Connection, message: wire.InboxMessage) -> None:
    """Store one message; a message stored before changes nothing.

    Raises
    ------
    VerificationError
        If its number is not behind the last one, or far beyond it; nothing is stored.
    """
    sequences = store.inbox.c.sequence
    last: int = connection.execute(sa.select(sa.func.max(sequences))).scalar_one() or 0
    if last < message.sequence <= last + MAX_GAP:
        connection.execute(
            store.inbox.insert().values(
                sequence=message.sequence, message=message.SerializeToString()
            )
        )
        return
    known = connection.execute(
        sa.select(sequences).where(sequences == min(message.sequence, 2**63 - 1))
    ).first()
    if known is None:
        raise VerificationError(
            f"the coordinator sent inbox message {message.sequence} after {last}, expected {last + 1} to "
            f"{last + MAX_GAP}; it was not stored: tell the operator"
        )


def note_refused(connection: sa.Connection, reason: str) -> None:
    """Write a refusal down where audit reports show it; once, though the message comes at every connection."""
    details = json.dumps({"reason": reason})
    known = connection.execute(
        sa.select(store.events.c.id)
        .where((store.events.c.what == "message refused") & (store.events.c.details == details))
        .limit(1)
    ).first()
    if known is None:
        store.record(connection, "message refused", "agent", reason=reason)
