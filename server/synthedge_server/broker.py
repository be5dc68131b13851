"""Transfers: each signed statement moves the coordinator's record by the one lifecycle table, or is refused.

The coordinator relays what sites sign and never acts for them: it ends a transfer only when a time limit of
the policy has passed or a site was revoked.
"""

import json
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, or_, select, update

from synthedge_protocols.errors import (
    IdentityError,
    LifecycleError,
    LimitExceededError,
    MalformedError,
    PolicyError,
    ReplayError,
    VerificationError,
)
from synthedge_protocols.lifecycle import (
    TRANSITIONS,
    Event,
    Party,
    State,
    advance,
    ending_event,
)
from synthedge_protocols.limits import Limits
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.rotation import site_key_id
from synthedge_protocols.standing_policies import require_authority
from synthedge_protocols.statements import Verified, transfer_id
from synthedge_protocols.texts import printable
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.ledger import Transaction
from synthedge_server.registries import Registries
from synthedge_server.relay import spool_key
from synthedge_server.request_checks import check_request
from synthedge_server.transfer_records import (
    find_transfer,
    short_id,
    site_state,
    transfer_of,
    upload_of,
    waiting_for,
)

_DIGEST_BYTES: Final = 32
_MS_PER_HOUR: Final = 3_600_000

# State of the coordinator's record to the policy field after which it expires.
_EXPIRES_AFTER: Final = {
    t.source: t.limit
    for t in TRANSITIONS
    if t.event is Event.EXPIRE and t.limit is not None and Party.COORDINATOR in t.where
}
_UNFINISHED: Final = Prepared(
    select(func.count().label("n")).where(
        store.transfers.c.recipient == bindparam("of_recipient"),
        or_(*(store.transfers.c.state == state.value for state in _EXPIRES_AFTER)),
    )
)
_WAITING: Final = Prepared(
    select(func.coalesce(func.sum(store.uploads.c.ciphertext_bytes), 0).label("n_bytes"))
    .join(store.transfers, store.transfers.c.transfer_id == store.uploads.c.transfer_id)
    .where(store.transfers.c.donor == bindparam("of_donor"))
)
_OPEN: Final = Prepared(insert(store.transfers))
_MOVE: Final = Prepared(
    update(store.transfers)
    .where(store.transfers.c.transfer_id == bindparam("of_transfer"))
    .values({name: bindparam(name) for name in ("state", "since_ms", "expires_at_ms", "reason")})
)
_SIGNED_BY: Final = {
    (t.source, t.event, t.actor): t.signed_by for t in TRANSITIONS if Party.COORDINATOR in t.where
}


class Broker:
    """The coordinator's record of every transfer.

    Parameters
    ----------
    registries : Registries
        Grids, policies and current reports of the dictionaries.
    limits : Limits
        Bounds on what a peer may announce.
    """

    def __init__(self, registries: Registries, limits: Limits) -> None:
        self._registries = registries
        self._limits = limits

    def request(self, transaction: Transaction, verified: Verified[pb.TransferRequest]) -> None:
        """Open a transfer and pass the request to the donor.

        Raises
        ------
        MalformedError, PolicyError, IdentityError
            If the request does not fit dictionary, policy, reports or the registered keys.
        ReplayError
            If the transfer exists already.
        LimitExceededError
            If too many transfers that the site asked for are under way.
        """
        request, connection = verified.payload, transaction.connection
        check_request(connection, self._registries.current(connection), verified)
        require_authority(verified, request)
        identifier = transfer_id(verified.payload_bytes)
        if find_transfer(connection, identifier) is not None:
            raise ReplayError(
                f"transfer {identifier.hex()[:8]} was requested before; a new request needs a new nonce"
            )
        n_open = _UNFINISHED.one(connection, of_recipient=verified.site).n
        if n_open >= self._limits.statements_per_site:
            raise LimitExceededError(
                f"site '{verified.site}' has {n_open} transfers under way; some must end first"
            )
        _OPEN.run(
            connection,
            transfer_id=identifier,
            recipient=request.recipient,
            donor=request.donor,
            dictionary_digest=verified.dictionary_digest,
            grid=request.grid,
            voxel=json.dumps(list(request.voxel)),
            rows=request.rows,
            purpose=request.purpose,
            request_digest=verified.digest,
            request=verified.payload_bytes,
            recipient_key_id=site_key_id(verified.signed),
            donor_key_id=request.donor_key_id,
            state=advance(
                State.PROPOSED, Event.REQUEST, Party.RECIPIENT, at=Party.COORDINATOR
            ).value,
            since_ms=transaction.now_ms,
            expires_at_ms=self._expiry(transaction, State.REQUESTED, verified.dictionary_digest),
            reason="",
            requested_at_ms=transaction.now_ms,
        )
        transaction.post(request.donor, wire.InboxMessage(statement=verified.signed))

    def approve(self, transaction: Transaction, verified: Verified[pb.Approval]) -> None:
        """Note the donor's approval and pass it to the recipient.

        A second approval replaces the first (consents changed, rows were chosen anew); what was announced
        or uploaded under the first is dropped.
        """
        approval = verified.payload
        row = self._transfer(transaction.connection, approval.transfer_id, verified, Party.DONOR)
        if approval.request_digest != row.request_digest:
            raise VerificationError(
                f"the approval of transfer {short_id(row)} names another request than the one on record"
            )
        require_authority(verified, pb.TransferRequest.FromString(row.request))
        if len(approval.manifest_commitment) != _DIGEST_BYTES:
            raise MalformedError(
                f"the approval of transfer {short_id(row)}: a manifest commitment has 32 bytes"
            )
        if not 1 <= approval.rows <= row.rows:
            raise PolicyError(
                f"the approval of transfer {short_id(row)} covers {approval.rows} rows; "
                f"requested were up to {row.rows}"
            )
        self._move(transaction, row, Event.APPROVE, Party.DONOR)
        _drop_upload(transaction, row.transfer_id)
        transaction.post(row.recipient, wire.InboxMessage(statement=verified.signed))

    def ship(self, transaction: Transaction, verified: Verified[pb.Shipment]) -> None:
        """Keep the donor's shipment until its sealed bytes are here; it goes to nobody yet."""
        shipment = verified.payload
        row = self._transfer(transaction.connection, shipment.transfer_id, verified, Party.DONOR)
        # Checked now and moved when the last byte is stored: only then is there something to relay.
        advance(State(row.state), Event.RELAY, Party.DONOR, at=Party.COORDINATOR)
        digests = (shipment.header_digest, shipment.ciphertext_digest, shipment.info_digest)
        if any(len(digest) != _DIGEST_BYTES for digest in digests):
            raise MalformedError(f"the shipment of transfer {short_id(row)}: digests have 32 bytes")
        if not 0 < shipment.ciphertext_bytes <= self._limits.ciphertext_bytes:
            raise LimitExceededError(
                f"the shipment of transfer {short_id(row)} announces {shipment.ciphertext_bytes} bytes; "
                f"at most {self._limits.ciphertext_bytes} are relayed"
            )
        waiting = _WAITING.one(transaction.connection, of_donor=row.donor).n_bytes
        if waiting + shipment.ciphertext_bytes > self._limits.waiting_bytes:
            raise LimitExceededError(
                f"the shipment of transfer {short_id(row)} announces {shipment.ciphertext_bytes} bytes beside "
                f"{waiting} of site '{row.donor}' that wait; at most {self._limits.waiting_bytes} do"
            )
        if upload_of(transaction.connection, row.transfer_id) is not None:
            raise ReplayError(
                f"transfer {short_id(row)} has a shipment already; a new one needs a new approval"
            )
        transaction.connection.execute(
            insert(store.uploads).values(
                transfer_id=row.transfer_id,
                shipment=verified.signed.SerializeToString(),
                ciphertext_digest=shipment.ciphertext_digest,
                ciphertext_bytes=shipment.ciphertext_bytes,
            )
        )

    def receive(self, transaction: Transaction, verified: Verified[pb.Receipt]) -> None:
        """Note the recipient's receipt, pass it to the donor and let the sealed bytes go."""
        receipt, connection = verified.payload, transaction.connection
        row = self._transfer(connection, receipt.transfer_id, verified, Party.RECIPIENT)
        require_authority(verified, pb.TransferRequest.FromString(row.request))
        upload = upload_of(connection, row.transfer_id)
        if (
            receipt.accepted
            and upload is not None
            and receipt.ciphertext_digest != upload.ciphertext_digest
        ):
            raise VerificationError(
                f"the receipt of transfer {short_id(row)} is for other bytes than were shipped"
            )
        if receipt.rows > row.rows:
            raise PolicyError(
                f"the receipt of transfer {short_id(row)} is for {receipt.rows} rows; "
                f"requested were up to {row.rows}"
            )
        event = Event.ACCEPT if receipt.accepted else Event.REFUSE
        self._move(transaction, row, event, Party.RECIPIENT, self._text(receipt.reason))
        _drop_upload(transaction, row.transfer_id)
        transaction.post(row.donor, wire.InboxMessage(statement=verified.signed))

    def end(self, transaction: Transaction, verified: Verified[pb.Ending]) -> None:
        """Note that a site ended a transfer and pass its statement to the other side."""
        ending, connection = verified.payload, transaction.connection
        row = self._transfer(connection, ending.transfer_id, verified, None)
        actor = Party.RECIPIENT if verified.site == row.recipient else Party.DONOR
        event = ending_event(ending.state)
        signed_by = _SIGNED_BY.get((State(row.state), event, actor))
        if signed_by is not None and signed_by != verified.signer.kind:
            raise PolicyError(
                f"the ending of transfer {short_id(row)} as {event.value} must be signed by the "
                f"{signed_by}, not by the {verified.signer.kind}"
            )
        self._move(transaction, row, event, actor, self._text(ending.reason))
        _drop_upload(transaction, row.transfer_id)
        other = row.donor if actor is Party.RECIPIENT else row.recipient
        transaction.post(other, wire.InboxMessage(statement=verified.signed))

    def withdraw(
        self, transaction: Transaction, verified: Verified[pb.WithdrawalNotice]
    ) -> Row[Any]:
        """Find the transfer a donor withdraws rows of, and revoke it unless its rows were accepted.

        Here and in one transaction, because donor and recipient each know only half of how far it has come.

        Returns
        -------
        Row
            Of `store.transfers`, as it was before.

        Raises
        ------
        LifecycleError
            If the signer is not its donor, or no row can have left.
        """
        row = self._transfer(
            transaction.connection, verified.payload.transfer_id, verified, Party.DONOR
        )
        state = State(row.state)
        if state in (State.REQUESTED, State.DECLINED):
            raise LifecycleError(
                f"transfer {short_id(row)} is {state.value}: none of its rows has left the donor"
            )
        if state in (State.APPROVED, State.RELAYED, State.DELIVERED):
            self.end_by_rule(transaction, row, Event.REVOKE, "the donor withdrew rows of it")
        return row

    def relayed(self, transaction: Transaction, identifier: bytes, digest: bytes) -> None:
        """Note that all sealed bytes are stored, and tell the recipient.

        Parameters
        ----------
        transaction : Transaction
        identifier : bytes of length 32
            The transfer's id.
        digest : bytes of length 32
            SHA-256 of what is stored.

        Raises
        ------
        LifecycleError
            If the transfer ended, or was approved anew, while the bytes arrived.
        """
        connection = transaction.connection
        row, upload = find_transfer(connection, identifier), upload_of(connection, identifier)
        if row is None or upload is None or upload.ciphertext_digest != digest:
            raise LifecycleError(
                f"transfer {identifier.hex()[:8]} changed while its bytes arrived; "
                "read your inbox, then ask GetUpload"
            )
        if upload.completed_at_ms is not None:
            return
        self._move(transaction, row, Event.RELAY, Party.DONOR)
        connection.execute(
            update(store.uploads)
            .where(store.uploads.c.transfer_id == identifier)
            .values(completed_at_ms=transaction.now_ms)
        )
        notice = wire.ShipmentNotice(
            transfer_id=identifier, ciphertext_bytes=upload.ciphertext_bytes
        )
        transaction.post(row.recipient, wire.InboxMessage(shipment=notice))
        transaction.record(row.donor, "relayed", identifier.hex(), digest.hex())

    def release_key(self, transaction: Transaction, verified: Verified[pb.ReleaseRequest]) -> bytes:
        """Hand the sealed key to the recipient who signed for it, if neither site was suspended meanwhile.

        Returns
        -------
        bytes
            The donor's serialised SignedStatement of the shipment; the same again when asked again.

        Raises
        ------
        IdentityError
            If a site is not active any more.
        LifecycleError
            If the transfer is not the caller's to open, or has no complete upload.
        """
        connection = transaction.connection
        site, identifier = verified.site, verified.payload.transfer_id
        row = waiting_for(connection, identifier, site)
        self._transfer(connection, identifier, verified, Party.RECIPIENT)
        upload = upload_of(connection, identifier)
        for party in (row.donor, row.recipient):
            standing = site_state(connection, party)
            if standing != "active":
                raise IdentityError(
                    f"transfer {short_id(row)}: site '{party}' is {standing}; the key is not released"
                )
        if State(row.state) is not State.DELIVERED:
            self._move(transaction, row, Event.DELIVER, Party.RECIPIENT)
            transaction.record(site, "key-released", identifier.hex(), verified.digest.hex())
        if upload is None:
            raise LifecycleError(f"transfer {short_id(row)} has no sealed bytes here")
        shipment: bytes = upload.shipment
        return shipment

    def expire(self, transaction: Transaction) -> int:
        """End every transfer whose time limit has passed and tell both sides; return how many."""
        table = store.transfers
        late = transaction.connection.execute(
            select(table).where(table.c.expires_at_ms <= transaction.now_ms)
        ).all()
        for row in late:
            reason = f"nothing happened within the time limit of {row.state}"
            self.end_by_rule(transaction, row, Event.EXPIRE, reason)
        return len(late)

    def end_by_rule(
        self, transaction: Transaction, row: Row[Any], event: Event, reason: str
    ) -> None:
        """End a transfer by a rule of the consortium, and tell both sites.

        Raises
        ------
        LifecycleError
            If the table has no such row.
        """
        state = self._move(transaction, row, event, Party.COORDINATOR, reason)
        _drop_upload(transaction, row.transfer_id)
        for site in (row.recipient, row.donor):
            ended = wire.TransferEnded(
                transfer_id=row.transfer_id, state=state.value, reason=reason
            )
            transaction.post(site, wire.InboxMessage(ended=ended))
        transaction.record("coordinator", state.value.lower(), row.transfer_id.hex(), reason)

    def _transfer(
        self,
        connection: Connection,
        identifier: bytes,
        verified: Verified[Any],
        party: Party | None,
    ) -> Row[Any]:
        """Find the transfer a statement is about; the signer must be `party` in it, or either."""
        row = transfer_of(connection, identifier, verified.site, party)
        if verified.dictionary_digest != row.dictionary_digest:
            raise PolicyError(
                f"transfer {short_id(row)} was requested under dictionary "
                f"{row.dictionary_digest.hex()[:12]} and finishes under it; this statement names another"
            )
        return row

    def _move(
        self, transaction: Transaction, row: Row[Any], event: Event, actor: Party, reason: str = ""
    ) -> State:
        state = advance(State(row.state), event, actor, at=Party.COORDINATOR)
        _MOVE.run(
            transaction.connection,
            of_transfer=row.transfer_id,
            state=state.value,
            since_ms=transaction.now_ms,
            expires_at_ms=self._expiry(transaction, state, row.dictionary_digest),
            reason=reason,
        )
        return state

    def _expiry(self, transaction: Transaction, state: State, digest: bytes) -> int | None:
        field = _EXPIRES_AFTER.get(state)
        if field is None:
            return None
        policy = self._registries.policy(transaction.connection, digest)
        hours: float = getattr(policy, field)
        return transaction.now_ms + int(hours * _MS_PER_HOUR)

    def _text(self, reason: str) -> str:
        if len(reason.encode()) > self._limits.text_bytes:
            raise LimitExceededError(
                f"a reason of {len(reason.encode())} bytes; at most {self._limits.text_bytes} are kept"
            )
        return printable(reason)


def _drop_upload(transaction: Transaction, identifier: bytes) -> None:
    upload = upload_of(transaction.connection, identifier)
    if upload is not None:
        transaction.connection.execute(
            delete(store.uploads).where(store.uploads.c.transfer_id == identifier)
        )
        transaction.discarded.append(spool_key(identifier, upload.ciphertext_digest))
