"""The recipient's side of withdrawals: notices carried out, rows purged, what held them listed and signed for.

Rules
-----
* A notice is stored before it is judged, carried out before any other message, and in one transaction with its
  receipt; the same notice again changes nothing.
* One that cannot be carried out stays open with its problem: nothing is filled or exported until it is.
* Rows of one donor are never touched by another donor's notice, even if they are of the same person: nobody here can
  know that.
* Models trained on purged rows have not unlearned them; the files that could have been used are listed.
"""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from google.protobuf.message import DecodeError

from synthedge_client import outbound, store
from synthedge_client.deciding import check_reason
from synthedge_client.divergence import refuse_if_frozen
from synthedge_client.exports import copies_of, mark_exports
from synthedge_client.gate import schema_problem
from synthedge_client.inbound import verify_from_peer
from synthedge_client.notes import has_key_of, open_from_peer, seal_to_peer
from synthedge_client.received import delete_samples, replace_sample, tokens_of
from synthedge_client.sealed_files import incoming_file
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_client.stewards import Steward
from synthedge_client.transfers import Transfer, get_transfer, list_transfers, move, region_of
from synthedge_client.withdrawals import report_fields
from synthedge_client.withdrawn import withdraw_tokens
from synthedge_core.errors import RefusedError, SynthEdgeError, UsageError
from synthedge_protocols.errors import (
    LifecycleError,
    MalformedError,
    ProtocolError,
    VerificationError,
)
from synthedge_protocols.lifecycle import Event, Party, State, is_final
from synthedge_protocols.limits import Limits
from synthedge_protocols.statements import read_unverified
from synthedge_protocols.texts import printable
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.withdrawal import (
    NOTICE_ID_BYTES,
    NoticeEvent,
    NoticeState,
    advance_notice,
)

LIMITS = Limits()
_DAY_MS = 86_400_000
_TOKEN_BYTES = 16


def keep_notice(site: Site, signed: pb.SignedStatement) -> bool:
    """Store a notice as it arrived; True if it is to be carried out.

    A known one that is open is tried again: what it could not get past may be mended.

    Raises
    ------
    MalformedError
        If it is no notice.
    """
    statement = read_unverified(signed, limits=LIMITS)
    try:
        notice = pb.WithdrawalNotice.FromString(statement.payload)
    except DecodeError:
        raise MalformedError("a withdrawal notice does not decode") from None
    if statement.type != "withdrawal-notice" or len(notice.notice_id) != NOTICE_ID_BYTES:
        raise MalformedError(f"a '{statement.type[:40]}' where a withdrawal notice was expected")
    mine = (store.withdrawals.c.notice_id == notice.notice_id) & (
        store.withdrawals.c.role == "recipient"
    )
    with site.store.write() as connection:
        state = connection.execute(sa.select(store.withdrawals.c.state).where(mine)).scalar()
        if state is not None:
            connection.execute(store.withdrawals.update().where(mine).values(problem=None))
            return NoticeState(state) is NoticeState.NOTIFIED
        connection.execute(
            store.withdrawals.insert().values(
                notice_id=notice.notice_id,
                role="recipient",
                peer=statement.signer_site,
                transfer_id=notice.transfer_id,
                state=advance_notice(None, NoticeEvent.NOTIFY, Party.DONOR).value,
                statement=signed.SerializeToString(),
                since_ms=store.now_ms(),
            )
        )
    return True


def carry_out_notices(site: Site) -> bool:
    """Carry out every open notice that has not failed since it last arrived; True if any was."""
    waiting = (
        (store.withdrawals.c.role == "recipient")
        & (store.withdrawals.c.state == NoticeState.NOTIFIED.value)
        & store.withdrawals.c.problem.is_(None)
    )
    with site.store.read() as connection:
        ids = list(
            connection.execute(
                sa.select(store.withdrawals.c.notice_id)
                .where(waiting)
                .order_by(store.withdrawals.c.since_ms)
            ).scalars()
        )
    done = False
    for notice_id in ids:
        with site.store.write() as connection:
            try:
                with connection.begin_nested():
                    _carry_out(site, connection, notice_id)
                done = True
            except (ProtocolError, SynthEdgeError) as error:
                _note_problem(connection, notice_id, str(error))
    return done


def require_current(site: Site) -> None:
    """Refuse to use received rows while a withdrawal may concern them.

    Raises
    ------
    RefusedError
        If a notice is open, the site is frozen, or rows are here and the inbox was not read to its end for longer
        than the policy allows.
    """
    refuse_if_frozen(site)
    with site.store.read() as connection:
        check_current(site, connection)


def check_current(site: Site, connection: sa.Connection) -> None:
    """The same inside a transaction."""
    n_open = connection.execute(
        sa.select(sa.func.count())
        .select_from(store.withdrawals)
        .where(
            (store.withdrawals.c.role == "recipient")
            & (store.withdrawals.c.state == NoticeState.NOTIFIED.value)
        )
    ).scalar_one()
    if n_open:
        raise RefusedError(
            f"{n_open} withdrawals of received rows are not carried out yet; let 'synthedge site run' do it, "
            "or see 'synthedge site status' for what stands in the way"
        )
    if not connection.execute(sa.select(store.received.c.token).limit(1)).first():
        return
    read_at = store.get_fact(connection, "inbox_read_at_ms")
    limit_h = site.dictionary.policy.inbox_max_age_h
    # A clock that was set back tells nothing about the inbox's age.
    if read_at is None or not 0 <= store.now_ms() - int(read_at) <= limit_h * 3_600_000:
        raise RefusedError(
            f"the inbox was not read to its end within the last {limit_h:g} hours, so that a withdrawal may "
            "wait there; run 'synthedge site run --once' first"
        )


def note_inbox_read(site: Site) -> None:
    """Write down that everything the coordinator had for this site is stored here."""
    with site.store.write() as connection:
        store.set_fact(connection, "inbox_read_at_ms", str(store.now_ms()))


def purge_transfer(site: Site, transfer: Transfer, steward: Steward, reason: str) -> pb.PurgeReport:
    """Delete all rows of a received transfer, by this site's own steward.

    Raises
    ------
    UsageError
        If the reason is empty or long.
    LifecycleError
        If the transfer is not active here.
    """
    check_reason(reason)
    with site.store.write() as connection:
        if transfer.role != "recipient" or transfer.state is not State.ACTIVE:
            raise LifecycleError(
                f"transfer {transfer.short_id} is {transfer.state} and this site its {transfer.role}; "
                "only received rows that are active can be purged"
            )
        report = _purge_all(site, connection, transfer, steward.label, reason)
    site.store.scrub()
    return report


def purge_expired(site: Site) -> bool:
    """Delete the rows of every transfer whose agreed retention is over; True if there were any."""
    now, done = store.now_ms(), False
    with site.store.read() as connection:
        active = [
            t
            for t in list_transfers(connection)
            if t.role == "recipient" and t.state is State.ACTIVE
        ]
    for transfer in active:
        if now - transfer.changed_at_ms > transfer.request.retention_days * _DAY_MS:
            with site.store.write() as connection:
                days = transfer.request.retention_days
                _purge_all(
                    site,
                    connection,
                    transfer,
                    "agent",
                    f"the agreed {days} days of retention are over",
                )
            done = True
    return done


def _carry_out(site: Site, connection: sa.Connection, notice_id: bytes) -> None:
    row = connection.execute(
        sa.select(store.withdrawals).where(store.withdrawals.c.notice_id == notice_id)
    ).one()
    signed = pb.SignedStatement.FromString(row.statement)
    try:
        transfer = get_transfer(connection, row.transfer_id)
    except LifecycleError:
        _answer_stranger(site, connection, signed, row)
        return
    site = site.under(transfer.dictionary_digest)
    verified = verify_from_peer(site, connection, signed, pb.WithdrawalNotice, row.peer)
    if transfer.role != "recipient" or transfer.peer != row.peer:
        raise VerificationError(
            f"site '{row.peer}' withdraws rows of a transfer that it is not the donor of"
        )
    notice = verified.payload
    body = _open(site, transfer, notice)
    report = _apply(site, connection, transfer, body, notice_id)
    if not is_final(transfer.state) and transfer.state is not State.ACTIVE:
        # Sealed bytes that wait here to be opened; the coordinator ends the transfer.
        incoming_file(site, transfer).unlink(missing_ok=True)
    receipt = site.sign(
        pb.WithdrawalReceipt(
            notice_id=notice_id,
            transfer_id=transfer.id,
            note=seal_to_peer(
                site,
                connection,
                transfer,
                report.SerializeToString(),
                kind="withdrawal-receipt",
                subject=notice_id,
            ),
        )
    )
    after = advance_notice(NoticeState(row.state), NoticeEvent.PURGE, Party.RECIPIENT)
    fields = report_fields(report)
    connection.execute(
        store.withdrawals.update()
        .where(store.withdrawals.c.notice_id == notice_id)
        .values(
            state=after.value,
            reason=printable(body.reason[:500]),
            rows=report.rows_purged + report.rows_corrected,
            settled_at_ms=store.now_ms(),
            report=json.dumps(fields),
        )
    )
    outbound.enqueue(connection, "withdrawal-receipt", receipt, "agent")
    store.record(
        connection,
        "withdrawal carried out",
        f"{row.peer}: {verified.signer.name}",
        notice_id=notice_id.hex(),
        transfer_id=transfer.id.hex(),
        **fields,
    )
    if transfer.state is State.ACTIVE and not tokens_of(connection, transfer):
        reason = "all rows were withdrawn"
        _end_as_purged(site, connection, transfer, pb.PurgeReport(), "agent", reason)


def _answer_stranger(
    site: Site, connection: sa.Connection, signed: pb.SignedStatement, row: "sa.Row[Any]"
) -> None:
    """Sign that nothing is here of a transfer this site never had: it enrolled anew since, without its old rows.

    A database restored from a backup cannot come here: records are compared before the inbox is read.
    """
    statement = read_unverified(signed, limits=LIMITS)
    site = site.under(statement.dictionary_digest)
    verified = verify_from_peer(site, connection, signed, pb.WithdrawalNotice, row.peer)
    receipt = pb.WithdrawalReceipt(notice_id=row.notice_id, transfer_id=row.transfer_id)
    after = advance_notice(NoticeState(row.state), NoticeEvent.PURGE, Party.RECIPIENT)
    connection.execute(
        store.withdrawals.update()
        .where(store.withdrawals.c.notice_id == row.notice_id)
        .values(state=after.value, rows=0, settled_at_ms=store.now_ms())
    )
    outbound.enqueue(connection, "withdrawal-receipt", site.sign(receipt), "agent")
    store.record(
        connection,
        "withdrawal of an unknown transfer",
        f"{row.peer}: {verified.signer.name}",
        notice_id=row.notice_id.hex(),
        transfer_id=row.transfer_id.hex(),
    )


def _open(site: Site, transfer: Transfer, notice: pb.WithdrawalNotice) -> pb.WithdrawalBody:
    if not has_key_of(site, notice.note):
        # Keys are kept as long as rows are here, so this one was lost. The donor signed that rows of this transfer
        # are withdrawn, and nobody can read any more which.
        reason = "sealed to a key that is gone: which rows it names cannot be read, so all of the transfer are"
        return pb.WithdrawalBody(rows=[pb.WithdrawnRow(action="purge")], reason=reason)
    content = open_from_peer(
        site,
        transfer,
        notice.note,
        kind="withdrawal-notice",
        subject=notice.notice_id,
    )
    try:
        body = pb.WithdrawalBody.FromString(content)
    except DecodeError:
        raise MalformedError("the sealed part of a withdrawal does not decode") from None
    for row in body.rows:
        known = row.action in ("purge", "correct")
        whole = row.action == "purge" and not row.token and len(body.rows) == 1
        if not known or (len(row.token) != _TOKEN_BYTES and not whole):
            raise MalformedError("a withdrawal names rows or actions that are none")
    return body


def _apply(
    site: Site,
    connection: sa.Connection,
    transfer: Transfer,
    body: pb.WithdrawalBody,
    notice_id: bytes,
) -> pb.PurgeReport:
    held = tokens_of(connection, transfer)
    if len(body.rows) == 1 and not body.rows[0].token:
        purge, correct = list(held), []
    else:
        _refuse_foreign(connection, transfer, [row.token for row in body.rows])
        purge = [row.token for row in body.rows if row.action == "purge"]
        correct = [row for row in body.rows if row.action == "correct" and row.token in held]
    # A correction that does not fit is no reason to keep the wrong row.
    unfit = [row.token for row in correct if not _correct(site, connection, transfer, row)]
    purge += unfit
    corrected = [row.token for row in correct if row.token not in unfit]
    n_deleted = delete_samples(connection, transfer, purge, holds="withdrawn rows")
    withdraw_tokens(connection, purge, notice_id)
    mark_exports(connection, corrected, "rows as they were before a correction")
    n_named = len(purge) + len(corrected)
    n_asked = max(n_named, len([row for row in body.rows if row.token]))
    return pb.PurgeReport(
        rows_purged=n_deleted,
        rows_corrected=len(corrected),
        rows_not_held=n_asked - n_deleted - len(corrected),
        copies=copies_of(connection, [*purge, *corrected]),
    )


def _refuse_foreign(connection: sa.Connection, transfer: Transfer, tokens: Sequence[bytes]) -> None:
    rows = connection.execute(sa.select(store.received.c.token, store.received.c.transfer_id))
    foreign = {row.token for row in rows if row.transfer_id != transfer.id}
    if foreign.intersection(tokens):
        raise VerificationError(
            f"a withdrawal of transfer {transfer.short_id} names rows of another transfer; nothing was deleted"
        )


def _correct(
    site: Site, connection: sa.Connection, transfer: Transfer, row: pb.WithdrawnRow
) -> bool:
    """Replace one row by its corrected version, if that is what the agreement allows."""
    dictionary, features = site.dictionary, list(transfer.request.features)
    if len(row.values) != len(features):
        return False
    values = np.full((1, len(dictionary.features)), np.nan)
    values[0, [dictionary.index(name) for name in features]] = list(row.values)
    grid, voxel = region_of(site, transfer.request)
    if np.isinf(values).any() or schema_problem(values, dictionary, tuple(features), grid, voxel):
        return False
    table = load_site_table(site.settings, dictionary)
    replace_sample(site, connection, table, row.token, values)
    return True


def _purge_all(
    site: Site, connection: sa.Connection, transfer: Transfer, who: str, reason: str
) -> pb.PurgeReport:
    site = site.under(transfer.dictionary_digest)
    tokens = tokens_of(connection, transfer)
    n_deleted = delete_samples(connection, transfer, tokens)
    report = pb.PurgeReport(rows_purged=n_deleted, copies=copies_of(connection, tokens))
    _end_as_purged(site, connection, transfer, report, who, reason)
    return report


def _end_as_purged(
    site: Site,
    connection: sa.Connection,
    transfer: Transfer,
    report: pb.PurgeReport,
    who: str,
    reason: str,
) -> None:
    ending = pb.Ending(transfer_id=transfer.id, state=State.PURGED.value, reason=reason)
    # A donor whose key nobody vouches for any more gets no report; its rows go all the same.
    with contextlib.suppress(RefusedError, UsageError):
        ending.report.CopyFrom(
            seal_to_peer(
                site,
                connection,
                transfer,
                report.SerializeToString(),
                kind="ending",
                subject=transfer.id,
            )
        )
    signed = site.sign(ending)
    move(connection, transfer, Event.PURGE, Party.RECIPIENT, who, reason=reason)
    outbound.enqueue(connection, "ending", signed, who)
    store.record(
        connection,
        "received rows purged",
        who,
        transfer_id=transfer.id.hex(),
        **report_fields(report),
    )


def _note_problem(connection: sa.Connection, notice_id: bytes, problem: str) -> None:
    known = store.withdrawals.c.notice_id == notice_id
    connection.execute(store.withdrawals.update().where(known).values(problem=problem))
    details = {"notice_id": notice_id.hex(), "reason": problem}
    again = connection.execute(
        sa.select(store.events.c.id)
        .where(
            (store.events.c.what == "withdrawal stuck")
            & (store.events.c.details == json.dumps(details, sort_keys=True))
        )
        .limit(1)
    ).first()
    if again is None:
        store.record(connection, "withdrawal stuck", "agent", **details)
