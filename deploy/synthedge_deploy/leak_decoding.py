"""Look inside the encodings a file may wrap its content in: base64, hex, escapes, compression."""

import base64
import re
import zlib
from collections.abc import Iterator
from typing import Final

MAX_DEPTH: Final = 3
# Bounds what a compressed part may unpack to.
MAX_UNPACKED_BYTES: Final = 64 * 1024 * 1024

# Long enough for 8 bytes; wrapped lines belong to one span.
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{4,}(?:\r?\n[A-Za-z0-9+/_-]{4,})*")
_MIN_BASE64: Final = 11
_HEX: Final = re.compile(rb"(?:[0-9a-fA-F]{2}){8,}[0-9a-fA-F]?")
# What repr() of bytes and protobuf's text format write.
_ESCAPED: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-3][0-7]{2})|([nrt0abfv\\'\"]))")
_SIMPLE: Final = dict(zip(b"nrt0abfv\\'\"", b"\n\r\t\0\a\b\f\v\\'\"", strict=True))
_DEFLATE: Final = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# Keeps decoded spans apart: neither a number nor part of one, nor a separator of numbers.
_APART: Final = b"\n\xff\n"


def decodings(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (encoding, content) of everything that looks encoded inside some bytes.

    Parameters
    ----------
    data : bytes

    Yields
    ------
    tuple of str and bytes
        All spans of one encoding and alignment come together, kept apart by a separator.
    """
    spans = [
        span.replace(b"\r", b"").replace(b"\n", b"").translate(bytes.maketrans(b"-_", b"+/"))
        for span in _BASE64.findall(data)
        if len(span) >= _MIN_BASE64
    ]
    if spans:
        # A value may begin anywhere in the encoded stream: try the four alignments.
        for offset in range(4):
            yield "base64", _APART.join(_from_base64(span[offset:]) for span in spans)
    hexes = _HEX.findall(data)
    if hexes:
        for offset in range(2):
            cut = (span[offset : offset + (len(span) - offset) // 2 * 2] for span in hexes)
            yield "hex", _APART.join(bytes.fromhex(span.decode()) for span in cut)
    if b"\\x" in data or re.search(rb"\\[0-3][0-7]{2}", data):
        yield "escaped", _ESCAPED.sub(_unescape, data)
    yield from _unpacked(data)


def _from_base64(span: bytes) -> bytes:
    return base64.b64decode(span[: len(span) // 4 * 4] or b"")


def _unescape(match: re.Match[bytes]) -> bytes:
    by_hex, by_octal, simple = match.groups()
    if by_hex:
        return bytes([int(by_hex, 16)])
    if by_octal:
        return bytes([int(by_octal, 8)])
    return bytes([_SIMPLE[simple[0]]])


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    view = memoryview(data)
    for match in _DEFLATE.finditer(data):
        engine = zlib.decompressobj(wbits=47)  # gzip or zlib, told apart by the header
        try:
            content = engine.decompress(view[match.start() :], MAX_UNPACKED_BYTES)
        except zlib.error:
            continue  # two bytes that only look like a header
        yield "deflate", content
    start = data.find(_ZSTD)
    if start < 0:
        return
    import zstandard

    while start >= 0:
        try:
            with zstandard.ZstdDecompressor().stream_reader(view[start:]) as reader:
                yield "zstd", reader.read(MAX_UNPACKED_BYTES)
        except zstandard.ZstdError:
            pass  # four bytes that only look like a header
        start = data.find(_ZSTD, start + 1)
