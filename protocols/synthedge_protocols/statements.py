"""Signed statements: the only thing a site or the coordinator acts upon.

Rules
-----
- The signature covers the exact bytes of one `Statement`; nobody serialises it a second time.
- Type, consortium, site and dictionary digest lie under the signature, so a statement cannot be
  moved to another place.
- A steward's statement carries the site's certificate of the steward's key; the chain is one link.
- Fields this version does not know are refused: acting on half of a signed decision is worse than
  asking for an update.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Literal, TypeVar

from google.protobuf.message import DecodeError, Message

from synthedge_protocols.errors import (
    IdentityError,
    LimitExceededError,
    MalformedError,
    PolicyError,
)
from synthedge_protocols.keys import (
    HpkePublicKey,
    StatementKey,
    check_signature,
    fingerprint,
    key_id,
)
from synthedge_protocols.limits import Limits
from synthedge_protocols.names import check_name
from synthedge_protocols.v1 import statements_pb2 as pb

__all__ = [
    "STATEMENT_TYPES",
    "Signer",
    "StatementType",
    "Verified",
    "VerifiedSiteKeys",
    "read_unverified",
    "sign",
    "transfer_id",
    "type_name",
    "verify",
    "verify_site_keys",
]

_CONTEXT = b"synthedge/v1/statement\0"
_DIGEST_BYTES = 32
_END_OF_TIME_MS = 2**62

# A steward's certificate comes with every statement that the steward signs; larger ones are none of ours.
_REMEMBERED_BYTES = 1_024

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)


@dataclass(frozen=True, slots=True)
class StatementType:
    """What a type name stands for.

    Attributes
    ----------
    message : type of Message
        The payload's class; one class has one name.
    signed_by : {"site", "steward", "either", "steward or policy"}
        Whose key must have signed; "steward or policy": the site's key too, where the payload carries a
        standing policy that a steward of the site signed.
    under_dictionary : bool
        Whether the dictionary digest must be present; key statements outlive dictionaries.
    has_note : bool
        Whether it may carry a sealed note, which is long where many rows are withdrawn.
    """

    message: type[Message]
    signed_by: Literal["site", "steward", "either", "steward or policy"]
    under_dictionary: bool = True
    has_note: bool = False


STATEMENT_TYPES: dict[str, StatementType] = {
    "hpke-key": StatementType(pb.HpkeKey, "site", under_dictionary=False),
    "steward-certificate": StatementType(pb.StewardCertificate, "site", under_dictionary=False),
    "key-rotation": StatementType(pb.KeyRotation, "site", under_dictionary=False),
    "renewal": StatementType(pb.Renewal, "site", under_dictionary=False),
    "dictionary-acceptance": StatementType(pb.DictionaryAcceptance, "steward"),
    "gap-report": StatementType(pb.GapReport, "steward"),
    "discovery-answer": StatementType(pb.DiscoveryAnswer, "site", under_dictionary=False),
    "flower-node": StatementType(pb.FlowerNode, "site", under_dictionary=False),
    "transfer-request": StatementType(pb.TransferRequest, "steward or policy"),
    "approval": StatementType(pb.Approval, "steward or policy"),
    "standing-policy": StatementType(pb.StandingPolicy, "steward"),
    "shipment": StatementType(pb.Shipment, "site"),
    "key-request": StatementType(pb.ReleaseRequest, "site"),
    "receipt": StatementType(pb.Receipt, "either"),
    "ending": StatementType(pb.Ending, "either", has_note=True),
    "withdrawal-notice": StatementType(pb.WithdrawalNotice, "either", has_note=True),
    "withdrawal-receipt": StatementType(pb.WithdrawalReceipt, "site", has_note=True),
    "site-leaving": StatementType(pb.SiteLeaving, "steward"),
    "witnessed-head": StatementType(pb.WitnessedHead, "site", under_dictionary=False),
}
"""Type name to payload class and signer."""

_UNDER_POLICY = (pb.TransferRequest, pb.Approval, pb.Receipt)

_NAME_OF = {entry.message: name for name, entry in STATEMENT_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose key signed.

    Attributes
    ----------
    kind : {"site", "steward"}
        Which of the two.
    name : str
        The steward's name; the site's for a site key.
    fingerprint : str
        Of the key that signed.
    """

    kind: Literal["site", "steward"]
    name: str
    fingerprint: str

    @property
    def label(self) -> str:
        """Name and key, as audits write them."""
        return f"{self.name} (key {self.fingerprint})"


@dataclass(frozen=True, slots=True)
class Verified(Generic[M]):
    """A statement whose signature held; only `verify` makes one.

    Attributes
    ----------
    type, consortium, site : str
        As signed.
    dictionary_digest : bytes
        32 bytes; empty for key statements.
    issued_at_ms : int
        Unix time in milliseconds by the signer's clock.
    payload : Message
        Decoded; its numbers are not checked yet.
    payload_bytes : bytes
        The payload as signed.
    signer : Signer
        Site or steward.
    digest : bytes
        SHA-256 of the statement's bytes, 32 bytes: its identity in receipts and approvals.
    signed : SignedStatement
        The original, to be stored or relayed.
    first : Signer or None
        Two-person rule: the other steward, whose signature over the same words the payload carries.
    policy : Verified or None
        What a steward allowed the site's key to sign; whether it covers this statement is for
        `standing_policies.require_covered` to say.
    """

    type: str
    consortium: str
    site: str
    dictionary_digest: bytes
    issued_at_ms: int
    payload: M
    payload_bytes: bytes
    signer: Signer
    digest: bytes
    signed: pb.SignedStatement
    first: Signer | None = None
    policy: "Verified[pb.StandingPolicy] | None" = None

    @property
    def by_whom(self) -> str:
        """Who decided, for the audit: stewards with their keys, or the policy the site's key acted under."""
        people = [self.signer, self.first] if self.first else [self.signer]
        if self.policy is not None:
            policy = self.policy.payload.policy_id.hex()[:8]
            return f"{self.site}, standing policy {policy} of {self.policy.by_whom}"
        return f"{self.site}: " + " and ".join(p.label for p in people)


@dataclass(frozen=True, slots=True)
class VerifiedSiteKeys:
    """What a directory entry says of a site, checked against itself.

    The statement key is only as good as the way it was learned: compare `fingerprint`.
    """

    site: str
    statement_public_key: bytes
    hpke: HpkePublicKey
    hpke_not_after_ms: int

    @property
    def fingerprint(self) -> str:
        """Of the statement key."""
        return fingerprint(self.statement_public_key)


def type_name(message: type[Message]) -> str:
    """Return the statement type of a payload class.

    Raises
    ------
    MalformedError
        If no statement carries that class.
    """
    try:
        return _NAME_OF[message]
    except KeyError:
        raise MalformedError(f"{message.__name__} is no statement's payload") from None


def transfer_id(request_payload: bytes) -> bytes:
    """Return the SHA-256 of a serialised TransferRequest, as signed; 32 bytes."""
    return hashlib.sha256(request_payload).digest()


def sign(
    key: StatementKey,
    payload: Message,
    *,
    consortium: str,
    site: str,
    dictionary_digest: bytes,
    issued_at_ms: int,
    certificate: pb.SignedStatement | None = None,
) -> pb.SignedStatement:
    """Make a signed statement; its type follows from the payload's class.

    Parameters
    ----------
    key : StatementKey
        The site's, or a steward's together with `certificate`.
    payload : Message
        One of the classes in `STATEMENT_TYPES`.
    consortium, site : str
        Names of the consortium and of the signing site.
    dictionary_digest : bytes
        32 bytes; empty for key statements.
    issued_at_ms : int
        Unix time in milliseconds.
    certificate : SignedStatement, optional
        The site's steward-certificate of `key`; present exactly when a steward signs.

    Raises
    ------
    MalformedError
        If the type wants another signer, or the digest's length does not fit it.
    """
    name = type_name(type(payload))
    _check_signer(name, by_steward=certificate is not None)
    _require_policy(name, payload, by_steward=certificate is not None)
    _check_dictionary_digest(name, dictionary_digest)
    statement = pb.Statement(
        type=name,
        consortium=check_name("consortium", consortium),
        signer_site=check_name("site", site),
        signer_key_id=key.key_id,
        dictionary_digest=dictionary_digest,
        issued_at_ms=issued_at_ms,
        payload=payload.SerializeToString(deterministic=True),
    ).SerializeToString(deterministic=True)
    return pb.SignedStatement(
        statement=statement, signature=key.sign(_CONTEXT + statement), certificate=certificate
    )


def read_unverified(signed: pb.SignedStatement, *, limits: Limits) -> pb.Statement:
    """Decode a statement only to learn which site's key to look up; nothing in it is proved.

    Raises
    ------
    LimitExceededError
        If it is larger than ``limits.message_bytes``, or what was signed than its type may be.
    MalformedError
        If it does not decode, names an unknown type or carries unknown fields.
    """
    size = signed.ByteSize()
    if size > limits.message_bytes:
        raise LimitExceededError(
            f"a signed statement of {size} bytes; at most {limits.message_bytes} are accepted"
        )
    _refuse_unknown_fields(signed, "signed statement")
    statement = _decode(pb.Statement, signed.statement, "statement")
    if statement.type not in STATEMENT_TYPES:
        raise MalformedError(f"unknown statement type {statement.type[:40]!r}")
    if not STATEMENT_TYPES[statement.type].has_note and (
        len(signed.statement) > limits.statement_bytes
    ):
        raise LimitExceededError(
            f"a '{statement.type}' of {len(signed.statement)} bytes; at most {limits.statement_bytes} are accepted"
        )
    check_name("consortium", statement.consortium)
    check_name("site", statement.signer_site)
    return statement


def verify(
    signed: pb.SignedStatement,
    *,
    expected_type: type[M],
    consortium: str,
    site: str,
    site_public_key: bytes,
    dictionary_digest: bytes | None,
    now_ms: int,
    limits: Limits,
) -> Verified[M]:
    """Check a signed statement and return what it says.

    Parameters
    ----------
    signed : SignedStatement
        As received.
    expected_type : type of Message
        The payload class the caller acts upon; see ``STATEMENT_TYPES[name].message``.
    consortium, site : str
        Who must have signed, and for which consortium.
    site_public_key : bytes
        The raw statement key on record for `site`.
    dictionary_digest : bytes or None
        The digest it must have been made under; None accepts any (the caller looks at
        `Verified.dictionary_digest`).
    now_ms : int
        Unix time in milliseconds at which the statement is judged: the time of arrival, also when
        it is verified again later.
    limits : Limits
        Size, and how far ahead the signer's clock may be.

    Raises
    ------
    LimitExceededError
        If it is too large.
    MalformedError
        If it does not decode, is of another type, or the wrong kind of key signed.
    IdentityError
        If another consortium, site or key is named, or a steward's certificate is not in force.
    PolicyError
        If it was made under another dictionary, its time lies ahead of `now_ms`, or one steward signed twice
        where two must.
    VerificationError
        If a signature does not hold.
    """
    statement = read_unverified(signed, limits=limits)
    name = type_name(expected_type)
    if statement.type != name:
        raise MalformedError(f"a '{statement.type}' statement where a '{name}' was expected")
    if statement.consortium != consortium:
        raise IdentityError(
            f"the statement is for consortium '{statement.consortium}', this is '{consortium}'"
        )
    if statement.signer_site != site:
        raise IdentityError(
            f"the statement names site '{statement.signer_site}' as its signer, "
            f"it was expected from '{site}'"
        )
    by_steward = signed.HasField("certificate")
    _check_signer(name, by_steward=by_steward)
    public_key, signer = site_public_key, Signer("site", site, fingerprint(site_public_key))
    if by_steward:
        steward = _verify_steward(
            signed.certificate,
            consortium=consortium,
            site=site,
            site_public_key=site_public_key,
            issued_at_ms=statement.issued_at_ms,
            now_ms=now_ms,
            limits=limits,
        )
        public_key = steward.public_key
        signer = Signer("steward", steward.steward, fingerprint(public_key))
    if statement.signer_key_id != key_id(public_key):
        raise IdentityError(
            f"the statement of site '{site}' names another key than {signer.kind} "
            f"'{signer.name}' has on record ({signer.fingerprint}); compare fingerprints anew"
        )
    check_signature(public_key, signed.signature, _CONTEXT + signed.statement)

    _check_dictionary_digest(name, statement.dictionary_digest)
    if dictionary_digest is not None and statement.dictionary_digest != dictionary_digest:
        raise PolicyError(
            f"the '{name}' of site '{site}' was made under dictionary "
            f"{statement.dictionary_digest.hex()[:12] or '(none)'}, expected "
            f"{dictionary_digest.hex()[:12]}; run 'synthedge site doctor'"
        )
    _check_date(name, site, statement.issued_at_ms, now_ms=now_ms, limits=limits)
    payload = _decode(expected_type, statement.payload, name)
    _require_policy(name, payload, by_steward=by_steward)

    def enclosed(inner: pb.SignedStatement, message: type[N]) -> Verified[N]:
        return verify(
            inner,
            expected_type=message,
            consortium=consortium,
            site=site,
            site_public_key=site_public_key,
            dictionary_digest=statement.dictionary_digest,
            now_ms=now_ms,
            limits=limits,
        )

    first = None
    if isinstance(payload, pb.Approval | pb.StandingPolicy) and payload.HasField("first"):
        alone = _decode(expected_type, statement.payload, name)
        alone.ClearField("first")
        _check_first(name, payload, alone, by_steward=by_steward)
        first = enclosed(payload.first, type(payload)).signer
        if first.fingerprint == signer.fingerprint:
            raise PolicyError(
                f"the '{name}' of site '{site}' is signed twice with one key; two stewards must sign"
            )
    policy = None
    if not by_steward and isinstance(payload, _UNDER_POLICY) and payload.HasField("policy"):
        policy = enclosed(payload.policy, pb.StandingPolicy)
    return Verified(
        type=name,
        consortium=consortium,
        site=site,
        dictionary_digest=statement.dictionary_digest,
        issued_at_ms=statement.issued_at_ms,
        payload=payload,
        payload_bytes=statement.payload,
        signer=signer,
        digest=hashlib.sha256(signed.statement).digest(),
        signed=signed,
        first=first,
        policy=policy,
    )


def verify_site_keys(
    keys: pb.SiteKeys, *, consortium: str, now_ms: int, limits: Limits
) -> VerifiedSiteKeys:
    """Check that a directory entry is consistent and its HPKE key in force.

    Raises
    ------
    MalformedError
        If a key or name is malformed, or the key id is not the key's.
    IdentityError
        If the HPKE key is not in force at `now_ms`.
    ProtocolError
        As `verify` does for the "hpke-key" statement.
    """
    _refuse_unknown_fields(keys, "site keys")
    site = check_name("site", keys.site)
    if len(keys.statement_public_key) != _DIGEST_BYTES:
        raise MalformedError(f"the statement key of site '{site}' is not 32 bytes")
    payload = verify(
        keys.hpke_key,
        expected_type=pb.HpkeKey,
        consortium=consortium,
        site=site,
        site_public_key=keys.statement_public_key,
        dictionary_digest=None,
        now_ms=now_ms,
        limits=limits,
    ).payload
    hpke = HpkePublicKey(payload.public_key)
    if payload.key_id != hpke.key_id:
        raise MalformedError(f"the HPKE key id of site '{site}' is not the SHA-256 of its key")
    _check_window(
        f"the HPKE key of site '{site}'",
        payload.not_before_ms,
        payload.not_after_ms,
        now_ms=now_ms,
        limits=limits,
    )
    return VerifiedSiteKeys(site, keys.statement_public_key, hpke, payload.not_after_ms)


def _verify_steward(
    certificate: pb.SignedStatement,
    *,
    consortium: str,
    site: str,
    site_public_key: bytes,
    issued_at_ms: int,
    now_ms: int,
    limits: Limits,
) -> pb.StewardCertificate:
    encoded = certificate.SerializeToString()
    certified = _certified if len(encoded) <= _REMEMBERED_BYTES else _certified.__wrapped__
    steward, certified_at_ms = certified(encoded, consortium, site, site_public_key, limits)
    _check_date("steward-certificate", site, certified_at_ms, now_ms=now_ms, limits=limits)
    # In force when signed and when judged: a stolen key must not sign into the past.
    for moment in (issued_at_ms, now_ms):
        _check_window(
            f"the certificate of steward '{steward.steward}' of site '{site}'",
            steward.not_before_ms,
            steward.not_after_ms,
            now_ms=moment,
            limits=limits,
        )
    return steward


@lru_cache(maxsize=2_048)
def _certified(
    certificate: bytes, consortium: str, site: str, site_public_key: bytes, limits: Limits
) -> tuple[pb.StewardCertificate, int]:
    """A steward's certificate and its date, of which everything holds but what depends on the time."""
    verified = verify(
        pb.SignedStatement.FromString(certificate),
        expected_type=pb.StewardCertificate,
        consortium=consortium,
        site=site,
        site_public_key=site_public_key,
        dictionary_digest=None,
        now_ms=_END_OF_TIME_MS,
        limits=limits,
    )
    check_name("steward", verified.payload.steward)
    return verified.payload, verified.issued_at_ms


def _check_date(name: str, site: str, issued_at_ms: int, *, now_ms: int, limits: Limits) -> None:
    if not 0 < issued_at_ms <= now_ms + int(limits.clock_skew_s * 1000):
        raise PolicyError(
            f"the '{name}' of site '{site}' is dated more than {limits.clock_skew_s:g} s ahead of "
            f"this clock, or not at all; set both clocks by NTP"
        )


def _check_window(
    what: str, not_before_ms: int, not_after_ms: int, *, now_ms: int, limits: Limits
) -> None:
    if now_ms < not_before_ms - int(limits.clock_skew_s * 1000):
        raise IdentityError(f"{what} is not in force yet; set both clocks by NTP")
    if now_ms > not_after_ms:
        raise IdentityError(f"{what} has expired; the site must issue a new one")


def _check_signer(name: str, *, by_steward: bool) -> None:
    wanted = STATEMENT_TYPES[name].signed_by
    if wanted in ("site", "steward") and by_steward != (wanted == "steward"):
        signer = "a steward" if by_steward else "the site's key"
        raise MalformedError(f"a '{name}' must be signed by the {wanted}, not by {signer}")


def _require_policy(name: str, payload: Message, *, by_steward: bool) -> None:
    has_policy = isinstance(payload, _UNDER_POLICY) and payload.HasField("policy")
    if by_steward and has_policy:
        raise MalformedError(f"a '{name}' that a steward signs carries no standing policy")
    if STATEMENT_TYPES[name].signed_by == "steward or policy" and not (by_steward or has_policy):
        raise MalformedError(
            f"a '{name}' must be signed by a steward, or by the site's key under a standing policy; "
            "it carries none"
        )


def _check_first(
    name: str, payload: pb.Approval | pb.StandingPolicy, alone: Message, *, by_steward: bool
) -> None:
    """Before the first signature is followed: the same words, so nothing nests any deeper."""
    inner = _decode(pb.Statement, payload.first.statement, "statement")
    if not by_steward or inner.payload != alone.SerializeToString(deterministic=True):
        raise MalformedError(f"the first signature of a '{name}' is not over the same words")


def _check_dictionary_digest(name: str, digest: bytes) -> None:
    expected = _DIGEST_BYTES if STATEMENT_TYPES[name].under_dictionary else 0
    if len(digest) != expected:
        raise MalformedError(
            f"a '{name}' carries a dictionary digest of {expected} bytes, found {len(digest)}"
        )


def _decode(message: type[M], data: bytes, what: str) -> M:
    try:
        decoded = message.FromString(data)
    except DecodeError:
        raise MalformedError(f"the {what} of {len(data)} bytes does not decode") from None
    _refuse_unknown_fields(decoded, what)
    return decoded


def _refuse_unknown_fields(message: Message, what: str) -> None:
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():
        raise MalformedError(
            f"the {what} has fields this version does not know; update synthedge-federation, "
            f"or ask the sender which version it runs"
        )
