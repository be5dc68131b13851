"""Who calls: the site of the client certificate, checked at every call against the records."""

import hashlib
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from cryptography import x509
from sqlalchemy import bindparam, select

from synthedge_protocols.certificates import load_certificate, site_of
from synthedge_protocols.errors import IdentityError
from synthedge_protocols.prepared import Prepared
from synthedge_server import store
from synthedge_server.enrolment import tls_key_digest
from synthedge_server.ledger import Ledger
from synthedge_server.standing import MAY_CALL

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_REMEMBERED: Final = 10_000
# The call that this task answers, and whose it is.
_CALL: Final[ContextVar[tuple[object, str] | None]] = ContextVar("call", default=None)
_STANDING: Final = Prepared(
    select(store.sites.c.state, store.sites.c.tls_key_digest).where(
        store.sites.c.site == bindparam("of_site")
    )
)


class Callers:
    """Tell which enrolled, active site a call comes from.

    Parameters
    ----------
    consortium : str
    ca_certificate : Certificate
        The consortium's authority.
    ledger : Ledger
    """

    def __init__(self, consortium: str, ca_certificate: x509.Certificate, ledger: Ledger) -> None:
        self._consortium = consortium
        self._ca_certificate = ca_certificate
        self._ledger = ledger
        # Verifying a certificate costs as much as a whole small call; its bytes never change meaning.
        self._remembered: dict[bytes, tuple[str, bytes, datetime]] = {}

    def calling(self, context: Context) -> str:
        """Return the site that the boundary found a moment ago; raises as `site_of`."""
        call = _CALL.get()
        return call[1] if call is not None and call[0] is context else self.site_of(context)

    def site_of(self, context: Context) -> str:
        """Return the calling site's id, as things stand now.

        Raises
        ------
        IdentityError
            If the connection is not TLS 1.3, the certificate is not one of this consortium in force, its
            key is not the one enrolled, or the site is suspended or revoked.
        """
        peer = context.auth_context() or {}
        # Fails closed: a transport that cannot name its version is refused too.
        if list(peer.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
            raise IdentityError("the connection is not TLS 1.3; update the site's software")
        chain = list(peer.get("x509_pem_cert", ()))
        if len(chain) != 1:
            raise IdentityError("the connection shows no client certificate; enrol the site first")
        site, key_digest = self._identify(chain[0])
        with self._ledger.reading as connection:
            row = _STANDING.one(connection, of_site=site)
        if row is None or row.tls_key_digest != key_digest:
            raise IdentityError(f"the certificate is not the one site '{site}' enrolled with")
        if row.state not in MAY_CALL:
            raise IdentityError(f"site '{site}' is {row.state}; ask the coordinator's operator")
        self._ledger.seen[site] = self._ledger.clock()
        _CALL.set((context, site))
        return site

    def _identify(self, certificate: bytes) -> tuple[str, bytes]:
        now = datetime.fromtimestamp(self._ledger.clock() / 1000, UTC)
        # By its digest: the bytes would be a kilobyte a site.
        key = hashlib.sha256(certificate).digest()
        known = self._remembered.get(key)
        if known is None or now >= known[2]:
            site = site_of(certificate, self._ca_certificate, self._consortium, now=now)
            parsed = load_certificate(certificate)
            known = (site, tls_key_digest(parsed.public_key()), parsed.not_valid_after_utc)
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = known
        return known[0], known[1]
