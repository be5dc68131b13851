"""A site's stewards: each decides with a key of their own, which the site certifies.

Rules
-----
* A steward's key opens only with the steward's passphrase, so no program decides in a steward's name.
* A certificate is of the site's statement key: who rotates that makes every copy of a removed steward's key worthless.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from synthedge_client import store
from synthedge_client.keystore import require_long
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.keys import StatementKey
from synthedge_protocols.limits import Limits
from synthedge_protocols.names import check_name
from synthedge_protocols.private_files import PASSPHRASE_COST, write_private_file
from synthedge_protocols.statements import sign, verify
from synthedge_protocols.v1 import statements_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from synthedge_client.site import Site

STEWARD_DAYS = 365
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Steward:
    """A steward whose key was opened for one command."""

    name: str
    key: StatementKey = field(repr=False)

    @property
    def label(self) -> str:
        """Name and key, as the audit writes them."""
        return f"{self.name} (key {self.key.fingerprint})"

    def sign(self, site: "Site", payload: "Message") -> pb.SignedStatement:
        """Sign a decision, with the site's certificate of this steward's key."""
        return sign(
            self.key,
            payload,
            consortium=site.consortium,
            site=site.settings.id,
            dictionary_digest=bytes.fromhex(site.dictionary.digest),
            issued_at_ms=store.now_ms(),
            certificate=self._certificate(site, site.signing_key(payload)),
        )

    def _certificate(self, site: "Site", by: StatementKey) -> pb.SignedStatement:
        """The site's certificate of this key; kept, because whoever checks decisions checks a known one only once."""
        path = _stewards(site.keys.folder) / f"{self.name}.certificate"
        now = store.now_ms()
        with contextlib.suppress(OSError, DecodeError, ProtocolError):
            kept = pb.SignedStatement.FromString(path.read_bytes())
            body = verify(
                kept,
                expected_type=pb.StewardCertificate,
                consortium=site.consortium,
                site=site.settings.id,
                site_public_key=by.public_bytes,
                dictionary_digest=None,
                now_ms=now,
                limits=Limits(),
            ).payload
            days_left = (body.not_after_ms - now) / _DAY_MS
            if body.public_key == self.key.public_bytes and days_left > STEWARD_DAYS / 2:
                return kept
        body = pb.StewardCertificate(
            steward=self.name,
            public_key=self.key.public_bytes,
            not_before_ms=now - _DAY_MS,
            not_after_ms=now + STEWARD_DAYS * _DAY_MS,
        )
        certificate = site.sign(body, key=by)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # of a command beside this one
            write_private_file(path, certificate.SerializeToString())
        return certificate


def add_steward(keys: Path, name: str, passphrase: bytes) -> str:
    """Make a steward's key; return its fingerprint.

    Raises
    ------
    UsageError
        If the passphrase is short or the steward exists.
    MalformedError
        If the name is not of lower-case letters, digits and hyphens.
    """
    require_new(keys, name)
    require_long(passphrase)
    path = _stewards(keys) / f"{name}.key"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    key = StatementKey.generate()
    key.save(path, passphrase, cost=PASSPHRASE_COST)
    return key.fingerprint


def require_new(keys: Path, name: str) -> None:
    """Refuse a name that no new steward can have.

    Raises
    ------
    UsageError
        If the steward exists.
    MalformedError
        If the name is not of lower-case letters, digits and hyphens.
    """
    check_name("steward", name)
    if name in list_stewards(keys):
        raise UsageError(f"steward '{name}' exists; choose another name")


def list_stewards(keys: Path) -> list[str]:
    """Names of the site's stewards."""
    return sorted(path.stem for path in _stewards(keys).glob("*.key"))


def remove_steward(keys: Path, name: str) -> None:
    """Delete a steward's key; copies of it count until the site's statement key is rotated.

    Raises
    ------
    UsageError
        If there is no such steward, or no other.
    """
    require_steward(keys, name)
    if list_stewards(keys) == [name]:
        raise UsageError(
            f"'{name}' is the only steward, and only a steward can rotate the site's keys; "
            "run 'synthedge site steward add NAME' first"
        )
    for suffix in ("certificate", "key"):
        (_stewards(keys) / f"{name}.{suffix}").unlink(missing_ok=True)


def open_steward(keys: Path, name: str, passphrase: bytes) -> Steward:
    """Open a steward's key.

    Raises
    ------
    UsageError
        If there is no such steward.
    IdentityError
        If the passphrase is wrong.
    """
    require_steward(keys, name)
    return Steward(name, StatementKey.load(_stewards(keys) / f"{name}.key", passphrase))


def _stewards(keys: Path) -> Path:
    return keys / "stewards"


def require_steward(keys: Path, name: str) -> None:
    """Refuse a name that no steward has.

    Raises
    ------
    UsageError
        If there is no such steward.
    """
    if name not in list_stewards(keys):
        raise UsageError(
            f"there is no steward '{name}'; run 'synthedge site steward add {name}' or see 'steward list'"
        )
