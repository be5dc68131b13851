"""Sealing a transfer to its recipient: HPKE for the file key, AES-256-GCM STREAM for the content.

The stream is a header of 64 bytes, then chunks. Every chunk but the last holds ``chunk_bytes`` of
plaintext and each is followed by its tag of 16 bytes. Nonce = 7 random bytes of the header, the
chunk's index in 4 bytes, 1 for the last chunk and 0 before it: the STREAM construction of Hoang,
Reyhanitabar, Rogaway and Vizar (2015), so chunks cannot be dropped, doubled, swapped or cut off.
Associated data is the header's SHA-256. The file key is fresh, so no nonce ever repeats under it.

What is chunked is the content, zeros up to a size class (see `padding`), and the content's length in 8 bytes: how
many rows travel does not show beyond the class.

HPKE's base mode does not say who sealed: the donor signs a `Shipment` over `Sealed`, and the
recipient verifies that statement before it opens anything.
"""

import hashlib
import io
import os
import struct
from dataclasses import dataclass, fields
from typing import BinaryIO, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from synthedge_protocols.errors import (
    LimitExceededError,
    MalformedError,
    TransferAuthenticationError,
)
from synthedge_protocols.framing import join_fields
from synthedge_protocols.keys import HPKE_SUITE, HpkeKeyPair, HpkePublicKey
from synthedge_protocols.limits import Limits
from synthedge_protocols.padding import size_class
from synthedge_protocols.v1 import statements_pb2 as pb

__all__ = ["Sealed", "SealingContext", "open_sealed", "seal", "stream_digest"]

_PURPOSE = b"synthedge/v1/transfer"
_MAGIC = b"SynthEdge transfer 1\0"
_HEADER = struct.Struct(">21sI7s32s")
_PREFIX_BYTES = 7
_TAG_BYTES = 16
_KEY_BYTES = 32
_LENGTH_BYTES = 8
_MAX_CHUNKS = 2**32
# Tags read to digest one stream: 512 GiB in chunks of 512 KiB, and no stranger's chunks of one byte.
_MAX_TAGS = 2**20
# Fits every ML-KEM-768 + X25519 encapsulation of a 32-byte key, with the tag.
_ENCAPSULATED_BYTES = 1_120 + _KEY_BYTES + _TAG_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class SealingContext:
    """What a sealed transfer belongs to; opening it in any other context fails.

    Every attribute is 32 bytes.

    Attributes
    ----------
    transfer_id : bytes
        SHA-256 of the serialised request.
    request_digest : bytes
        SHA-256 of the request's statement.
    manifest_commitment : bytes
        As in the approval.
    donor_key_id, recipient_key_id : bytes
        SHA-256 of both sites' raw statement keys; their fingerprints are the first half.
    recipient_hpke_key_id : bytes
        Of the key sealed to.
    dictionary_digest : bytes
        The transfer's dictionary.

    Raises
    ------
    MalformedError
        If one of them has another length.
    """

    transfer_id: bytes
    request_digest: bytes
    manifest_commitment: bytes
    donor_key_id: bytes
    recipient_key_id: bytes
    recipient_hpke_key_id: bytes
    dictionary_digest: bytes

    def __post_init__(self) -> None:
        for field in fields(self):
            size = len(getattr(self, field.name))
            if size != hashlib.sha256().digest_size:
                raise MalformedError(f"sealing context: {field.name} has {size} bytes, not 32")

    def info(self) -> bytes:
        """Return the HPKE `info`: purpose with version, then every field behind its length."""
        return join_fields([_PURPOSE, *(getattr(self, field.name) for field in fields(self))])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sealed:
    """What the donor signs about a sealed stream; the fields of `Shipment`.

    Attributes
    ----------
    encapsulated : bytes
        HPKE encapsulation and the sealed file key, 1,168 bytes; kept apart from the stream.
    header_digest, ciphertext_digest, info_digest : bytes
        SHA-256 of the stream's header, of the header and every chunk's tag, and of the HPKE `info`.
        Without the file key no chunk can be changed under its tag, and hashing every byte would
        take four times as long as sealing it.
    ciphertext_bytes : int
        Length of the whole stream.
    """

    encapsulated: bytes
    header_digest: bytes
    ciphertext_digest: bytes
    ciphertext_bytes: int
    info_digest: bytes

    @classmethod
    def from_shipment(cls, shipment: pb.Shipment) -> Self:
        """Take the fields of a shipment whose signature was verified."""
        return cls(**{field.name: getattr(shipment, field.name) for field in fields(cls)})

    def shipment(self, transfer_id: bytes) -> pb.Shipment:
        """Make the payload the donor's site signs."""
        return pb.Shipment(
            transfer_id=transfer_id,
            encapsulated=self.encapsulated,
            header_digest=self.header_digest,
            ciphertext_digest=self.ciphertext_digest,
            ciphertext_bytes=self.ciphertext_bytes,
            info_digest=self.info_digest,
        )


def seal(
    plaintext: BinaryIO,
    out: BinaryIO,
    *,
    recipient: HpkePublicKey,
    context: SealingContext,
    limits: Limits,
) -> Sealed:
    """Seal everything `plaintext` still holds into `out`, padded, one chunk in memory at a time.

    Parameters
    ----------
    plaintext, out : binary file
        Seekable, read from its position to its end; written from its position, not closed. Whoever
        uploads `out` syncs it.
    recipient : HpkePublicKey
        Its id must be the context's.
    context : SealingContext
        What the transfer belongs to.
    limits : Limits
        ``chunk_bytes``, ``padding_bytes`` and ``ciphertext_bytes``.

    Returns
    -------
    Sealed
        To be signed as a `Shipment`.

    Raises
    ------
    MalformedError
        If `recipient` is not the key the context names.
    LimitExceededError
        If the stream would exceed ``limits.ciphertext_bytes``; `out` then holds a part of it.
    """
    if recipient.key_id != context.recipient_hpke_key_id:
        raise MalformedError("the recipient's HPKE key is not the one the request names")
    info = context.info()
    info_digest = hashlib.sha256(info).digest()
    prefix, file_key = os.urandom(_PREFIX_BYTES), AESGCM.generate_key(8 * _KEY_BYTES)
    header = _HEADER.pack(_MAGIC, limits.chunk_bytes, prefix, info_digest)
    header_digest = hashlib.sha256(header).digest()

    digest, written = hashlib.sha256(header), len(header)
    out.write(header)
    aead = AESGCM(file_key)
    source = _Padded(plaintext, limits.padding_bytes)
    chunks = _Chunks(source, limits.chunk_bytes, source.n_padded)
    sealed = memoryview(bytearray(limits.chunk_bytes + _TAG_BYTES))
    for i_chunk in range(_MAX_CHUNKS):
        chunk = chunks.next()
        if not chunks.is_over and len(chunk) < limits.chunk_bytes:
            raise MalformedError("the content became shorter while it was sealed")
        piece = sealed[: len(chunk) + _TAG_BYTES]
        written += len(piece)
        if written > limits.ciphertext_bytes:
            raise LimitExceededError(
                f"the sealed transfer exceeds {limits.ciphertext_bytes} bytes; request fewer rows"
            )
        nonce = _nonce(prefix, i_chunk, is_last=chunks.is_over)
        aead.encrypt_into(nonce, chunk, header_digest, piece)
        digest.update(piece[-_TAG_BYTES:])
        out.write(piece)
        if chunks.is_over:
            break
    else:
        raise LimitExceededError(f"the sealed transfer exceeds {_MAX_CHUNKS} chunks")
    return Sealed(
        encapsulated=HPKE_SUITE.encrypt(file_key, recipient.handle, info=info),
        header_digest=header_digest,
        ciphertext_digest=digest.digest(),
        ciphertext_bytes=written,
        info_digest=info_digest,
    )


def open_sealed(
    sealed_stream: BinaryIO,
    out: BinaryIO,
    *,
    sealed: Sealed,
    key_pair: HpkeKeyPair,
    context: SealingContext,
    limits: Limits,
) -> int:
    """Open a sealed stream into `out`, one chunk in memory at a time.

    Parameters
    ----------
    sealed_stream : binary file
        The downloaded bytes, read from its position to its end.
    out : binary file
        Takes the plaintext from its position on, and is cut behind it: seekable. Chunks are written
        as they are authenticated, so what it holds counts only once this function has returned;
        discard it when it raises.
    sealed : Sealed
        From a `Shipment` whose signature was verified first.
    key_pair : HpkeKeyPair
        The recipient's.
    context : SealingContext
        Built from the recipient's own records of the transfer, never from the shipment.
    limits : Limits
        ``chunk_bytes`` and ``ciphertext_bytes``.

    Returns
    -------
    int
        Bytes of plaintext.

    Raises
    ------
    TransferAuthenticationError
        Whatever is wrong with it; all failures look alike.
    """
    try:
        return _open(
            sealed_stream,
            out,
            sealed=sealed,
            key_pair=key_pair,
            context=context,
            limits=limits,
        )
    except (InvalidTag, _BrokenStreamError):
        raise TransferAuthenticationError("transfer could not be authenticated") from None


def stream_digest(stream: BinaryIO, n_bytes: int) -> bytes:
    """Compute the `ciphertext_digest` of a sealed stream without opening it.

    Parameters
    ----------
    stream : binary file
        Seekable; the sealed stream begins at 0.
    n_bytes : int
        Its length.

    Raises
    ------
    MalformedError
        If it is no sealed stream of that length.
    """
    stream.seek(0)
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise MalformedError(f"a sealed stream of {n_bytes} bytes is shorter than its header")
    magic, chunk_bytes, _, _ = _HEADER.unpack(header)
    if magic != _MAGIC or not chunk_bytes or n_bytes // chunk_bytes > _MAX_TAGS:
        raise MalformedError(f"{n_bytes} bytes are no sealed stream of this version")
    digest, at = hashlib.sha256(header), _HEADER.size
    while at < n_bytes:
        at = min(at + chunk_bytes + _TAG_BYTES, n_bytes)
        stream.seek(at - _TAG_BYTES)
        digest.update(stream.read(_TAG_BYTES))
    return digest.digest()


class _BrokenStreamError(Exception):
    """The stream is not what the shipment or the format says; never leaves this module."""


def _open(
    stream: BinaryIO,
    out: BinaryIO,
    *,
    sealed: Sealed,
    key_pair: HpkeKeyPair,
    context: SealingContext,
    limits: Limits,
) -> int:
    info = context.info()
    header = stream.read(_HEADER.size)
    _require(len(header) == _HEADER.size)
    magic, chunk_bytes, prefix, info_digest = _HEADER.unpack(header)
    header_digest = hashlib.sha256(header).digest()
    _require(magic == _MAGIC and 0 < chunk_bytes <= limits.chunk_bytes)
    _require(info_digest == hashlib.sha256(info).digest() == sealed.info_digest)
    _require(header_digest == sealed.header_digest)
    _require(key_pair.key_id == context.recipient_hpke_key_id)
    _require(sealed.ciphertext_bytes <= limits.ciphertext_bytes)
    _require(len(sealed.encapsulated) == _ENCAPSULATED_BYTES)
    file_key = HPKE_SUITE.decrypt(sealed.encapsulated, key_pair.handle, info=info)
    _require(len(file_key) == _KEY_BYTES)

    digest, read, opened, begin = hashlib.sha256(header), len(header), 0, out.tell()
    tail = b""
    aead = AESGCM(file_key)
    chunks = _Chunks(stream, chunk_bytes + _TAG_BYTES, sealed.ciphertext_bytes - len(header))
    plain = memoryview(bytearray(chunk_bytes))
    for i_chunk in range(_MAX_CHUNKS):
        block = chunks.next()
        read += len(block)
        _require(len(block) >= _TAG_BYTES and read <= sealed.ciphertext_bytes)
        piece = plain[: len(block) - _TAG_BYTES]
        digest.update(block[-_TAG_BYTES:])
        nonce = _nonce(prefix, i_chunk, is_last=chunks.is_over)
        aead.decrypt_into(nonce, block, header_digest, piece)
        out.write(piece)
        opened += len(piece)
        # The length may lie across the last two chunks.
        tail = (tail + piece[-_LENGTH_BYTES:])[-_LENGTH_BYTES:]
        if chunks.is_over:
            break
    _require(read == sealed.ciphertext_bytes and digest.digest() == sealed.ciphertext_digest)
    _require(not stream.read(1))
    n_bytes = int.from_bytes(tail, "big")
    _require(len(tail) == _LENGTH_BYTES and n_bytes <= opened - _LENGTH_BYTES)
    out.seek(begin + n_bytes)
    out.truncate()
    return n_bytes


class _Padded:
    """A source, then zeros up to a size class, then the source's length."""

    def __init__(self, source: BinaryIO, smallest: int) -> None:
        begin = source.tell()
        self._n_bytes = source.seek(0, io.SEEK_END) - begin
        source.seek(begin)
        self._source = source
        self.n_padded = size_class(self._n_bytes + _LENGTH_BYTES, smallest)
        self._n_left = self._n_bytes
        self._n_zeros = self.n_padded - self._n_bytes - _LENGTH_BYTES
        self._end = self._n_bytes.to_bytes(_LENGTH_BYTES, "big")

    def readinto(self, view: memoryview) -> int:
        """Fill a part of `view`; 0 at the end, or where the source turned out shorter."""
        if self._n_left:
            n = _read_some(self._source, view[: self._n_left])
            self._n_left -= n
            return n
        if self._n_zeros:
            n = min(len(view), self._n_zeros)
            view[:n] = bytes(n)
            self._n_zeros -= n
            return n
        n = min(len(view), len(self._end))
        view[:n] = self._end[:n]
        self._end = self._end[n:]
        return n


def _require(holds: bool) -> None:
    if not holds:
        raise _BrokenStreamError


def _nonce(prefix: bytes, i_chunk: int, *, is_last: bool) -> bytes:
    return prefix + i_chunk.to_bytes(4, "big") + bytes([is_last])


class _Chunks:
    """A source in chunks, one in memory at a time; `is_over` with the one that holds its last byte."""

    def __init__(self, source: "BinaryIO | _Padded", chunk_bytes: int, n_bytes: int) -> None:
        # One buffer for all chunks: allocating one per chunk costs most of the throughput.
        self._view = memoryview(bytearray(min(chunk_bytes, max(1, n_bytes))))
        self._source = source
        self._n_left = n_bytes
        self.is_over = False

    def next(self) -> memoryview:
        """Return the next chunk, shorter than the others only if it is the last or the source ends early."""
        view = self._view[: self._n_left]
        n = 0
        # Raw files and pipes return short reads.
        while n < len(view):
            part = view[n:] if n else view
            if isinstance(self._source, _Padded):
                n_read = self._source.readinto(part)
            else:
                n_read = _read_some(self._source, part)
            if not n_read:
                break
            n += n_read
        self._n_left -= n
        self.is_over = not self._n_left
        return view[:n]


def _read_some(source: BinaryIO, view: memoryview) -> int:
    # Straight into the buffer where the file can: a copy of every byte less.
    if isinstance(source, io.IOBase) and hasattr(source, "readinto"):
        n: int = source.readinto(view) or 0
        return n
    data = source.read(len(view))
    view[: len(data)] = data
    return len(data)
