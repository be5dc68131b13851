"""Whether a site and the coordinator still have the same past; a database restored from a backup has not.

Rules
-----
* A statement with a receipt is on both records for ever; inbox numbers never go back, and stand for one message each.
  Where that does not hold, one of the two databases is older than what it said.
* A request that was delayed shows an older past as well. Only one that carries the challenge of the answer before
  it counts.
* The site is frozen then: none of its calls is answered and no key released, until a person has decided. Its peers
  hear of it, as of any suspension.
* `recover` lets it in again. What the coordinator holds in the site's inbox, the site reads again; transfers about
  which the site forgot what it had signed are revoked, since no withdrawal could reach their rows.
"""

import hashlib
import json
import secrets
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import LimitExceededError, PolicyError
from synthedge_protocols.lifecycle import Event, State, is_final
from synthedge_protocols.limits import Limits
from synthedge_protocols.standing import Standing
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import store
from synthedge_server.broker import Broker
from synthedge_server.ledger import Transaction
from synthedge_server.standing import change_standing, standing_of

# How far back the coordinator looks: a restored backup lacks the newest statements first.
_RECENT: Final = 256
# How many messages a backup may lack.
_MAX_AHEAD: Final = 1_000_000_000
_ENDED: Final = [state.value for state in State if is_final(state)]


def compare(
    transaction: Transaction,
    broker: Broker,
    site: str,
    request: wire.CompareRequest,
    limits: Limits,
) -> wire.CompareAnswer:
    """Answer what differs; freeze the site if anything does.

    Parameters
    ----------
    transaction : Transaction
    broker : Broker
    site : str
        Who asks, as authenticated.
    request : CompareRequest
        What the site remembers.
    limits : Limits
        How much of it may be named.

    Raises
    ------
    LimitExceededError
        If it is more.
    PolicyError
        If something differs at a site that left.
    """
    connection = transaction.connection
    for digests in (request.sent, request.unsent, request.marks):
        if len(digests) > limits.digests_compared:
            raise LimitExceededError(
                f"site '{site}' names {len(digests)} digests to compare; at most {limits.digests_compared} are"
            )
    expected = connection.execute(
        delete(store.challenges)
        .where(store.challenges.c.site == site)
        .returning(store.challenges.c.challenge)
    ).scalar_one_or_none()
    sent, unsent = set(request.sent), set(request.unsent)
    statements = store.statements
    known = set(
        connection.execute(
            select(statements.c.digest).where(
                statements.c.site == site, statements.c.digest.in_(sent)
            )
        ).scalars()
    )
    missing = [digest for digest in request.sent if digest not in known]
    forgotten = [row for row in _recent(connection, site) if row.digest not in sent | unsent]
    last_sequence = connection.execute(
        select(store.sites.c.last_sequence).where(store.sites.c.site == site)
    ).scalar_one()
    agreed, n_reused = _common_past(connection, site, request)
    reasons = []
    if missing:
        reasons.append(
            f"{len(missing)} statements of the site that have a receipt are not on the coordinator's record"
        )
    if request.inbox_after > last_sequence:
        reasons.append(
            f"the site has read its inbox to number {request.inbox_after}, the coordinator wrote {last_sequence}"
        )
    elif n_reused:
        reasons.append(
            f"{n_reused} messages the site has read are others than the coordinator wrote under their numbers"
        )
    if forgotten:
        reasons.append(f"the site does not know {len(forgotten)} statements it has signed and sent")
    if not reasons:
        return wire.CompareAnswer()
    if not expected or request.challenge != expected:
        challenge = secrets.token_bytes(16)
        connection.execute(insert(store.challenges).values(site=site, challenge=challenge))
        return wire.CompareAnswer(challenge=challenge)
    if standing_of(connection, site) is Standing.LEFT:
        raise PolicyError(
            f"site '{site}' left, and {'; '.join(reasons)}; a site that left is not let in again by 'recover': ask the "
            "coordinator's operator"
        )
    # A number that no coordinator wrote must not become the inbox's.
    inbox_after = min(request.inbox_after, last_sequence + _MAX_AHEAD)
    _post_again(transaction, site, agreed, inbox_after)
    older = "site" if forgotten else "coordinator"
    reason = f"frozen, the {older}'s database is older than the other one: {'; '.join(reasons)}"
    transfers = {row.transfer_id.hex() for row in forgotten if row.transfer_id is not None}
    connection.execute(
        insert(store.divergences).values(
            site=site,
            found_at_ms=transaction.now_ms,
            reason=reason,
            inbox_after=inbox_after,
            transfers=json.dumps(sorted(transfers)),
        )
    )
    change_standing(transaction, broker, site, Standing.SUSPENDED, reason, by="coordinator")
    return wire.CompareAnswer(reason=reason, missing=missing)


def refuse_if_frozen(connection: Connection, site: str) -> None:
    """Refuse to resume a site that a person has to look at first.

    Raises
    ------
    RefusedError
        If it is frozen.
    """
    row = open_divergence(connection, site)
    if row is not None:
        raise RefusedError(
            f"site '{site}' is {row.reason}; when it is clear which backup was restored, run "
            f"'synthedge-coordinator sites recover {site}'"
        )


def open_divergence(connection: Connection, site: str) -> Any:
    """Row of `store.divergences` that keeps a site frozen, or None."""
    table = store.divergences
    return connection.execute(
        select(table)
        .where(table.c.site == site, table.c.recovered_at_ms.is_(None))
        .order_by(table.c.divergence.desc())
        .limit(1)
    ).one_or_none()


def recover(transaction: Transaction, broker: Broker, site: str) -> dict[str, Any]:
    """Let a frozen site in again, after a person decided; returns what that cost.

    Raises
    ------
    RefusedError
        If the site is not frozen.
    """
    connection = transaction.connection
    row = open_divergence(connection, site)
    if row is None:
        raise RefusedError(f"site '{site}' is not frozen; see 'synthedge-coordinator sites'")
    connection.execute(
        update(store.divergences)
        .where(store.divergences.c.site == site, store.divergences.c.recovered_at_ms.is_(None))
        .values(recovered_at_ms=transaction.now_ms)
    )
    change_standing(transaction, broker, site, Standing.ACTIVE, "recovered by the operator")
    table = store.transfers
    touched = connection.execute(
        select(table).where(
            table.c.transfer_id.in_([bytes.fromhex(t) for t in json.loads(row.transfers)])
        )
    ).all()
    lost = [transfer for transfer in touched if transfer.state not in _ENDED]
    reason = f"site '{site}' was restored from a backup and lost what it had signed"
    for transfer in lost:
        broker.end_by_rule(transaction, transfer, Event.REVOKE, reason)
    for transfer in touched:
        if transfer.state in _ENDED:
            # Rows that were withdrawn or purged since would else be back with the backup.
            ended = wire.TransferEnded(
                transfer_id=transfer.transfer_id, state=State.REVOKED.value, reason=reason
            )
            transaction.post(site, wire.InboxMessage(ended=ended))
    replayed = connection.execute(
        select(func.count())
        .select_from(store.inbox)
        .where(store.inbox.c.site == site, store.inbox.c.sequence > row.inbox_after)
    ).scalar_one()
    return {
        "site": site,
        "reason": row.reason,
        "transfers_revoked": [transfer.transfer_id.hex() for transfer in lost],
        "messages_replayed": replayed,
    }


def _common_past(
    connection: Connection, site: str, request: wire.CompareRequest
) -> tuple[int, int]:
    """How far site and record agree on what the inbox said, and how many of its messages they disagree on.

    A coordinator that was restored gives numbers the site has read to other messages.
    """
    # A larger number is none the database can hold: nothing was written under it.
    read = {mark.sequence: mark.digest for mark in request.marks if mark.sequence < 2**63}
    table = store.inbox
    rows = connection.execute(
        select(table.c.sequence, table.c.message).where(
            table.c.site == site, table.c.sequence.in_(read)
        )
    ).all()
    same = [r.sequence for r in rows if hashlib.sha256(r.message).digest() == read[r.sequence]]
    return max(same, default=0), len(rows) - len(same)


def _post_again(transaction: Transaction, site: str, agreed: int, inbox_after: int) -> None:
    """Give new numbers to messages the site would never ask for: it has read theirs already.

    Where nothing is agreed on, all of them: one that comes twice changes nothing.
    """
    connection, table = transaction.connection, store.inbox
    unread = (table.c.site == site) & table.c.sequence.between(agreed + 1, inbox_after)
    blobs = list(
        connection.execute(
            select(table.c.message).where(unread).order_by(table.c.sequence)
        ).scalars()
    )
    connection.execute(delete(table).where(unread))
    connection.execute(
        update(store.sites)
        .where(store.sites.c.site == site, store.sites.c.last_sequence < inbox_after)
        .values(last_sequence=inbox_after)
    )
    for blob in blobs:
        transaction.post(site, wire.InboxMessage.FromString(blob))


def _recent(connection: Connection, site: str) -> list[Any]:
    """The site's newest statements, none from before it enrolled or was recovered."""
    since = connection.execute(
        select(store.sites.c.enrolled_at_ms).where(store.sites.c.site == site)
    ).scalar_one()
    recovered = connection.execute(
        select(func.max(store.divergences.c.recovered_at_ms)).where(
            store.divergences.c.site == site
        )
    ).scalar_one()
    table = store.statements
    return list(
        connection.execute(
            select(table.c.digest, table.c.transfer_id)
            .where(table.c.site == site, table.c.received_at_ms > max(since, recovered or 0))
            .order_by(table.c.received_at_ms.desc())
            .limit(_RECENT)
        )
    )
