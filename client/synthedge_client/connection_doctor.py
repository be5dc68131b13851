"""Why the coordinator is not reached: every step of a connection tried by itself, with the next step for each failure.

gRPC tells only that a connection failed. Here the same connection is made with Python's own sockets and TLS: name,
port, handshake, the coordinator's certificate, then whether it takes ours. Nothing but a greeting is sent.
"""

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from synthedge_client.keystore import KeyStore, read_certificate
from synthedge_protocols.certificates import load_certificate
from synthedge_protocols.errors import ProtocolError

TIMEOUT_S = 5.0
# RFC 9113, section 3.4, with an empty SETTINGS frame: in TLS 1.3 a server says only then that it refuses a certificate.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
# OpenSSL's X509_V_ERR_...: not yet valid, expired, host name, IP address.
_NOT_YET, _EXPIRED, _OTHER_HOST, _OTHER_IP = 9, 10, 62, 64

Now = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


def explain_connection(address: str, keys: KeyStore, now: Now = _now) -> list[str]:
    """Say what keeps a site from its coordinator.

    Parameters
    ----------
    address : str
        ``host:port``, as enrolment told it.
    keys : KeyStore
        The site's certificate, TLS key and its consortium's CA.
    now : callable
        The time, aware.

    Returns
    -------
    list of str
        One sentence or two each: what was found, and the next step. Empty if every step succeeds.
    """
    try:
        ca = load_certificate(read_certificate(keys.ca_file))
        own = load_certificate(read_certificate(keys.certificate_file))
    except ProtocolError as error:
        return [str(error)]
    found = _own_certificate(own, ca, keys, now())
    if problem := explain_way(address, keys, now):
        found.append(problem)
    proxies = [name for name in _PROXY_VARIABLES if os.environ.get(name)]
    if proxies and not found:
        found.append(
            f"a direct connection to {address} works, but the environment variable {proxies[0]} sends gRPC through a "
            f"proxy; add '{_host_and_port(address)[0]}' to no_proxy where the agent runs"
        )
    return found


def explain_way(
    address: str, keys: KeyStore, now: Now = _now, *, is_grpc: bool = True
) -> str | None:
    """Say what stands between a site and a port of its coordinator; nothing of the site's own certificate.

    `is_grpc` is false for the port of the coordinator's Flower proxy, which asks for no certificate.

    Raises
    ------
    ProtocolError
        If the site has no certificate of its consortium's CA.
    """
    host, port = _host_and_port(address)
    plain = _dial(host, port)
    if isinstance(plain, str):
        return plain
    with plain:
        ca = load_certificate(read_certificate(keys.ca_file))
        return _secure(plain, host, address, keys, ca, now(), is_grpc)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _own_certificate(
    own: x509.Certificate, ca: x509.Certificate, keys: KeyStore, now: datetime
) -> list[str]:
    found = []
    if now < own.not_valid_before_utc:
        found.append(
            f"this site's certificate begins {_date(own.not_valid_before_utc)}, and this machine's clock says "
            f"{_date(now)}: the clock is behind; set it by NTP ('timedatectl status')"
        )
    elif now > own.not_valid_after_utc:
        found.append(
            f"this site's certificate expired {_date(own.not_valid_after_utc)}; this machine's clock says {_date(now)}."
            " If the clock is right, run 'synthedge site run --once', which renews it; else set the clock by NTP"
        )
    if own.issuer != ca.subject:
        found.append(
            f"{keys.certificate_file} was not issued by the CA in {keys.ca_file}; restore both from one backup"
        )
    elif own.public_key() != load_pem_private_key(keys.tls.pem(), None).public_key():
        found.append(
            f"{keys.certificate_file} is not that of the TLS key beside it; restore both from one backup"
        )
    return found


def _dial(host: str, port: int) -> socket.socket | str:
    address = f"{host}:{port}"
    try:
        return socket.create_connection((host, port), timeout=TIMEOUT_S)
    except socket.gaierror:
        return (
            f"the name '{host}' does not resolve; check this machine's DNS with 'getent hosts {host}', or ask the "
            "operator whether the coordinator has moved"
        )
    except ConnectionRefusedError:
        return (
            f"nothing listens at {address}: the connection was refused; ask the operator whether the coordinator "
            "runs, and whether this is still its port"
        )
    except TimeoutError:
        return (
            f"{address} did not answer within {TIMEOUT_S:.0f} s; a firewall may drop the connection: ask your network "
            f"administrators to let this machine reach TCP port {port} of '{host}'"
        )
    except OSError as error:
        return f"{address} cannot be reached ({error.strerror}); check this machine's network"


def _secure(
    plain: socket.socket,
    host: str,
    address: str,
    keys: KeyStore,
    ca: x509.Certificate,
    now: datetime,
    is_grpc: bool,
) -> str | None:
    context = ssl.create_default_context(cafile=str(keys.ca_file))
    if is_grpc:
        context.set_alpn_protocols(["h2"])
        _show_certificate(context, keys)
    try:
        with context.wrap_socket(plain, server_hostname=host) as secured:
            if secured.version() != "TLSv1.3":
                return (
                    f"{address} speaks only {secured.version()}; the coordinator speaks TLS 1.3, so a proxy sits in "
                    "between: ask your network administrators to let this connection pass unopened"
                )
            if not is_grpc:
                return None
            if secured.selected_alpn_protocol() != "h2":
                return (
                    f"what answers at {address} does not speak HTTP/2; a proxy or another service: ask your network "
                    "administrators to let this connection pass unopened"
                )
            return _greet(secured, address, keys)
    except ssl.SSLCertVerificationError as error:
        return _untrusted(error, host, address, ca, now)
    except ssl.SSLError as error:
        return _no_handshake(error, address)
    except (TimeoutError, OSError):
        return (
            f"{address} takes the connection but does not answer a TLS greeting within {TIMEOUT_S:.0f} s, or closes "
            "it: a firewall or proxy in between, or another service on that port; ask your network administrators"
        )


def _show_certificate(context: ssl.SSLContext, keys: KeyStore) -> None:
    # Python's TLS takes keys from files only: one of mode 0600, gone at once.
    with TemporaryDirectory(dir=keys.folder) as folder:
        path = Path(folder) / "tls.pem"
        path.touch(mode=0o600)
        path.write_bytes(keys.tls.pem())
        with suppress(ssl.SSLError):  # a certificate of another key: found above
            context.load_cert_chain(keys.certificate_file, path)


def _greet(secured: ssl.SSLSocket, address: str, keys: KeyStore) -> str | None:
    try:
        secured.sendall(_GREETING)
        if secured.recv(9):
            return None
        reason = ""
    except (ssl.SSLError, ConnectionError) as error:
        reason = (getattr(error, "reason", None) or "").lower().replace("_", " ")
    said = f" (it said: {reason})" if reason else ""
    return (
        f"the coordinator at {address} refuses this site's certificate{said}; check that {keys.certificate_file} is of "
        "its consortium and in force, and that the coordinator's clock is right: ask its operator"
    )


def _untrusted(
    error: ssl.SSLCertVerificationError,
    host: str,
    address: str,
    ca: x509.Certificate,
    now: datetime,
) -> str:
    shown = _shown_certificate(address)
    if error.verify_code == _EXPIRED:
        end = f" {_date(shown.not_valid_after_utc)}" if shown else ""
        return (
            f"the coordinator's certificate expired{end}; this machine's clock says {_date(now)}. If that is right,"
            " tell the operator: the coordinator could not renew it; else set the clock by NTP ('timedatectl status')"
        )
    if error.verify_code == _NOT_YET:
        begin = f" {_date(shown.not_valid_before_utc)}" if shown else ""
        return (
            f"the coordinator's certificate begins{begin}, and this machine's clock says {_date(now)}: one of the two "
            "clocks is wrong; set this one by NTP ('timedatectl status'), then ask the operator about the other"
        )
    if error.verify_code in (_OTHER_HOST, _OTHER_IP):
        names = _names(shown) if shown else "other hosts"
        return (
            f"the coordinator's certificate is for {names}, not for '{host}'; ask the operator to add '{host}' to "
            "names in coordinator.toml, or for the address to use"
        )
    issuer = shown.issuer.rfc4514_string() if shown else "somebody else"
    return (
        f"what answers at {address} shows a certificate issued by '{issuer}', not by this consortium's CA "
        f"'{ca.subject.rfc4514_string()}': a proxy that opens TLS, or another consortium's coordinator; ask your "
        "network administrators to let this connection pass unopened, then the operator for the address"
    )


def _no_handshake(error: ssl.SSLError, address: str) -> str:
    reason = (error.reason or "").upper()
    if "VERSION_NUMBER" in reason or "HTTP" in reason or "RECORD" in reason:
        return (
            f"what answers at {address} does not speak TLS; a proxy or another service on that port: check the address "
            "with the operator, and ask your network administrators about a proxy"
        )
    if "PROTOCOL" in reason:
        return (
            f"what answers at {address} does not speak TLS 1.3; a proxy sits in between: ask your network "
            "administrators to let this connection pass unopened"
        )
    return (
        f"TLS with {address} failed ({reason.lower().replace('_', ' ') or 'closed'}); a proxy in between, or another "
        "service on that port: ask your network administrators, then the operator"
    )


def _shown_certificate(address: str) -> x509.Certificate | None:
    """The certificate that answers, believed by nobody: only to say what it is."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S) as plain,
            context.wrap_socket(plain) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except OSError:
        return None
    return load_certificate(shown) if shown else None


def _names(certificate: x509.Certificate) -> str:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no host at all"
    return ", ".join(f"'{name.value}'" for name in found)


def _date(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
