"""Everything that arrives at a site: verified, checked against what was agreed, and only then applied.

Rules
-----
* Each inbox message is applied in the transaction that marks it handled: once, however often it comes.
* A message that is wrong is refused, recorded and marked handled: it must not block those behind it.
* A peer's statement key is pinned at first sight; a different one later is refused and shown.
"""

from typing import TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message

from synthedge_client import outbound, store
from synthedge_client.settings import SiteSettings
from synthedge_client.site import Site
from synthedge_client.transfers import (
    Transfer,
    find_transfer,
    move,
    record_request,
    region_of,
    request_id,
)
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import (
    LifecycleError,
    MalformedError,
    ProtocolError,
    TransferAuthenticationError,
    VerificationError,
)
from synthedge_protocols.lifecycle import Event, Party, ending_event
from synthedge_protocols.limits import Limits
from synthedge_protocols.statements import (
    STATEMENT_TYPES,
    Verified,
    read_unverified,
    verify,
    verify_site_keys,
)
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

LIMITS = Limits()

M = TypeVar("M", bound=Message)


def pin_peers(
    connection: sa.Connection, settings: SiteSettings, directory: wire.Directory, consortium: str
) -> None:
    """Remember every other site's keys as first seen; refuse changed ones.

    Raises
    ------
    VerificationError
        If a known peer comes with another statement key.
    """
    for keys in directory.sites:
        if keys.site == settings.id:
            continue
        verify_site_keys(keys, consortium=consortium, now_ms=store.now_ms(), limits=LIMITS)
        known = connection.execute(
            sa.select(store.peers.c.statement_public_key).where(store.peers.c.site == keys.site)
        ).scalar_one_or_none()
        values = {"hpke_key": keys.hpke_key.SerializeToString()}
        if known is None:
            connection.execute(
                store.peers.insert().values(
                    site=keys.site, statement_public_key=keys.statement_public_key, **values
                )
            )
            store.record(connection, "peer first seen", "coordinator", peer=keys.site)
        elif known != keys.statement_public_key:
            raise VerificationError(
                f"the coordinator shows another statement key for site '{keys.site}' than before; "
                "telephone that site and compare fingerprints before anything else"
            )
        else:
            connection.execute(
                store.peers.update().where(store.peers.c.site == keys.site).values(**values)
            )


def apply(site: Site, message: wire.InboxMessage) -> None:
    """Apply one inbox message and mark it handled, in one transaction."""
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
                reason=str(error),
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
    elif kind == "statement":
        _apply_statement(site, connection, message.statement)
    elif kind == "shipment":
        transfer = find_transfer(connection, message.shipment.transfer_id.hex())
        move(connection, transfer, Event.RELAY, Party.DONOR, "coordinator")
    elif kind == "ended":
        transfer = find_transfer(connection, message.ended.transfer_id.hex())
        _end(
            connection,
            transfer,
            message.ended.state,
            message.ended.reason,
            Party.COORDINATOR,
            "coordinator",
        )
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
    return verify(
        signed,
        expected_type=expected_type,
        consortium=site.consortium,
        site=peer,
        site_public_key=site.peer_public_key(connection, peer),
        dictionary_digest=bytes.fromhex(site.dictionary.digest),
        now_ms=store.now_ms(),
        limits=LIMITS,
    )


def _apply_statement(site: Site, connection: sa.Connection, signed: pb.SignedStatement) -> None:
    statement = read_unverified(signed, limits=LIMITS)
    expected_type = STATEMENT_TYPES[statement.type].message
    verified = verify_from_peer(site, connection, signed, expected_type, statement.signer_site)
    body = verified.payload
    if isinstance(body, pb.TransferRequest):
        _receive_request(site, connection, signed, body, statement.signer_site)
        return
    if not isinstance(body, pb.Approval | pb.Ending | pb.Receipt):
        raise MalformedError(f"a statement of type '{statement.type}' is not sent to a site")
    transfer = find_transfer(connection, body.transfer_id.hex())
    if transfer.peer != statement.signer_site:
        raise VerificationError(
            f"site '{statement.signer_site}' signed a statement about a transfer with '{transfer.peer}'"
        )
    if isinstance(body, pb.Approval):
        if body.request_digest != outbound.sha256(transfer.signed_request.statement):
            raise VerificationError(
                "an approval names another request than the one this site signed"
            )
        move(
            connection,
            transfer,
            Event.APPROVE,
            Party.DONOR,
            f"{transfer.peer}: {verified.signer.name}",
            approval=signed.SerializeToString(),
        )
    elif isinstance(body, pb.Ending):
        actor = Party.DONOR if transfer.role == "recipient" else Party.RECIPIENT
        who = f"{transfer.peer}: {verified.signer.name}"
        _end(connection, transfer, body.state, body.reason, actor, who)
    else:
        _receive_receipt(connection, transfer, body)


def _receive_request(
    site: Site,
    connection: sa.Connection,
    signed: pb.SignedStatement,
    request: pb.TransferRequest,
    signer: str,
) -> None:
    if request.donor != site.settings.id or request.recipient != signer:
        raise VerificationError(
            "a transfer request names other sites than the ones it travels between"
        )
    if not 1 <= request.rows <= site.dictionary.policy.rows_per_transfer:
        raise VerificationError(
            f"a transfer request asks for {request.rows} rows, against the policy"
        )
    unknown = set(request.features) - set(site.dictionary.feature_names)
    if unknown or not request.features:
        raise VerificationError("a transfer request names features the dictionary does not have")
    grid = site.dictionary.grid(request.grid)
    region_of(site, request)
    if not set(grid.features) <= set(request.features):
        raise VerificationError("a transfer request leaves out features of its own region")
    record_request(connection, request_id(signed), signed, request)


def _receive_receipt(connection: sa.Connection, transfer: Transfer, receipt: pb.Receipt) -> None:
    if transfer.role != "donor":
        raise LifecycleError("a receipt arrived for a transfer this site receives")
    shipment = connection.execute(
        sa.select(store.transfers.c.shipment).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    if shipment is None:
        raise LifecycleError("a receipt arrived for a transfer that was never shipped")
    sent = pb.Shipment.FromString(
        pb.Statement.FromString(pb.SignedStatement.FromString(shipment).statement).payload
    )
    if receipt.ciphertext_digest != sent.ciphertext_digest:
        raise TransferAuthenticationError("transfer could not be authenticated")
    event = Event.ACCEPT if receipt.accepted else Event.REFUSE
    # The manifest has served: the recipient has the rows, or will never have them.
    move(
        connection,
        transfer,
        event,
        Party.RECIPIENT,
        transfer.peer,
        reason=receipt.reason,
        payload=None,
    )


def _end(
    connection: sa.Connection, transfer: Transfer, state: str, reason: str, actor: Party, who: str
) -> None:
    event = ending_event(state)
    move(connection, transfer, event, actor, who, reason=reason[: LIMITS.text_bytes], payload=None)
    connection.execute(store.disclosed.delete().where(store.disclosed.c.transfer_id == transfer.id))
