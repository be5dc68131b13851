"""Whether this site and the coordinator still have the same past; a database restored from a backup has not.

Rules
-----
* Both compare what they remember of each other before the agent reads its inbox, whenever it connects.
* If they differ, the site is frozen: the agent ends and nothing is sent, until the operator and a steward have
  decided. Steward's decisions meanwhile are kept in the outbox.
* `recover` lets the agent run again: it reads again what its inbox holds, and sends again what the coordinator lost.
"""

import json
from typing import Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.connection import Connection
from synthedge_client.outbound import sha256
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.texts import printable
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

FROZEN_FACT = "records differ"  # JSON: reason, and the digests of statements the coordinator lost
# More than the coordinator looks back.
_NEWEST = 1_024
# Inbox messages whose digests are compared: a restored coordinator gives their numbers to other messages.
_MARKS = 64


def frozen_reason(connection: sa.Connection) -> str | None:
    """Why the site is frozen; None if it is not."""
    text = store.get_fact(connection, FROZEN_FACT)
    return None if text is None else str(json.loads(text)["reason"])


def refuse_if_frozen(site: Site) -> None:
    """Refuse to go on with a frozen site.

    Raises
    ------
    RefusedError
        If it is frozen.
    """
    with site.store.read() as transaction:
        reason = frozen_reason(transaction)
    if reason is not None:
        raise RefusedError(
            f"this site is {reason}; ask the coordinator's operator which of the two was restored from a backup, "
            "then let a steward run 'synthedge site recover'"
        )


def compare(site: Site, connection: Connection) -> None:
    """Ask the coordinator whether it remembers what this site does; freeze the site if not.

    Raises
    ------
    RefusedError
        If the site is frozen.
    UnavailableError, DeadlineError, IdentityError
        If the coordinator is not reached, is too slow, or does not accept this site.
    """
    refuse_if_frozen(site)
    with site.store.read() as transaction:
        request = _remembered(transaction)
    answer = connection.compare(request)
    if answer.challenge:
        with site.store.read() as transaction:
            request = _remembered(transaction)
        request.challenge = answer.challenge
        answer = connection.compare(request)
    if answer.challenge:
        raise UnavailableError("the coordinator compares with somebody else at once; try again")
    if not answer.reason:
        return
    missing = [digest.hex() for digest in answer.missing]
    with site.store.write() as transaction:
        reason = printable(answer.reason)
        fact = json.dumps({"reason": reason, "missing": missing})
        store.set_fact(transaction, FROZEN_FACT, fact)
        store.record(transaction, "frozen", "agent", reason=reason, missing=missing)
    refuse_if_frozen(site)


def recover(site: Site, steward: Steward) -> dict[str, Any]:
    """Let a frozen site go on, on a steward's word.

    Returns
    -------
    dict
        The reason it was frozen, and how many statements are sent again.

    Raises
    ------
    RefusedError
        If it is not frozen.
    """
    with site.store.write() as transaction:
        text = store.get_fact(transaction, FROZEN_FACT)
        if text is None:
            raise RefusedError(
                f"site '{site.settings.id}' is not frozen; there is nothing to recover"
            )
        fact = json.loads(text)
        again = [id for id, digest, _ in _outbox(transaction) if digest.hex() in fact["missing"]]
        transaction.execute(
            store.outbox.update().where(store.outbox.c.id.in_(again)).values(sent_at_ms=None)
        )
        store.delete_fact(transaction, FROZEN_FACT)
        store.record(
            transaction, "recovered", steward.label, reason=fact["reason"], sent_again=len(again)
        )
    return {"reason": fact["reason"], "sent_again": len(again)}


def _remembered(transaction: sa.Connection) -> wire.CompareRequest:
    inbox = store.inbox
    read = transaction.execute(
        sa.select(inbox.c.sequence, inbox.c.message).order_by(inbox.c.sequence.desc()).limit(_MARKS)
    ).all()
    rows = _outbox(transaction)
    return wire.CompareRequest(
        inbox_after=read[0].sequence if read else 0,
        marks=[wire.InboxMark(sequence=row.sequence, digest=sha256(row.message)) for row in read],
        sent=[digest for _, digest, is_sent in rows if is_sent][-_NEWEST:],
        unsent=[digest for _, digest, is_sent in rows if not is_sent],
    )


def _outbox(transaction: sa.Connection) -> list[tuple[int, bytes, bool]]:
    """Id and statement digest of everything that may be on the coordinator's record, and whether it has a receipt."""
    outbox = store.outbox
    rows = transaction.execute(
        sa.select(outbox.c.id, outbox.c.statement, outbox.c.sent_at_ms)
        .where(outbox.c.refusal.is_(None))
        .order_by(outbox.c.id.desc())
        .limit(2 * _NEWEST)
    ).all()
    return [
        (
            row.id,
            sha256(pb.SignedStatement.FromString(row.statement).statement),
            row.sent_at_ms is not None,
        )
        for row in reversed(rows)
    ]
