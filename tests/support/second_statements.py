"""A second implementation of statements, keys, tokens and rotation, written from docs/protocol.md.

It imports nothing of the product but the generated messages, so that the two can only agree where the document says so.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x25519
from cryptography.x509.oid import NameOID
from google.protobuf.message import Message

from synthedge_protocols.v1 import statements_pb2 as pb

DAY_MS = 86_400_000
SKEW_MS = 300_000
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

# Section 5: type, payload, who signs, whether a dictionary digest is under the signature.
TYPES: dict[str, tuple[type[Message], str, bool]] = {
    "hpke-key": (pb.HpkeKey, "site", False),
    "steward-certificate": (pb.StewardCertificate, "site", False),
    "key-rotation": (pb.KeyRotation, "site", False),
    "renewal": (pb.Renewal, "site", False),
    "witnessed-head": (pb.WitnessedHead, "site", False),
    "dictionary-acceptance": (pb.DictionaryAcceptance, "steward", True),
    "gap-report": (pb.GapReport, "steward", True),
    "discovery-answer": (pb.DiscoveryAnswer, "site", False),
    "flower-node": (pb.FlowerNode, "site", False),
    "standing-policy": (pb.StandingPolicy, "steward", True),
    "transfer-request": (pb.TransferRequest, "steward or policy", True),
    "approval": (pb.Approval, "steward or policy", True),
    "shipment": (pb.Shipment, "site", True),
    "key-request": (pb.ReleaseRequest, "site", True),
    "receipt": (pb.Receipt, "either", True),
    "ending": (pb.Ending, "either", True),
    "withdrawal-notice": (pb.WithdrawalNotice, "either", True),
    "withdrawal-receipt": (pb.WithdrawalReceipt, "site", True),
    "site-leaving": (pb.SiteLeaving, "steward", True),
}


class RefusedError(Exception):
    """What the document says a reader refuses."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise RefusedError(what)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def joined(*values: bytes) -> bytes:
    """``field(a) || field(b) ...``: each behind its length."""
    return b"".join(len(value).to_bytes(4, "big") + value for value in values)


def fingerprint(public_key: bytes) -> str:
    digits = sha256(public_key)[:16].hex()
    return "-".join(re.findall("....", digits))


def decode_token(text: str) -> dict[str, object]:
    """Section 3."""
    line = "".join(text.split())
    require(line.startswith("synthedge1."), "no token")
    encoded = line.removeprefix("synthedge1.")
    data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    checksum, body = data[:4], data[4:]
    require(sha256(body)[:4] == checksum, "mistyped")
    fields = []
    while body:
        end = 4 + int.from_bytes(body[:4], "big")
        fields.append(body[4:end])
        body = body[end:]
    names = ("consortium", "site", "address", "enrolment_address")
    token: dict[str, object] = {
        name: value.decode() for name, value in zip(names, fields, strict=False)
    }
    return token | {
        "ca_certificate": fields[4],
        "secret": fields[5],
        "expires_at_ms": int.from_bytes(fields[6], "big"),
    }


@dataclass
class SecondSite:
    """A site's keys and what it signs with them; made from seeds where a test wants the same bytes again."""

    consortium: str
    name: str
    site_seed: bytes = field(
        default_factory=lambda: ed25519.Ed25519PrivateKey.generate().private_bytes_raw()
    )
    steward_seed: bytes = field(
        default_factory=lambda: ed25519.Ed25519PrivateKey.generate().private_bytes_raw()
    )
    hpke_seeds: bytes = field(
        default_factory=lambda: (
            mlkem.MLKEM768PrivateKey.generate().private_bytes_raw()
            + x25519.X25519PrivateKey.generate().private_bytes_raw()
        )
    )
    tls: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def key(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.site_seed)

    @property
    def steward(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.steward_seed)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def hpke_public_key(self) -> bytes:
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(self.hpke_seeds[:64])
        dh = x25519.X25519PrivateKey.from_private_bytes(self.hpke_seeds[64:])
        return kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw()

    def certificate_request(self) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        signed = request.sign(self.tls, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.DER)

    def tls_pem(self) -> bytes:
        return self.tls.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(
        self, payload: Message, now_ms: int, digest: bytes = b"", *, steward: str = ""
    ) -> pb.SignedStatement:
        """Section 5; with a steward's name that person's key signs, certified by the site's."""
        (name,) = (n for n, (message, _, _) in TYPES.items() if message is type(payload))
        key = self.steward if steward else self.key
        statement = pb.Statement(
            type=name,
            consortium=self.consortium,
            signer_site=self.name,
            signer_key_id=sha256(key.public_key().public_bytes_raw()),
            dictionary_digest=digest,
            issued_at_ms=now_ms,
            payload=payload.SerializeToString(deterministic=True),
        ).SerializeToString(deterministic=True)
        signed = pb.SignedStatement(
            statement=statement, signature=key.sign(b"synthedge/v1/statement\0" + statement)
        )
        if steward:
            signed.certificate.CopyFrom(self.steward_certificate(steward, now_ms))
        return signed

    def steward_certificate(self, steward: str, now_ms: int) -> pb.SignedStatement:
        certificate = pb.StewardCertificate(
            steward=steward,
            public_key=self.steward.public_key().public_bytes_raw(),
            not_before_ms=now_ms - DAY_MS,
            not_after_ms=now_ms + DAY_MS,
        )
        return self.sign(certificate, now_ms - DAY_MS)

    def keys(self, now_ms: int) -> pb.SiteKeys:
        key = pb.HpkeKey(
            key_id=sha256(self.hpke_public_key),
            public_key=self.hpke_public_key,
            not_before_ms=now_ms - DAY_MS,
            not_after_ms=now_ms + 365 * DAY_MS,
        )
        return pb.SiteKeys(
            site=self.name, statement_public_key=self.public_key, hpke_key=self.sign(key, now_ms)
        )

    def rotation_to(self, new: "SecondSite", steward: str, now_ms: int) -> pb.SignedStatement:
        """Section 6: signed by the old key, proved by the new one."""
        proved = b"synthedge/v1/key-rotation\0" + joined(
            self.consortium.encode(), self.name.encode(), sha256(self.public_key), new.public_key
        )
        rotation = pb.KeyRotation(
            new_statement_public_key=new.public_key,
            proof=new.key.sign(proved),
            hpke_key=new.keys(now_ms).hpke_key,
            steward=steward,
        )
        return self.sign(rotation, now_ms)


def verify(
    signed: pb.SignedStatement,
    *,
    expected: str,
    consortium: str,
    site: str,
    public_key: bytes,
    digest: bytes,
    now_ms: int,
    follow: bool = True,
) -> Message:
    """Check a statement as section 5 says, with what it carries unless told not to `follow` it; return its payload."""
    require(signed.ByteSize() <= 1_048_576, "size")
    has_note = expected in ("ending", "withdrawal-notice", "withdrawal-receipt")
    require(has_note or len(signed.statement) <= 65_536, "size of the statement")
    statement = pb.Statement.FromString(signed.statement)
    message, who, under_dictionary = TYPES[expected]
    payload = message.FromString(statement.payload)
    for part in (signed, statement, payload):
        known = type(part)()
        known.CopyFrom(part)
        known.DiscardUnknownFields()
        require(known.ByteSize() == part.ByteSize(), "unknown fields")
    require(statement.type == expected, "type")
    require(bool(NAME.fullmatch(statement.consortium) and NAME.fullmatch(site)), "names")
    require((statement.consortium, statement.signer_site) == (consortium, site), "place")
    by_steward = signed.HasField("certificate")
    has_policy = any(f.name == "policy" for f, _ in payload.ListFields())
    require(not (by_steward and who == "site"), "a steward signed for the site")
    require(by_steward or who in ("site", "either") or (has_policy and "policy" in who), "signer")
    signer = public_key
    if by_steward:
        certificate = verify(
            signed.certificate,
            expected="steward-certificate",
            consortium=consortium,
            site=site,
            public_key=public_key,
            digest=b"",
            now_ms=now_ms,
        )
        assert isinstance(certificate, pb.StewardCertificate)
        for moment in (statement.issued_at_ms, now_ms):
            require(
                certificate.not_before_ms - SKEW_MS <= moment <= certificate.not_after_ms, "force"
            )
        signer = certificate.public_key
    require(statement.signer_key_id == sha256(signer), "key id")
    # Raises InvalidSignature.
    ed25519.Ed25519PublicKey.from_public_bytes(signer).verify(
        signed.signature, b"synthedge/v1/statement\0" + signed.statement
    )
    require(statement.dictionary_digest == (digest if under_dictionary else b""), "dictionary")
    require(0 < statement.issued_at_ms <= now_ms + SKEW_MS, "time")
    carried = {f.name: value for f, value in payload.ListFields() if f.name in ("policy", "first")}
    for name, inner in carried.items() if follow else ():
        if name == "first":
            alone = type(payload).FromString(statement.payload)
            alone.ClearField("first")
            words = pb.Statement.FromString(inner.statement)
            require(words.payload == alone.SerializeToString(deterministic=True), "other words")
            require(by_steward and words.signer_key_id != statement.signer_key_id, "same steward")
        verify(
            inner,
            expected="standing-policy" if name == "policy" else expected,
            consortium=consortium,
            site=site,
            public_key=public_key,
            digest=digest,
            now_ms=now_ms,
        )
    return payload
