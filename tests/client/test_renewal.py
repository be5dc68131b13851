"""Certificates renewed while both programs run, with the clock moved to half of their life and beyond."""

import asyncio
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from asked_and_given import Pair, ask, states
from server_fixtures import DAY_MS, Consortium
from sites import events, transfer_at
from synthedge_client import agent, renewal
from synthedge_client.agent import run_forever
from synthedge_client.keystore import read_certificate
from synthedge_client.renewal import Renewer, renew_if_due
from synthedge_client.site import Site
from synthedge_protocols.certificates import load_certificate
from synthedge_protocols.errors import IdentityError, LifecycleError, PolicyError
from synthedge_protocols.keys import StatementKey
from synthedge_protocols.lifecycle import State
from synthedge_server.operations import set_site_state

NOW = datetime.now(UTC)
HALF, BEYOND = NOW + timedelta(days=16), NOW + timedelta(days=31)


def certificate(site: Site) -> x509.Certificate:
    return load_certificate(read_certificate(site.keys.certificate_file))


async def renewed(site: Site, now: datetime) -> bool:
    connection = site.connect()
    try:
        done = await asyncio.to_thread(renew_if_due, site, connection, now)
        await asyncio.to_thread(connection.directory)  # with whatever certificate it now has
        return done
    finally:
        connection.close()


async def test_a_certificate_is_renewed_from_half_of_its_life_on(
    pair: Pair, consortium: Consortium
) -> None:
    north, _ = pair
    consortium.clock.ahead_ms = 2 * 3_600_000  # enrolled over an hour ago
    before = certificate(north)

    assert not await renewed(north, NOW + timedelta(days=14))
    assert certificate(north) == before
    assert await renewed(north, HALF)

    after = certificate(north)
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key()
    assert len(events(north, "certificate renewed")) == 1
    with pytest.raises(PolicyError, match="within the hour"):
        await renewed(north, HALF)


@pytest.mark.parametrize("standing", ["silent", "paused"])
async def test_a_site_that_was_away_until_its_certificate_expired_gets_in_again(
    pair: Pair, consortium: Consortium, standing: str
) -> None:
    north, _ = pair
    consortium.clock.ahead_ms = 2 * 3_600_000
    set_site_state(consortium.folder, "north", standing)
    before = certificate(north)
    assert await renewed(north, BEYOND)
    assert certificate(north).serial_number != before.serial_number


@pytest.mark.parametrize("moment", [HALF, BEYOND])
@pytest.mark.parametrize("state", ["suspended", "revoked"])
async def test_a_site_that_is_shut_out_gets_no_certificate(
    pair: Pair, consortium: Consortium, state: str, moment: datetime
) -> None:
    north, _ = pair
    consortium.clock.ahead_ms = 2 * 3_600_000
    set_site_state(consortium.folder, "north", state)
    before = certificate(north)
    with pytest.raises(IdentityError, match=state):
        await renewed(north, moment)
    assert certificate(north) == before


async def test_the_tls_key_alone_gets_no_certificate(
    pair: Pair, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, _ = pair
    consortium.clock.ahead_ms = 2 * 3_600_000
    thief = StatementKey.generate()
    monkeypatch.setattr(Site, "signing_key", lambda *_: thief)
    with pytest.raises(IdentityError, match="another key"):
        await renewed(north, HALF)


async def test_a_failed_renewal_stops_nothing_and_is_tried_again(
    pair: Pair, consortium: Consortium, caplog: pytest.LogCaptureFixture
) -> None:
    north, _ = pair
    seconds = [0.0]
    renewer = Renewer(clock=lambda: seconds[0], now=lambda: HALF)
    connection = north.connect()
    tries = 0
    for seconds[0] in (0.0, 1.0, renewal.RETRY_S + 1):
        # Enrolled within the hour: refused.
        await asyncio.to_thread(renewer.look_after, north, connection)
        tries = len([r for r in caplog.records if "was not renewed" in r.message])
    connection.close()
    assert tries == 2


async def test_a_running_agent_changes_its_certificate_and_goes_on(
    pair: Pair, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    consortium.clock.ahead_ms = 2 * 3_600_000
    before = certificate(north)
    moment = [NOW]
    monkeypatch.setattr(renewal, "RETRY_S", 0.0)
    monkeypatch.setattr(agent, "Renewer", lambda: Renewer(now=lambda: moment[0]))
    stop = threading.Event()
    running = asyncio.create_task(asyncio.to_thread(run_forever, north, north.connect(), stop))
    await asyncio.sleep(0.5)  # the inbox is open
    moment[0] = HALF
    await _eventually(lambda: certificate(north).serial_number != before.serial_number)
    moment[0] = NOW
    # What arrives after the change still arrives, and what is asked still leaves.
    identifier = ask(south, donor="north", voxel=0)
    other = asyncio.create_task(asyncio.to_thread(run_forever, south, south.connect(), stop))
    await _eventually(lambda: _requested(north, identifier))
    stop.set()
    await asyncio.gather(running, other)
    assert states(identifier, north, south) == ["REQUESTED", "REQUESTED"]


def _requested(site: Site, identifier: bytes) -> bool:
    try:
        return transfer_at(site, identifier).state is State.REQUESTED
    except LifecycleError:
        return False


async def _eventually(condition: object, within_s: float = 30.0) -> None:
    for _ in range(int(within_s / 0.05)):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen in time")


def _shown_serial(consortium: Consortium) -> int:
    context = ssl.create_default_context(cadata=consortium.ca_pem.decode())
    with (
        socket.create_connection(("127.0.0.1", consortium.enrolment_port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return load_certificate(shown).serial_number


async def test_the_coordinator_changes_its_own_certificate_without_a_restart(
    pair: Pair, consortium: Consortium
) -> None:
    north, _ = pair
    before = await asyncio.to_thread(_shown_serial, consortium)
    connection = north.connect()
    await asyncio.to_thread(connection.directory)
    consortium.clock.ahead_ms = 16 * DAY_MS

    for _ in range(200):
        if await asyncio.to_thread(_shown_serial, consortium) != before:
            break
        await asyncio.sleep(0.1)

    after = await asyncio.to_thread(_shown_serial, consortium)
    stored = load_certificate(consortium.folder.tls_certificate.read_bytes()).serial_number
    assert after == stored != before
    consortium.clock.ahead_ms = 0
    await asyncio.to_thread(connection.directory)  # the connection of before lives on
    connection.close()
