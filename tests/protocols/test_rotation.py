"""A rotation is believed only as an unbroken chain of signatures from the key that is known."""

from dataclasses import replace

import pytest

from identities import DAY_MS, Identities
from synthedge_protocols.errors import IdentityError, ProtocolError, VerificationError
from synthedge_protocols.keys import HpkeKeyPair, StatementKey
from synthedge_protocols.rotation import (
    follow_rotations,
    hpke_statement,
    sign_rotation,
    site_key_id,
    verify_rotation,
)
from synthedge_protocols.statements import sign
from synthedge_protocols.v1 import statements_pb2 as pb

SECOND, THIRD = StatementKey.from_seed(b"2" * 32), StatementKey.from_seed(b"3" * 32)
NEXT_HPKE = HpkeKeyPair(b"n" * 96)


def rotation(ids: Identities, old: StatementKey, new: StatementKey) -> pb.SignedStatement:
    return sign_rotation(
        old,
        new,
        NEXT_HPKE,
        consortium=ids.consortium,
        site=ids.site,
        steward="ada",
        now_ms=ids.now_ms,
    )


def verified(ids: Identities, signed: pb.SignedStatement, now_ms: int | None = None) -> str:
    _, keys = verify_rotation(
        signed,
        consortium=ids.consortium,
        site=ids.site,
        old_public_key=ids.site_key.public_bytes,
        now_ms=now_ms or ids.now_ms,
        limits=ids.limits,
    )
    return keys.fingerprint


def entry(ids: Identities, current: StatementKey, *steps: pb.SignedStatement) -> pb.SiteKeys:
    return pb.SiteKeys(
        site=ids.site,
        statement_public_key=current.public_bytes,
        hpke_key=hpke_statement(
            current, NEXT_HPKE, consortium=ids.consortium, site=ids.site, now_ms=ids.now_ms
        ),
        rotations=steps,
    )


def leads(ids: Identities, keys: pb.SiteKeys, pinned: StatementKey) -> bool:
    return follow_rotations(
        keys,
        pinned.public_bytes,
        consortium=ids.consortium,
        now_ms=ids.now_ms,
        limits=ids.limits,
    )


def test_the_old_key_signs_and_the_new_one_proves_itself(ids: Identities) -> None:
    assert verified(ids, rotation(ids, ids.site_key, SECOND)) == SECOND.fingerprint


def test_a_rotation_signed_by_anybody_else_is_refused(ids: Identities) -> None:
    with pytest.raises(IdentityError, match="another key"):
        verified(ids, rotation(ids, THIRD, SECOND))


def test_a_key_that_its_owner_did_not_prove_cannot_be_taken(ids: Identities) -> None:
    honest = pb.KeyRotation.FromString(
        pb.Statement.FromString(rotation(ids, ids.site_key, SECOND).statement).payload
    )
    honest.new_statement_public_key = THIRD.public_bytes
    forged = sign(
        ids.site_key,
        honest,
        consortium=ids.consortium,
        site=ids.site,
        dictionary_digest=b"",
        issued_at_ms=ids.now_ms,
    )
    with pytest.raises(VerificationError):
        verified(ids, forged)


def test_an_expired_sealing_key_is_refused_when_the_rotation_arrives(ids: Identities) -> None:
    with pytest.raises(IdentityError, match="has expired"):
        verified(ids, rotation(ids, ids.site_key, SECOND), now_ms=ids.now_ms + 400 * DAY_MS)


def test_every_flipped_bit_of_a_rotation_is_refused(ids: Identities) -> None:
    good = rotation(ids, ids.site_key, SECOND)
    for i_bit in range(0, 8 * len(good.statement), 7):
        bad = bytearray(good.statement)
        bad[i_bit // 8] ^= 1 << (i_bit % 8)
        with pytest.raises(ProtocolError):
            verified(ids, pb.SignedStatement(statement=bytes(bad), signature=good.signature))


def test_a_chain_is_followed_from_any_key_that_was_pinned(ids: Identities) -> None:
    steps = rotation(ids, ids.site_key, SECOND), rotation(ids, SECOND, THIRD)
    keys = entry(ids, THIRD, *steps)
    assert leads(ids, keys, ids.site_key)
    assert leads(ids, keys, SECOND)
    assert not leads(ids, keys, THIRD)


def test_a_broken_chain_leads_nowhere(ids: Identities) -> None:
    first, second = rotation(ids, ids.site_key, SECOND), rotation(ids, SECOND, THIRD)
    stranger = replace(ids, site_key=StatementKey.generate())
    for steps in ((), (second,), (second, first), (rotation(ids, stranger.site_key, THIRD),)):
        assert not leads(ids, entry(ids, THIRD, *steps), ids.site_key)


def test_a_statement_hangs_on_the_site_key_that_certified_its_steward(ids: Identities) -> None:
    approval = sign(
        ids.steward_key,
        pb.Approval(transfer_id=b"i" * 32),
        consortium=ids.consortium,
        site=ids.site,
        dictionary_digest=ids.dictionary_digest,
        issued_at_ms=ids.now_ms,
        certificate=ids.steward_certificate,
    )
    assert site_key_id(approval) == ids.site_key.key_id
