"""A coordinator that moved is dialled where it is now; nobody else is."""

import asyncio
from pathlib import Path

import pytest

from asked_and_given import Pair
from enrolled import coordinating, exchange
from server_fixtures import Consortium, new_folder
from sites import events
from synthedge_client.coordinator_address import change_address
from synthedge_client.renewal import ENROLMENT_ADDRESS
from synthedge_client.site import Site, open_site
from synthedge_client.store import get_fact, set_fact
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError

GONE = "127.0.0.1:1"


def addresses(site: Site) -> list[str | None]:
    with site.store.read() as connection:
        return [get_fact(connection, name) for name in ("address", ENROLMENT_ADDRESS)]


def lost(site: Site) -> None:
    with site.store.write() as connection:
        for name in ("address", ENROLMENT_ADDRESS):
            set_fact(connection, name, GONE)


async def test_a_site_follows_its_coordinator_to_another_address(
    pair: Pair, consortium: Consortium
) -> None:
    north, _ = pair
    now, enrolment = (
        f"127.0.0.1:{port}" for port in (consortium.sites_port, consortium.enrolment_port)
    )
    lost(north)
    with pytest.raises(UnavailableError, match=r"nothing listens .*Nothing was changed"):
        await asyncio.to_thread(change_address, north, now, None)  # the old enrolment port
    assert addresses(north) == [GONE, GONE]

    await asyncio.to_thread(change_address, north, now, enrolment)

    assert addresses(north) == [now, enrolment]
    assert len(events(north, "coordinator's address changed")) == 1
    with open_site(north.settings.folder) as again:
        await exchange(again)


async def test_another_consortium_s_coordinator_is_not_followed(pair: Pair, tmp_path: Path) -> None:
    north, _ = pair
    before = addresses(north)
    async with coordinating(new_folder(tmp_path / "other")) as other:
        with pytest.raises(UnavailableError, match="Nothing was changed"):
            await asyncio.to_thread(change_address, north, f"127.0.0.1:{other.sites_port}", None)
    assert addresses(north) == before


@pytest.mark.parametrize("typed", ["heart.example.org", "host:0", "host:70000", "a b:7443", ""])
async def test_what_is_no_address_is_refused(pair: Pair, typed: str) -> None:
    with pytest.raises(UsageError, match="is not host:port"):
        change_address(pair[0], typed, None)
