"""Transfers: relayed, resumed, refused and ended."""

import io

import pytest
from sqlalchemy import select

from server_fixtures import (
    DAY_MS,
    LIMITS,
    Consortium,
    Hospital,
    eventually,
    kinds,
    request_of,
    ship,
)
from synthedge_protocols.errors import (
    IdentityError,
    LifecycleError,
    LimitExceededError,
    MalformedError,
    PolicyError,
    ProtocolError,
    ReplayError,
    VerificationError,
)
from synthedge_protocols.sealing import Sealed, open_sealed
from synthedge_protocols.statements import transfer_id
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.operations import reading, rows, set_site_state

PAYLOAD = b"rows that only the recipient may read " * 1000


def state_of(consortium: Consortium, identifier: bytes) -> str:
    table = store.transfers
    with reading(consortium.folder) as engine, engine.connect() as connection:
        state: str = connection.execute(
            select(table.c.state).where(table.c.transfer_id == identifier)
        ).scalar_one()
    return state


def receipt_of(identifier: bytes, digest: bytes, *, accepted: bool = True) -> pb.Receipt:
    return pb.Receipt(
        transfer_id=identifier,
        ciphertext_digest=digest,
        rows=5 if accepted else 0,
        accepted=accepted,
        reason="" if accepted else "values outside the region",
    )


async def test_a_whole_transfer_reaches_the_recipient_and_leaves_nothing_behind(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    identifier = shipped.identifier

    progress = await south.upload(identifier, shipped.ciphertext)

    assert (progress.stored_bytes, progress.complete) == (len(shipped.ciphertext), True)
    assert (await south.inbox())[-1].statement == shipped.request
    received = await north.inbox()
    assert kinds(received)[-2:] == ["statement", "shipment"]
    assert received[-2].statement == shipped.approval
    assert received[-1].shipment.ciphertext_bytes == len(shipped.ciphertext)
    ciphertext = await north.download(identifier)
    shipment = await north.release_key(identifier)
    assert shipment == shipped.shipment
    assert shipment == await north.release_key(identifier)
    statement = pb.Statement.FromString(shipment.statement)
    opened = io.BytesIO()
    open_sealed(
        io.BytesIO(ciphertext),
        opened,
        sealed=Sealed.from_shipment(pb.Shipment.FromString(statement.payload)),
        key_pair=north.hpke,
        context=shipped.context,
        limits=LIMITS,
    )
    assert opened.getvalue() == PAYLOAD

    receipt = north.sign(receipt_of(identifier, shipped.sealed.ciphertext_digest))
    await north.submit(receipt)

    assert (await south.inbox())[-1].statement == receipt
    assert state_of(coordinator, identifier) == "ACTIVE"
    assert list(coordinator.folder.spool.iterdir()) == []
    assert (await south.progress(identifier)).complete


async def test_an_upload_goes_on_where_the_broken_stream_ended(coordinator: Consortium) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext, until=10_000)

    stored = (await south.progress(shipped.identifier)).stored_bytes
    assert stored == 10_000
    with pytest.raises(LifecycleError, match="ask GetUpload"):
        await south.upload(shipped.identifier, shipped.ciphertext)
    progress = await south.upload(shipped.identifier, shipped.ciphertext, stored)

    assert progress.complete
    assert await north.download(shipped.identifier, 9_000) == shipped.ciphertext[9_000:]


async def test_bytes_that_the_shipment_did_not_announce_are_deleted(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    wrong = shipped.ciphertext[:-1] + bytes([shipped.ciphertext[-1] ^ 1])

    with pytest.raises(VerificationError, match="upload again from byte 0"):
        await south.upload(shipped.identifier, wrong)

    assert (await south.progress(shipped.identifier)).stored_bytes == 0
    with pytest.raises(LimitExceededError):
        await south.upload(shipped.identifier, shipped.ciphertext + b"more")
    assert state_of(coordinator, shipped.identifier) == "APPROVED"


async def test_nobody_but_the_recipient_gets_bytes_or_key(coordinator: Consortium) -> None:
    north, south, west = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext)

    for other in (west, south):
        with pytest.raises(LifecycleError, match="no part as recipient"):
            await other.download(shipped.identifier)
        with pytest.raises(LifecycleError, match="no part as recipient"):
            await other.release_key(shipped.identifier)
    for other in (west, north):
        with pytest.raises(LifecycleError, match="no part as donor"):
            await other.upload(shipped.identifier, shipped.ciphertext)


async def test_the_key_is_not_released_before_the_last_byte_is_there(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext, until=10_000)
    with pytest.raises(LifecycleError):
        await north.release_key(shipped.identifier)


async def test_the_key_is_not_released_once_the_donor_is_suspended(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext)
    set_site_state(coordinator.folder, "south", "suspended")

    with pytest.raises(IdentityError, match="'south' is suspended"):
        await north.release_key(shipped.identifier)

    assert state_of(coordinator, shipped.identifier) == "RELAYED"


async def test_revoking_a_site_ends_its_transfers_and_tells_the_other_side(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext)

    assert set_site_state(coordinator.folder, "south", "revoked") == 1

    ended = (await north.inbox())[-1].ended
    assert (ended.transfer_id, ended.state) == (shipped.identifier, "REVOKED")
    await eventually(lambda: list(coordinator.folder.spool.iterdir()) == [])


async def test_a_request_nobody_answers_expires_on_both_sides(coordinator: Consortium) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    request = request_of(north, "south")
    await north.submit(north.sign_as_steward(request))
    identifier = transfer_id(request.SerializeToString(deterministic=True))

    coordinator.clock.ahead_ms = 31 * DAY_MS // 2  # REQUESTED lasts 720 hours
    await north.inbox()
    assert state_of(coordinator, identifier) == "REQUESTED"
    # Certificates live 30 days and judge by the same clock: look at the inboxes as they will be later.
    coordinator.clock.ahead_ms = 31 * DAY_MS
    await eventually(lambda: state_of(coordinator, identifier) == "EXPIRED")
    coordinator.clock.ahead_ms = 0
    for site in (north, south):
        assert (await site.inbox())[-1].ended.state == "EXPIRED"


async def test_a_refused_delivery_is_told_to_the_donor_with_its_reason(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext)
    await north.release_key(shipped.identifier)

    await north.submit(north.sign(receipt_of(shipped.identifier, bytes(32), accepted=False)))

    assert state_of(coordinator, shipped.identifier) == "REFUSED"
    assert kinds(await south.inbox())[-1] == "statement"


async def test_a_receipt_for_other_bytes_is_refused(coordinator: Consortium) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext)
    await north.release_key(shipped.identifier)
    with pytest.raises(VerificationError, match="other bytes"):
        await north.submit(north.sign(receipt_of(shipped.identifier, bytes(32))))


async def test_a_new_approval_drops_what_was_shipped_under_the_old_one(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext, until=10_000)
    with pytest.raises(ReplayError, match="new approval"):
        await south.submit(south.sign(pb.Shipment.FromString(_payload(shipped.shipment))))

    approval = pb.Approval.FromString(_payload(shipped.approval))
    approval.rows = 4
    await south.submit(south.sign_as_steward(approval))

    assert list(coordinator.folder.spool.iterdir()) == []
    with pytest.raises(LifecycleError, match="no shipment"):
        await south.progress(shipped.identifier)


async def test_a_declined_request_ends_with_the_stewards_own_words(
    coordinator: Consortium,
) -> None:
    north, south, west = await coordinator.reporting("north", "south", "west")
    request = request_of(north, "south")
    await north.submit(north.sign_as_steward(request))
    identifier = transfer_id(request.SerializeToString(deterministic=True))
    ending = pb.Ending(transfer_id=identifier, state="DECLINED", reason="not\0\n\x1b[2Javailable")

    with pytest.raises(PolicyError, match="must be signed by the steward"):
        await south.submit(south.sign(ending))
    with pytest.raises(LifecycleError, match="no part in"):
        await west.submit(west.sign_as_steward(ending))
    with pytest.raises(LifecycleError):
        await north.submit(north.sign_as_steward(ending))
    signed = south.sign_as_steward(ending)
    await south.submit(signed)

    assert state_of(coordinator, identifier) == "DECLINED"
    # On the record without what a terminal obeys or PostgreSQL cannot keep; in the statement as it was signed.
    transfers = store.transfers.c
    kept = rows(coordinator.folder, select(transfers.reason).where(transfers.state == "DECLINED"))
    assert kept == [{"reason": "not   [2Javailable"}]
    assert (await north.inbox())[-1].statement == signed


OUTSIDE_THE_RULES: list[tuple[dict[str, object], type[ProtocolError]]] = [
    ({"donor": "north"}, PolicyError),
    ({"donor": "east"}, PolicyError),
    ({"donor": "quiet"}, PolicyError),
    ({"recipient": "south"}, IdentityError),
    ({"grid": "age"}, PolicyError),
    ({"voxel": [1, 9]}, MalformedError),
    ({"rows": 21}, PolicyError),
    ({"rows": 0}, PolicyError),
    ({"retention_days": 999}, PolicyError),
    ({"purpose": "research"}, MalformedError),
    ({"features": ["sex", "bp"]}, MalformedError),
    ({"features": ["bp"]}, PolicyError),
    ({"features": ["bp", "sex", "note"]}, PolicyError),
    ({"hpke_key_id": bytes(32)}, IdentityError),
    ({"nonce": b"short"}, MalformedError),
]


async def test_a_request_outside_the_rules_never_reaches_the_donor(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    await coordinator.enrol("quiet")
    for changes, error in OUTSIDE_THE_RULES:
        with pytest.raises(error):
            await north.submit(north.sign_as_steward(request_of(north, "south", **changes)))
    assert "statement" not in kinds(await south.inbox())


async def test_an_approval_must_name_the_request_and_no_more_rows(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    approval = pb.Approval.FromString(_payload(shipped.approval))

    approval.rows = 6
    with pytest.raises(PolicyError, match="requested were up to 5"):
        await south.submit(south.sign_as_steward(approval))
    approval.rows, approval.request_digest = 5, bytes(32)
    with pytest.raises(VerificationError, match="another request"):
        await south.submit(south.sign_as_steward(approval))


async def test_one_request_signed_twice_opens_one_transfer(coordinator: Consortium) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    request = request_of(north, "south")
    signed = north.sign_as_steward(request)
    assert await north.submit(signed) == await north.submit(signed)
    later = Hospital("north", statement=north.statement)
    with pytest.raises(ReplayError):
        await north.submit(later.sign_as_steward(request))
    assert kinds(await south.inbox()).count("statement") == 1


def _payload(signed: pb.SignedStatement) -> bytes:
    return pb.Statement.FromString(signed.statement).payload
