"""Each way a connection fails, with real sockets and certificates: what the doctor says, and what to do next."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from synthedge_client import connection_doctor
from synthedge_client.connection_doctor import explain_connection, explain_way
from synthedge_client.keystore import KeyStore, create_keys, load_keys
from synthedge_protocols.certificates import (
    create_ca,
    issue_server_certificate,
    issue_site_certificate,
    pem,
    site_csr,
)
from synthedge_protocols.keys import TlsKey

NOW = datetime.now(UTC)
CA_KEY, CA = create_ca("demo", now=NOW - timedelta(days=100))
OTHER_KEY, OTHER_CA = create_ca("other", now=NOW - timedelta(days=100))
SERVER_KEY = TlsKey.generate()
Secured = Callable[..., Callable[[socket.socket], None]]
SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def server_certificate(
    now: datetime = NOW, *, name: str = "127.0.0.1", key: TlsKey = CA_KEY, ca: x509.Certificate = CA
) -> x509.Certificate:
    return issue_server_certificate(key, ca, SERVER_KEY, names=[name], now=now)


@pytest.fixture(scope="module")
def keys_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "keys"
    create_keys(folder)
    return folder


@pytest.fixture
def keys(keys_folder: Path) -> KeyStore:
    keys = load_keys(keys_folder)
    keys.ca_file.write_bytes(pem(CA))
    certify(keys)
    return keys


def certify(
    keys: KeyStore, now: datetime = NOW, *, key: TlsKey = CA_KEY, ca: x509.Certificate = CA
) -> None:
    certificate = issue_site_certificate(
        key, ca, site_csr(keys.tls, "north"), consortium="demo", site="north", now=now
    )
    keys.certificate_file.write_bytes(pem(certificate))


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each connection so; yields its address."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            connection.settimeout(2)
            with connection:
                try:
                    answer(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
        server.close()


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    """Answers over TLS: what a coordinator, or a proxy before it, would show."""

    def make(
        certificate: x509.Certificate,
        *,
        trusts: x509.Certificate = CA,
        alpn: str = "h2",
        at_most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> Callable[[socket.socket], None]:
        chain = tmp_path / "server.pem"
        chain.write_bytes(SERVER_KEY.pem() + pem(certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        context.load_verify_locations(cadata=pem(trusts).decode())
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([alpn])
        context.maximum_version = at_most

        def answer(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(100)
                tls.sendall(SETTINGS_FRAME)

        return answer

    return make


def test_a_coordinator_that_answers_is_no_problem(keys: KeyStore, secured: Secured) -> None:
    with listening(secured(server_certificate())) as address:
        assert explain_connection(address, keys) == []


CASES: dict[str, tuple[dict[str, object], tuple[str, str]]] = {
    "wrong name": (
        {"certificate": server_certificate(name="coordinator.example")},
        ("is for 'coordinator.example', not for '127.0.0.1'", "names in coordinator.toml"),
    ),
    "expired": (
        {"certificate": server_certificate(NOW - timedelta(days=60))},
        ("the coordinator's certificate expired", "set the clock by NTP"),
    ),
    "not yet": (
        {"certificate": server_certificate(NOW + timedelta(days=60))},
        ("the coordinator's certificate begins", "set this one by NTP"),
    ),
    "wrong CA": (
        {"certificate": server_certificate(key=OTHER_KEY, ca=OTHER_CA)},
        ("issued by 'CN=SynthEdge consortium other'", "a proxy that opens TLS"),
    ),
    "TLS 1.2": (
        {"certificate": server_certificate(), "at_most": ssl.TLSVersion.TLSv1_2},
        ("speaks only TLSv1.2", "a proxy sits in between"),
    ),
    "no HTTP/2": (
        {"certificate": server_certificate(), "alpn": "http/1.1"},
        ("does not speak HTTP/2", "ask your network administrators"),
    ),
    "our certificate refused": (
        {"certificate": server_certificate(), "trusts": OTHER_CA},
        ("refuses this site's certificate", "ask its operator"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_failing_handshake_is_explained_with_the_next_step(
    keys: KeyStore, secured: Secured, case: str
) -> None:
    arguments, texts = CASES[case]
    with listening(secured(**arguments)) as address:
        (found,) = explain_connection(address, keys)
    for text in texts:
        assert text in found


def test_a_flower_proxy_needs_no_http_2_and_the_rest_is_explained(
    keys: KeyStore, secured: Secured
) -> None:
    with listening(secured(server_certificate(), alpn="http/1.1")) as address:
        assert explain_way(address, keys, is_grpc=False) is None
    with listening(secured(server_certificate(NOW - timedelta(days=60)))) as address:
        problem = explain_way(address, keys, is_grpc=False)
    assert "the coordinator's certificate expired" in (problem or "")


def test_a_name_that_does_not_resolve(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = explain_connection("no-such-host.invalid:7443", keys)
    assert "does not resolve" in found
    assert "getent hosts no-such-host.invalid" in found


def test_a_port_where_nobody_listens(keys: KeyStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    (found,) = explain_connection(address, keys)
    assert "refused; ask the operator whether the coordinator runs" in found


def test_a_service_that_speaks_no_tls(keys: KeyStore) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listening(answer) as address:
        (found,) = explain_connection(address, keys)
    assert "does not speak TLS; a proxy or another service" in found


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_firewall_that_takes_the_connection_and_says_nothing(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch, hangs_up: bool
) -> None:
    monkeypatch.setattr(connection_doctor, "TIMEOUT_S", 0.3)

    def answer(connection: socket.socket) -> None:
        connection.recv(2000)
        if not hangs_up:
            threading.Event().wait(0.6)

    with listening(answer) as address:
        (found,) = explain_connection(address, keys)
    assert "another service on that port" in found
    assert "ask your network administrators" in found


def test_own_certificate_expired_and_a_clock_that_is_behind(
    keys: KeyStore, secured: Secured
) -> None:
    certify(keys, NOW - timedelta(days=60))
    with listening(secured(server_certificate())) as address:
        expired = explain_connection(address, keys)
        certify(keys)
        behind = explain_connection(address, keys, now=lambda: NOW - timedelta(days=60))
    assert "'synthedge site run --once', which renews it" in expired[0]
    assert "the clock is behind; set it by NTP" in behind[0]


def test_own_certificate_of_another_consortium_or_key(keys: KeyStore, secured: Secured) -> None:
    with listening(secured(server_certificate())) as address:
        certify(keys, key=OTHER_KEY, ca=OTHER_CA)
        assert "was not issued by the CA" in explain_connection(address, keys)[0]
        stranger = issue_site_certificate(
            CA_KEY,
            CA,
            site_csr(TlsKey.generate(), "north"),
            consortium="demo",
            site="north",
            now=NOW,
        )
        keys.certificate_file.write_bytes(pem(stranger))
        assert "not that of the TLS key beside it" in explain_connection(address, keys)[0]


def test_a_proxy_variable_that_only_grpc_follows(
    keys: KeyStore,
    secured: Secured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with listening(secured(server_certificate())) as address:
        (found,) = explain_connection(address, keys)
    assert "https_proxy sends gRPC through a proxy; add '127.0.0.1' to no_proxy" in found


def test_no_key_is_left_in_a_file_of_its_own(keys: KeyStore, secured: Secured) -> None:
    before = sorted(keys.folder.rglob("*"))
    with listening(secured(server_certificate())) as address:
        explain_connection(address, keys)
    assert sorted(keys.folder.rglob("*")) == before
