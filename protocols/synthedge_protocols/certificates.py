"""The consortium's certificate authority, its TLS certificates, and whose a certificate is.

All functions take the time as an argument: nothing here reads a clock.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from synthedge_protocols.errors import IdentityError, MalformedError
from synthedge_protocols.keys import TlsKey
from synthedge_protocols.names import check_name

__all__ = [
    "CERTIFICATE_DAYS",
    "create_ca",
    "is_past_half_life",
    "issue_server_certificate",
    "issue_site_certificate",
    "load_certificate",
    "pem",
    "requested_key",
    "site_csr",
    "site_of",
]

CERTIFICATE_DAYS = 30
"""Life of a leaf certificate; renewed at half of it."""

_CA_DAYS = 3_650
# A certificate is used by clocks that run behind the authority's.
_BACKDATE = timedelta(minutes=5)


def create_ca(consortium: str, *, now: datetime) -> tuple[TlsKey, x509.Certificate]:
    """Make a consortium's authority: a P-256 key and its self-signed certificate for ten years.

    Parameters
    ----------
    consortium : str
        Its name; the only one this authority speaks for.
    now : datetime
        Aware; the certificate begins five minutes earlier.
    """
    check_name("consortium", consortium)
    key = TlsKey.generate()
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"SynthEdge consortium {consortium}")]
    )
    builder = (
        _builder(name, name, key.private_key.public_key(), now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.private_key.public_key()), critical=False
        )
    )
    return key, builder.sign(key.private_key, hashes.SHA256())


def site_csr(key: TlsKey, site: str) -> bytes:
    """Make a PKCS#10 request, DER, which proves possession of `key`; its names are ignored."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name("site", site))])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    return request.sign(key.private_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a PKCS#10 request, DER; nothing else in it is believed.

    Raises
    ------
    MalformedError
        If the request does not decode or holds no P-256 key.
    IdentityError
        If the requester does not possess the key.
    """
    try:
        parsed = x509.load_der_x509_csr(request)
        public_key = _p256(parsed.public_key())
        is_signature_valid = parsed.is_signature_valid
    # Key types and versions that the library does not know are errors of their own.
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise MalformedError("the certificate request is no PKCS#10 in DER") from None
    if not is_signature_valid:
        raise IdentityError("the certificate request is not signed by the key it asks for")
    return public_key


def issue_site_certificate(
    ca_key: TlsKey,
    ca_certificate: x509.Certificate,
    request: bytes,
    *,
    consortium: str,
    site: str,
    now: datetime,
    days: int = CERTIFICATE_DAYS,
) -> x509.Certificate:
    """Certify the public key of a request, and nothing else of it, as that of `site`.

    Parameters
    ----------
    ca_key, ca_certificate : TlsKey, Certificate
        As `create_ca` returned them.
    request : bytes
        PKCS#10, DER.
    consortium, site : str
        Written as SAN URI ``spiffe://<consortium>/site/<site>``, whatever the request says.
    now : datetime
        Aware.
    days : int
        Validity.

    Raises
    ------
    MalformedError
        If the request does not decode or holds no P-256 key.
    IdentityError
        If the requester does not possess the key.
    """
    public_key = requested_key(request)
    uri = _site_uri(check_name("consortium", consortium), check_name("site", site))
    return _issue_leaf(
        ca_key,
        ca_certificate,
        public_key,
        common_name=site,
        alternatives=[x509.UniformResourceIdentifier(uri)],
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        now=now,
        days=days,
    )


def issue_server_certificate(
    ca_key: TlsKey,
    ca_certificate: x509.Certificate,
    key: TlsKey,
    *,
    names: Sequence[str],
    now: datetime,
    days: int = CERTIFICATE_DAYS,
) -> x509.Certificate:
    """Certify the coordinator's TLS key for the host names and IP addresses sites dial.

    Raises
    ------
    MalformedError
        If `names` is empty.
    """
    if not names:
        raise MalformedError("a server certificate needs at least one host name or IP address")
    return _issue_leaf(
        ca_key,
        ca_certificate,
        key.private_key.public_key(),
        common_name="coordinator",
        alternatives=[_host(name) for name in names],
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        now=now,
        days=days,
    )


def is_past_half_life(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate is to be renewed: half of its life is over, or it has not begun."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return not begin <= now <= begin + (end - begin) / 2


def load_certificate(data: bytes) -> x509.Certificate:
    """Read one certificate, PEM (as gRPC shows a peer's) or DER.

    Raises
    ------
    MalformedError
        If it is neither.
    """
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except (ValueError, x509.InvalidVersion):
        raise MalformedError(f"{len(data)} bytes are no X.509 certificate") from None


def pem(certificate: x509.Certificate) -> bytes:
    """Return the PEM that gRPC's credentials take."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def site_of(
    certificate: bytes, ca_certificate: x509.Certificate, consortium: str, *, now: datetime
) -> str:
    """Say which site a client certificate belongs to.

    Parameters
    ----------
    certificate : bytes
        PEM or DER.
    ca_certificate : Certificate
        The consortium's authority.
    consortium : str
        Its name.
    now : datetime
        Aware.

    Returns
    -------
    str
        The site id. Whether that site is suspended is for the caller's records to say.

    Raises
    ------
    MalformedError
        If it is no certificate.
    IdentityError
        If it is not signed by the authority, not in force, not a client's, or names anything but
        one site of this consortium.
    """
    leaf = load_certificate(certificate)
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([ca_certificate]))
        .time(now)
        .max_chain_depth(0)
        .build_client_verifier()
    )
    try:
        subjects = verifier.verify(leaf, []).subjects or []
    except verification.VerificationError:
        raise IdentityError(
            f"the client certificate is not one of consortium '{consortium}' in force at "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC; run 'synthedge site doctor'"
        ) from None
    uris = [s.value for s in subjects if isinstance(s, x509.UniformResourceIdentifier)]
    site = uris[0].removeprefix(_site_uri(consortium, "")) if len(uris) == 1 else ""
    if len(subjects) != 1 or not uris or uris[0] != _site_uri(consortium, site):
        raise IdentityError(f"the client certificate does not name one site of '{consortium}'")
    return check_name("site", site)


def _site_uri(consortium: str, site: str) -> str:
    return f"spiffe://{consortium}/site/{site}"


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _p256(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedError("the certificate request holds no ECDSA P-256 key")
    return key


def _issue_leaf(
    ca_key: TlsKey,
    ca_certificate: x509.Certificate,
    public_key: ec.EllipticCurvePublicKey,
    *,
    common_name: str,
    alternatives: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    now: datetime,
    days: int,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    ca_key_id = ca_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, ca_certificate.subject, public_key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificates=False), critical=True)
        # Non-critical, or x509.verification refuses the certificate.
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id),
            critical=False,
        )
    )
    return builder.sign(ca_key.private_key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
