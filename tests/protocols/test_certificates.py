from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import cast

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from synthedge_protocols.certificates import (
    create_ca,
    issue_server_certificate,
    issue_site_certificate,
    load_certificate,
    pem,
    site_csr,
    site_of,
)
from synthedge_protocols.errors import IdentityError, MalformedError
from synthedge_protocols.keys import TlsKey

NOW = datetime.now(UTC)
CA_KEY, CA = create_ca("demo", now=NOW)
KEY = TlsKey.generate()


def certificate_of(site: str, *, consortium: str = "demo") -> x509.Certificate:
    request = site_csr(KEY, site)
    return issue_site_certificate(CA_KEY, CA, request, consortium=consortium, site=site, now=NOW)


def test_a_certificate_says_whose_it_is_in_both_encodings() -> None:
    certificate = certificate_of("north")
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert site_of(pem(certificate), CA, "demo", now=NOW) == "north"
    assert site_of(der, CA, "demo", now=NOW) == "north"
    assert load_certificate(der) == load_certificate(pem(certificate)) == certificate


def test_only_the_public_key_of_a_request_is_used() -> None:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://demo/site/x")]),
            critical=False,
        )
        .sign(KEY.private_key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    issued = issue_site_certificate(CA_KEY, CA, request, consortium="demo", site="north", now=NOW)
    assert site_of(pem(issued), CA, "demo", now=NOW) == "north"
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issued.subject.rfc4514_string() == "CN=north"
    assert issued.public_key() == KEY.private_key.public_key()


@pytest.mark.parametrize("days", [-1, 31])
def test_a_certificate_is_refused_before_and_after_its_thirty_days(days: int) -> None:
    with pytest.raises(IdentityError, match="synthedge site doctor"):
        site_of(pem(certificate_of("north")), CA, "demo", now=NOW + timedelta(days=days))


def test_a_certificate_of_another_authority_or_consortium_is_refused() -> None:
    _, other_ca = create_ca("demo", now=NOW)
    with pytest.raises(IdentityError, match="not one of consortium"):
        site_of(pem(certificate_of("north")), other_ca, "demo", now=NOW)
    with pytest.raises(IdentityError, match="does not name one site of 'demo'"):
        site_of(pem(certificate_of("north", consortium="other")), CA, "demo", now=NOW)


def test_neither_the_server_nor_the_authority_is_a_site() -> None:
    server = issue_server_certificate(CA_KEY, CA, KEY, names=["localhost"], now=NOW)
    for certificate in (server, CA):
        with pytest.raises(IdentityError):
            site_of(pem(certificate), CA, "demo", now=NOW)


def test_a_site_certificate_cannot_issue_another() -> None:
    intermediate = certificate_of("north")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(intermediate.subject)
        .public_key(KEY.private_key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("spiffe://demo/site/south")]
            ),
            critical=True,
        )
    )
    forged = builder.sign(KEY.private_key, hashes.SHA256())
    with pytest.raises(IdentityError):
        site_of(pem(forged) + pem(intermediate), CA, "demo", now=NOW)


def test_a_request_that_proves_nothing_is_refused() -> None:
    good = site_csr(KEY, "north")
    # The signature is the last thing in a PKCS#10 request.
    tampered = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(IdentityError, match="not signed by the key"):
        issue_site_certificate(CA_KEY, CA, tampered, consortium="demo", site="north", now=NOW)
    # Another version, a kind of key nobody knows, a point on no curve: each an error of its own to the library.
    version, kind, point = b"\x02\x01\x00\x30", b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x03\x42\x00\x04"
    changed = [
        good.replace(version, version.replace(b"\x00", b"\x05"), 1),
        good.replace(kind, kind[:-1] + b"\x09", 1),
        good.replace(point, point[:-1] + b"\x07", 1),
    ]
    assert good not in changed
    for request in (b"no", *changed):
        with pytest.raises(MalformedError, match="PKCS#10"):
            issue_site_certificate(CA_KEY, CA, request, consortium="demo", site="north", now=NOW)


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())]
)
def test_a_request_for_another_kind_of_key_is_refused(
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, algorithm)
        .public_bytes(serialization.Encoding.DER)
    )
    with pytest.raises(MalformedError, match="P-256"):
        issue_site_certificate(CA_KEY, CA, request, consortium="demo", site="north", now=NOW)


def test_a_server_certificate_needs_a_name() -> None:
    with pytest.raises(MalformedError, match="host name"):
        issue_server_certificate(CA_KEY, CA, KEY, names=[], now=NOW)


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError, match=r"no X\.509"):
        site_of(data, CA, "demo", now=NOW)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_grpc_accepts_both_certificates_and_shows_the_server_whose_the_client_is(
    host: str,
) -> None:
    server_key, site_key = TlsKey.generate(), TlsKey.generate()
    server_certificate = issue_server_certificate(
        CA_KEY, CA, server_key, names=["127.0.0.1", "localhost"], now=NOW
    )
    site_certificate = issue_site_certificate(
        CA_KEY, CA, site_csr(site_key, "north"), consortium="demo", site="north", now=NOW
    )

    def who_calls(_request: bytes, context: grpc.ServicerContext) -> bytes:
        # grpcio's type stubs say that these are integers.
        peer = b"".join(cast("Iterable[bytes]", context.auth_context()["x509_pem_cert"]))
        return site_of(peer, CA, "demo", now=NOW).encode()

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(who_calls)
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test", {"WhoAmI": handler}),)
    )
    credentials = grpc.ssl_server_credentials(
        [(server_key.pem(), pem(server_certificate))], pem(CA), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        channel_credentials = grpc.ssl_channel_credentials(
            pem(CA), site_key.pem(), pem(site_certificate)
        )
        with grpc.secure_channel(f"{host}:{port}", channel_credentials) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test/WhoAmI")
            assert call(b"", timeout=10) == b"north"
    finally:
        server.stop(None).wait()
