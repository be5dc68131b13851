"""Where things lie in a coordinator's folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CoordinatorFolder:
    """Paths below the one folder that `--dir` names.

    The CA's private key and its passphrase lie in `ca/`, which only `authority` reads; an operator who wants
    them off the machine moves that folder away between enrolments, and `serve` keeps running.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """`coordinator.toml`."""
        return self.path / "coordinator.toml"

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.path / "coordinator.db"

    @property
    def ca_key(self) -> Path:
        """The CA's private key, encrypted, mode 0600."""
        return self.path / "ca" / "ca.key"

    @property
    def ca_passphrase(self) -> Path:
        """What the CA's key is encrypted with, mode 0600."""
        return self.path / "ca" / "ca.passphrase"

    @property
    def ca_certificate(self) -> Path:
        """The consortium's root certificate; public."""
        return self.path / "ca.pem"

    @property
    def tls_key(self) -> Path:
        """The server's TLS key, mode 0600."""
        return self.path / "tls.key"

    @property
    def tls_passphrase(self) -> Path:
        """What the server's TLS key is encrypted with, mode 0600."""
        return self.path / "tls.passphrase"

    @property
    def tls_certificate(self) -> Path:
        """The server's TLS certificate."""
        return self.path / "tls.pem"

    @property
    def log_key(self) -> Path:
        """The key that signs the heads of the audit log, mode 0600."""
        return self.path / "log.key"

    @property
    def log_passphrase(self) -> Path:
        """What the log's key is encrypted with, mode 0600."""
        return self.path / "log.passphrase"

    @property
    def console_token(self) -> Path:
        """What the operator logs in to the web console with, mode 0600."""
        return self.path / "console.token"

    @property
    def spool(self) -> Path:
        """Sealed bytes on their way."""
        return self.path / "spool"

    @property
    def flower(self) -> Path:
        """The SuperLink's database and keys, and what its proxy needs."""
        return self.path / "flower"

    @property
    def lock(self) -> Path:
        """Held by the one running `serve`."""
        return self.path / "serve.lock"
