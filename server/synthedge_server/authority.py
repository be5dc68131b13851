"""The consortium's certificate authority: a process that lives for one certificate.

`serve` never loads the CA's key. It runs ``python -m synthedge_server.authority DIR site ID`` with a certificate
request on the child's stdin and reads the certificate from its stdout, both DER; ``DIR server`` certifies
the folder's own TLS key.
"""

import asyncio
import logging
import secrets
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from synthedge_protocols.certificates import (
    create_ca,
    issue_server_certificate,
    issue_site_certificate,
    load_certificate,
    pem,
)
from synthedge_protocols.errors import ProtocolError, UnavailableError
from synthedge_protocols.keys import TlsKey
from synthedge_protocols.private_files import read_private_file, write_private_file
from synthedge_server.certificate_files import read_certificate
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.log import log
from synthedge_server.settings import read_settings

TIMEOUT_S: Final = 20.0
_MAX_REQUEST_BYTES: Final = 65_536


def create(folder: CoordinatorFolder, consortium: str, now: datetime) -> None:
    """Make a consortium's authority and the coordinator's TLS key in a new folder.

    Raises
    ------
    FileExistsError
        If there is one already; keys are never overwritten.
    """
    folder.ca_key.parent.mkdir(mode=0o700)
    key, certificate = create_ca(consortium, now=now)
    _save_key(key, folder.ca_key, folder.ca_passphrase)
    folder.ca_certificate.write_bytes(pem(certificate))
    _save_key(TlsKey.generate(), folder.tls_key, folder.tls_passphrase)


def load_tls_key(folder: CoordinatorFolder) -> TlsKey:
    """Read the coordinator's TLS key.

    Raises
    ------
    IdentityError
        If it is missing, damaged, or readable by others than its owner.
    """
    return TlsKey.load(folder.tls_key, read_private_file(folder.tls_passphrase))


async def certify_site(folder: CoordinatorFolder, site: str, request: bytes) -> x509.Certificate:
    """Ask the authority for a site's certificate.

    Parameters
    ----------
    folder : CoordinatorFolder
    site : str
        A checked site id.
    request : bytes
        PKCS#10, DER.

    Raises
    ------
    UnavailableError
        If the authority did not answer with a certificate; the cause is in the log.
    """
    process = await asyncio.create_subprocess_exec(
        *_command(folder, "site", site),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(request), TIMEOUT_S)
    except TimeoutError:
        raise UnavailableError("the consortium's authority did not answer in time") from None
    finally:
        # Also where the caller went away.
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _answer(process.returncode, output, errors)


def certify_server(folder: CoordinatorFolder) -> x509.Certificate:
    """Ask the authority for the coordinator's own TLS certificate; raises as `certify_site`."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            _command(folder, "server"),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            input=b"",
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError("the consortium's authority did not answer in time") from None
    return _answer(done.returncode, done.stdout, done.stderr)


def _answer(code: int | None, output: bytes, errors: bytes) -> x509.Certificate:
    if code != 0:
        # Paths and causes are the operator's business, not a stranger's.
        log("authority-failed", level=logging.ERROR, reason=errors.decode(errors="replace")[-500:])
        raise UnavailableError(
            "the consortium's authority cannot certify now; its operator finds the cause in the log"
        )
    return load_certificate(output)


def _command(folder: CoordinatorFolder, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "synthedge_server.authority", str(folder.path), *arguments]


def _save_key(key: TlsKey, path: Path, passphrase_path: Path) -> None:
    passphrase = secrets.token_hex(32).encode()
    write_private_file(passphrase_path, passphrase)
    key.save(path, passphrase)


def _issue(folder: CoordinatorFolder, arguments: list[str]) -> x509.Certificate:
    """Sign one certificate; the only place that reads the CA's key."""
    settings = read_settings(folder.settings)
    ca_key = TlsKey.load(folder.ca_key, read_private_file(folder.ca_passphrase))
    ca_certificate = read_certificate(folder.ca_certificate)
    now = datetime.now(UTC)
    if arguments == ["server"]:
        key = load_tls_key(folder)
        return issue_server_certificate(ca_key, ca_certificate, key, names=settings.names, now=now)
    (_, site) = arguments
    return issue_site_certificate(
        ca_key,
        ca_certificate,
        sys.stdin.buffer.read(_MAX_REQUEST_BYTES),
        consortium=settings.consortium,
        site=site,
        now=now,
    )


def main() -> int:
    """Answer one request; the exit code is that of the error, its sentence goes to stderr."""
    folder = CoordinatorFolder(Path(sys.argv[1]))
    try:
        certificate = _issue(folder, sys.argv[2:])
    except ProtocolError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.buffer.write(certificate.public_bytes(Encoding.DER))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
