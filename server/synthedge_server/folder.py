"""Where things lie in a coordinator's folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from synthedge_core.errors import UsageError


@dataclass(frozen=True, slots=True)
class CoordinatorFolder:
    """Paths below the one folder that `--dir` names.

    The CA's private key and its passphrase lie in `ca/`, which only `authority` reads; an operator who wants
    them off the machine moves that folder away between enrolments, and `serve` keeps running.
    """

    path: Path

    @contextmanager
    def being_made(self) -> Iterator[None]:
        """Make the folder, for the block to fill; whatever goes wrong there, it is empty again afterwards.

        Raises
        ------
        UsageError
            If it is no folder or holds something, or cannot be made.
        UnavailableError
            If it cannot be written while it is filled.
        """
        # Where things lie is asked by every command, and importing the wire's errors makes `--help` slow.
        from synthedge_protocols.errors import UnavailableError

        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_empty = not any(self.path.iterdir())
        except OSError as error:
            raise UsageError(f"folder {self.path} cannot be made: {error.strerror}") from None
        if not is_empty:
            raise UsageError(f"{self.path} is not empty; name a new folder")
        try:
            yield
        except BaseException as error:
            for path in self.path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if isinstance(error, OSError):
                raise UnavailableError(
                    f"{self.path} cannot be written: {error.strerror or error}"
                ) from None
            raise

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
    def superlink_database(self) -> Path:
        """The SuperLink's own, made anew from the coordinator's records where it is missing."""
        return self.flower / "superlink.db"

    @property
    def lock(self) -> Path:
        """Held by the one running `serve`."""
        return self.path / "serve.lock"
