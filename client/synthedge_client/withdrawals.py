"""The donor's withdrawals: which rows that left are to be purged or corrected, and what the recipients answered.

Rules
-----
* A notice names tokens only, sealed to the one recipient that holds them; who a token stands for is known to the
  donor's ledger alone.
* Rows that have not left are taken back here. Whether rows on their way still arrive is the coordinator's to decide,
  in the transaction that takes the notice in, so that all three records agree.
* A notice is open until the recipient's receipt is here; nothing else ends it.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import DecodeError, Message

from synthedge_client import outbound, store
from synthedge_client.deciding import check_reason
from synthedge_client.deidentify import protect_quasi
from synthedge_client.donating import lapse
from synthedge_client.notes import open_from_peer, seal_to_peer
from synthedge_client.site import Site
from synthedge_client.site_table import SiteTable, load_site_table
from synthedge_client.stewards import Steward
from synthedge_client.transfers import Transfer, get_transfer, list_transfers, region_of
from synthedge_client.withdrawn import (
    EVERY_PURPOSE,
    withdraw_tag,
    withdraw_tokens,
    withdrawn_tags,
    withdrawn_tokens,
)
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.errors import (
    MalformedError,
    TransferAuthenticationError,
    VerificationError,
)
from synthedge_protocols.lifecycle import Party, State
from synthedge_protocols.purposes import is_duo_code
from synthedge_protocols.sealed_notes import note_bytes, rows_of_note
from synthedge_protocols.statements import Verified
from synthedge_protocols.texts import printable
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.withdrawal import (
    NOTICE_ID_BYTES,
    NoticeEvent,
    NoticeState,
    advance_notice,
)

# Rows may be at the recipient, or in files it wrote before it deleted them. REFUSED ones were never kept.
_HAVE_LEFT = (
    State.RELAYED,
    State.ACTIVE,
    State.PURGED,
    State.REVOKED,
    State.EXPIRED,
    State.CANCELLED,
)

# A peer says how many; a note has room for a quarter of a million, each of which would be written down twice.
_COPIES_KEPT = 1_000

Sign = Callable[[Site, Message], pb.SignedStatement]


@dataclass(frozen=True)
class Withdrawal:
    """What a withdrawal set off.

    Attributes
    ----------
    notices : tuple of str
        Ids of the notices that wait in the outbox, hex.
    recipients : tuple of str
        The sites they go to, each once.
    rows : int
        Delivered rows they name.
    taken_back : int
        Transfers whose rows had not left: a new selection is needed.
    not_told : tuple of str
        Sites nothing can be sealed to now, each with why; they are tried again when that changes.
    """

    notices: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    rows: int = 0
    taken_back: int = 0
    not_told: tuple[str, ...] = ()

    def __add__(self, other: "Withdrawal") -> "Withdrawal":
        return replace(
            self,
            notices=self.notices + other.notices,
            recipients=tuple(dict.fromkeys(self.recipients + other.recipients)),
            rows=self.rows + other.rows,
            taken_back=self.taken_back + other.taken_back,
            not_told=self.not_told + other.not_told,
        )


def withdraw_patient(
    site: Site, patient: str, *, purpose: str = EVERY_PURPOSE, who: str = "data manager"
) -> Withdrawal:
    """Take one patient's rows back: what was not delivered is revoked, what was delivered is noticed.

    The patient is not eligible again for that purpose, whatever the table says.

    Parameters
    ----------
    site : Site
    patient : str
        The site's own id; goes nowhere.
    purpose : str
        A DUO code; empty for every purpose.
    who : str
        For the audit.

    Raises
    ------
    UsageError
        If neither table nor ledger knows the patient, or the purpose is no DUO code.
    """
    if purpose and not is_duo_code(purpose):
        raise UsageError("a purpose is a Data Use Ontology code such as DUO:0000007")
    tag = site.keys.tag(patient)
    if not _is_known(site, tag) and patient not in set(_table(site).patient_ids):
        raise UsageError(
            "neither the table nor the ledger of what left knows a patient with that id; "
            "check its spelling"
        )
    with site.store.write() as connection:
        withdraw_tag(connection, tag, purpose)
        store.record(connection, "patient withdrew", who, purpose=purpose or "every")
        done = Withdrawal()
        for transfer in _donated(connection):
            lost = {tag} & withdrawn_tags(connection, transfer.request.purpose)
            done += _withdraw_from(site, connection, transfer, lost, "a patient withdrew", who)
        return done


def withdraw_lost_consents(site: Site) -> Withdrawal:
    """Do the same for every patient whose consent the table or register no longer shows: the agent's part.

    A patient who is in the table and does not consent today to a transfer's purpose has withdrawn from it; so has one
    whose consent has run out. One who is no longer in the table at all is only counted, in `missing_patients`: a
    table that was cut short must not delete rows at other hospitals.

    Raises
    ------
    TableError
        If table or register cannot be read.
    """
    with site.store.read() as connection:
        if not _donated(connection):
            return Withdrawal()
    table = _table(site)
    tags = [site.keys.tag(patient) for patient in table.patient_ids]
    with site.store.write() as connection:
        done = Withdrawal()
        for transfer in _donated(connection):
            purpose = transfer.request.purpose
            marked = zip(tags, table.consents.to(purpose), strict=True)
            lost = (set(tags) - {tag for tag, consents in marked if consents}) | withdrawn_tags(
                connection, purpose
            )
            done += _withdraw_from(
                site, connection, transfer, lost, "a consent no longer holds", "agent"
            )
        return done


def correct_patient(site: Site, patient: str, *, who: str = "data manager") -> Withdrawal:
    """Send a patient's row as the table has it now to every site that holds an earlier version.

    A row that no longer lies in the region that was asked for, is no longer positive, or whose patient no longer
    consents, is to be purged there.

    Raises
    ------
    UsageError
        If the table does not have the patient.
    RefusedError
        If nothing of the patient was delivered, or a recipient's key is not compared.
    DisclosureRefusedError
        If a feature may not leave any more.
    """
    tag = site.keys.tag(patient)
    with site.store.write() as connection:
        done = Withdrawal()
        for transfer in _donated(connection):
            tokens = _tokens_of(connection, transfer, {tag})
            if transfer.state is not State.ACTIVE or not tokens:
                continue
            row = _corrected(site.under(transfer.dictionary_digest), transfer, patient)
            rows = [_with_token(row, token) for token in tokens]
            done += _notify(site, connection, transfer, rows, "a row was corrected", Site.sign, who)
    if not done.notices:
        raise RefusedError("no site holds a row of that patient; there is nothing to correct")
    return done


def withdraw_transfer(site: Site, transfer: Transfer, steward: Steward, reason: str) -> Withdrawal:
    """Take a whole transfer back, as its donor's steward.

    Raises
    ------
    RefusedError
        If this site is not its donor, or its rows have not left: then the request is declined instead.
    UsageError
        If the reason is empty or long.
    """
    check_reason(reason)
    if transfer.role != "donor" or transfer.state not in _HAVE_LEFT:
        raise RefusedError(
            f"transfer {transfer.short_id} is {transfer.state} and this site its {transfer.role}; a donor "
            "withdraws what has left, and declines or cancels before"
        )
    with site.store.write() as connection:
        tokens = _tokens_of(connection, transfer, None)
        done = _notify(
            site,
            connection,
            transfer,
            # Without a token: every row. Their number is the request's at the most, so nothing new is said.
            [pb.WithdrawnRow(action="purge")],
            reason,
            lambda s, payload: steward.sign(s, payload),
            steward.label,
        )
        withdraw_tokens(connection, tokens, bytes.fromhex(done.notices[0]))
        return replace(done, rows=len(tokens))


def missing_patients(site: Site) -> int:
    """How many patients with delivered rows are not in the table any more, and have not withdrawn.

    Raises
    ------
    TableError
        If the table cannot be read.
    """
    with site.store.read() as connection:
        if not _donated(connection):
            return 0
        rows = connection.execute(
            sa.select(store.disclosed.c.patient_tag, store.disclosed.c.token)
        ).all()
        noticed = withdrawn_tokens(connection)
    present = {site.keys.tag(patient) for patient in _table(site).patient_ids}
    return len({r.patient_tag for r in rows if r.token not in noticed} - present)


def take_receipt(
    site: Site, connection: sa.Connection, verified: Verified[pb.WithdrawalReceipt]
) -> None:
    """Settle a notice with the recipient's receipt.

    Raises
    ------
    VerificationError
        If another site signed it than the notice went to, or it names another transfer.
    LifecycleError
        If no such notice is open.
    """
    receipt = verified.payload
    row = connection.execute(
        sa.select(store.withdrawals).where(
            (store.withdrawals.c.notice_id == receipt.notice_id)
            & (store.withdrawals.c.role == "donor")
        )
    ).one_or_none()
    state = None if row is None else NoticeState(row.state)
    after = advance_notice(state, NoticeEvent.PURGE, Party.RECIPIENT)
    if row is None or row.peer != verified.site or row.transfer_id != receipt.transfer_id:
        raise VerificationError("a receipt names another withdrawal than its signer was sent")
    transfer = get_transfer(connection, receipt.transfer_id)
    try:
        report = open_report(
            site, transfer, receipt.note, kind="withdrawal-receipt", subject=receipt.notice_id
        )
    except TransferAuthenticationError:
        # The signature held: the rows are purged. What was said beside that was sealed to a key that is gone.
        report = report_fields(pb.PurgeReport()) | {"unreadable": True}
    connection.execute(
        store.withdrawals.update()
        .where(store.withdrawals.c.notice_id == receipt.notice_id)
        .values(
            state=after.value, settled_at_ms=store.now_ms(), report=json.dumps(report), problem=None
        )
    )
    store.record(
        connection,
        "withdrawal settled",
        verified.site,
        notice_id=receipt.notice_id.hex(),
        transfer_id=receipt.transfer_id.hex(),
        **report,
    )


def keep_purge_report(
    site: Site, connection: sa.Connection, transfer: Transfer, note: pb.SealedNote
) -> None:
    """Write down what a recipient says it purged of its own will, or because its retention is over.

    Raises
    ------
    TransferAuthenticationError, MalformedError
        If the report does not open or decode.
    """
    report = open_report(site, transfer, note, kind="ending", subject=transfer.id)
    store.record(
        connection, "purge reported", transfer.peer, transfer_id=transfer.id.hex(), **report
    )


def open_report(
    site: Site,
    transfer: Transfer,
    note: pb.SealedNote,
    *,
    kind: str,
    subject: bytes,
) -> dict[str, Any]:
    """A recipient's report of what it purged, as counts and file names.

    Raises
    ------
    TransferAuthenticationError, MalformedError
        If it does not open or decode.
    """
    content = open_from_peer(site, transfer, note, kind=kind, subject=subject)
    try:
        report = pb.PurgeReport.FromString(content)
    except DecodeError:
        raise MalformedError("a report of purged rows does not decode") from None
    return report_fields(report)


def report_fields(report: pb.PurgeReport) -> dict[str, Any]:
    """A report as plain values, for the audit and the terminal; of very many files only the first."""
    n_more = max(0, len(report.copies) - _COPIES_KEPT)
    return {
        "rows_purged": report.rows_purged,
        "rows_corrected": report.rows_corrected,
        "rows_not_held": report.rows_not_held,
        "copies": [
            {
                "name": printable(copy.name),
                "kind": printable(copy.kind),
                "rows": copy.rows,
                "state": printable(copy.state),
                "sha256": copy.sha256.hex(),
            }
            for copy in report.copies[:_COPIES_KEPT]
        ],
    } | ({"copies_not_kept": n_more} if n_more else {})


def _is_known(site: Site, tag: bytes) -> bool:
    with site.store.read() as connection:
        return (
            connection.execute(
                sa.select(store.disclosed.c.token).where(store.disclosed.c.patient_tag == tag)
            ).first()
            is not None
        )


def _table(site: Site) -> SiteTable:
    return load_site_table(site.settings, site.dictionary)


def _donated(connection: sa.Connection) -> list[Transfer]:
    told = set(connection.execute(sa.select(store.disclosed.c.transfer_id)).scalars())
    return [t for t in list_transfers(connection) if t.role == "donor" and t.id in told]


def _withdraw_from(
    site: Site,
    connection: sa.Connection,
    transfer: Transfer,
    lost: set[bytes],
    reason: str,
    who: str,
) -> Withdrawal:
    tokens = _tokens_of(connection, transfer, lost)
    if not tokens:
        return Withdrawal()
    if transfer.state is State.PREPARED and transfer.has_manifest:
        lapse(connection, transfer, who, "a consent was withdrawn; prepare anew")
        return Withdrawal(taken_back=1)
    if transfer.state in (State.APPROVED, State.SEALED):
        # The agent looks at consents before it seals and before it uploads, and takes the approval back; should
        # every byte have left already, it notes that first and the notice follows.
        return Withdrawal(taken_back=1)
    if transfer.state not in _HAVE_LEFT:
        return Withdrawal()
    rows = [pb.WithdrawnRow(token=token, action="purge") for token in tokens]
    try:
        return _notify(site, connection, transfer, rows, reason, Site.sign, who)
    except (UsageError, RefusedError) as error:
        # One recipient whose key is in doubt must not keep the others from hearing of it.
        store.record(
            connection,
            "withdrawal stuck",
            who,
            transfer_id=transfer.id.hex(),
            peer=transfer.peer,
            reason=str(error),
        )
        return Withdrawal(not_told=(f"{transfer.peer}: {error}",))


def _tokens_of(
    connection: sa.Connection, transfer: Transfer, tags: set[bytes] | None
) -> list[bytes]:
    """Tokens of a transfer that no notice withdrew yet: of some patients, or of all (None)."""
    noticed = withdrawn_tokens(connection)
    rows = connection.execute(
        sa.select(store.disclosed.c.token, store.disclosed.c.patient_tag).where(
            store.disclosed.c.transfer_id == transfer.id
        )
    ).all()
    return [
        r.token for r in rows if r.token not in noticed and (tags is None or r.patient_tag in tags)
    ]


def _notify(
    site: Site,
    connection: sa.Connection,
    transfer: Transfer,
    rows: list[pb.WithdrawnRow],
    reason: str,
    sign: Sign,
    who: str,
) -> Withdrawal:
    """Queue notices about rows of one transfer: one, or several where they do not fit into one."""
    site = site.under(transfer.dictionary_digest)
    request = transfer.request
    size = (request.rows, len(request.features))
    notices = []
    for start in range(0, len(rows), rows_of_note(*size)):
        part = rows[start : start + rows_of_note(*size)]
        notice_id = secrets.token_bytes(NOTICE_ID_BYTES)
        note = seal_to_peer(
            site,
            connection,
            transfer,
            pb.WithdrawalBody(rows=part, reason=reason).SerializeToString(),
            kind="withdrawal-notice",
            subject=notice_id,
            padded_bytes=note_bytes(*size),
        )
        signed = sign(
            site, pb.WithdrawalNotice(notice_id=notice_id, transfer_id=transfer.id, note=note)
        )
        state = advance_notice(None, NoticeEvent.NOTIFY, Party.DONOR)
        connection.execute(
            store.withdrawals.insert().values(
                notice_id=notice_id,
                role="donor",
                peer=transfer.peer,
                transfer_id=transfer.id,
                state=state.value,
                statement=signed.SerializeToString(),
                reason=reason,
                rows=len(part),
                since_ms=store.now_ms(),
            )
        )
        purged = [row.token for row in part if row.action == "purge" and row.token]
        withdraw_tokens(connection, purged, notice_id)
        outbound.enqueue(connection, "withdrawal-notice", signed, who)
        store.record(
            connection,
            "withdrawal notified",
            who,
            notice_id=notice_id.hex(),
            transfer_id=transfer.id.hex(),
            peer=transfer.peer,
        )
        notices.append(notice_id.hex())
    return Withdrawal(tuple(notices), (transfer.peer,), len(rows))


def _corrected(site: Site, transfer: Transfer, patient: str) -> pb.WithdrawnRow:
    """The patient's row as it would leave today, or the order to purge it where it would not."""
    table = _table(site)
    if patient not in table.patient_ids:
        raise UsageError(
            "the table has no patient with that id; to take the rows back, "
            "run 'synthedge site consent withdraw'"
        )
    i = table.patient_ids.index(patient)
    values = table.values[i : i + 1]
    grid, voxel = region_of(site, transfer.request)
    may_leave = table.positive[i] and table.consents.to(transfer.request.purpose)[i]
    if not may_leave or grid.assign(outbound.coarsen(values, site.dictionary))[0] != voxel:
        return pb.WithdrawnRow(action="purge")
    features = list(transfer.request.features)
    # A row that comes alone is shared by nobody: its quasi-identifiers outside the region stay here.
    leaving = protect_quasi(
        outbound.deidentify(values, site.dictionary, features),
        site.dictionary,
        features,
        grid.features,
        site.dictionary.policy.min_count,
    ).values
    return pb.WithdrawnRow(action="correct", values=leaving[0].tolist())


def _with_token(row: pb.WithdrawnRow, token: bytes) -> pb.WithdrawnRow:
    return pb.WithdrawnRow(token=token, action=row.action, values=row.values)
