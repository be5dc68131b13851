import hashlib
import io
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identities import Identities
from synthedge_protocols.errors import (
    LimitExceededError,
    MalformedError,
    TransferAuthenticationError,
)
from synthedge_protocols.keys import HpkeKeyPair
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import Sealed, SealingContext, open_sealed, seal

SMALL = Limits(chunk_bytes=64)
HEADER_BYTES, BLOCK_BYTES = 64, 80
SHIPMENT_FIELDS = [field.name for field in fields(Sealed)]


def context_for(pair: HpkeKeyPair) -> SealingContext:
    return SealingContext(
        transfer_id=b"i" * 32,
        request_digest=b"r" * 32,
        manifest_commitment=b"m" * 32,
        donor_key_id=b"n" * 32,
        recipient_key_id=b"s" * 32,
        recipient_hpke_key_id=pair.key_id,
        dictionary_digest=b"d" * 32,
    )


def sealed_with(ids: Identities, plaintext: bytes, limits: Limits = SMALL) -> tuple[bytes, Sealed]:
    out = io.BytesIO()
    sealed = seal(
        io.BytesIO(plaintext),
        out,
        recipient=ids.hpke.public_key,
        context=context_for(ids.hpke),
        limits=limits,
    )
    return out.getvalue(), sealed


def opened(ids: Identities, stream: bytes, sealed: Sealed, **changes: Any) -> bytes:
    out = io.BytesIO()
    arguments: dict[str, Any] = {
        "sealed": sealed,
        "key_pair": ids.hpke,
        "context": context_for(ids.hpke),
        "limits": SMALL,
    }
    n = open_sealed(io.BytesIO(stream), out, **(arguments | changes))
    assert n == len(out.getvalue())
    return out.getvalue()


def refused(ids: Identities, stream: bytes, sealed: Sealed, **changes: Any) -> None:
    with pytest.raises(TransferAuthenticationError) as caught:
        opened(ids, stream, sealed, **changes)
    assert str(caught.value) == "transfer could not be authenticated"
    assert caught.value.__cause__ is None


def signed_over(stream: bytes, sealed: Sealed) -> Sealed:
    """What a donor would sign who had produced `stream`: only the stream itself can betray it."""
    return replace(
        sealed,
        ciphertext_bytes=len(stream),
        ciphertext_digest=hashlib.sha256(stream).digest(),
        header_digest=hashlib.sha256(stream[:HEADER_BYTES]).digest(),
    )


@given(st.binary(max_size=400))
def test_opening_undoes_sealing(ids: Identities, plaintext: bytes) -> None:
    stream, sealed = sealed_with(ids, plaintext)
    assert opened(ids, stream, sealed) == plaintext


@pytest.mark.parametrize("n_bytes", [0, 1, 63, 64, 65, 128, 129])
def test_a_stream_has_one_tag_per_chunk_and_no_empty_chunk_but_the_only_one(
    ids: Identities, n_bytes: int
) -> None:
    stream, sealed = sealed_with(ids, b"p" * n_bytes)
    n_chunks = max(1, -(-n_bytes // 64))
    assert len(stream) == sealed.ciphertext_bytes == HEADER_BYTES + n_bytes + 16 * n_chunks
    assert opened(ids, stream, sealed) == b"p" * n_bytes


def test_nothing_of_the_plaintext_or_the_file_key_is_in_the_stream(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"a patient's row " * 20)
    again, sealed_again = sealed_with(ids, b"a patient's row " * 20)
    assert b"patient" not in stream
    assert stream[HEADER_BYTES:] != again[HEADER_BYTES:]
    assert sealed.encapsulated != sealed_again.encapsulated


@given(st.data())
def test_one_flipped_bit_in_the_stream_is_always_refused(
    ids: Identities, data: st.DataObject
) -> None:
    stream, sealed = sealed_with(ids, b"p" * 150)
    i_bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    flipped = bytearray(stream)
    flipped[i_bit // 8] ^= 1 << (i_bit % 8)
    refused(ids, bytes(flipped), sealed)
    refused(ids, bytes(flipped), signed_over(bytes(flipped), sealed))


@given(st.data())
def test_one_flipped_bit_in_the_shipment_is_always_refused(
    ids: Identities, data: st.DataObject
) -> None:
    stream, sealed = sealed_with(ids, b"p" * 150)
    name = data.draw(st.sampled_from([n for n in SHIPMENT_FIELDS if n != "ciphertext_bytes"]))
    value = bytearray(getattr(sealed, name))
    i_bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[i_bit // 8] ^= 1 << (i_bit % 8)
    changed: dict[str, Any] = {name: bytes(value)}
    refused(ids, stream, replace(sealed, **changed))
    refused(ids, stream, replace(sealed, ciphertext_bytes=sealed.ciphertext_bytes + 1))


@given(st.integers(0, 63 + 2 * 80))
def test_a_truncated_stream_is_refused_at_every_length(ids: Identities, n_kept: int) -> None:
    stream, sealed = sealed_with(ids, b"p" * 128)
    cut = stream[: min(n_kept, len(stream) - 1)]
    refused(ids, cut, sealed)
    refused(ids, cut, signed_over(cut, sealed))


@pytest.mark.parametrize(
    "order", [[1, 0, 2], [0, 2], [0, 1], [0, 0, 1, 2], [0, 1, 2, 2], [1, 2], [2], []]
)
def test_chunks_reordered_dropped_or_doubled_are_refused(ids: Identities, order: list[int]) -> None:
    stream, sealed = sealed_with(ids, b"".join(bytes([c]) * 64 for c in range(3)))
    blocks = [stream[at : at + BLOCK_BYTES] for at in range(HEADER_BYTES, len(stream), BLOCK_BYTES)]
    assert len(blocks) == 3
    forged = stream[:HEADER_BYTES] + b"".join(blocks[i] for i in order)
    refused(ids, forged, signed_over(forged, sealed))


def test_a_stream_with_anything_behind_it_is_refused(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"p" * 100)
    for tail in (b"x", bytes(BLOCK_BYTES)):
        refused(ids, stream + tail, sealed)
        refused(ids, stream + tail, signed_over(stream + tail, sealed))


@pytest.mark.parametrize("name", [field.name for field in fields(SealingContext)])
def test_another_context_is_refused_whichever_field_differs(ids: Identities, name: str) -> None:
    stream, sealed = sealed_with(ids, b"rows")
    changed: dict[str, Any] = {name: b"?" * 32}
    context = replace(context_for(ids.hpke), **changed)
    refused(ids, stream, sealed, context=context)
    # Even if the shipment were signed for it.
    refused(
        ids,
        stream,
        replace(sealed, info_digest=hashlib.sha256(context.info()).digest()),
        context=context,
    )


def test_another_recipient_cannot_open_it(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"rows")
    other = HpkeKeyPair.generate()
    refused(ids, stream, sealed, key_pair=other)
    refused(ids, stream, sealed, key_pair=other, context=context_for(other))


def test_the_key_of_one_transfer_does_not_open_the_stream_of_another(ids: Identities) -> None:
    first, first_sealed = sealed_with(ids, b"rows")
    second, second_sealed = sealed_with(ids, b"rows")
    mixed = replace(first_sealed, encapsulated=second_sealed.encapsulated)
    refused(ids, first, mixed)
    refused(ids, second, first_sealed)


def test_chunks_larger_than_agreed_are_refused(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"p" * 100, limits=Limits(chunk_bytes=65))
    refused(ids, stream, sealed)


def test_a_stream_over_the_limit_is_neither_sealed_nor_opened(ids: Identities) -> None:
    tight = replace(SMALL, ciphertext_bytes=200)
    with pytest.raises(LimitExceededError, match="200 bytes"):
        sealed_with(ids, b"p" * 150, limits=tight)
    stream, sealed = sealed_with(ids, b"p" * 150)
    refused(ids, stream, sealed, limits=tight)


def test_sealing_to_another_key_than_the_request_names_is_refused(ids: Identities) -> None:
    with pytest.raises(MalformedError, match="the request names"):
        seal(
            io.BytesIO(b""),
            io.BytesIO(),
            recipient=HpkeKeyPair.generate().public_key,
            context=context_for(ids.hpke),
            limits=SMALL,
        )


def test_a_context_field_of_another_length_is_refused(ids: Identities) -> None:
    with pytest.raises(MalformedError, match="request_digest has 3 bytes"):
        replace(context_for(ids.hpke), request_digest=b"abc")


def test_a_source_that_reads_short_is_sealed_the_same_way(ids: Identities) -> None:
    class OneByteAtATime(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(1, size or 0))

    out, plaintext = io.BytesIO(), bytes(range(200))
    sealed = seal(
        OneByteAtATime(plaintext),
        out,
        recipient=ids.hpke.public_key,
        context=context_for(ids.hpke),
        limits=SMALL,
    )
    assert opened(ids, out.getvalue(), sealed) == plaintext


def test_a_shipment_carries_everything_needed_to_open(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"rows")
    shipment = sealed.shipment(b"i" * 32)
    assert shipment.transfer_id == b"i" * 32
    assert opened(ids, stream, Sealed.from_shipment(shipment)) == b"rows"
