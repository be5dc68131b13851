"""Files only their owner may read, and secrets encrypted inside them."""

import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from synthedge_protocols.errors import IdentityError, MalformedError

__all__ = [
    "MACHINE_COST",
    "PASSPHRASE_COST",
    "read_private_file",
    "read_secret",
    "write_private_file",
    "write_secret",
]

PASSPHRASE_COST = 17
"""log2 of scrypt's N for a secret that a person remembers: 128 MiB and about a quarter second."""
MACHINE_COST = 10
"""For 32 random bytes kept by a program: guessing them is hopeless without any stretching."""

_MAGIC = b"synthedge-secret-1\n"
_SALT_BYTES = 16
_NONCE_BYTES = 12


def write_private_file(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600 in one step that survives a power cut.

    Parameters
    ----------
    path : Path
        Must not exist yet; keys are replaced under a new name, never overwritten.
    data : bytes
        The whole content.

    Raises
    ------
    FileExistsError
        If `path` exists.
    OSError
        If the folder cannot be written.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A hard link fails where a rename would silently replace an existing key.
        os.link(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_private_file(path: Path) -> bytes:
    """Read a file that nobody but its owner may read.

    Raises
    ------
    IdentityError
        If the file is missing or cannot be read, or group or others have any permission on it.

    Notes
    -----
    What root hands to a service (a systemd credential, a mounted Secret) belongs to root and is let through by an
    access list or by the service's group, which both show as 0440: root's files may be read by their group, as
    PostgreSQL has it for its keys.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            mode = stat.S_IMODE(status.st_mode)
            is_handed_over = status.st_uid == 0 and os.geteuid() != 0
            if mode & (0o037 if is_handed_over else 0o077):
                raise IdentityError(
                    f"'{path}' has mode {mode:04o}, so others than its owner can reach it; "
                    f"run: chmod {'440' if is_handed_over else '600'} '{path}'"
                )
            return file.read()
    except FileNotFoundError:
        raise IdentityError(f"'{path}' does not exist; create or restore it first") from None
    except PermissionError:
        raise IdentityError(
            f"'{path}' cannot be read by user {os.geteuid()}; it must belong to that user, with mode 0600"
        ) from None


def write_secret(path: Path, kind: str, secret: bytes, passphrase: bytes, *, cost: int) -> None:
    """Write `secret` encrypted under `passphrase` to a new private file.

    Parameters
    ----------
    path : Path
        Must not exist yet.
    kind : str
        What it is; bound to the ciphertext, so that one kind of key cannot be passed for another.
    secret : bytes
        What is kept.
    passphrase : bytes
        A person's passphrase or a program's random secret.
    cost : int
        `PASSPHRASE_COST` or `MACHINE_COST`.

    Notes
    -----
    scrypt (RFC 7914) with r = 8, p = 1, then AES-256-GCM with everything before the ciphertext as
    associated data. PKCS#8 as `cryptography` writes it stretches with 2,048 rounds of PBKDF2,
    which a stolen disk does not survive.
    """
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    head = _MAGIC + bytes([cost]) + salt + nonce
    sealed = AESGCM(_stretch(passphrase, salt, cost)).encrypt(nonce, secret, head + kind.encode())
    write_private_file(path, head + sealed)


def read_secret(path: Path, kind: str, passphrase: bytes) -> bytes:
    """Return what `write_secret` kept.

    Raises
    ------
    IdentityError
        If the file is missing, readable by others, of another kind, damaged, or the passphrase
        is not the one it was written with.
    MalformedError
        If it is no such file at all.
    """
    data = read_private_file(path)
    head_bytes = len(_MAGIC) + 1 + _SALT_BYTES + _NONCE_BYTES
    head, sealed = data[:head_bytes], data[head_bytes:]
    if not head.startswith(_MAGIC) or len(head) < head_bytes:
        raise MalformedError(f"'{path}' is not a key file of this program; restore it from backup")
    cost = head[len(_MAGIC)]
    # The file might have been exchanged: its cost must not decide how much memory this takes.
    if not MACHINE_COST <= cost <= PASSPHRASE_COST:
        raise MalformedError(f"'{path}' names an unknown scrypt cost {cost}; restore the file")
    salt, nonce = head[-_SALT_BYTES - _NONCE_BYTES : -_NONCE_BYTES], head[-_NONCE_BYTES:]
    try:
        return AESGCM(_stretch(passphrase, salt, cost)).decrypt(nonce, sealed, head + kind.encode())
    except InvalidTag:
        raise IdentityError(
            f"'{path}' does not open as {kind}: the passphrase is wrong, or it is another file"
        ) from None


def _stretch(passphrase: bytes, salt: bytes, cost: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**cost, r=8, p=1).derive(passphrase)
