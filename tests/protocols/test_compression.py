import contextlib
import os

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.compression import compress, decompress
from synthedge_protocols.errors import LimitExceededError, MalformedError


@given(st.binary(max_size=5_000))
def test_decompressing_undoes_compressing(data: bytes) -> None:
    assert decompress(compress(data), max_bytes=5_000) == data


def test_a_frame_larger_than_the_limit_is_refused_before_it_is_expanded() -> None:
    with pytest.raises(LimitExceededError, match="1000000 bytes"):
        decompress(compress(bytes(1_000_000)), max_bytes=999_999)


def test_content_at_the_limit_is_accepted() -> None:
    data = os.urandom(300_000)
    assert decompress(compress(data), max_bytes=300_000) == data


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    bomb = bytearray(compress(bytes(300)))
    # Magic 4, frame descriptor 1 (single segment, size in 2 bytes, offset by 256): RFC 8878 3.1.1.
    bomb[5:7] = (1).to_bytes(2, "little")
    with pytest.raises(MalformedError):
        decompress(bytes(bomb), max_bytes=1_000)


def test_a_frame_without_a_size_is_refused() -> None:
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 100)
    with pytest.raises(MalformedError, match="does not state"):
        decompress(unsized, max_bytes=1_000)


@given(st.integers(0, 200))
def test_a_frame_cut_short_or_followed_by_bytes_is_refused(n_kept: int) -> None:
    frame = compress(b"some rows " * 30 + os.urandom(200))
    for bad in (frame[:n_kept], frame + b"x", frame + frame):
        with pytest.raises(MalformedError):
            decompress(bad, max_bytes=1_000)


@given(st.binary(max_size=60))
def test_any_bytes_decompress_or_are_refused(data: bytes) -> None:
    for candidate in (data, b"\x28\xb5\x2f\xfd" + data):
        with contextlib.suppress(MalformedError, LimitExceededError):
            assert len(decompress(candidate, max_bytes=1_000)) <= 1_000
