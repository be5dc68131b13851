import hashlib
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import example, given
from hypothesis import strategies as st

from identities import DAY_MS, NOW_MS, Identities
from synthedge_protocols.errors import (
    IdentityError,
    LimitExceededError,
    MalformedError,
    PolicyError,
    ProtocolError,
    VerificationError,
)
from synthedge_protocols.keys import StatementKey
from synthedge_protocols.limits import Limits
from synthedge_protocols.statements import (
    STATEMENT_TYPES,
    Verified,
    read_unverified,
    sign,
    transfer_id,
    type_name,
    verify,
    verify_site_keys,
)
from synthedge_protocols.v1 import statements_pb2 as pb

RECEIPT = pb.Receipt(transfer_id=b"i" * 32, ciphertext_digest=b"c" * 32, rows=20, accepted=True)
REQUEST = pb.TransferRequest(recipient="north", donor="south", grid="sex", voxel=[1], rows=20)


def as_site(ids: Identities, payload: Message, **changes: Any) -> pb.SignedStatement:
    arguments: dict[str, Any] = {
        "consortium": ids.consortium,
        "site": ids.site,
        "dictionary_digest": ids.dictionary_digest,
        "issued_at_ms": ids.now_ms,
    }
    return sign(ids.site_key, payload, **(arguments | changes))


def as_steward(ids: Identities, payload: Message, **changes: Any) -> pb.SignedStatement:
    arguments: dict[str, Any] = {
        "consortium": ids.consortium,
        "site": ids.site,
        "dictionary_digest": ids.dictionary_digest,
        "issued_at_ms": ids.now_ms,
        "certificate": ids.steward_certificate,
    }
    return sign(ids.steward_key, payload, **(arguments | changes))


def certificate(ids: Identities, *, not_before_ms: int, not_after_ms: int) -> pb.SignedStatement:
    payload = pb.StewardCertificate(
        steward="ada",
        public_key=ids.steward_key.public_bytes,
        not_before_ms=not_before_ms,
        not_after_ms=not_after_ms,
    )
    return as_site(ids, payload, dictionary_digest=b"", issued_at_ms=NOW_MS - DAY_MS)


def check(
    ids: Identities,
    signed: pb.SignedStatement,
    expected_type: type[Message] = pb.Receipt,
    **changes: Any,
) -> Verified[Any]:
    arguments: dict[str, Any] = {
        "expected_type": expected_type,
        "consortium": ids.consortium,
        "site": ids.site,
        "site_public_key": ids.site_key.public_bytes,
        "dictionary_digest": ids.dictionary_digest,
        "now_ms": ids.now_ms,
        "limits": ids.limits,
    }
    return verify(signed, **(arguments | changes))


def test_a_site_statement_says_after_the_wire_what_was_signed(ids: Identities) -> None:
    signed = pb.SignedStatement.FromString(as_site(ids, RECEIPT).SerializeToString())
    verified = check(ids, signed)
    assert verified.payload == RECEIPT
    assert (verified.type, verified.site, verified.signer.kind) == ("receipt", "north", "site")
    assert verified.signer.fingerprint == ids.site_key.fingerprint
    assert verified.digest == hashlib.sha256(signed.statement).digest()


def test_a_steward_statement_names_the_steward_and_the_personal_key(ids: Identities) -> None:
    verified = check(ids, as_steward(ids, REQUEST), pb.TransferRequest)
    assert (verified.signer.kind, verified.signer.name) == ("steward", "ada")
    assert verified.signer.fingerprint == ids.steward_key.fingerprint
    assert transfer_id(verified.payload_bytes) == hashlib.sha256(verified.payload_bytes).digest()


def test_every_statement_type_is_signed_and_verified_by_whom_the_table_says(
    ids: Identities,
) -> None:
    for name, entry in STATEMENT_TYPES.items():
        digest = ids.dictionary_digest if entry.under_dictionary else b""
        assert type_name(entry.message) == name
        for signer, make in (("site", as_site), ("steward", as_steward)):
            payload = entry.message()
            if entry.signed_by in (signer, "either", f"{signer} or policy"):
                signed = make(ids, payload, dictionary_digest=digest)
                assert check(ids, signed, entry.message, dictionary_digest=digest).type == name
            else:
                with pytest.raises(MalformedError, match="must be signed by"):
                    make(ids, payload, dictionary_digest=digest)


def test_a_steward_statement_without_its_certificate_is_refused(ids: Identities) -> None:
    report, request = as_steward(ids, pb.GapReport()), as_steward(ids, REQUEST)
    report.ClearField("certificate")
    with pytest.raises(MalformedError, match="must be signed by the steward"):
        check(ids, report, pb.GapReport)
    request.ClearField("certificate")
    with pytest.raises(IdentityError, match="names another key"):
        check(ids, request, pb.TransferRequest)


def test_a_certificate_cannot_be_added_to_or_taken_from_an_ending(ids: Identities) -> None:
    ending = pb.Ending(transfer_id=b"i" * 32, state="CANCELLED")
    signed = as_site(ids, ending)
    signed.certificate.CopyFrom(ids.steward_certificate)
    with pytest.raises(IdentityError, match="another key"):
        check(ids, signed, pb.Ending)
    signed = as_steward(ids, ending)
    signed.ClearField("certificate")
    with pytest.raises(IdentityError, match="another key"):
        check(ids, signed, pb.Ending)


def test_a_steward_certified_by_another_key_is_refused(ids: Identities) -> None:
    payload = pb.StewardCertificate(
        steward="eve",
        public_key=ids.steward_key.public_bytes,
        not_before_ms=0,
        not_after_ms=2 * NOW_MS,
    )
    forged = sign(
        StatementKey.from_seed(b"e" * 32),
        payload,
        consortium="demo",
        site="north",
        dictionary_digest=b"",
        issued_at_ms=NOW_MS,
    )
    with pytest.raises(IdentityError, match="another key"):
        check(ids, as_steward(ids, REQUEST, certificate=forged), pb.TransferRequest)


@pytest.mark.parametrize(
    ("window", "issued_at_ms", "reason"),
    [
        ((NOW_MS - 2 * DAY_MS, NOW_MS - 1), NOW_MS - DAY_MS, "expired"),
        ((NOW_MS + DAY_MS, NOW_MS + 2 * DAY_MS), NOW_MS, "not in force yet"),
        ((NOW_MS - DAY_MS, NOW_MS + DAY_MS), NOW_MS - 2 * DAY_MS, "not in force yet"),
    ],
)
def test_a_steward_certificate_outside_its_validity_is_refused(
    ids: Identities, window: tuple[int, int], issued_at_ms: int, reason: str
) -> None:
    steward = certificate(ids, not_before_ms=window[0], not_after_ms=window[1])
    signed = as_steward(ids, REQUEST, certificate=steward, issued_at_ms=issued_at_ms)
    with pytest.raises(IdentityError, match=f"steward 'ada'.*{reason}"):
        check(ids, signed, pb.TransferRequest)


def test_a_statement_is_bound_to_type_consortium_site_key_and_dictionary(ids: Identities) -> None:
    signed = as_site(ids, RECEIPT)
    with pytest.raises(MalformedError, match="'receipt' statement where a 'shipment'"):
        check(ids, signed, pb.Shipment)
    with pytest.raises(IdentityError, match="consortium 'demo'"):
        check(ids, signed, consortium="other")
    with pytest.raises(IdentityError, match="expected from 'south'"):
        check(ids, signed, site="south")
    with pytest.raises(IdentityError, match="another key"):
        check(ids, signed, site_public_key=ids.steward_key.public_bytes)
    with pytest.raises(PolicyError, match="dictionary"):
        check(ids, signed, dictionary_digest=b"e" * 32)
    assert check(ids, signed, dictionary_digest=None).dictionary_digest == ids.dictionary_digest


def test_a_statement_from_the_future_or_without_a_date_is_refused(ids: Identities) -> None:
    skew_ms = int(ids.limits.clock_skew_s * 1000)
    check(ids, as_site(ids, RECEIPT, issued_at_ms=NOW_MS + skew_ms))
    for issued_at_ms in (NOW_MS + skew_ms + 1, 0, -5):
        with pytest.raises(PolicyError, match="NTP"):
            check(ids, as_site(ids, RECEIPT, issued_at_ms=issued_at_ms))


def test_a_statement_over_the_size_limit_is_refused_before_it_is_decoded(ids: Identities) -> None:
    limits = Limits(message_bytes=3_000, chunk_bytes=1_000)
    signed = pb.SignedStatement(statement=b"\xff" * 3_000)
    with pytest.raises(LimitExceededError, match="at most 3000"):
        check(ids, signed, limits=limits)


def test_lists_that_take_long_to_read_are_refused_unread(ids: Identities) -> None:
    most = ids.limits.statement_bytes
    with pytest.raises(LimitExceededError, match=f"at most {most}"):
        check(ids, as_steward(ids, pb.TransferRequest(features=[""] * (most // 2))))
    # A sealed note is one field, however long, and may be.
    note = pb.SealedNote(sealed=bytes(2 * most))
    signed = as_site(ids, pb.Ending(transfer_id=b"t" * 32, report=note))
    assert check(ids, signed, expected_type=pb.Ending).payload.report == note


def test_fields_of_a_later_version_are_refused_with_advice(ids: Identities) -> None:
    unknown = b"\xfa\x06\x01x"  # field 111, one byte
    enveloped = pb.SignedStatement.FromString(as_site(ids, RECEIPT).SerializeToString() + unknown)
    inner = as_site(ids, pb.Receipt.FromString(RECEIPT.SerializeToString() + unknown))
    nested = pb.GapReport()
    nested.grids.add().MergeFromString(unknown)
    for signed, expected in (
        (enveloped, pb.Receipt),
        (inner, pb.Receipt),
        (as_steward(ids, nested), pb.GapReport),
    ):
        with pytest.raises(MalformedError, match="update synthedge-federation"):
            check(ids, signed, expected)


def test_a_payload_that_does_not_decode_is_refused(ids: Identities) -> None:
    statement = pb.Statement.FromString(as_site(ids, RECEIPT).statement)
    statement.payload = b"\xff"
    data = statement.SerializeToString()
    signature = ids.site_key.sign(b"synthedge/v1/statement\0" + data)
    with pytest.raises(MalformedError, match="receipt of 1 bytes"):
        check(ids, pb.SignedStatement(statement=data, signature=signature))


def test_a_signature_made_without_the_context_is_refused(ids: Identities) -> None:
    signed = as_site(ids, RECEIPT)
    signed.signature = ids.site_key.sign(signed.statement)
    with pytest.raises(VerificationError):
        check(ids, signed)


@pytest.mark.parametrize("is_steward", [False, True])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_always_refused(
    ids: Identities, is_steward: bool, data: st.DataObject
) -> None:
    signed = as_steward(ids, REQUEST) if is_steward else as_site(ids, RECEIPT)
    wire = bytearray(signed.SerializeToString())
    i_bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[i_bit // 8] ^= 1 << (i_bit % 8)
    try:
        flipped = pb.SignedStatement.FromString(bytes(wire))
    except Exception:  # noqa: BLE001 - gRPC answers for what is no message
        return
    with pytest.raises(ProtocolError):
        check(ids, flipped, pb.TransferRequest if is_steward else pb.Receipt)


@given(st.binary(max_size=300))
@example(b"")
def test_arbitrary_bytes_are_refused_with_one_of_our_errors(ids: Identities, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_unverified(pb.SignedStatement(statement=data, signature=data), limits=ids.limits)


@given(
    st.builds(
        pb.Ending,
        transfer_id=st.binary(max_size=40),
        state=st.text(max_size=20),
        reason=st.text(max_size=200),
    )
)
def test_any_payload_comes_back_as_it_was(ids: Identities, ending: pb.Ending) -> None:
    assert check(ids, as_site(ids, ending), pb.Ending).payload == ending


def site_keys(ids: Identities, **changes: Any) -> pb.SiteKeys:
    fields: dict[str, Any] = {
        "key_id": ids.hpke.key_id,
        "public_key": ids.hpke.public_bytes,
        "not_before_ms": NOW_MS - DAY_MS,
        "not_after_ms": NOW_MS + DAY_MS,
    }
    signed = as_site(ids, pb.HpkeKey(**(fields | changes)), dictionary_digest=b"")
    return pb.SiteKeys(
        site=ids.site, statement_public_key=ids.site_key.public_bytes, hpke_key=signed
    )


def test_a_directory_entry_gives_the_key_to_seal_to(ids: Identities) -> None:
    keys = verify_site_keys(site_keys(ids), consortium="demo", now_ms=ids.now_ms, limits=ids.limits)
    assert keys.hpke.public_bytes == ids.hpke.public_bytes
    assert keys.fingerprint == ids.site_key.fingerprint


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key_id": b"x" * 32}, "not the SHA-256"),
        ({"public_key": b"x" * 1_216}, "not the SHA-256"),
        ({"public_key": b"x"}, "no ML-KEM-768"),
        ({"not_after_ms": NOW_MS - 1}, "expired"),
        ({"not_before_ms": NOW_MS + DAY_MS}, "not in force yet"),
    ],
)
def test_a_directory_entry_that_contradicts_itself_is_refused(
    ids: Identities, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ProtocolError, match=reason):
        verify_site_keys(
            site_keys(ids, **changes), consortium="demo", now_ms=ids.now_ms, limits=ids.limits
        )


def test_a_directory_entry_with_an_exchanged_statement_key_is_refused(ids: Identities) -> None:
    keys = site_keys(ids)
    keys.statement_public_key = ids.steward_key.public_bytes
    with pytest.raises(IdentityError, match="another key"):
        verify_site_keys(keys, consortium="demo", now_ms=ids.now_ms, limits=ids.limits)
