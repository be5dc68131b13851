"""Enrolment: a one-time token turns a site's public keys into a certificate and a place in the directory."""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from synthedge_protocols.certificates import requested_key
from synthedge_protocols.errors import IdentityError, LimitExceededError, MalformedError
from synthedge_protocols.framing import join_fields
from synthedge_protocols.limits import Limits
from synthedge_protocols.names import check_name
from synthedge_protocols.standing import Standing
from synthedge_protocols.statements import VerifiedSiteKeys, verify_site_keys
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import dictionaries, store
from synthedge_server.authority import certify_site
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import Ledger, Transaction


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """What a checked request asks to be registered."""

    secret_digest: bytes
    request_digest: bytes
    keys: VerifiedSiteKeys
    hpke_statement: bytes
    tls_key_digest: bytes


class Enrolment:
    """Take sites in.

    Rules: a token is good for one site, once, until it expires; the same request again gets the same
    answer, so a lost answer costs nothing; token, site and keys change in one transaction or not at all.

    Parameters
    ----------
    consortium : str
    folder : CoordinatorFolder
        Where the authority finds itself.
    ledger : Ledger
    log_public_key : bytes
        Raw Ed25519; what heads of the coordinator's audit log are verified with.
    limits : Limits
    """

    def __init__(
        self,
        consortium: str,
        folder: CoordinatorFolder,
        ledger: Ledger,
        log_public_key: bytes,
        limits: Limits,
    ) -> None:
        self._consortium = consortium
        self._folder = folder
        self._ledger = ledger
        self._log_public_key = log_public_key
        self._limits = limits

    async def enrol(self, request: wire.EnrolRequest) -> wire.EnrolResponse:
        """Register a site and certify its TLS key.

        Raises
        ------
        IdentityError
            If the token is unknown, used, expired or another site's, a key is not the requester's, or
            belongs to another site.
        MalformedError
            If names, keys or the certificate request are malformed.
        UnavailableError
            If the authority does not answer; the token stays good.
        LimitExceededError
            If the consortium has as many sites as it may have.
        ProtocolError
            As `statements.verify_site_keys`.
        """
        site = check_name("site", request.site)
        secret_digest = hashlib.sha256(request.token_secret).digest()
        request_digest = hashlib.sha256(
            join_fields(
                [
                    site.encode(),
                    request.certificate_request,
                    request.keys.SerializeToString(deterministic=True),
                ]
            )
        ).digest()
        now_ms = self._ledger.clock()
        with self._ledger.reading as connection:
            earlier = _spend(connection, secret_digest, site, request_digest, now_ms)
        if earlier is not None:
            return self._response(earlier)
        if request.keys.site != site:
            raise MalformedError(
                f"the keys are those of site '{request.keys.site[:63]}', the request is for '{site}'"
            )
        keys = verify_site_keys(
            request.keys, consortium=self._consortium, now_ms=now_ms, limits=self._limits
        )
        candidate = _Candidate(
            secret_digest=secret_digest,
            request_digest=request_digest,
            keys=keys,
            hpke_statement=request.keys.hpke_key.SerializeToString(),
            tls_key_digest=tls_key_digest(requested_key(request.certificate_request)),
        )
        certificate = await certify_site(self._folder, site, request.certificate_request)
        encoded = certificate.public_bytes(Encoding.DER)

        def register(transaction: Transaction) -> bytes:
            return _register(transaction, candidate, encoded, self._limits.sites)

        return self._response(await self._ledger.write(register))

    def _response(self, certificate: bytes) -> wire.EnrolResponse:
        with self._ledger.reading as connection:
            document = dictionaries.newest(connection).document()
        return wire.EnrolResponse(
            consortium=self._consortium,
            certificate=certificate,
            dictionary=document,
            log_public_key=self._log_public_key,
        )


def tls_key_digest(public_key: PublicKeyTypes) -> bytes:
    """SHA-256 of a public key as SubjectPublicKeyInfo, 32 bytes."""
    encoded = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).digest()


def add_token(transaction: Transaction, token: EnrolmentToken) -> None:
    """Make a token good, and any earlier one of its site good no longer; only the digest of its secret is stored.

    Raises
    ------
    IdentityError
        If the site is enrolled already.
    """
    enrolled = transaction.connection.execute(
        select(store.sites.c.state).where(
            store.sites.c.site == token.site, store.sites.c.state != Standing.RESET
        )
    ).scalar_one_or_none()
    if enrolled is not None:
        again = (
            ""
            if enrolled == Standing.REVOKED
            else f"; if it lost its keys, or left, run 'synthedge-coordinator sites reset-keys {token.site}' first"
        )
        raise IdentityError(
            f"site '{token.site}' is enrolled already; choose another site id{again}"
        )
    # Who is invited anew may have lost the first token, and somebody may have found it.
    tokens = store.tokens
    transaction.connection.execute(
        delete(tokens).where(tokens.c.site == token.site, tokens.c.used_at_ms.is_(None))
    )
    transaction.connection.execute(
        insert(store.tokens).values(
            secret_digest=token.secret_digest,
            site=token.site,
            issued_at_ms=transaction.now_ms,
            expires_at_ms=token.expires_at_ms,
        )
    )
    transaction.record("operator", "invited", token.site)


def _spend(
    connection: Connection, secret_digest: bytes, site: str, request_digest: bytes, now_ms: int
) -> bytes | None:
    """Check that a token may be spent; return the certificate if this very request spent it before."""
    row: Row[Any] | None = connection.execute(
        select(store.tokens).where(store.tokens.c.secret_digest == secret_digest)
    ).one_or_none()
    if row is None:
        raise IdentityError(
            "the coordinator does not know this enrolment token; ask its operator for a new one"
        )
    if row.site != site:
        raise IdentityError(f"the enrolment token is not one of site '{site}'")
    if row.used_at_ms is not None:
        if hmac.compare_digest(row.request_digest, request_digest):
            certificate: bytes = row.certificate
            return certificate
        raise IdentityError(
            f"the enrolment token of site '{site}' was used before; ask the operator for a new one"
        )
    if now_ms > row.expires_at_ms:
        raise IdentityError(
            f"the enrolment token of site '{site}' has expired; ask the operator for a new one"
        )
    return None


def _register(
    transaction: Transaction, candidate: _Candidate, certificate: bytes, max_sites: int
) -> bytes:
    """Spend the token and write the site down; return the certificate that counts."""
    connection, keys = transaction.connection, candidate.keys
    # Looked at again inside the transaction: two requests may have passed the first look together.
    earlier = _spend(
        connection,
        candidate.secret_digest,
        keys.site,
        candidate.request_digest,
        transaction.now_ms,
    )
    if earlier is not None:
        return earlier
    others = select(func.count()).where(store.sites.c.site != keys.site)
    if connection.execute(others).scalar_one() >= max_sites:
        raise LimitExceededError(f"the consortium has {max_sites} sites, as many as it may have")
    known = connection.execute(
        select(store.sites.c.site).where(
            or_(
                and_(store.sites.c.site == keys.site, store.sites.c.state != Standing.RESET),
                store.sites.c.statement_public_key == keys.statement_public_key,
                store.sites.c.hpke_key_id == keys.hpke.key_id,
                store.sites.c.tls_key_digest == candidate.tls_key_digest,
            )
        )
    ).first()
    if known is not None:
        raise IdentityError(
            f"site '{keys.site}' is enrolled already, or its keys are another site's; "
            "a new site needs keys of its own"
        )
    record = {
        "state": Standing.ACTIVE.value,
        "statement_public_key": keys.statement_public_key,
        "hpke_key_id": keys.hpke.key_id,
        "tls_key_digest": candidate.tls_key_digest,
        "enrolled_at_ms": transaction.now_ms,
        "certified_at_ms": transaction.now_ms,
        "reason": None,
    }
    again = update(store.sites).where(store.sites.c.site == keys.site).values(**record)
    if connection.execute(again).rowcount:
        # New keys under an old id: what waits was sealed to keys that are gone, about transfers that ended.
        connection.execute(delete(store.inbox).where(store.inbox.c.site == keys.site))
    else:
        connection.execute(insert(store.sites).values(site=keys.site, last_sequence=0, **record))
    connection.execute(
        insert(store.keys).values(
            key_id=keys.hpke.key_id,
            site=keys.site,
            statement=candidate.hpke_statement,
            registered_at_ms=transaction.now_ms,
        )
    )
    connection.execute(
        update(store.tokens)
        .where(store.tokens.c.secret_digest == candidate.secret_digest)
        .values(
            used_at_ms=transaction.now_ms,
            request_digest=candidate.request_digest,
            certificate=certificate,
        )
    )
    transaction.record(keys.site, "enrolled", keys.fingerprint)
    return certificate
