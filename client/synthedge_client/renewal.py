"""The site's TLS certificate, renewed at half of its life while the agent runs.

Rules
-----
* A renewal is a statement signed by the site: whoever steals the TLS key alone gets no further certificate.
* The new certificate is checked like the first one before it replaces the old; the agent goes on with it at once.
* A failed renewal stops nothing: half of the certificate's life is left, and it is tried again.
* A site that was away until its certificate had expired asks at the enrolment port, where none is needed.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from synthedge_client import store
from synthedge_client.connection import Connection, renew_expired
from synthedge_client.enrolment import check_certificate, replace_file
from synthedge_client.keystore import read_certificate
from synthedge_client.rotation import forget_hpke_keys, rotate_if_due
from synthedge_client.site import Site
from synthedge_protocols.certificates import is_past_half_life, load_certificate, pem, site_csr
from synthedge_protocols.errors import ProtocolError, UnavailableError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

log = logging.getLogger(__name__)

RETRY_S = 600.0
ENROLMENT_ADDRESS = "enrolment address"


def renew_if_due(site: Site, connection: Connection, now: datetime) -> bool:
    """Renew the certificate if half of its life is over; True if it was renewed.

    Parameters
    ----------
    site : Site
    connection : Connection
        Goes on with the new certificate.
    now : datetime
        Aware.

    Raises
    ------
    IdentityError
        If the coordinator does not accept this site, or answers with a certificate for somebody else.
    UnavailableError, DeadlineError
        If the coordinator or its authority is not reached.
    PolicyError
        If it renewed the certificate within the hour.
    """
    certificate = load_certificate(read_certificate(site.keys.certificate_file))
    if not is_past_half_life(certificate, now):
        return False
    csr = site_csr(site.keys.tls, site.settings.id)
    request = wire.RenewRequest(request=site.sign(pb.Renewal(certificate_request=csr)))
    if now < certificate.not_valid_after_utc:
        answer = connection.renew(request)
    else:
        answer = renew_expired(_enrolment_address(site), request, ca=site.keys.ca_file)
    ca = load_certificate(read_certificate(site.keys.ca_file))
    check_certificate(answer.certificate, ca, site.consortium, site.keys, site.settings.id)
    renewed = load_certificate(answer.certificate)
    replace_file(site.keys.certificate_file, pem(renewed))
    connection.use_certificate(pem(renewed))
    with site.store.write() as transaction:
        store.record(
            transaction,
            "certificate renewed",
            "agent",
            serial=f"{renewed.serial_number:x}",
            expires=renewed.not_valid_after_utc.isoformat(),
        )
    log.info("certificate renewed, until %s", renewed.not_valid_after_utc.isoformat())
    return True


def is_expired(site: Site) -> bool:
    """Whether the site's certificate is not valid any more, by this machine's clock."""
    certificate = load_certificate(read_certificate(site.keys.certificate_file))
    return datetime.now(UTC) > certificate.not_valid_after_utc


def _enrolment_address(site: Site) -> str:
    with site.store.read() as transaction:
        address = store.get_fact(transaction, ENROLMENT_ADDRESS)
    if address is None:
        raise UnavailableError(
            "this site's certificate has expired and it does not know where to enrol; ask the operator to enrol it anew"
        )
    return address


class Renewer:
    """When the agent looks after the site's keys: the certificate, and HPKE keys nobody needs any more.

    Parameters
    ----------
    clock : callable
        Seconds, for the time between two tries.
    now : callable
        The time, aware.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._now = now
        self._try_after = 0.0

    def look_after(self, site: Site, connection: Connection) -> None:
        """Renew what is due; a failure is logged and tried again later."""
        if self._clock() < self._try_after:
            return
        self._try_after = self._clock() + RETRY_S
        try:
            renew_if_due(site, connection, self._now())
        except ProtocolError as error:
            log.error("the certificate was not renewed: %s", error)
        if rotate_if_due(site):
            log.info("the sealing key was about to end; a new one is announced")
        forget_hpke_keys(site)
