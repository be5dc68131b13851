"""Changing a site's keys: the old statement key signs the new one, the new one proves itself, both are one statement.

A rotation says who the successor is, not that anybody should trust it: a thief of the old key can sign one too.
Therefore a peer keeps the key it pinned until a person has compared the new fingerprint, and a transfer finishes
under the keys its request names.
"""

from google.protobuf.message import DecodeError

from synthedge_protocols.errors import MalformedError, ProtocolError
from synthedge_protocols.framing import join_fields
from synthedge_protocols.keys import HpkeKeyPair, StatementKey, check_signature, key_id
from synthedge_protocols.limits import Limits
from synthedge_protocols.statements import (
    Verified,
    VerifiedSiteKeys,
    sign,
    verify,
    verify_site_keys,
)
from synthedge_protocols.v1 import statements_pb2 as pb

__all__ = [
    "HPKE_DAYS",
    "MAX_ROTATIONS",
    "follow_rotations",
    "hpke_statement",
    "sign_rotation",
    "site_key_id",
    "verify_rotation",
]

HPKE_DAYS = 365
"""How long a site's HPKE key is in force; a rotation brings the next one."""
MAX_ROTATIONS = 64
"""Rotations of one site that a directory entry may carry."""

_CONTEXT = b"synthedge/v1/key-rotation\0"
_DAY_MS = 86_400_000


def hpke_statement(
    key: StatementKey, pair: HpkeKeyPair, *, consortium: str, site: str, now_ms: int
) -> pb.SignedStatement:
    """Sign an HPKE key of a site with its statement key, in force from a day ago for `HPKE_DAYS`."""
    return sign(
        key,
        pb.HpkeKey(
            key_id=pair.key_id,
            public_key=pair.public_bytes,
            not_before_ms=now_ms - _DAY_MS,
            not_after_ms=now_ms + HPKE_DAYS * _DAY_MS,
        ),
        consortium=consortium,
        site=site,
        dictionary_digest=b"",
        issued_at_ms=now_ms,
    )


def sign_rotation(
    old: StatementKey,
    new: StatementKey,
    hpke: HpkeKeyPair,
    *,
    consortium: str,
    site: str,
    steward: str,
    now_ms: int,
) -> pb.SignedStatement:
    """Announce new keys.

    Parameters
    ----------
    old, new : StatementKey
        The same key twice if only the HPKE key changes.
    hpke : HpkeKeyPair
        The new one.
    consortium, site, steward : str
        Whose keys, and who ordered it.
    now_ms : int
        Unix time in milliseconds.
    """
    rotation = pb.KeyRotation(
        new_statement_public_key=new.public_bytes,
        proof=new.sign(_proof_of(consortium, site, old.public_bytes, new.public_bytes)),
        hpke_key=hpke_statement(new, hpke, consortium=consortium, site=site, now_ms=now_ms),
        steward=steward,
    )
    return sign(
        old,
        rotation,
        consortium=consortium,
        site=site,
        dictionary_digest=b"",
        issued_at_ms=now_ms,
    )


def verify_rotation(
    signed: pb.SignedStatement,
    *,
    consortium: str,
    site: str,
    old_public_key: bytes,
    now_ms: int,
    limits: Limits,
) -> tuple[Verified[pb.KeyRotation], VerifiedSiteKeys]:
    """Check a rotation that just arrived.

    Returns
    -------
    tuple of (Verified, VerifiedSiteKeys)
        The statement, and the keys that follow.

    Raises
    ------
    VerificationError
        If the new key does not prove itself.
    ProtocolError
        As `statements.verify` and `statements.verify_site_keys`.
    """
    verified = _verify_step(
        signed,
        consortium=consortium,
        site=site,
        old_public_key=old_public_key,
        now_ms=now_ms,
        limits=limits,
    )
    rotation = verified.payload
    keys = verify_site_keys(
        pb.SiteKeys(
            site=site,
            statement_public_key=rotation.new_statement_public_key,
            hpke_key=rotation.hpke_key,
        ),
        consortium=consortium,
        now_ms=now_ms,
        limits=limits,
    )
    return verified, keys


def follow_rotations(
    keys: pb.SiteKeys, pinned: bytes, *, consortium: str, now_ms: int, limits: Limits
) -> bool:
    """Tell whether a directory entry's rotations lead from a pinned key to the key it shows.

    Parameters
    ----------
    keys : SiteKeys
        An entry that `verify_site_keys` accepted.
    pinned : bytes
        The raw statement key known before.

    Returns
    -------
    bool
        False if no unbroken chain of signatures does.
    """
    current = pinned
    for signed in keys.rotations[:MAX_ROTATIONS]:
        try:
            if site_key_id(signed) != key_id(current):
                continue  # a step from before the pinned key
            step = _verify_step(
                signed,
                consortium=consortium,
                site=keys.site,
                old_public_key=current,
                now_ms=now_ms,
                limits=limits,
            )
        except ProtocolError:
            return False
        current = step.payload.new_statement_public_key
    return current == keys.statement_public_key != pinned


def site_key_id(signed: pb.SignedStatement) -> bytes:
    """Key id of the site's key a statement hangs on: its signer, or who certified the steward that signed.

    Nothing is proved by it.

    Raises
    ------
    MalformedError
        If the statement does not decode.
    """
    inner = signed.certificate if signed.HasField("certificate") else signed
    try:
        return pb.Statement.FromString(inner.statement).signer_key_id
    except DecodeError:
        raise MalformedError("the statement that names its signer's key does not decode") from None


def _verify_step(
    signed: pb.SignedStatement,
    *,
    consortium: str,
    site: str,
    old_public_key: bytes,
    now_ms: int,
    limits: Limits,
) -> Verified[pb.KeyRotation]:
    verified = verify(
        signed,
        expected_type=pb.KeyRotation,
        consortium=consortium,
        site=site,
        site_public_key=old_public_key,
        dictionary_digest=None,
        now_ms=now_ms,
        limits=limits,
    )
    rotation = verified.payload
    check_signature(
        rotation.new_statement_public_key,
        rotation.proof,
        _proof_of(consortium, site, old_public_key, rotation.new_statement_public_key),
    )
    return verified


def _proof_of(consortium: str, site: str, old: bytes, new: bytes) -> bytes:
    return _CONTEXT + join_fields([consortium.encode(), site.encode(), key_id(old), new])
