"""The sites' port speaks TLS 1.3 with a client certificate of this consortium, or not at all."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from synthedge_client.keystore import load_keys
from system_consortium import Finished, addresses, serving

# Only to make a stranger's certificate; the product does not need the program.
OPENSSL = shutil.which("openssl") or "openssl"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(scope="module")
def sites_port(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    coordinator = finished.folder / "coordinator"
    with serving(coordinator, tmp_path_factory.mktemp("tls")):
        yield int(addresses(coordinator)[0].rpartition(":")[2])


def context(finished: Finished) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(finished.folder / "coordinator" / "ca.pem"))
    made.set_alpn_protocols(["h2"])
    return made


def with_certificate(finished: Finished, key_file: Path) -> ssl.SSLContext:
    keys = load_keys(finished.folder / "north" / "keys")
    key_file.touch(mode=0o600)
    key_file.write_bytes(keys.tls.pem())
    made = context(finished)
    made.load_cert_chain(keys.certificate_file, key_file)
    return made


def connect(tls: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    with closing_on_error(plain):
        return tls.wrap_socket(plain, server_hostname="127.0.0.1")


@contextmanager
def closing_on_error(plain: socket.socket) -> Iterator[None]:
    try:
        yield
    except OSError:
        plain.close()
        raise


def answer(secured: ssl.SSLSocket) -> bytes:
    """Greet as HTTP/2 does and read what comes; in TLS 1.3 a server refuses the client only then."""
    with secured:
        try:
            secured.sendall(PREFACE)
            return secured.recv(9)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_a_site_with_its_certificate_is_answered_over_tls_13(
    finished: Finished, sites_port: int, tmp_path: Path
) -> None:
    secured = connect(with_certificate(finished, tmp_path / "key.pem"), sites_port)
    assert secured.version() == "TLSv1.3"
    assert answer(secured)[3] == 4  # a SETTINGS frame (RFC 9113, section 6.5)


def test_nobody_is_answered_without_a_certificate(finished: Finished, sites_port: int) -> None:
    assert answer(connect(context(finished), sites_port)) == b""


def test_a_certificate_that_nobody_of_this_consortium_signed_is_not_answered(
    finished: Finished, sites_port: int, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=north",
         "-addext", "subjectAltName=URI:spiffe://diabetes-demo/site/north"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    stranger = context(finished)
    stranger.load_cert_chain(certificate, key)
    assert answer(connect(stranger, sites_port)) == b""


def test_tls_12_is_not_spoken_even_with_a_certificate(
    finished: Finished, sites_port: int, tmp_path: Path
) -> None:
    old = with_certificate(finished, tmp_path / "key.pem")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(old, sites_port)


def test_plain_text_is_not_spoken(sites_port: int) -> None:
    with socket.create_connection(("127.0.0.1", sites_port), timeout=10) as plain:
        plain.sendall(PREFACE)
        came = plain.recv(9)
    # Nothing, or a TLS alert (content type 21): no HTTP/2.
    assert came == b"" or came[0] == 21
