import hashlib
import io
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identities import Identities
from synthedge_protocols import sealing
from synthedge_protocols.errors import (
    LimitExceededError,
    MalformedError,
    TransferAuthenticationError,
)
from synthedge_protocols.keys import HpkeKeyPair
from synthedge_protocols.limits import Limits
from synthedge_protocols.padding import size_class
from synthedge_protocols.sealing import (
    Sealed,
    SealingContext,
    open_sealed,
    seal,
    stream_digest,
)

SMALL = Limits(chunk_bytes=64, padding_bytes=1)
HEADER_BYTES, BLOCK_BYTES, TAG_BYTES, LENGTH_BYTES = 64, 80, 16, 8
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


def digest_of(stream: bytes) -> bytes:
    try:
        return stream_digest(io.BytesIO(stream), len(stream))
    except MalformedError:
        return bytes(32)


def signed_over(stream: bytes, sealed: Sealed) -> Sealed:
    """What a donor would sign who had produced `stream`: only the stream itself can betray it."""
    return replace(
        sealed,
        ciphertext_bytes=len(stream),
        ciphertext_digest=digest_of(stream),
        header_digest=hashlib.sha256(stream[:HEADER_BYTES]).digest(),
    )


@given(st.binary(max_size=400))
def test_opening_undoes_sealing(ids: Identities, plaintext: bytes) -> None:
    stream, sealed = sealed_with(ids, plaintext)
    assert opened(ids, stream, sealed) == plaintext


@pytest.mark.parametrize("n_bytes", [0, 1, 63, 64, 65, 128, 129])
def test_a_stream_has_one_tag_per_chunk_and_no_empty_chunk(ids: Identities, n_bytes: int) -> None:
    stream, sealed = sealed_with(ids, b"p" * n_bytes)
    n_padded = size_class(n_bytes + LENGTH_BYTES, 1)
    n_chunks = -(-n_padded // 64)
    assert len(stream) == sealed.ciphertext_bytes == HEADER_BYTES + n_padded + 16 * n_chunks
    assert sealed.ciphertext_digest == digest_of(stream)
    assert opened(ids, stream, sealed) == b"p" * n_bytes


def test_nothing_of_the_plaintext_or_the_file_key_is_in_the_stream(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"a patient's row " * 20)
    again, sealed_again = sealed_with(ids, b"a patient's row " * 20)
    assert b"patient" not in stream
    assert stream[HEADER_BYTES:] != again[HEADER_BYTES:]
    assert sealed.encapsulated != sealed_again.encapsulated


def with_every_bit_flipped(data: bytes) -> Iterator[bytes]:
    for i_bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[i_bit // 8] ^= 1 << (i_bit % 8)
        yield bytes(flipped)


def test_any_flipped_bit_of_header_or_ciphertext_is_refused(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"p" * 70)
    assert len(stream) == HEADER_BYTES + 80 + 2 * TAG_BYTES
    for flipped in with_every_bit_flipped(stream):
        refused(ids, flipped, sealed)
        # Even where the donor's signature covered it.
        refused(ids, flipped, signed_over(flipped, sealed))


@pytest.mark.parametrize("name", [n for n in SHIPMENT_FIELDS if n != "ciphertext_bytes"])
def test_any_flipped_bit_of_the_envelope_is_refused(ids: Identities, name: str) -> None:
    stream, sealed = sealed_with(ids, b"p" * 10)
    for value in with_every_bit_flipped(getattr(sealed, name)):
        changed: dict[str, Any] = {name: value}
        refused(ids, stream, replace(sealed, **changed))


def test_another_length_than_announced_is_refused(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"p" * 150)
    for n_more in (-1, 1, 80):
        refused(ids, stream, replace(sealed, ciphertext_bytes=sealed.ciphertext_bytes + n_more))


def test_transfers_of_up_to_a_class_of_bytes_all_look_alike(ids: Identities) -> None:
    limits = Limits()
    lengths = {sealed_with(ids, b"p" * n, limits)[1].ciphertext_bytes for n in (1, 500, 16_000)}
    assert len(lengths) == 1


@given(st.integers(1, 2**40), st.integers(1, 2**20))
def test_padding_adds_at_most_an_eighth_beyond_the_smallest_class(n: int, smallest: int) -> None:
    padded = size_class(n, smallest)
    assert n <= padded <= max(smallest, n + n // 8 + 1)
    assert size_class(padded, smallest) == padded


def test_a_length_that_no_content_has_is_refused_though_it_is_authentic(
    ids: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lying(sealing._Padded):
        def readinto(self, view: memoryview) -> int:
            self._end = self._end and bytes([255] * len(self._end))
            return super().readinto(view)

    monkeypatch.setattr(sealing, "_Padded", Lying)
    stream, sealed = sealed_with(ids, b"rows")
    refused(ids, stream, sealed)


def test_a_truncated_stream_is_refused_at_every_length(ids: Identities) -> None:
    stream, sealed = sealed_with(ids, b"p" * 128)
    for n_kept in range(len(stream)):
        refused(ids, stream[:n_kept], sealed)
        refused(ids, stream[:n_kept], signed_over(stream[:n_kept], sealed))


@pytest.mark.parametrize(
    "order", [[1, 0, 2], [0, 2], [0, 1], [0, 0, 1, 2], [0, 1, 2, 2], [1, 2], [2], []]
)
def test_chunks_reordered_dropped_or_doubled_are_refused(ids: Identities, order: list[int]) -> None:
    plaintext = b"".join(bytes([c]) * 64 for c in range(3))
    stream, sealed = sealed_with(ids, plaintext[:-LENGTH_BYTES])
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
