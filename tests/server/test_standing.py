"""What becomes of transfers when a site pauses, leaves, falls silent, is shut out or loses its keys: every state."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Table, insert, select

from server_fixtures import (
    DAY_MS,
    DICTIONARY_TOML,
    DIGEST,
    Consortium,
    Hospital,
    Shipped,
    as_protocol_error,
    eventually,
    kinds,
    request_of,
    ship,
)
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.errors import (
    IdentityError,
    LifecycleError,
    LimitExceededError,
    MalformedError,
    PolicyError,
    ReplayError,
    VerificationError,
)
from synthedge_protocols.lifecycle import Event, Party, State, advance, is_final
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealed_notes import sealed_note_bytes
from synthedge_protocols.standing import CHANGES, UNFINISHED, Standing, ending_of, standing_markdown
from synthedge_protocols.statements import transfer_id
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.withdrawal import NOTICE_ID_BYTES
from synthedge_protocols.writer import Writer, sqlite_engine
from synthedge_server import dictionaries, doctor, store
from synthedge_server import standing as server_standing
from synthedge_server.broker import Broker
from synthedge_server.ledger import Transaction
from synthedge_server.operations import reading, set_site_state
from synthedge_server.overview import list_sites
from synthedge_server.registries import Registries
from synthedge_server.standing import change_standing
from synthedge_server.status import read_status

T = TypeVar("T")
NOW_MS = 1_800_000_000_000
TARGET = {Event.EXPIRE: State.EXPIRED, Event.REVOKE: State.REVOKED}


def row(table: Table, **values: object) -> dict[str, object]:
    """A row of a table with something in every column that must have it."""
    blank = {bytes: b"", str: "", int: NOW_MS, bool: False}
    required = [column for column in table.columns if not column.nullable]
    return {column.name: blank[column.type.python_type] for column in required} | values


class Records:
    """A coordinator's database alone: three sites and a transfer in each state between two of them."""

    def __init__(self, path: Path) -> None:
        self.engine = sqlite_engine(path)
        store.METADATA.create_all(self.engine)
        self.writer = Writer(self.engine)
        self.change(self._fill)

    def _fill(self, transaction: Transaction) -> None:
        connection = transaction.connection
        dictionaries.add(transaction, DICTIONARY_TOML)
        for site in ("north", "south", "west"):
            keys = dict.fromkeys(
                ("statement_public_key", "hpke_key_id", "tls_key_digest"), site.encode()
            )
            connection.execute(
                insert(store.sites).values(row(store.sites, site=site, state="active", **keys))
            )
        for state in State:
            identifier = state.value.encode().ljust(32, b".")
            parties = {"recipient": "north", "donor": "south"}
            connection.execute(
                insert(store.transfers).values(
                    row(
                        store.transfers,
                        transfer_id=identifier,
                        dictionary_digest=DIGEST,
                        state=state.value,
                        **parties,
                    )
                )
            )

    def change(self, function: Callable[[Transaction], T]) -> T:
        return self.writer.submit(lambda c: function(Transaction(c, NOW_MS))).result()

    def states(self) -> dict[State, State]:
        """State a transfer had to the state it has."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                select(store.transfers.c.transfer_id, store.transfers.c.state)
            )
            return {State(r.transfer_id.rstrip(b".").decode()): State(r.state) for r in rows}

    def inbox(self, site: str) -> list[wire.InboxMessage]:
        with self.engine.connect() as connection:
            blobs = connection.execute(
                select(store.inbox.c.message)
                .where(store.inbox.c.site == site)
                .order_by(store.inbox.c.sequence)
            ).scalars()
            return [wire.InboxMessage.FromString(blob) for blob in blobs]

    def stand(self, site: str, standing: Standing, reason: str = "why") -> int:
        broker = Broker(Registries(), Limits())
        return self.change(lambda t: change_standing(t, broker, site, standing, reason))


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records(tmp_path / "coordinator.db")
    yield records
    records.writer.close()
    records.engine.dispose()


@pytest.mark.parametrize("site", ["north", "south"])
@pytest.mark.parametrize("standing", list(CHANGES))
def test_a_standing_does_to_every_state_what_the_table_says(
    records: Records, standing: Standing, site: str
) -> None:
    n_ended = records.stand(site, standing)

    after = records.states()
    for state in State:
        event = ending_of(standing, state)
        assert after[state] is (TARGET[event] if event else state), state
    assert n_ended == sum(after[state] is not state for state in State)
    peer = "south" if site == "north" else "north"
    told = records.inbox(peer)
    assert told[0].standing == wire.SiteStanding(site=site, standing=standing, reason="why")
    assert [m.WhichOneof("body") for m in told[1:]] == ["ended"] * n_ended
    assert [m.WhichOneof("body") for m in records.inbox(site)] == ["ended"] * n_ended
    # Who shares no transfer is not told.
    assert records.inbox("west") == []


def test_every_record_of_every_party_can_take_the_end_of_its_peer() -> None:
    reachable = {
        Party.DONOR: set(State) - {State.PROPOSED, State.DELIVERED},
        Party.RECIPIENT: set(State) - {State.PROPOSED, State.PREPARED, State.SEALED},
    }
    for change, party in product(CHANGES.values(), reachable):
        for state in reachable[party]:
            event = change.active if state is State.ACTIVE else change.unfinished
            if event is not None and not is_final(state):
                advance(state, event, Party.COORDINATOR, at=party)


def test_the_table_covers_every_standing_and_every_state() -> None:
    assert set(CHANGES) == set(Standing) - {Standing.ACTIVE}
    assert {state for state in State if not is_final(state)} == {
        *UNFINISHED,
        State.ACTIVE,
        # Local to one party, or a hint: no other record waits in them.
        State.PROPOSED,
        State.PREPARED,
        State.SEALED,
    }
    for standing, state in product(Standing, State):
        if is_final(state):
            assert ending_of(standing, state) is None
    document = Path(__file__).resolve().parents[2] / "docs" / "withdrawal.md"
    assert standing_markdown() in document.read_text()


def test_what_is_for_ever_cannot_be_undone(records: Records) -> None:
    records.stand("south", Standing.SUSPENDED)
    records.stand("south", Standing.ACTIVE)
    records.stand("south", Standing.LEFT)
    with pytest.raises(RefusedError, match="left; reset its keys"):
        records.stand("south", Standing.ACTIVE)
    records.stand("south", Standing.RESET)
    with pytest.raises(RefusedError, match="is reset; it can only enrol anew; invite it"):
        records.stand("south", Standing.ACTIVE)
    records.stand("north", Standing.REVOKED)
    with pytest.raises(RefusedError, match="under another id"):
        records.stand("north", Standing.RESET)
    assert records.stand("north", Standing.REVOKED, reason="") == 0
    with records.engine.connect() as connection:
        assert {site.site: site.reason for site in list_sites(connection, NOW_MS)}["north"] == "why"
    with pytest.raises(UsageError, match="no site 'nowhere'"):
        records.stand("nowhere", Standing.SUSPENDED)
    with pytest.raises(UsageError, match="at most 2000"):
        records.stand("west", Standing.SUSPENDED, "x" * 2001)


def leaving(hospital: Hospital, action: str, reason: str = "audit") -> pb.SignedStatement:
    return hospital.sign_as_steward(pb.SiteLeaving(action=action, reason=reason))


def notice(hospital: Hospital, identifier: bytes, *, reason: str = "first") -> pb.SignedStatement:
    sealed = reason.encode().ljust(sealed_note_bytes(5, 2), b"\0")
    note = pb.SealedNote(hpke_key_id=bytes(32), sealed=sealed)
    return hospital.sign(
        pb.WithdrawalNotice(notice_id=b"n" * NOTICE_ID_BYTES, transfer_id=identifier, note=note)
    )


def receipt(hospital: Hospital, identifier: bytes, *, reason: str = "first") -> pb.SignedStatement:
    note = pb.SealedNote(hpke_key_id=bytes(32), sealed=reason.encode() * 100)
    return hospital.sign(
        pb.WithdrawalReceipt(notice_id=b"n" * NOTICE_ID_BYTES, transfer_id=identifier, note=note)
    )


def state_of(consortium: Consortium, identifier: bytes) -> str:
    with reading(consortium.folder) as engine, engine.connect() as connection:
        state: str = connection.execute(
            select(store.transfers.c.state).where(store.transfers.c.transfer_id == identifier)
        ).scalar_one()
    return state


async def active_one(north: Hospital, south: Hospital) -> Shipped:
    """A transfer whose rows north accepted."""
    shipped = await ship(north, south, b"rows" * 1000)
    await south.upload(shipped.identifier, shipped.ciphertext)
    await north.release_key(shipped.identifier)
    accepted = pb.Receipt(
        transfer_id=shipped.identifier,
        ciphertext_digest=shipped.sealed.ciphertext_digest,
        rows=5,
        accepted=True,
    )
    await north.submit(north.sign(accepted))
    return shipped


async def test_a_site_that_pauses_starts_nothing_and_goes_on_afterwards(
    coordinator: Consortium,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, b"rows" * 1000)
    await south.upload(shipped.identifier, shipped.ciphertext)
    with pytest.raises(MalformedError, match="a site can suspend, resume, leave"):
        await south.submit(leaving(south, "vanish"))

    suspend = leaving(south, "suspend")
    await south.submit(suspend)

    assert (await north.inbox())[-1].statement == suspend
    with pytest.raises(IdentityError, match="site 'south' is paused; the key is not released"):
        await north.release_key(shipped.identifier)
    with pytest.raises(PolicyError, match=r"site 'south' is paused.*'synthedge site resume'"):
        await south.submit(south.sign_as_steward(request_of(south, "north")))
    assert state_of(coordinator, shipped.identifier) == "RELAYED"
    assert read_status(coordinator.folder)["sites_not_active"] == {"south": "paused: audit"}

    # Nor does the operator decide for it, also not by suspending and resuming it.
    with pytest.raises(RefusedError, match="its stewards runs 'synthedge site resume'"):
        set_site_state(coordinator.folder, "south", "active")
    set_site_state(coordinator.folder, "south", "suspended", "a look")
    set_site_state(coordinator.folder, "south", "active", "looked")
    assert read_status(coordinator.folder)["sites_not_active"] == {"south": "paused: audit"}

    await south.submit(leaving(south, "resume", "done"))
    # Whoever did so all day would write into every peer's inbox each time.
    monkeypatch.setattr(server_standing, "_WISHES_AN_HOUR", 2)
    with pytest.raises(LimitExceededError, match="paused or resumed 2 times"):
        await south.submit(leaving(south, "suspend"))
    assert (await north.release_key(shipped.identifier)) == shipped.shipment


async def test_a_site_that_left_gives_nothing_more_and_can_still_withdraw(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    unfinished = await ship(north, south, b"rows" * 1000)
    active = await active_one(north, south)

    await south.submit(leaving(south, "leave", "funding ended"))

    assert state_of(coordinator, unfinished.identifier) == "REVOKED"
    assert state_of(coordinator, active.identifier) == "ACTIVE"
    with pytest.raises(PolicyError, match="site 'south' is left"):
        await south.submit(south.sign_as_steward(request_of(south, "north")))
    with pytest.raises(LifecycleError, match="left; its operator can invite it anew"):
        await south.submit(leaving(south, "resume"))
    await south.submit(notice(south, active.identifier))
    assert kinds(await north.inbox())[0] == "withdrawal"
    answer = receipt(north, active.identifier)
    await north.submit(answer)
    assert (await south.inbox())[-1].statement == answer
    restored = wire.CompareRequest(inbox_after=99)
    restored.challenge = (await south.stub.Compare(restored)).challenge
    with pytest.raises(PolicyError, match="site 'south' left, and the site has read its inbox to"):
        async with as_protocol_error():
            await south.stub.Compare(restored)


async def test_a_notice_comes_first_on_every_stream_until_its_receipt(
    coordinator: Consortium,
) -> None:
    north, south, west = await coordinator.reporting("north", "south", "west")
    active = await active_one(north, south)
    sent = notice(south, active.identifier)
    await south.submit(sent)
    await south.submit(sent)

    for _ in range(2):
        messages = await north.inbox()
        assert (messages[0].withdrawal, messages[0].sequence) == (sent, 0)
        assert kinds(messages).count("withdrawal") == 1
        # The sequence of the others is as it was: a site that dies after the notice is still sent them.
        assert [m.sequence for m in messages[1:]] == sorted({m.sequence for m in messages[1:]})
    # Also for a site that has stored all the rest.
    assert kinds(await north.inbox(messages[-1].sequence)) == ["withdrawal"]
    assert "withdrawal" not in kinds(await west.inbox()) + kinds(await south.inbox())

    for impostor in (west, south):
        with pytest.raises(VerificationError, match="not its recipient's"):
            await impostor.submit(receipt(impostor, active.identifier))
    await north.submit(receipt(north, active.identifier))
    assert "withdrawal" not in kinds(await north.inbox())
    with pytest.raises(LifecycleError, match="that is PURGED cannot take 'purge'"):
        await north.submit(receipt(north, active.identifier, reason="again"))


async def test_a_notice_before_the_rows_were_accepted_revokes_them(coordinator: Consortium) -> None:
    north, south, west = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, b"rows" * 1000)
    await south.upload(shipped.identifier, shipped.ciphertext)

    for stranger in (west, north):
        with pytest.raises(LifecycleError, match="no part as donor"):
            await stranger.submit(notice(stranger, shipped.identifier))
    with pytest.raises(MalformedError, match="an id of 16 bytes"):
        await south.submit(
            south.sign(pb.WithdrawalNotice(notice_id=b"short", transfer_id=shipped.identifier))
        )
    for wrong in (b"", bytes(500_000)):
        note = pb.SealedNote(hpke_key_id=bytes(32), sealed=wrong)
        large = pb.WithdrawalNotice(notice_id=bytes(16), transfer_id=shipped.identifier, note=note)
        with pytest.raises(MalformedError, match="those of its transfer have 5232"):
            await south.submit(south.sign(large))
    await south.submit(notice(south, shipped.identifier))

    assert state_of(coordinator, shipped.identifier) == "REVOKED"
    with pytest.raises(LifecycleError, match="nothing waits here"):
        await north.release_key(shipped.identifier)
    assert list(coordinator.folder.spool.iterdir()) == []
    assert kinds(await south.inbox())[-1] == kinds(await north.inbox())[-1] == "ended"
    with pytest.raises(ReplayError, match="on record with other content"):
        await south.submit(notice(south, shipped.identifier, reason="other"))


async def test_a_silent_sites_transfers_expire_and_its_return_is_told(
    coordinator: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    active = await active_one(north, south)
    request = request_of(north, "south")
    await north.submit(north.sign_as_steward(request))
    unfinished = transfer_id(request.SerializeToString(deterministic=True))

    coordinator.clock.ahead_ms = 15 * DAY_MS
    await eventually(lambda: "south" in read_status(coordinator.folder)["sites_not_active"])

    kept = [
        read_status(coordinator.folder, coordinator.clock() + days * DAY_MS)["retention_overdue"]
        for days in (15, 17)
    ]
    assert kept == [{}, {active.identifier.hex(): "north"}]
    monkeypatch.setattr(doctor, "system_clock", lambda: coordinator.clock() + 17 * DAY_MS)
    problems = await asyncio.to_thread(doctor.examine, coordinator.folder)
    assert "'north' keeps its rows longer than agreed" in {problem.what for problem in problems}
    # Well before the thirty days a request may wait.
    assert state_of(coordinator, unfinished) == "EXPIRED"
    assert state_of(coordinator, active.identifier) == "ACTIVE"
    told = [m.standing for m in await north.inbox() if m.WhichOneof("body") == "standing"]
    assert [(t.site, t.standing) for t in told] == [("south", "silent")]
    assert told[0].reason == "it did not call for 336 hours"
    await south.inbox()
    await eventually(lambda: "south" not in read_status(coordinator.folder)["sites_not_active"])
    last = (await north.inbox())[-1].standing
    assert (last.site, last.standing, last.reason) == ("south", "active", "it calls again")


async def test_a_site_that_lost_its_keys_enrols_anew_under_its_id(
    coordinator: Consortium,
) -> None:
    north, south, west = await coordinator.reporting("north", "south", "west")
    active = await active_one(north, south)
    old = south.statement.public_bytes
    with pytest.raises(IdentityError, match=r"enrolled already.*'.* sites reset-keys south' first"):
        coordinator.invite("south")

    assert set_site_state(coordinator.folder, "south", "reset", "disk lost") == 1

    assert state_of(coordinator, active.identifier) == "REVOKED"
    with pytest.raises(IdentityError, match="site 'south' is reset"):
        await south.inbox()
    again = await coordinator.enrol("south")
    assert await again.inbox() == []
    directory = await west.stub.GetDirectory(wire.DirectoryRequest())
    (shown,) = [keys for keys in directory.sites if keys.site == "south"]
    assert shown.statement_public_key == again.statement.public_bytes != old
    with pytest.raises(IdentityError, match="not the one site 'south' enrolled with"):
        await south.inbox()
