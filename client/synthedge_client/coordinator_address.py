"""Where the coordinator is reached: told by enrolment, changed when it moves."""

import re
from typing import Final

from synthedge_client import store
from synthedge_client.connection_doctor import explain_way
from synthedge_client.renewal import ENROLMENT_ADDRESS, is_expired
from synthedge_client.site import Site
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError

_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


def change_address(site: Site, address: str, enrolment_address: str | None) -> tuple[str, str]:
    """Dial the coordinator elsewhere from now on; nothing changes unless it answers there.

    Whoever answers must show a certificate of the consortium's authority: the site knows that since enrolment.

    Parameters
    ----------
    site : Site
    address : str
        ``host:port`` of enrolled sites.
    enrolment_address : str or None
        ``host:port`` of sites without a valid certificate; None: the old port at the new host.

    Returns
    -------
    tuple of two str
        Both addresses, as they are now.

    Raises
    ------
    UsageError
        If an address is not ``host:port``.
    UnavailableError
        If the coordinator does not answer there; the message says why and what to do.
    """
    with site.store.read() as connection:
        before = store.get_fact(connection, ENROLMENT_ADDRESS)
    host = host_of(address)
    if enrolment_address is None:
        if before is None:
            raise UsageError("this site knows no enrolment address; name it: --enrolment-address")
        enrolment_address = f"{host}:{before.rpartition(':')[2]}"
    host_of(enrolment_address)
    # With an expired certificate the site goes to the enrolment port first.
    ways = [enrolment_address] if is_expired(site) else [address, enrolment_address]
    for way in ways:
        if problem := explain_way(way, site.keys):
            raise UnavailableError(f"{problem.rstrip('.')}. Nothing was changed")
    with site.store.write() as connection:
        store.set_fact(connection, "address", address)
        store.set_fact(connection, ENROLMENT_ADDRESS, enrolment_address)
        store.record(
            connection,
            "coordinator's address changed",
            "site",
            address=address,
            enrolment_address=enrolment_address,
        )
    return address, enrolment_address


def host_of(address: str) -> str:
    """The host of ``host:port``.

    Raises
    ------
    UsageError
        If it is none.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None or not 0 < int(parts[2]) <= 65_535:
        raise UsageError(f"address {address[:100]!r} is not host:port, e.g. heart.example.org:7443")
    return parts[1]
