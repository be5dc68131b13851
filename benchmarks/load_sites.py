"""Thousands of enrolled sites in seconds: by the product's own RPCs, the authority's signature made in this process.

Everything else is real: tokens, keys, certificates, signed statements, and the rows that `serve` finds afterwards.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from cryptography import x509

from server_fixtures import (
    Clock,
    Consortium,
    Hospital,
    acceptance,
    counts_of_site,
    gap_report,
    new_folder,
)
from synthedge_protocols.certificates import issue_site_certificate, load_certificate, pem
from synthedge_protocols.keys import TlsKey
from synthedge_protocols.limits import Limits
from synthedge_protocols.private_files import read_private_file
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.serve import running
from synthedge_server.settings import read_settings

_AT_ONCE = 32
# The coordinator in this process would tell of every enrolment.
logging.disable(logging.WARNING)
# Nobody else's thousand sites enrol within a minute from one address.
_ALL_FROM_HERE = Limits(
    calls_per_s=1e6,
    calls_burst=1e6,
    statements_per_s=1e6,
    statements_burst=1e6,
    calls_at_once=1_000,
)


@dataclass(frozen=True)
class Identity:
    """What a site shows when it connects; a process of clients gets nothing else.

    Attributes
    ----------
    name : str
    ca, certificate, key : bytes
        PEM.
    """

    name: str
    ca: bytes
    certificate: bytes
    key: bytes


def identity_of(hospital: Hospital, consortium: Consortium) -> Identity:
    """Say how a hospital identifies itself."""
    certificate = pem(load_certificate(hospital.certificate))
    return Identity(hospital.name, consortium.ca_pem, certificate, hospital.tls.pem())


async def enrolled(
    path: Path, ports: Sequence[int], *, n_sites: int, n_members: int, n_reporting: int
) -> tuple[Consortium, list[Hospital]]:
    """Make a coordinator's folder with enrolled sites; the first of them accept the dictionary, the very first publish.

    Parameters
    ----------
    path : Path
        The new folder.
    ports : sequence of two int
        Sites' port, enrolment port.
    n_sites : int
    n_members, n_reporting : int
        How many accept the dictionary, and publish.
    """
    folder = new_folder(path, sites_port=ports[0], enrolment_port=ports[1])
    consortium = Consortium(folder, Clock())
    with _authority_here(folder):
        async with running(folder, limits=_ALL_FROM_HERE) as coordinator:
            consortium.listens(coordinator)
            hospitals = [
                Hospital(f"site-{i:05}", key_ids=consortium.key_ids) for i in range(n_sites)
            ]
            await _enrol(consortium, hospitals)
            for i, hospital in enumerate(hospitals[:n_members]):
                consortium.connect(hospital)
                await hospital.submit(hospital.sign_as_steward(acceptance()))
                if i < n_reporting:
                    await hospital.submit(hospital.sign_as_steward(gap_report(*counts_of_site(i))))
            await consortium.close()
    return consortium, hospitals


async def _enrol(consortium: Consortium, hospitals: Sequence[Hospital]) -> None:
    credentials = grpc.ssl_channel_credentials(consortium.ca_pem)
    stub: Any = rpc.EnrolmentStub(consortium.channel(consortium.enrolment_port, credentials))
    waiting = iter(hospitals)

    async def some() -> None:
        for hospital in waiting:
            consortium.key_ids[hospital.name] = hospital.statement.key_id
            request = hospital.enrol_request(consortium.invite(hospital.name))
            hospital.certificate = (await stub.Enrol(request, timeout=60)).certificate

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


@contextmanager
def _authority_here(folder: CoordinatorFolder) -> Iterator[None]:
    """Sign in this process: a process of the authority a site would take ten minutes."""
    consortium = read_settings(folder.settings).consortium
    ca_key = TlsKey.load(folder.ca_key, read_private_file(folder.ca_passphrase))
    ca_certificate = load_certificate(folder.ca_certificate.read_bytes())

    async def certify(_folder: CoordinatorFolder, site: str, request: bytes) -> x509.Certificate:
        return issue_site_certificate(
            ca_key, ca_certificate, request, consortium=consortium, site=site, now=datetime.now(UTC)
        )

    with mock.patch("synthedge_server.enrolment.certify_site", certify):
        yield
