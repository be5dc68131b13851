"""Flower's SuperLink beside the coordinator: on loopback, for the SuperNodes of the sites that take part and no other.

Rules
-----
* Flower's control interface has no login: it listens on loopback alone, and a reverse proxy lets sites reach nothing
  but the calls of their SuperNodes (``deploy/flower/nginx.conf``).
* Which SuperNodes it knows follows from the keys that sites announced by signed statement and from how they stand:
  a site that is suspended or revoked is cut off within seconds.
* Apps are run by nobody but `flower_run`: taking a task needs a secret of this folder.
"""

import logging
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.flower_app import prepare_flower
from synthedge_protocols.private_files import read_private_file, write_private_file
from synthedge_server import operations
from synthedge_server.authority import load_tls_key
from synthedge_server.flower_nodes import announced_keys
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.locks import held
from synthedge_server.log import log
from synthedge_server.settings import Address, read_settings

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

# What the proxy asks the SuperLink's certificate for: nginx compares names, no addresses.
NAME: Final = "superlink"
_CERTIFICATE_DAYS: Final = 3650
_LOOK_EVERY_S: Final = 2.0


class SuperLink:
    """The SuperLink of a coordinator's folder, as this machine reaches it.

    Attributes
    ----------
    address : Address
        On loopback.
    certificate : bytes
        PEM; its own, and what its callers trust.
    secret : bytes
        Whoever has it may take tasks.

    Raises
    ------
    UnavailableError
        If none was ever started on the folder.
    """

    def __init__(self, folder: CoordinatorFolder) -> None:
        self.address = read_settings(folder.settings).flower_listen
        try:
            self.certificate = (folder.flower / "superlink.pem").read_bytes()
        except FileNotFoundError:
            raise UnavailableError(
                f"no SuperLink was started on {folder.path}; run 'synthedge-coordinator flower serve'"
            ) from None
        self.secret = read_private_file(folder.flower / "superexec.secret")

    def control(self) -> "ControlHttpClient":
        """A client of its control interface; close it."""
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        return ControlHttpClient.from_server_address(
            str(self.address),
            insecure=False,
            root_certificates=self.certificate,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )


def node_ids(control: "ControlHttpClient") -> dict[bytes, int]:
    """Public key, PEM, to the id of every SuperNode the SuperLink knows."""
    from flwr.proto.control_pb2 import ListNodesRequest

    nodes = control.ListNodes(ListNodesRequest()).nodes_info
    return {node.public_key: node.node_id for node in nodes if not node.unregistered_at}


def keep_nodes(folder: CoordinatorFolder, control: "ControlHttpClient") -> None:
    """Let the SuperLink know the SuperNodes of the sites that may be asked, and no other.

    Raises
    ------
    httpx.HTTPError
        If the SuperLink does not answer, or refuses; whoever is to be cut off is cut off by then.
    """
    from flwr.proto.control_pb2 import RegisterNodeRequest, UnregisterNodeRequest

    with operations.reading(folder) as engine, engine.connect() as connection:
        keys = announced_keys(connection)
    known = node_ids(control)
    for key, node in known.items():
        if key not in keys.values():
            control.UnregisterNode(UnregisterNodeRequest(node_id=node))
            log("supernode-unregistered", node=node)
    missing = {site: key for site, key in keys.items() if key not in known}
    if missing:
        _forget_unregistered(folder.superlink_database)
    for site, key in missing.items():
        control.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
        log("supernode-registered", site=site)


def _forget_unregistered(database: Path) -> None:
    """Delete SuperNodes that were cut off: Flower keeps the keys, takes none again, and has no call for this."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM node WHERE unregistered_at IS NOT NULL")


def serve_superlink(folder: CoordinatorFolder, announce: Callable[[Address], None]) -> None:
    """Run the SuperLink in this process until SIGTERM; it keeps its SuperNodes up to date beside.

    Parameters
    ----------
    folder : CoordinatorFolder
    announce : callable
        Called once sites can connect.

    Raises
    ------
    UsageError
        If the coordinator has no TLS certificate yet, or its port is another program's.
    RefusedError
        If a SuperLink runs on the folder already.
    """
    address = read_settings(folder.settings).flower_listen
    home = folder.flower
    try:
        home.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder {home} cannot be made: {error.strerror}") from None
    with held(home / "serve.lock", f"a SuperLink runs on {folder.path} already; stop it first"):
        _refuse_taken(address)
        _serve(folder, home, address, announce)


def _refuse_taken(address: Address) -> None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise UsageError(
                f"the SuperLink cannot listen on {address} ({error.strerror}); end the program that does, or set "
                "flower_listen in coordinator.toml, and nginx's proxy_pass with it"
            ) from None


def _serve(
    folder: CoordinatorFolder, home: Path, address: Address, announce: Callable[[Address], None]
) -> None:
    _make_certificate(home)
    if not (home / "superexec.secret").exists():
        write_private_file(home / "superexec.secret", os.urandom(32))
    _write_proxy_files(folder)
    prepare_flower()
    os.environ["FLWR_HOME"] = str(home)
    from flwr.superlink.cli import flower_superlink

    # They tell of every call; refusals and faults are enough beside our own lines.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").addFilter(_is_refusal)
    # Not before: two threads that import Flower at once see half of it.
    threading.Thread(target=_keep_or_end, args=(folder, announce), daemon=True).start()
    sys.argv = [
        "flower-superlink",
        *("--host", address.host, "--port", str(address.port)),
        *("--ssl-ca-certfile", str(home / "superlink.pem")),
        *("--ssl-certfile", str(home / "superlink.pem")),
        *("--ssl-keyfile", str(home / "superlink.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        # Nothing runs apps by itself.
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(home / "superexec.secret")),
        *("--database", str(folder.superlink_database)),
    ]
    flower_superlink()


def _is_refusal(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's access log, which ends with the status, tells of a call that was not answered."""
    status = record.args[-1] if isinstance(record.args, tuple) and record.args else None
    return not (isinstance(status, int) and status < 400)


def _keep_or_end(folder: CoordinatorFolder, announce: Callable[[Address], None]) -> None:
    try:
        _keep(folder, announce)
    except Exception:  # noqa: BLE001 - whatever it was: without it nobody is let in, and nobody cut off
        log("supernodes-failed", level=logging.ERROR, failed=True)
        os.kill(os.getpid(), signal.SIGTERM)


def _keep(folder: CoordinatorFolder, announce: Callable[[Address], None]) -> None:
    import httpx

    link = SuperLink(folder)
    client = link.control()
    is_announced, told = False, ""
    while True:
        try:
            _write_proxy_files(folder)
            keep_nodes(folder, client)
            told = ""
            if not is_announced:
                announce(link.address)
                is_announced = True
        except (httpx.HTTPError, sqlite3.OperationalError, UnavailableError) as error:
            # Not up yet, or a database is away; what is due then is done then.
            why = describe(error) if isinstance(error, httpx.HTTPError) else type(error).__name__
            if is_announced and told != (told := why):
                log("supernodes-wait", error=told)
        time.sleep(_LOOK_EVERY_S)


def _make_certificate(home: Path) -> None:
    """Make the SuperLink's own certificate for loopback, once; the proxy and `discover` trust nothing else there."""
    if (home / "superlink.pem").exists():
        return
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    loopback = [x509.IPAddress(ip_address(text)) for text in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), *loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (home / "superlink.key").unlink(missing_ok=True)  # of a start that was interrupted
    write_private_file(
        home / "superlink.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    (home / "superlink.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_proxy_files(folder: CoordinatorFolder) -> None:
    """Give the proxy the coordinator's certificate and key, and again when it was renewed."""
    try:
        chain = folder.tls_certificate.read_bytes() + folder.ca_certificate.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{folder.tls_certificate} is not there yet; run 'synthedge-coordinator serve' first"
        ) from None
    target = folder.flower / "proxy.pem"
    if target.exists() and target.read_bytes() == chain:
        return
    for left in folder.flower.glob(".*proxy.*"):
        left.unlink()  # of a start that was killed: it may hold the key
    for name, data in (("proxy.key", load_tls_key(folder).pem()), ("proxy.pem", chain)):
        staged = folder.flower / f".{name}"
        write_private_file(staged, data)
        staged.replace(folder.flower / name)
    log("proxy-files-written", folder=str(folder.flower))


def describe(error: Any) -> str:
    """One sentence of an error of Flower's HTTP client."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return f"the SuperLink answered {error.response.status_code}"
    return "the SuperLink does not answer; is 'synthedge-coordinator flower serve' running?"
