"""A site's keys: Ed25519 for statements, hybrid HPKE for sealing, ECDSA P-256 for TLS."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x25519
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from synthedge_protocols.errors import IdentityError, MalformedError, VerificationError
from synthedge_protocols.private_files import MACHINE_COST, read_secret, write_secret

__all__ = [
    "HPKE_SUITE",
    "HpkeKeyPair",
    "HpkePublicKey",
    "StatementKey",
    "TlsKey",
    "check_signature",
    "fingerprint",
    "is_fingerprint",
    "key_id",
    "same_fingerprint",
]

# RFC 9180 with the hybrid KEM: health data must stay secret for decades.
HPKE_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

_MLKEM_PUBLIC_BYTES = 1_184
_MLKEM_SEED_BYTES = 64


_public_key = lru_cache(maxsize=4_096)(ed25519.Ed25519PublicKey.from_public_bytes)


def key_id(public_key: bytes) -> bytes:
    """SHA-256 of a raw public key, 32 bytes."""
    return hashlib.sha256(public_key).digest()


@lru_cache(maxsize=4_096)
def fingerprint(public_key: bytes) -> str:
    """Spell a key the way two people compare it over the telephone.

    Parameters
    ----------
    public_key : bytes
        A site's raw statement key.

    Returns
    -------
    str
        The first 128 bits of its SHA-256 as eight groups of four hexadecimal digits. 128 bits
        resist a search for a second key with the same fingerprint.
    """
    digits = key_id(public_key)[:16].hex()
    return "-".join(digits[i : i + 4] for i in range(0, 32, 4))


def is_fingerprint(typed: str) -> bool:
    """Whether what a person typed could be one; case, spaces and dashes do not count."""
    return re.fullmatch("[0-9a-f]{32}", _digits(typed)) is not None


def same_fingerprint(typed: str, public_key: bytes) -> bool:
    """Compare a fingerprint that a person typed; case, spaces and dashes do not count."""
    return _digits(typed) == _digits(fingerprint(public_key))


def _digits(typed: str) -> str:
    return "".join(typed.lower().replace("-", " ").split())


def check_signature(public_key: bytes, signature: bytes, data: bytes) -> None:
    """Return if `signature` is the Ed25519 signature of `data`.

    Raises
    ------
    VerificationError
        If it is not, or the key is no Ed25519 key.
    """
    try:
        _public_key(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise VerificationError("the signature does not verify") from None


class StatementKey:
    """An Ed25519 key: a site's statement key or a steward's personal one."""

    _KIND = "statement-key"

    def __init__(self, private_key: ed25519.Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_bytes = private_key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the system's random generator."""
        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Take 32 bytes as the private key (RFC 8032)."""
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path, passphrase: bytes) -> Self:
        """Read a key that `save` wrote; raises as `private_files.read_secret` does."""
        return cls.from_seed(read_secret(path, cls._KIND, passphrase))

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the raw public key."""
        return key_id(self.public_bytes)

    @property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.public_bytes)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of `data`; call `statements.sign` for anything sent."""
        return self._private_key.sign(data)

    def save(self, path: Path, passphrase: bytes, *, cost: int = MACHINE_COST) -> None:
        """Write to a new encrypted private file; stewards' keys take ``cost=PASSPHRASE_COST``."""
        write_secret(path, self._KIND, self._private_key.private_bytes_raw(), passphrase, cost=cost)


class HpkePublicKey:
    """A recipient's ML-KEM-768 + X25519 public key.

    Parameters
    ----------
    public_bytes : bytes
        1,184 bytes of ML-KEM-768, then 32 bytes of X25519.

    Raises
    ------
    MalformedError
        If the bytes are not two such keys.
    """

    def __init__(self, public_bytes: bytes) -> None:
        try:
            self.handle = MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(public_bytes[:_MLKEM_PUBLIC_BYTES]),
                x25519.X25519PublicKey.from_public_bytes(public_bytes[_MLKEM_PUBLIC_BYTES:]),
            )
        except ValueError:
            raise MalformedError(
                f"{len(public_bytes)} bytes are no ML-KEM-768 + X25519 public key of 1216 bytes"
            ) from None
        self.public_bytes = public_bytes
        self.key_id = key_id(public_bytes)


class HpkeKeyPair:
    """A recipient's ML-KEM-768 + X25519 key pair, kept as the two seeds.

    Parameters
    ----------
    seeds : bytes
        64 bytes of ML-KEM-768 (d and z of FIPS 203), then 32 bytes of X25519. The hybrid has no
        serialisation of its own.
    """

    _KIND = "hpke-key"

    def __init__(self, seeds: bytes) -> None:
        mlkem_key = mlkem.MLKEM768PrivateKey.from_seed_bytes(seeds[:_MLKEM_SEED_BYTES])
        x25519_key = x25519.X25519PrivateKey.from_private_bytes(seeds[_MLKEM_SEED_BYTES:])
        self._seeds = seeds
        self.handle = MLKEM768X25519PrivateKey(mlkem_key, x25519_key)
        self.public_bytes = (
            mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
        )
        self.key_id = key_id(self.public_bytes)

    @classmethod
    def generate(cls) -> Self:
        """Make a new pair from the system's random generator."""
        return cls(
            mlkem.MLKEM768PrivateKey.generate().private_bytes_raw()
            + x25519.X25519PrivateKey.generate().private_bytes_raw()
        )

    @classmethod
    def load(cls, path: Path, passphrase: bytes) -> Self:
        """Read a pair that `save` wrote; raises as `private_files.read_secret` does."""
        return cls(read_secret(path, cls._KIND, passphrase))

    @property
    def public_key(self) -> HpkePublicKey:
        """The half that peers seal to."""
        return HpkePublicKey(self.public_bytes)

    def save(self, path: Path, passphrase: bytes, *, cost: int = MACHINE_COST) -> None:
        """Write both seeds to a new encrypted private file."""
        write_secret(path, self._KIND, self._seeds, passphrase, cost=cost)


class TlsKey:
    """An ECDSA P-256 key for TLS; gRPC's BoringSSL refuses Ed25519 certificates."""

    _KIND = "tls-key"

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self.private_key = private_key

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the system's random generator."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, passphrase: bytes) -> Self:
        """Read a key that `save` wrote.

        Raises
        ------
        IdentityError
            As `private_files.read_secret`, or if the file holds another kind of key.
        """
        key = serialization.load_der_private_key(read_secret(path, cls._KIND, passphrase), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError(f"'{path}' holds no ECDSA key; restore it from backup")
        return cls(key)

    def save(self, path: Path, passphrase: bytes, *, cost: int = MACHINE_COST) -> None:
        """Write to a new encrypted private file."""
        data = self.private_key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_secret(path, self._KIND, data, passphrase, cost=cost)

    def pem(self) -> bytes:
        """Return the unencrypted PEM that gRPC's credentials take; never written to disk."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
