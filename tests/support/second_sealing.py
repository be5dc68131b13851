"""A second implementation of sealing, notes and manifests, written from docs/protocol.md, sections 10 to 12.

HPKE is spelled out here (RFC 9180 with X-Wing), so that the document's account of it is tested too.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass

import zstandard
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from second_statements import joined, require, sha256
from synthedge_protocols.v1 import statements_pb2 as pb

CHUNK_BYTES = 524_288
SMALLEST_CLASS = 16_384
SUITE = b"HPKE" + bytes.fromhex("647a00010002")
ENC_BYTES = 1_120


def info_of_transfer(*values: bytes) -> bytes:
    """Transfer id, request digest, commitment, both key ids, HPKE key id, dictionary digest."""
    assert len(values) == 7
    return joined(b"synthedge/v1/transfer", *values)


def info_of_note(kind: str, *values: bytes) -> bytes:
    """Carrying type; subject, transfer id, sender's, receiver's and HPKE key id."""
    assert len(values) == 5
    return joined(b"synthedge/v1/note", kind.encode(), *values)


def commitment(payload: pb.TransferPayload) -> bytes:
    return sha256(payload.salt, payload.manifest)


# ---- HPKE: base mode, one shot ------------------------------------------------------------------


def _extract(salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + SUITE + label + material, hashlib.sha256)


def _expand(key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + SUITE + label + info
    # One block of HKDF-Expand is enough for every length asked for here.
    return hmac.digest(key, labelled + b"\x01", hashlib.sha256)[:length]


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    context = b"\x00" + _extract(b"", b"psk_id_hash", b"") + _extract(b"", b"info_hash", info)
    secret = _extract(shared, b"secret", b"")
    return _expand(secret, b"key", context, 32), _expand(secret, b"base_nonce", context, 12)


def _combined(of_kem: bytes, of_dh: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return hashlib.sha3_256(of_kem + of_dh + ephemeral + recipient + b"\\.//^\\").digest()


def hpke_seal(plaintext: bytes, public_key: bytes, info: bytes) -> bytes:
    of_kem, ciphertext = mlkem.MLKEM768PublicKey.from_public_bytes(public_key[:1184]).encapsulate()
    ephemeral = x25519.X25519PrivateKey.generate()
    of_dh = ephemeral.exchange(x25519.X25519PublicKey.from_public_bytes(public_key[1184:]))
    sent = ephemeral.public_key().public_bytes_raw()
    key, nonce = _schedule(_combined(of_kem, of_dh, sent, public_key[1184:]), info)
    return ciphertext + sent + AESGCM(key).encrypt(nonce, plaintext, b"")


def hpke_open(sealed: bytes, seeds: bytes, info: bytes) -> bytes:
    """Raises InvalidTag."""
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seeds[:64])
    dh = x25519.X25519PrivateKey.from_private_bytes(seeds[64:])
    ciphertext, sent = sealed[:1088], sealed[1088:ENC_BYTES]
    of_dh = dh.exchange(x25519.X25519PublicKey.from_public_bytes(sent))
    own = dh.public_key().public_bytes_raw()
    key, nonce = _schedule(_combined(kem.decapsulate(ciphertext), of_dh, sent, own), info)
    return AESGCM(key).decrypt(nonce, sealed[ENC_BYTES:], b"")


# ---- the stream ---------------------------------------------------------------------------------


def size_class(n_bytes: int, smallest: int = SMALLEST_CLASS) -> int:
    if n_bytes <= smallest:
        return smallest
    e = n_bytes.bit_length() - 1
    step = 1 << max(0, e - e.bit_length())
    return -(-n_bytes // step) * step


@dataclass(frozen=True)
class SealedStream:
    """A stream, and what its shipment says of it."""

    stream: bytes
    shipment: pb.Shipment


def seal(
    content: bytes,
    transfer_id: bytes,
    hpke_public_key: bytes,
    info: bytes,
    chunk: int = CHUNK_BYTES,
) -> SealedStream:
    file_key, prefix = os.urandom(32), os.urandom(7)
    header = b"SynthEdge transfer 1\0" + chunk.to_bytes(4, "big") + prefix + sha256(info)
    n_padded = size_class(len(content) + 8)
    padded = content.ljust(n_padded - 8, b"\0") + len(content).to_bytes(8, "big")
    stream, tags = header, b""
    for i, start in enumerate(range(0, n_padded, chunk)):
        nonce = prefix + i.to_bytes(4, "big") + bytes([start + chunk >= n_padded])
        sealed = AESGCM(file_key).encrypt(nonce, padded[start : start + chunk], sha256(header))
        stream, tags = stream + sealed, tags + sealed[-16:]
    shipment = pb.Shipment(
        transfer_id=transfer_id,
        encapsulated=hpke_seal(file_key, hpke_public_key, info),
        header_digest=sha256(header),
        ciphertext_digest=sha256(header, tags),
        ciphertext_bytes=len(stream),
        info_digest=sha256(info),
    )
    return SealedStream(stream, shipment)


def open_stream(stream: bytes, shipment: pb.Shipment, seeds: bytes, info: bytes) -> bytes:
    """Raises RefusedError or InvalidTag."""
    header, body = stream[:64], stream[64:]
    chunk, prefix = int.from_bytes(header[21:25], "big"), header[25:32]
    require(header[:21] == b"SynthEdge transfer 1\0", "magic")
    require(0 < chunk <= CHUNK_BYTES and len(stream) == shipment.ciphertext_bytes, "sizes")
    require(sha256(header) == shipment.header_digest, "header")
    require(header[32:] == sha256(info) == shipment.info_digest, "info")
    file_key = hpke_open(shipment.encapsulated, seeds, info)
    padded, tags = b"", b""
    for i, start in enumerate(range(0, len(body), chunk + 16)):
        piece = body[start : start + chunk + 16]
        nonce = prefix + i.to_bytes(4, "big") + bytes([start + chunk + 16 >= len(body)])
        padded += AESGCM(file_key).decrypt(nonce, piece, sha256(header))
        tags += piece[-16:]
    require(sha256(header, tags) == shipment.ciphertext_digest, "tags")
    n_bytes = int.from_bytes(padded[-8:], "big")
    require(n_bytes <= len(padded) - 8, "length")
    return padded[:n_bytes]


def compress(payload: pb.TransferPayload) -> bytes:
    frame = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True)
    return frame.compress(payload.SerializeToString())


def decompress(data: bytes) -> pb.TransferPayload:
    require(0 <= zstandard.frame_content_size(data) <= 268_435_456, "frame")
    reader = zstandard.ZstdDecompressor().decompressobj()
    content = reader.decompress(data)
    require(reader.eof and not reader.unused_data, "one frame")
    return pb.TransferPayload.FromString(content)


# ---- notes --------------------------------------------------------------------------------------


def note_bytes(content: int) -> int:
    return min(max(4_096, 1 << (content - 1).bit_length()), 524_288)


def seal_note(
    content: bytes, hpke_public_key: bytes, kind: str, *ids: bytes, padded: int = 0
) -> pb.SealedNote:
    """`ids`: subject, transfer id, sender's and receiver's key id."""
    key_id = sha256(hpke_public_key)
    framed = len(content).to_bytes(4, "big") + content
    framed = framed.ljust(padded or note_bytes(len(framed)), b"\0")
    sealed = hpke_seal(framed, hpke_public_key, info_of_note(kind, *ids, key_id))
    return pb.SealedNote(hpke_key_id=key_id, sealed=sealed)


def open_note(note: pb.SealedNote, seeds: bytes, kind: str, *ids: bytes) -> bytes:
    framed = hpke_open(note.sealed, seeds, info_of_note(kind, *ids, note.hpke_key_id))
    end = 4 + int.from_bytes(framed[:4], "big")
    require(end <= len(framed) and not any(framed[end:]), "padding")
    return framed[4:end]
