"""Zstandard with a bound on what a peer's bytes may expand to."""

import zstandard

from synthedge_protocols.errors import LimitExceededError, MalformedError

__all__ = ["compress", "decompress"]

_LEVEL = 3


def compress(data: bytes) -> bytes:
    """Return one zstd frame with its content size and checksum."""
    return zstandard.ZstdCompressor(
        level=_LEVEL, write_checksum=True, write_content_size=True
    ).compress(data)


def decompress(data: bytes, *, max_bytes: int) -> bytes:
    """Undo `compress`, holding at most `max_bytes`.

    Raises
    ------
    LimitExceededError
        If the frame says, or turns out, to hold more than `max_bytes`.
    MalformedError
        If it is not exactly one whole zstd frame that states its size.
    """
    try:
        size = zstandard.frame_content_size(data)
    except zstandard.ZstdError:
        raise MalformedError(f"{len(data)} bytes are no zstd frame") from None
    if size < 0:
        raise MalformedError("the zstd frame does not state the size of its content")
    if size > max_bytes:
        raise LimitExceededError(f"{size} bytes after decompression; at most {max_bytes} accepted")
    decompressor = zstandard.ZstdDecompressor(
        max_window_size=max(1024, 2 * max_bytes)
    ).decompressobj()
    try:
        # The decoder itself holds the frame to the size it states.
        content = decompressor.decompress(data)
    except zstandard.ZstdError:
        raise MalformedError(f"the zstd frame of {len(data)} bytes is damaged") from None
    if not decompressor.eof or decompressor.unused_data or len(content) != size:
        raise MalformedError(f"{len(data)} bytes are not exactly one whole zstd frame")
    return content
