"""Signed tree heads in C2SP's checkpoint form, and countersignatures of them.

A checkpoint is three lines of text: the log's origin, its size, the base64 of its root. Signed it is a C2SP *signed
note*: the text, an empty line, and a line ``— name base64`` for every signature. See c2sp.org/signed-note,
c2sp.org/tlog-checkpoint and c2sp.org/tlog-cosignature.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from synthedge_protocols.errors import MalformedError, VerificationError
from synthedge_protocols.keys import StatementKey, check_signature

__all__ = ["Checkpoint", "SignedCheckpoint", "coordinator_origin", "site_origin"]

_SIGNATURE: Final = 0x01  # Ed25519 over the text
_COSIGNATURE: Final = 0x04  # Ed25519 over "cosignature/v1", a time and the text
_HASH_BYTES: Final = 32
_MAX_BYTES: Final = 4_096
# No database counts further.
_MAX_SIZE: Final = 2**63 - 1


def site_origin(consortium: str, site: str) -> str:
    """Name a site's log, and its key in signatures."""
    return f"{consortium}/site/{site}"


def coordinator_origin(consortium: str) -> str:
    """Name the coordinator's log, and its key in signatures."""
    return f"{consortium}/coordinator"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head.

    Attributes
    ----------
    origin : str
        Which log; from `site_origin` or `coordinator_origin`.
    size : int
        Entries in it.
    root : bytes of length 32
    """

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, key: StatementKey) -> "SignedCheckpoint":
        """Sign as the log itself: the key's name is the origin."""
        signature = key.sign(self.text.encode())
        line = _line(self.origin, _SIGNATURE, key.public_bytes, signature)
        return SignedCheckpoint(self, (line,))


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A signed note over a checkpoint; its signatures are not checked before `verify`.

    Attributes
    ----------
    checkpoint : Checkpoint
    signatures : tuple of str
        Lines, each ``— name base64``.
    """

    checkpoint: Checkpoint
    signatures: tuple[str, ...]

    @property
    def note(self) -> str:
        """The whole note, as it is stored and sent."""
        return self.checkpoint.text + "\n" + "".join(f"{line}\n" for line in self.signatures)

    @classmethod
    def parse(cls, note: str) -> "SignedCheckpoint":
        """Read a note.

        Raises
        ------
        MalformedError
            If it is none, or not written the one way a log writes it.
        """
        text, separator, tail = note.partition("\n\n")
        lines = text.split("\n")
        wrong = MalformedError(
            "the text is no signed checkpoint of three lines, an empty one and signatures"
        )
        if len(note) > _MAX_BYTES or not separator or len(lines) != 3 or not tail.endswith("\n"):
            raise wrong
        origin, size, root = lines
        if not size.isascii() or not size.isdigit() or int(size) > _MAX_SIZE:
            raise wrong
        decoded = _from_base64(root)
        signatures = tuple(tail[:-1].split("\n"))
        signed = cls(Checkpoint(origin, int(size), decoded), signatures)
        # Leading zeros, other base64 of the same bytes: there is one way to write a head.
        if len(decoded) != _HASH_BYTES or signed.note != note:
            raise wrong
        if not all(
            line.startswith("— ") and _from_base64(line.rpartition(" ")[2]) for line in signatures
        ):
            raise wrong
        return signed

    def verify(self, public_key: bytes, origin: str) -> Checkpoint:
        """Return the checkpoint if the log's own signature holds.

        Parameters
        ----------
        public_key : bytes
            The log's raw Ed25519 key.
        origin : str
            The log it must be of.

        Raises
        ------
        VerificationError
            If it is another log's, or not signed by this key.
        """
        if self.checkpoint.origin != origin:
            raise VerificationError(f"the checkpoint is not of the log '{origin}'")
        signature = self._find(origin, _SIGNATURE, public_key)
        check_signature(public_key, signature, self.checkpoint.text.encode())
        return self.checkpoint

    def cosign(self, key: StatementKey, name: str, at_s: int) -> "SignedCheckpoint":
        """Add a witness's countersignature: it saw this head, consistent with all it saw before.

        Parameters
        ----------
        key : StatementKey
        name : str
            The witness; from `site_origin`.
        at_s : int
            Unix time, seconds.
        """
        signature = at_s.to_bytes(8, "big") + key.sign(self._cosigned(at_s))
        line = _line(name, _COSIGNATURE, key.public_bytes, signature)
        return SignedCheckpoint(self.checkpoint, (*self.signatures, line))

    def verify_cosignature(self, public_key: bytes, name: str) -> int:
        """Return when a witness countersigned, Unix time in seconds.

        Raises
        ------
        VerificationError
            If it did not.
        """
        signature = self._find(name, _COSIGNATURE, public_key)
        at_s = int.from_bytes(signature[:8], "big")
        check_signature(public_key, signature[8:], self._cosigned(at_s))
        return at_s

    def _cosigned(self, at_s: int) -> bytes:
        return f"cosignature/v1\ntime {at_s}\n{self.checkpoint.text}".encode()

    def _find(self, name: str, kind: int, public_key: bytes) -> bytes:
        prefix = f"— {name} "
        for line in self.signatures:
            if line.startswith(prefix):
                blob = _from_base64(line.removeprefix(prefix))
                if blob[:4] == _key_hash(name, kind, public_key):
                    return blob[4:]
        raise VerificationError(f"the checkpoint carries no signature of '{name}' by its known key")


def _key_hash(name: str, kind: int, public_key: bytes) -> bytes:
    return hashlib.sha256(f"{name}\n".encode() + bytes([kind]) + public_key).digest()[:4]


def _line(name: str, kind: int, public_key: bytes, signature: bytes) -> str:
    blob = _key_hash(name, kind, public_key) + signature
    return f"— {name} {base64.b64encode(blob).decode()}"


def _from_base64(text: str) -> bytes:
    """Decode the one base64 text of some bytes; empty for any other text."""
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return blob if base64.b64encode(blob).decode() == text else b""
