"""Certificates renewed while both sides run: sites' on their request, the coordinator's own by itself.

Rules
-----
* A renewal is a signed statement: the TLS key alone, stolen, does not get a certificate for ever.
* The certificate is for the TLS key that enrolled; a site that is shut out or left gets none.
* One certificate a site and hour: each costs a process of the authority.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection, Row, select, update

from synthedge_protocols.certificates import is_past_half_life, pem, requested_key
from synthedge_protocols.errors import (
    IdentityError,
    PolicyError,
    ProtocolError,
    UnavailableError,
)
from synthedge_protocols.limits import Limits
from synthedge_protocols.standing import Standing
from synthedge_protocols.statements import read_unverified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.authority import certify_server, certify_site, load_tls_key
from synthedge_server.certificate_files import read_certificate
from synthedge_server.enrolment import tls_key_digest
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.intake import Intake
from synthedge_server.ledger import Ledger, Transaction
from synthedge_server.log import log
from synthedge_server.settings import Settings
from synthedge_server.standing import MAY_CALL

# A paused site goes on with withdrawals, and one that was away so long that it is called silent must come back.
_MAY_RENEW: Final = MAY_CALL - {Standing.LEFT}
_MIN_INTERVAL_MS: Final = 3_600_000
_RETRY_S: Final = 600.0


class Renewal:
    """Certify enrolled sites' TLS keys anew.

    Parameters
    ----------
    folder : CoordinatorFolder
        Where the authority finds itself.
    ledger : Ledger
    intake : Intake
        Verifies the statement.
    limits : Limits
    """

    def __init__(
        self, folder: CoordinatorFolder, ledger: Ledger, intake: Intake, limits: Limits
    ) -> None:
        self._folder = folder
        self._ledger = ledger
        self._intake = intake
        self._limits = limits

    async def renew(
        self, request: wire.RenewRequest, site: str | None = None
    ) -> wire.RenewResponse:
        """Answer one request.

        Parameters
        ----------
        request : RenewRequest
        site : str, optional
            Who calls, by its certificate; without it the statement's signature alone says so.

        Raises
        ------
        IdentityError
            If the site is not active, another site calls, or the key is not the one that enrolled.
        PolicyError
            If it was renewed within the hour.
        UnavailableError
            If the authority does not answer.
        ProtocolError
            As `statements.verify`.
        """
        claimed = read_unverified(request.request, limits=self._limits).signer_site
        if site not in (None, claimed):
            raise IdentityError(f"site '{site}' handed in a renewal of site '{claimed}'")
        with self._ledger.reading as connection:
            verified = self._intake.verified(connection, claimed, request.request, pb.Renewal)
            csr = verified.payload.certificate_request
            digest = tls_key_digest(requested_key(csr))
            _check(_row(connection, claimed), digest, self._ledger.clock())
        certificate = await certify_site(self._folder, claimed, csr)
        await self._ledger.write(lambda t: _note(t, claimed, digest, certificate))
        log("renewed", site=claimed, expires=str(certificate.not_valid_after_utc))
        return wire.RenewResponse(certificate=certificate.public_bytes(Encoding.DER))


def _row(connection: Connection, site: str) -> Row[Any]:
    table = store.sites
    return connection.execute(select(table).where(table.c.site == site)).one()


def _check(row: Row[Any], digest: bytes, now_ms: int) -> None:
    if row.state not in _MAY_RENEW:
        raise IdentityError(f"the site is {row.state}; ask the coordinator's operator")
    if digest != row.tls_key_digest:
        raise IdentityError(
            "the certificate request holds another TLS key than the site enrolled with"
        )
    if 0 <= now_ms - row.certified_at_ms < _MIN_INTERVAL_MS:
        raise PolicyError("the site's certificate was issued within the hour; use that one")


def _note(
    transaction: Transaction, site: str, digest: bytes, certificate: x509.Certificate
) -> None:
    # Looked at again: it may have been suspended while the authority worked.
    _check(_row(transaction.connection, site), digest, transaction.now_ms)
    transaction.connection.execute(
        update(store.sites)
        .where(store.sites.c.site == site)
        .values(certified_at_ms=transaction.now_ms)
    )
    transaction.record(site, "certificate-renewed", f"{certificate.serial_number:x}")


class ServerCertificate:
    """The coordinator's own TLS certificate: new from half of its life on, for connections made from then on.

    Parameters
    ----------
    folder : CoordinatorFolder
    settings : Settings
        Names the hosts it must be for.
    clock : callable
        Milliseconds since the Unix epoch.

    Raises
    ------
    UnavailableError
        If there is no usable certificate and the authority does not answer.
    """

    def __init__(
        self, folder: CoordinatorFolder, settings: Settings, clock: Callable[[], int]
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._key = load_tls_key(folder).pem()
        self._ca = pem(read_certificate(folder.ca_certificate))
        self._certificate = self._stored() or self._issue()
        self._try_after = 0.0

    def credentials(self, *, with_clients: bool) -> grpc.ServerCredentials:
        """Make credentials that show the current certificate at every handshake.

        gRPC asks for it at each one, and builds its context anew for every answer but None, under the feet of
        handshakes on its other threads: with some thirty at once the process died of it.

        Parameters
        ----------
        with_clients : bool
            Whether callers must show a certificate of the consortium.
        """
        shown = self._certificate

        def configuration() -> grpc.ServerCertificateConfiguration:
            chain = pem(shown) + self._ca
            return grpc.ssl_server_certificate_configuration(
                [(self._key, chain)], root_certificates=self._ca if with_clients else None
            )

        # None says: as before.
        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            if shown is self._certificate:
                return None
            shown = self._certificate
            return configuration()

        return grpc.dynamic_ssl_server_credentials(
            configuration(),
            changed,  # type: ignore[arg-type]
            require_client_authentication=with_clients,
        )

    async def renew_if_due(self, *, may_issue: bool = True) -> None:
        """Take the next certificate once half of this one's life is over.

        Parameters
        ----------
        may_issue : bool
            Whether to ask the authority for it; else another process does, and writes it into the folder.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._try_after or self._is_good(self._certificate):
            return
        stored = self._stored()
        if stored is not None or not may_issue:
            self._certificate = stored or self._certificate
            return
        # However it ends: an authority that is away is asked again in ten minutes, not twice a second.
        self._try_after = loop.time() + _RETRY_S
        try:
            self._certificate = await asyncio.to_thread(self._issue)
        except ProtocolError as error:
            log("server-certificate-not-renewed", level=logging.ERROR, reason=str(error))

    def _stored(self) -> x509.Certificate | None:
        if not self._folder.tls_certificate.exists():
            return None
        certificate = read_certificate(self._folder.tls_certificate)
        return certificate if self._is_good(certificate) else None

    def _is_good(self, certificate: x509.Certificate) -> bool:
        now = datetime.fromtimestamp(self._clock() / 1000, UTC)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = {str(name.value) for name in names}
        return not is_past_half_life(certificate, now) and hosts == set(self._settings.names)

    def _issue(self) -> x509.Certificate:
        certificate = certify_server(self._folder)
        # Two processes may be started at once on a folder that has none yet.
        staged = self._folder.tls_certificate.with_suffix(f".{secrets.token_hex(8)}.new")
        try:
            staged.write_bytes(pem(certificate))
            staged.replace(self._folder.tls_certificate)
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise UnavailableError(
                f"{self._folder.tls_certificate} cannot be written: {error.strerror}"
            ) from None
        log("server-certificate-issued", expires=str(certificate.not_valid_after_utc))
        return certificate
