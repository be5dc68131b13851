"""Withdrawals: sealed notices of donors, first in their recipients' inboxes until the receipt is here.

The coordinator knows of a notice who sent it, to whom, about which transfer and since when; how many rows, which
ones and why is sealed. It never ends one: only the recipient's receipt does.
"""

from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select, update

from synthedge_protocols.errors import (
    LimitExceededError,
    MalformedError,
    ReplayError,
    VerificationError,
)
from synthedge_protocols.lifecycle import Party, State
from synthedge_protocols.limits import Limits
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.sealed_notes import sealed_note_bytes
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.withdrawal import (
    NOTICE_ID_BYTES,
    NoticeEvent,
    NoticeState,
    advance_notice,
)
from synthedge_server import store
from synthedge_server.broker import Broker
from synthedge_server.ledger import Transaction
from synthedge_server.registries import Registries

_MS_PER_HOUR: Final = 3_600_000
_KEY_ID_BYTES: Final = 32
_OPEN_NOTICES: Final = Prepared(
    select(store.withdrawals.c.notice_id)
    .where(
        store.withdrawals.c.recipient == bindparam("of_recipient"),
        store.withdrawals.c.state == bindparam("in_state"),
    )
    .order_by(store.withdrawals.c.notified_at_ms, store.withdrawals.c.notice_id)
)
_NOTICE: Final = Prepared(
    select(store.withdrawals.c.statement).where(
        store.withdrawals.c.notice_id == bindparam("of_notice")
    )
)
_N_OPEN: Final = Prepared(
    select(func.count().label("n")).where(
        store.withdrawals.c.donor == bindparam("of_donor"),
        store.withdrawals.c.state == bindparam("in_state"),
    )
)


class Withdrawals:
    """The coordinator's record of every notice.

    Parameters
    ----------
    broker : Broker
        Ends a transfer whose rows are withdrawn before they were accepted.
    registries : Registries
        Policies, for the time limit.
    limits : Limits
        How many notices of one site may be open.
    """

    def __init__(self, broker: Broker, registries: Registries, limits: Limits) -> None:
        self._broker = broker
        self._registries = registries
        self._limits = limits

    def notify(self, transaction: Transaction, verified: Verified[pb.WithdrawalNotice]) -> None:
        """Keep a donor's notice for the recipient; undelivered rows are revoked in the same transaction.

        Raises
        ------
        LifecycleError
            If the signer has no part as donor in the transfer, or no row of it can have left.
        MalformedError
            If ids or the sealed part are not of their length.
        ReplayError
            If another notice has that id.
        LimitExceededError
            If too many notices of the site are open.
        """
        notice, connection = verified.payload, transaction.connection
        if len(notice.notice_id) != NOTICE_ID_BYTES:
            raise MalformedError(f"a withdrawal notice has an id of {NOTICE_ID_BYTES} bytes")
        table = store.withdrawals
        known = connection.execute(
            select(table.c.notice_id).where(table.c.notice_id == notice.notice_id)
        ).first()
        if known is not None:
            raise ReplayError(
                f"withdrawal {notice.notice_id.hex()[:8]} is on record with other content"
            )
        open_state = NoticeState.NOTIFIED.value
        n_open = _N_OPEN.one(connection, of_donor=verified.site, in_state=open_state).n
        if n_open >= self._limits.statements_per_site:
            raise LimitExceededError(
                f"site '{verified.site}' has {n_open} withdrawals open; the recipients must answer some first"
            )
        row = self._broker.withdraw(transaction, verified)
        _require_length(row.request, notice.note)
        policy = self._registries.policy(connection, row.dictionary_digest)
        state = advance_notice(None, NoticeEvent.NOTIFY, Party.DONOR)
        connection.execute(
            insert(table).values(
                notice_id=notice.notice_id,
                transfer_id=row.transfer_id,
                donor=row.donor,
                recipient=row.recipient,
                state=state.value,
                statement=verified.signed.SerializeToString(),
                notified_at_ms=transaction.now_ms,
                due_at_ms=transaction.now_ms + int(policy.withdrawal_h * _MS_PER_HOUR),
                is_noted=False,
            )
        )
        transaction.woken.add(row.recipient)

    def settle(self, transaction: Transaction, verified: Verified[pb.WithdrawalReceipt]) -> None:
        """Close a notice with its recipient's receipt, and pass that to the donor.

        Raises
        ------
        LifecycleError
            If no such notice is open.
        VerificationError
            If the signer is not its recipient, or names another transfer.
        """
        receipt, connection = verified.payload, transaction.connection
        table = store.withdrawals
        row = connection.execute(
            select(table).where(table.c.notice_id == receipt.notice_id)
        ).one_or_none()
        state = None if row is None else NoticeState(row.state)
        after = advance_notice(state, NoticeEvent.PURGE, Party.RECIPIENT)
        if row is None or row.recipient != verified.site or row.transfer_id != receipt.transfer_id:
            raise VerificationError(
                f"the receipt of withdrawal {receipt.notice_id.hex()[:8]} is not its recipient's"
            )
        connection.execute(
            update(table)
            .where(table.c.notice_id == receipt.notice_id)
            .values(state=after.value, statement=None, settled_at_ms=transaction.now_ms)
        )
        transaction.post(row.donor, wire.InboxMessage(statement=verified.signed))


def _require_length(request: bytes, note: pb.SealedNote) -> None:
    asked = pb.TransferRequest.FromString(request)
    expected = sealed_note_bytes(asked.rows, len(asked.features))
    if len(note.hpke_key_id) != _KEY_ID_BYTES or len(note.sealed) != expected:
        raise MalformedError(
            f"the sealed part of a withdrawal has {len(note.sealed)} bytes; those of its transfer have {expected}"
        )


def open_notices(connection: Connection, site: str) -> list[bytes]:
    """Ids of the notices that wait for a site, oldest first."""
    rows = _OPEN_NOTICES.run(connection, of_recipient=site, in_state=NoticeState.NOTIFIED.value)
    return [row.notice_id for row in rows]


def notice_message(connection: Connection, notice_id: bytes) -> wire.InboxMessage | None:
    """One of them as a message outside the site's sequence; None if its receipt has come meanwhile.

    It carries no sequence number: a site that stored one and died must still be sent the messages before it.
    """
    row = _NOTICE.one(connection, of_notice=notice_id)
    if row is None or row.statement is None:
        return None
    return wire.InboxMessage(withdrawal=pb.SignedStatement.FromString(row.statement))


def open_withdrawals(connection: Connection) -> list[Any]:
    """Rows of `store.withdrawals` that wait for a receipt, oldest first, without what was sealed."""
    table = store.withdrawals
    columns = [column for column in table.c if column is not table.c.statement]
    query = select(*columns).where(table.c.state == NoticeState.NOTIFIED.value)
    return list(connection.execute(query.order_by(table.c.notified_at_ms)).all())


def past_retention(connection: Connection, now_ms: int) -> list[Any]:
    """Rows of `store.transfers` that are active a day longer than their recipient agreed to keep them.

    A day, because each recipient counts from its own clock.
    """
    table = store.transfers
    active = connection.execute(
        select(table).where(table.c.state == State.ACTIVE.value).order_by(table.c.since_ms)
    ).all()
    return [
        row
        for row in active
        if now_ms - row.since_ms > (_agreed_days(row.request) + 1) * 24 * _MS_PER_HOUR
    ]


def _agreed_days(request: bytes) -> int:
    days: int = pb.TransferRequest.FromString(request).retention_days
    return days


def any_newly_overdue(connection: Connection, now_ms: int) -> bool:
    """Whether a withdrawal became overdue that is not written down as such."""
    table = store.withdrawals.c
    late = (
        select(table.notice_id)
        .where(
            table.state == NoticeState.NOTIFIED.value,
            table.due_at_ms < now_ms,
            table.is_noted.is_(False),
        )
        .limit(1)
    )
    return connection.execute(late).first() is not None


def note_overdue(transaction: Transaction) -> int:
    """Write down, once each, which withdrawals have become overdue; return how many."""
    table = store.withdrawals
    late = [
        row
        for row in open_withdrawals(transaction.connection)
        if row.due_at_ms < transaction.now_ms and not row.is_noted
    ]
    for row in late:
        transaction.connection.execute(
            update(table).where(table.c.notice_id == row.notice_id).values(is_noted=True)
        )
        transaction.record(
            "coordinator", "withdrawal-overdue", row.notice_id.hex(), f"site '{row.recipient}'"
        )
    return len(late)
