"""Everything that arrives at a site: verified, checked against what was agreed, and only then applied.

Rules
-----
* Each inbox message is applied in the transaction that marks it handled: once, however often it comes.
* A message that is wrong is refused, recorded and marked handled: it must not block those behind it.
* A peer's statement key is pinned at first sight; a different one later is refused and shown.
"""

import json
from typing import TypeVar, cast

import sqlalchemy as sa
from google.protobuf.message import Message

from synthedge_client import dictionaries, outbound, rotation, store
from synthedge_client.discovery import answer_round, is_over
from synthedge_client.donating import forget_selection
from synthedge_client.hints import check_profile, check_proposals
from synthedge_client.log_heads import keep_peer_head
from synthedge_client.received import delete_samples
from synthedge_client.settings import SiteSettings
from synthedge_client.site import Site
from synthedge_client.standing import peer_stands
from synthedge_client.transfers import Transfer, get_transfer, insert_request, move, region_of
from synthedge_client.withdrawals import keep_purge_report, take_receipt
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.discovery import check_round
from synthedge_protocols.errors import (
    LifecycleError,
    MalformedError,
    ProtocolError,
    VerificationError,
)
from synthedge_protocols.lifecycle import (
    TRANSITIONS,
    Event,
    Party,
    State,
    ending_event,
    is_final,
)
from synthedge_protocols.limits import Limits
from synthedge_protocols.purposes import is_duo_code
from synthedge_protocols.standing_policies import require_authority
from synthedge_protocols.statements import (
    STATEMENT_TYPES,
    Verified,
    read_unverified,
    type_name,
    verify,
)
from synthedge_protocols.texts import printable
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

LIMITS = Limits()
# A donor's states in which no row can have reached the recipient; from SEALED on, the key may have been released.
_NOTHING_LEFT = (State.REQUESTED, State.PREPARED, State.APPROVED)
_SIGNED_BY = {
    (t.source, t.event, t.actor, party): t.signed_by for t in TRANSITIONS for party in t.where
}

M = TypeVar("M", bound=Message)


def pin_peers(
    connection: sa.Connection, settings: SiteSettings, directory: wire.Directory, consortium: str
) -> list[str]:
    """Remember every other site's keys as first seen; refuse changed ones, one peer at a time.

    Returns
    -------
    list of str
        What was refused and is news; it is on record and shown by ``peers list``.
    """
    news = []
    for keys in directory.sites:
        if keys.site == settings.id:
            continue
        try:
            rotation.pin(connection, keys, consortium)
            problem = None
        except ProtocolError as error:
            problem = str(error)
        connection.execute(
            store.peers.update().where(store.peers.c.site == keys.site).values(problem=problem)
        )
        if problem is not None and _is_news(connection, problem):
            store.record(connection, "peer refused", "agent", reason=problem)
            news.append(problem)
    return news


def _is_news(connection: sa.Connection, problem: str) -> bool:
    """Whether a refusal is not on record yet: the directory is read every few seconds."""
    details = json.dumps({"reason": problem})
    known = connection.execute(
        sa.select(store.events.c.id)
        .where((store.events.c.what == "peer refused") & (store.events.c.details == details))
        .limit(1)
    ).first()
    return known is None


def apply(site: Site, message: wire.InboxMessage) -> None:
    """Apply one inbox message and mark it handled, in one transaction."""
    if message.WhichOneof("body") == "round" and not is_over(message.round, store.now_ms()):
        # Before the transaction: looking at the table takes a second or more, in which others must be able to write.
        answer_round(site, message.round, "channel")
    with site.store.write() as connection:
        try:
            # Half of a refused message must not stay: the savepoint takes it back, the refusal stays.
            with connection.begin_nested():
                _apply(site, connection, message)
        except (ProtocolError, SynthEdgeError) as error:
            store.record(
                connection,
                "message refused",
                "agent",
                sequence=message.sequence,
                kind=message.WhichOneof("body") or "empty",
                reason=printable(str(error)),
            )
        connection.execute(
            store.inbox.update()
            .where(store.inbox.c.sequence == message.sequence)
            .values(handled_at_ms=store.now_ms())
        )


def _apply(site: Site, connection: sa.Connection, message: wire.InboxMessage) -> None:
    kind = message.WhichOneof("body")
    if kind == "profile":
        _keep_hint(site, connection, kind, message.profile)
    elif kind == "proposals":
        _keep_hint(site, connection, kind, message.proposals)
    elif kind == "dictionary":
        dictionaries.remember(connection, message.dictionary)
    elif kind == "round":
        if is_over(check_round(message.round), store.now_ms()):
            store.record(connection, "round was over", "agent", round=message.round.round_id.hex())
    elif kind == "statement":
        _apply_statement(site, connection, message.statement)
    elif kind == "shipment":
        transfer = get_transfer(connection, message.shipment.transfer_id)
        _require_role(transfer, "recipient", "a notice of a shipment")
        if transfer.state is State.CANCELLED:
            _note_late(connection, transfer, Event.RELAY, "coordinator")
            return
        move(connection, transfer, Event.RELAY, Party.DONOR, "coordinator")
    elif kind == "standing":
        told = message.standing
        peer_stands(connection, told.site, told.standing, told.reason, "coordinator")
    elif kind == "ended":
        ended = message.ended
        transfer = get_transfer(connection, ended.transfer_id)
        event = ending_event(ended.state)
        _end(connection, transfer, event, ended.reason, Party.COORDINATOR, "coordinator")
    else:
        raise MalformedError(
            "an inbox message without a body; the coordinator may be newer than this site"
        )


def _keep_hint(
    site: Site, connection: sa.Connection, kind: str, hint: wire.HoleProfile | wire.Proposals
) -> None:
    digest = hint.dictionary_digest.hex()
    if digest != site.dictionary.digest:
        raise VerificationError(
            f"a {kind} of dictionary {digest[:12]} arrived, this site accepted {site.dictionary.digest[:12]}"
        )
    if isinstance(hint, wire.HoleProfile):
        check_profile(hint, site.dictionary)
    else:
        check_proposals(hint, site.dictionary, site.settings.id, LIMITS)
    connection.execute(
        store.hints.delete().where(
            (store.hints.c.dictionary_digest == digest) & (store.hints.c.kind == kind)
        )
    )
    connection.execute(
        store.hints.insert().values(
            dictionary_digest=digest, kind=kind, message=hint.SerializeToString()
        )
    )
    store.record(connection, f"{kind} received", "coordinator", dictionary=digest)


def verify_from_peer(
    site: Site,
    connection: sa.Connection,
    signed: pb.SignedStatement,
    expected_type: type[M],
    peer: str,
) -> Verified[M]:
    """A peer's statement, verified against its pinned key and this site's dictionary.

    Raises
    ------
    ProtocolError
        If the peer is unknown or anything about the statement is wrong.
    """
    under = STATEMENT_TYPES[type_name(expected_type)].under_dictionary
    return verify(
        signed,
        expected_type=expected_type,
        consortium=site.consortium,
        site=peer,
        site_public_key=rotation.peer_key(connection, signed, expected_type, peer)
        or site.peer_public_key(connection, peer),
        dictionary_digest=bytes.fromhex(site.dictionary.digest) if under else None,
        now_ms=store.now_ms(),
        limits=LIMITS,
    )


def _apply_statement(site: Site, connection: sa.Connection, signed: pb.SignedStatement) -> None:
    statement = read_unverified(signed, limits=LIMITS)
    if statement.dictionary_digest:
        site = site.under(statement.dictionary_digest)
    expected_type = STATEMENT_TYPES[statement.type].message
    verified = verify_from_peer(site, connection, signed, expected_type, statement.signer_site)
    body = verified.payload
    if isinstance(body, pb.TransferRequest):
        require_authority(verified, body)
        _receive_request(site, connection, signed, body, statement.signer_site, verified.by_whom)
        return
    if isinstance(body, pb.WitnessedHead):
        keep_peer_head(site, connection, cast("Verified[pb.WitnessedHead]", verified))
        return
    if isinstance(body, pb.WithdrawalReceipt):
        take_receipt(site, connection, cast("Verified[pb.WithdrawalReceipt]", verified))
        return
    if isinstance(body, pb.SiteLeaving):
        peer_stands(connection, verified.site, body.action, body.reason, verified.by_whom)
        return
    if not isinstance(body, pb.Approval | pb.Ending | pb.Receipt):
        raise MalformedError(f"a statement of type '{statement.type}' is not sent to a site")
    transfer = get_transfer(connection, body.transfer_id)
    if transfer.dictionary_digest != statement.dictionary_digest:
        raise VerificationError(
            f"transfer {transfer.short_id} finishes under the dictionary it was requested with; "
            f"site '{statement.signer_site}' signed under another"
        )
    if transfer.peer != statement.signer_site:
        raise VerificationError(
            f"site '{statement.signer_site}' signed a statement about a transfer with '{transfer.peer}'"
        )
    who = verified.by_whom
    if isinstance(body, pb.Approval):
        # Else a recipient could approve, in the donor's place, what the donor only prepared.
        _require_role(transfer, "recipient", "an approval")
        if body.request_digest != outbound.sha256(transfer.signed_request.statement):
            raise VerificationError(
                "an approval names another request than the one this site signed"
            )
        require_authority(verified, transfer.request)
        if transfer.state is State.CANCELLED:
            _note_late(connection, transfer, Event.APPROVE, who)
            return
        approval = signed.SerializeToString()
        move(connection, transfer, Event.APPROVE, Party.DONOR, who, approval=approval)
    elif isinstance(body, pb.Ending):
        actor = Party.DONOR if transfer.role == "recipient" else Party.RECIPIENT
        event = ending_event(body.state)
        signed_by = _SIGNED_BY.get((transfer.state, event, actor, Party(transfer.role)))
        if signed_by not in (None, verified.signer.kind):
            raise VerificationError(
                f"the {signed_by} of site '{transfer.peer}' must sign that a transfer is {body.state}, "
                f"not its {verified.signer.kind}"
            )
        _end(connection, transfer, event, body.reason, actor, who)
        if body.HasField("report") and transfer.role == "donor":
            keep_purge_report(site, connection, transfer, body.report)
    else:
        _require_role(transfer, "donor", "a receipt")
        require_authority(verified, transfer.request)
        _receive_receipt(connection, transfer, body, who)


def _require_role(transfer: Transfer, role: str, what: str) -> None:
    if transfer.role != role:
        raise LifecycleError(
            f"{what} arrived for transfer {transfer.short_id}, of which this site is the {transfer.role}"
        )


def _receive_request(
    site: Site,
    connection: sa.Connection,
    signed: pb.SignedStatement,
    request: pb.TransferRequest,
    signer: str,
    who: str,
) -> None:
    if request.donor != site.settings.id or request.recipient != signer:
        raise VerificationError(
            "a transfer request names other sites than the ones it travels between"
        )
    # The coordinator has looked at all this; here nobody has to believe that.
    policy, wanted = site.dictionary.policy, set(request.features)
    if not 1 <= request.rows <= policy.rows_per_transfer:
        raise VerificationError(
            f"a transfer request asks for {request.rows} rows, against the policy"
        )
    if not 1 <= request.retention_days <= policy.retention_days:
        raise VerificationError(
            f"a transfer request asks to keep rows for {request.retention_days} days, against the policy"
        )
    if not is_duo_code(request.purpose):
        raise VerificationError("a transfer request names a purpose that is no DUO code")
    in_order = [name for name in site.dictionary.feature_names if name in wanted]
    if list(request.features) != in_order or not in_order:
        raise VerificationError(
            "a transfer request names features the dictionary does not have, or not in its order"
        )
    grid = site.dictionary.grid(request.grid)
    region_of(site, request)
    if not set(grid.features) <= set(request.features):
        raise VerificationError("a transfer request leaves out features of its own region")
    rotation.require_own(site, request.donor_key_id)
    insert_request(connection, signed, request, role="donor", who=who)


def _receive_receipt(
    connection: sa.Connection, transfer: Transfer, receipt: pb.Receipt, who: str
) -> None:
    shipment = connection.execute(
        sa.select(store.transfers.c.shipment).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    if shipment is None:
        raise LifecycleError("a receipt arrived for a transfer that was never shipped")
    sent = pb.Shipment.FromString(
        pb.Statement.FromString(pb.SignedStatement.FromString(shipment).statement).payload
    )
    # A recipient that could not even read the shipment has no digest to name when it refuses.
    # Rows of patients it already has it leaves out, so that it may hold fewer than were sent.
    if receipt.accepted and (
        receipt.ciphertext_digest != sent.ciphertext_digest
        or not 1 <= receipt.rows <= (transfer.rows or 0)
    ):
        raise VerificationError("a receipt names other bytes or rows than this site sent")
    event = Event.ACCEPT if receipt.accepted else Event.REFUSE
    reason = printable(receipt.reason[: LIMITS.text_bytes])
    move(
        connection,
        transfer,
        event,
        Party.RECIPIENT,
        who,
        reason=reason,
        payload=None,
    )


def _end(
    connection: sa.Connection, transfer: Transfer, event: Event, reason: str, actor: Party, who: str
) -> None:
    if is_final(transfer.state) and not _replaces(transfer, event, actor):
        _note_late(connection, transfer, event, who)  # told twice
        return
    reason = printable(reason[: LIMITS.text_bytes])
    move(connection, transfer, event, actor, who, reason=reason, payload=None)
    if transfer.role == "recipient":
        delete_samples(connection, transfer)
    elif transfer.state in _NOTHING_LEFT:
        forget_selection(connection, transfer)


def _note_late(connection: sa.Connection, transfer: Transfer, event: Event, who: str) -> None:
    """Put on record what was on its way when the transfer ended; it changes nothing and is nobody's fault."""
    store.record(
        connection, "transfer had ended", who, transfer_id=transfer.id.hex(), event=event.value
    )


def _replaces(transfer: Transfer, event: Event, actor: Party) -> bool:
    """Whether the coordinator put this end on record before the one this site wrote down itself."""
    return (transfer.state, event, actor, Party(transfer.role)) in _SIGNED_BY
