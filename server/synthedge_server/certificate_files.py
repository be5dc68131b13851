"""The coordinator's certificates on disk."""

from pathlib import Path

from cryptography import x509

from synthedge_protocols.certificates import load_certificate
from synthedge_protocols.errors import MalformedError, UnavailableError


def read_certificate(path: Path) -> x509.Certificate:
    """Read one of the coordinator's own certificates.

    Raises
    ------
    UnavailableError
        If it cannot be read, or is none.
    """
    try:
        return load_certificate(path.read_bytes())
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
    except MalformedError:
        found = "is no certificate"
    raise UnavailableError(f"{path} {found}; restore it from a backup")
