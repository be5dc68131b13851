"""What the coordinator takes as signed by a site: key requests, rotations, and statements under replaced keys."""

import asyncio
import contextlib
import sqlite3
import time

import pytest

from server_fixtures import Consortium, Hospital, as_protocol_error, request_of, ship
from synthedge_protocols.errors import IdentityError, MalformedError, VerificationError
from synthedge_protocols.keys import HpkeKeyPair, StatementKey
from synthedge_protocols.rotation import sign_rotation
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

PAYLOAD = bytes(5_000)


async def rotate(hospital: Hospital, new: StatementKey, hpke: HpkeKeyPair | None = None) -> None:
    """Announce new keys; the hospital goes on signing with the old one."""
    signed = sign_rotation(
        hospital.statement,
        new,
        hpke or HpkeKeyPair.generate(),
        consortium=hospital.consortium,
        site=hospital.name,
        steward="ada",
        now_ms=time.time_ns() // 1_000_000,
    )
    await hospital.submit(signed)


async def test_a_key_is_released_to_who_signed_for_this_very_transfer(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext)
    unsigned = wire.KeyRequest(transfer_id=shipped.identifier)
    elsewhere = north.key_request(b"e" * 32)
    elsewhere.transfer_id = shipped.identifier
    forged = north.key_request(shipped.identifier)
    forged.request.signature = bytes(64)
    for request in (unsigned, elsewhere, forged):
        with pytest.raises((MalformedError, VerificationError)):
            async with as_protocol_error():
                await north.stub.ReleaseKey(request, timeout=10)
    assert await north.release_key(shipped.identifier) == shipped.shipment


async def test_a_replaced_key_signs_for_its_transfers_and_for_nothing_else(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    old = north.statement
    new = StatementKey.generate()
    await rotate(north, new)
    await rotate(south, StatementKey.generate())
    await south.upload(shipped.identifier, shipped.ciphertext)

    assert await north.release_key(shipped.identifier) == shipped.shipment
    with pytest.raises(IdentityError, match="names another key"):
        await north.submit(north.sign_as_steward(request_of(north, "west")))
    north.statement = new
    with pytest.raises(IdentityError, match="HPKE key"):
        await north.submit(north.sign_as_steward(request_of(north, "west")))
    north.statement = old
    receipt = pb.Receipt(
        transfer_id=shipped.identifier,
        ciphertext_digest=shipped.sealed.ciphertext_digest,
        rows=5,
        accepted=True,
    )
    await north.submit(north.sign(receipt))


async def test_a_key_that_was_ever_used_cannot_be_rotated_to(coordinator: Consortium) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    first, second = north.statement, StatementKey.generate()
    with pytest.raises(IdentityError, match="was used before"):
        await rotate(north, south.statement)
    with pytest.raises(IdentityError, match="was used before"):
        await rotate(north, second, south.hpke)
    await rotate(north, second)
    north.statement = second
    with pytest.raises(IdentityError, match="was used before"):
        await rotate(north, first)
    north.statement = first
    with pytest.raises(IdentityError, match="names another key"):
        await rotate(north, StatementKey.generate())


async def test_the_directory_shows_a_rotated_site_with_its_whole_chain(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    keys = [StatementKey.generate() for _ in range(2)]
    for key in keys:
        await rotate(north, key)
        north.statement = key
    async with as_protocol_error():
        directory = await south.stub.GetDirectory(wire.DirectoryRequest(), timeout=10)
    entry = next(site for site in directory.sites if site.site == "north")
    assert entry.statement_public_key == keys[-1].public_bytes
    assert len(entry.rotations) == 2


@pytest.mark.parametrize("standing", ["suspended", "revoked"])
async def test_a_site_that_is_shut_out_while_its_call_waits_changes_nothing_any_more(
    coordinator: Consortium, standing: str
) -> None:
    north = await coordinator.enrol("north")
    resume = north.sign_as_steward(pb.SiteLeaving(action="resume", reason="let me in"))
    with contextlib.closing(sqlite3.connect(coordinator.folder.database)) as operator:
        operator.execute("BEGIN IMMEDIATE")
        operator.execute("UPDATE sites SET state = ?", [standing])
        # The call is let in as things stand now, and waits for the operator's command.
        waiting = asyncio.create_task(north.submit(resume))
        await asyncio.sleep(0.2)
        operator.commit()
        with pytest.raises(IdentityError, match=f"is {standing}"):
            await waiting
        assert operator.execute("SELECT state FROM sites").fetchall() == [(standing,)]
