"""One-time enrolment tokens: one line of text an operator hands to a hospital."""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Self

from synthedge_protocols.errors import IdentityError, MalformedError
from synthedge_protocols.framing import join_fields, split_fields
from synthedge_protocols.names import check_name

__all__ = ["EnrolmentToken"]

_PREFIX = "synthedge1."
_SECRET_BYTES = 32
_CHECKSUM_BYTES = 4
_TIME_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrolmentToken:
    """What a site needs to enrol once.

    The whole CA certificate travels in it, since gRPC cannot verify a server by a fingerprint.

    Attributes
    ----------
    consortium, site : str
        The site id is fixed by the operator; a token enrols no other.
    address, enrolment_address : str
        ``host:port`` of the coordinator's two services.
    ca_certificate : bytes
        The consortium's CA certificate, DER.
    secret : bytes
        32 random bytes; the coordinator stores only `secret_digest`.
    expires_at_ms : int
        Unix time in milliseconds.

    Raises
    ------
    MalformedError
        If a name is malformed or the secret is not 32 bytes.
    """

    consortium: str
    site: str
    address: str
    enrolment_address: str
    ca_certificate: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    expires_at_ms: int

    def __post_init__(self) -> None:
        check_name("consortium", self.consortium)
        check_name("site", self.site)
        if len(self.secret) != _SECRET_BYTES:
            raise MalformedError(f"an enrolment secret has {_SECRET_BYTES} bytes")

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the CA certificate, 64 hexadecimal digits."""
        return hashlib.sha256(self.ca_certificate).hexdigest()

    @property
    def secret_digest(self) -> bytes:
        """SHA-256 of the secret: what the coordinator stores and compares."""
        return hashlib.sha256(self.secret).digest()

    def encode(self) -> str:
        """Write the token as one line of text without spaces."""
        body = join_fields(
            [
                self.consortium.encode(),
                self.site.encode(),
                self.address.encode(),
                self.enrolment_address.encode(),
                self.ca_certificate,
                self.secret,
                self.expires_at_ms.to_bytes(_TIME_BYTES, "big"),
            ]
        )
        return _PREFIX + base64.urlsafe_b64encode(_checksum(body) + body).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read a token; whitespace around and line breaks inside it do not matter.

        Raises
        ------
        IdentityError
            If it is no token, or not letter by letter what `encode` wrote.
        """
        line = "".join(text.split())
        if not line.startswith(_PREFIX):
            raise IdentityError(
                f"this is no enrolment token: it must begin with '{_PREFIX}'; "
                f"ask the coordinator's operator for one"
            )
        encoded = line.removeprefix(_PREFIX)
        try:
            data = base64.b64decode(
                encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True
            )
            body = data[_CHECKSUM_BYTES:]
            if data[:_CHECKSUM_BYTES] != _checksum(body):
                raise MalformedError("checksum")
            fields = split_fields(body, 7)
            token = cls(
                consortium=fields[0].decode(),
                site=fields[1].decode(),
                address=fields[2].decode(),
                enrolment_address=fields[3].decode(),
                ca_certificate=fields[4],
                secret=fields[5],
                expires_at_ms=int.from_bytes(fields[6], "big"),
            )
        except (binascii.Error, UnicodeError, ValueError, MalformedError):
            raise IdentityError(
                "the enrolment token is incomplete or mistyped; copy it again, whole"
            ) from None
        return token


def _checksum(body: bytes) -> bytes:
    """Recognise a typing mistake; the secret is what protects the token."""
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
