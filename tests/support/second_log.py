"""A second implementation of audit logs, written from docs/protocol.md, section 13; recursive, as RFC 6962 puts it."""

import base64
import hashlib
import json
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ed25519

from second_statements import require, sha256


def leaf(data: bytes) -> bytes:
    return sha256(b"\x00", data)


def leaf_of_entry(entry: bytes, salt: bytes) -> bytes:
    return leaf(sha256(salt, entry))


def entry_bytes(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode("ascii")


def root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return sha256(b"\x01", root(leaves[:k]), root(leaves[k:]))


def inclusion(i: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if i < k:
        return [*inclusion(i, leaves[:k]), root(leaves[k:])]
    return [*inclusion(i - k, leaves[k:]), root(leaves[:k])]


def root_by_inclusion(own: bytes, i: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that a proof leads to."""
    if size == 1:
        require(not proof, "too long")
        return own
    require(bool(proof), "too short")
    k = _split(size)
    if i < k:
        return sha256(b"\x01", root_by_inclusion(own, i, k, proof[:-1]), proof[-1])
    return sha256(b"\x01", proof[-1], root_by_inclusion(own, i - k, size - k, proof[:-1]))


def consistency(old: int, leaves: Sequence[bytes], *, whole: bool = True) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [root(leaves)]
    k = _split(len(leaves))
    if old <= k:
        return [*consistency(old, leaves[:k], whole=whole), root(leaves[k:])]
    return [*consistency(old - k, leaves[k:], whole=False), root(leaves[:k])]


def roots_by_consistency(
    old: int, size: int, proof: list[bytes], old_root: bytes, *, whole: bool = True
) -> tuple[bytes, bytes]:
    """Old and new root that a proof leads to; `old_root` stands in where the old tree is a whole subtree."""
    if old == size:
        require(len(proof) == (not whole), "length")
        known = old_root if whole else proof[0]
        return known, known
    require(bool(proof), "too short")
    k = _split(size)
    if old <= k:
        of_old, of_new = roots_by_consistency(old, k, proof[:-1], old_root, whole=whole)
        return of_old, sha256(b"\x01", of_new, proof[-1])
    of_old, of_new = roots_by_consistency(old - k, size - k, proof[:-1], old_root, whole=False)
    return sha256(b"\x01", proof[-1], of_old), sha256(b"\x01", proof[-1], of_new)


def _split(n: int) -> int:
    return 1 << ((n - 1).bit_length() - 1)


# ---- heads --------------------------------------------------------------------------------------


def checkpoint(origin: str, size: int, of_tree: bytes) -> str:
    return f"{origin}\n{size}\n{base64.b64encode(of_tree).decode()}\n"


def signed_note(text: str, name: str, key: ed25519.Ed25519PrivateKey) -> str:
    return text + "\n" + _line(name, 1, key, key.sign(text.encode()))


def cosigned(note: str, name: str, key: ed25519.Ed25519PrivateKey, at_s: int) -> str:
    words = f"cosignature/v1\ntime {at_s}\n{_text(note)}".encode()
    return note + _line(name, 4, key, at_s.to_bytes(8, "big") + key.sign(words))


def verify_note(note: str, name: str, public_key: bytes) -> tuple[int, bytes]:
    """Size and root that a log's own signature stands for. Raises InvalidSignature."""
    text = _text(note)
    signature = _signature(note, name, 1, public_key)
    ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text.encode())
    origin, size, of_tree = text.splitlines()
    require(origin == name, "origin")
    return int(size), base64.b64decode(of_tree, validate=True)


def verify_cosignature(note: str, name: str, public_key: bytes) -> int:
    """When a witness countersigned. Raises InvalidSignature."""
    signature = _signature(note, name, 4, public_key)
    at_s = int.from_bytes(signature[:8], "big")
    words = f"cosignature/v1\ntime {at_s}\n{_text(note)}".encode()
    ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature[8:], words)
    return at_s


def _text(note: str) -> str:
    return note.partition("\n\n")[0] + "\n"


def _key_hash(name: str, kind: int, public_key: bytes) -> bytes:
    return sha256(name.encode(), b"\n", bytes([kind]), public_key)[:4]


def _line(name: str, kind: int, key: ed25519.Ed25519PrivateKey, signature: bytes) -> str:
    known = _key_hash(name, kind, key.public_key().public_bytes_raw())
    return f"— {name} {base64.b64encode(known + signature).decode()}\n"


def _signature(note: str, name: str, kind: int, public_key: bytes) -> bytes:
    known = _key_hash(name, kind, public_key)
    for line in note.partition("\n\n")[2].splitlines():
        blob = base64.b64decode(line.rpartition(" ")[2], validate=True)
        if line.startswith(f"— {name} ") and blob.startswith(known):
            return blob[4:]
    require(False, "no such signature")
    return b""
