"""A site's own keys on disk, opened by the site's secret.

Rules
-----
* ``keys/site.secret`` opens the statement, HPKE and TLS keys and everything encrypted in the database: a file of
  mode 0600, so that an unattended agent can start. `protect_secret` replaces it by ``keys/site.secret.sealed``,
  encrypted under a passphrase in a file elsewhere: a copy of the site's folder alone then opens nothing.
* A missing, readable-by-others or damaged key file is refused.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from synthedge_core.errors import UsageError, VerificationError
from synthedge_protocols.certificates import load_certificate
from synthedge_protocols.errors import IdentityError
from synthedge_protocols.keys import HpkeKeyPair, StatementKey, TlsKey
from synthedge_protocols.private_files import (
    PASSPHRASE_COST,
    read_private_file,
    read_secret,
    write_private_file,
    write_secret,
)

MIN_PASSPHRASE = 8
_DAY_MS = 86_400_000
_SECRET_KIND = "site-secret"  # noqa: S105 - names the file, opens nothing


@dataclass(frozen=True)
class KeyStore:
    """The keys an agent works with."""

    folder: Path
    secret: bytes = field(repr=False)
    statement: StatementKey
    hpke: HpkeKeyPair
    tls: TlsKey

    @property
    def certificate_file(self) -> Path:
        """The site's TLS certificate, PEM; there after enrolment."""
        return self.folder / "tls.pem"

    @property
    def ca_file(self) -> Path:
        """The consortium's CA certificate, PEM; there after enrolment."""
        return self.folder / "ca.pem"

    @property
    def certificate_expires(self) -> datetime:
        """When the TLS certificate ends (UTC)."""
        return load_certificate(read_certificate(self.certificate_file)).not_valid_after_utc

    def statement_key(self, identifier: bytes) -> StatementKey:
        """One of the site's statement keys, current or replaced.

        Raises
        ------
        IdentityError
            If there is no such key.
        """
        if identifier == self.statement.key_id:
            return self.statement
        return StatementKey.load(self._file("statement", identifier), self.secret)

    def hpke_key(self, identifier: bytes) -> HpkeKeyPair:
        """One of the site's HPKE keys, current or replaced; raises as `statement_key`."""
        if identifier == self.hpke.key_id:
            return self.hpke
        return HpkeKeyPair.load(self._file("hpke", identifier), self.secret)

    def add_statement_key(self, key: StatementKey) -> None:
        """Write a further statement key."""
        key.save(self._file("statement", key.key_id), self.secret)

    def add_hpke_key(self, key: HpkeKeyPair) -> None:
        """Write a further HPKE key."""
        key.save(self._file("hpke", key.key_id), self.secret)

    def keep_hpke_keys(self, needed: set[bytes]) -> int:
        """Delete every further HPKE key but the needed ones; return how many."""
        kept = {self._file("hpke", identifier) for identifier in needed}
        unneeded = [path for path in self.folder.glob("hpke-*.key") if path not in kept]
        for path in unneeded:
            path.unlink()
        return len(unneeded)

    def _file(self, kind: str, identifier: bytes) -> Path:
        return self.folder / f"{kind}-{identifier.hex()[:16]}.key"

    def encrypt(self, data: bytes, context: bytes) -> bytes:
        """Encrypt for the database; `context` must be given again to decrypt."""
        nonce = os.urandom(12)
        return nonce + AESGCM(self._derive(b"at rest")).encrypt(nonce, data, context)

    def decrypt(self, blob: bytes, context: bytes) -> bytes:
        """Decrypt what `encrypt` wrote.

        Raises
        ------
        VerificationError
            If it was changed, moved to another place, or written under another secret.
        """
        try:
            return AESGCM(self._derive(b"at rest")).decrypt(blob[:12], blob[12:], context)
        except (InvalidTag, ValueError):  # ValueError: too short to hold a nonce
            raise VerificationError(
                "a stored record does not open with this site's secret; restore keys and database together"
            ) from None

    def tag(self, text: str) -> bytes:
        """A keyed hash: finds the same patient again, tells nobody else anything."""
        return hmac.digest(self._derive(b"tag"), text.encode(), hashlib.sha256)

    def _derive(self, purpose: bytes) -> bytes:
        return HKDF(
            algorithm=SHA256(), length=32, salt=None, info=b"synthedge site " + purpose
        ).derive(self.secret)


def read_certificate(path: Path) -> bytes:
    """A certificate file that enrolment wrote.

    Raises
    ------
    IdentityError
        If it is not there.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise IdentityError(
            f"'{path}' does not exist; restore it from backup, or ask the operator to enrol this site anew"
        ) from None


def create_keys(folder: Path) -> KeyStore:
    """Make all keys of a new site in an empty folder of mode 0700."""
    folder.mkdir(mode=0o700, parents=True)
    secret = secrets.token_bytes(32)
    keys = KeyStore(
        folder, secret, StatementKey.generate(), HpkeKeyPair.generate(), TlsKey.generate()
    )
    write_private_file(folder / "site.secret", secret)
    keys.statement.save(folder / "statement.key", secret)
    keys.hpke.save(folder / "hpke.key", secret)
    keys.tls.save(folder / "tls.key", secret)
    return keys


def load_keys(folder: Path) -> KeyStore:
    """Open a site's keys.

    Raises
    ------
    IdentityError
        If a key file is missing, damaged, or readable by others, or the passphrase is wrong.
    """
    secret = _site_secret(folder)
    return KeyStore(
        folder,
        secret,
        StatementKey.load(folder / "statement.key", secret),
        HpkeKeyPair.load(folder / "hpke.key", secret),
        TlsKey.load(folder / "tls.key", secret),
    )


def _site_secret(folder: Path) -> bytes:
    sealed, where = folder / "site.secret.sealed", folder / "site.passphrase-file"
    if (folder / "site.secret").exists() or not sealed.exists():
        return read_private_file(folder / "site.secret")
    passphrase_file = Path(read_private_file(where).decode())
    # Another service of the site, or a command under systemd-run: each sees its own credentials only.
    own = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), passphrase_file.name)
    if not passphrase_file.exists() and own.is_absolute():
        passphrase_file = own
    return read_secret(sealed, _SECRET_KIND, read_private_file(passphrase_file).rstrip(b"\r\n"))


def protect_secret(folder: Path, passphrase_file: Path) -> None:
    """Encrypt the site's secret under the passphrase in a file, and delete the bare one.

    Raises
    ------
    UsageError
        If it is encrypted already, the passphrase is short, or its file lies beside the keys.
    IdentityError
        If a file is missing or readable by others.
    """
    # Not resolved: a mounted secret is a link that points elsewhere after every change.
    bare, path = folder / "site.secret", passphrase_file.absolute()
    if not bare.exists():
        raise UsageError(f"the keys in {folder} are protected by a passphrase already")
    if folder.parent.resolve() in path.resolve().parents:
        raise UsageError(
            f"{passphrase_file} lies in the site's own folder, where it protects nothing; keep it elsewhere"
        )
    passphrase = read_private_file(path).rstrip(b"\r\n")
    require_long(passphrase)
    secret = read_private_file(bare)
    for leftover in (folder / "site.secret.sealed", folder / "site.passphrase-file"):
        leftover.unlink(missing_ok=True)  # of an attempt that was interrupted
    write_private_file(folder / "site.passphrase-file", str(path).encode())
    write_secret(
        folder / "site.secret.sealed", _SECRET_KIND, secret, passphrase, cost=PASSPHRASE_COST
    )
    bare.unlink()


def require_long(passphrase: bytes) -> None:
    """Refuse a passphrase shorter than `MIN_PASSPHRASE`; raises UsageError."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageError(
            f"the passphrase has {len(passphrase)} characters, expected at least {MIN_PASSPHRASE}"
        )
