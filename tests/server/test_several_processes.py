"""Several coordinators on one PostgreSQL and one folder: what one of them changes, the others act on.

They share this process but nothing else; `test_rolling_restart` does the same with processes.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from postgres_server import PostgresServer, open_engine
from server_fixtures import (
    DAY_MS,
    LIMITS,
    TIMEOUT_S,
    Clock,
    Consortium,
    Hospital,
    as_protocol_error,
    counts_of_site,
    gap_report,
    new_folder,
    request_of,
)
from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import IdentityError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.writer import Writer
from synthedge_server import store
from synthedge_server.lease import Lease, NotKeeperError
from synthedge_server.ledger import Ledger, Transaction
from synthedge_server.operations import rows, set_site_state
from synthedge_server.relay import Spool
from synthedge_server.serve import Coordinator, running
from synthedge_server.upgrade import upgrade_database

pytestmark = pytest.mark.slow


@dataclass
class Two:
    """Two coordinators, and the sites that are connected to one of them each."""

    consortium: Consortium
    first: Coordinator
    second: Coordinator

    async def enrol(self, name: str, at: Coordinator) -> Hospital:
        """A site with a report, connected to one of them."""
        self.consortium.listens(at)
        hospital = await self.consortium.enrol(name)
        counts = counts_of_site(len(name))
        await hospital.submit(hospital.sign_as_steward(gap_report(*counts)))
        return hospital

    def reconnect(self, hospital: Hospital, to: Coordinator) -> None:
        self.consortium.listens(to)
        self.consortium.connect(hospital)

    @property
    def listeners(self) -> list[bool]:
        return [bool(c._shared and c._shared.listener.is_up) for c in (self.first, self.second)]


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest_asyncio.fixture
async def two(database: str, tmp_path: Path) -> AsyncIterator[Two]:
    folder = new_folder(tmp_path / "coordinator", database=database)
    consortium = Consortium(folder, Clock())
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(running(folder, clock=consortium.clock, limits=LIMITS))
            for _ in range(2)
        ]
        yield Two(consortium, first, second)
        await consortium.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - of the database, and of other tasks
            await asyncio.sleep(0.02)


async def next_message(hospital: Hospital, after: int = 0) -> asyncio.Task[wire.InboxMessage]:
    """Follow an inbox until its next message."""
    stream = hospital.stub.Inbox(wire.InboxRequest(after=after, follow=True), timeout=TIMEOUT_S)
    await stream.wait_for_connection()

    async def read() -> wire.InboxMessage:
        async with as_protocol_error():
            message: wire.InboxMessage = await stream.read()
            return message

    return asyncio.create_task(read())


async def test_a_message_written_by_one_reaches_a_stream_at_the_other_at_once(two: Two) -> None:
    north, south = await two.enrol("north", two.first), await two.enrol("southern", two.second)
    for n in range(3):
        waiting = await next_message(south, after=n)
        signed = north.sign_as_steward(request_of(north, "southern"))
        await north.submit(signed)
        started = time.monotonic()
        message = await waiting
        assert message.statement == signed
        # The housekeeping looks twice a second; this was heard.
        assert time.monotonic() - started < 0.4


async def test_who_lost_the_connection_that_listens_looks_and_listens_again(
    two: Two, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthedge_server.listening._CHECK_S", 0.5)
    listening = (
        "FROM pg_stat_activity WHERE application_name = 'synthedge-coordinator'"
        " AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')"
    )
    north, south = await two.enrol("north", two.first), await two.enrol("southern", two.second)
    waiting = await next_message(south)
    postgres.execute(f"SELECT pg_terminate_backend(pid) {listening}")
    await until(lambda: not any(two.listeners))
    signed = north.sign_as_steward(request_of(north, "southern"))
    await north.submit(signed)
    assert (await waiting).statement == signed
    await until(lambda: all(two.listeners))
    # One that stays open and says nothing is lost too.
    frozen = postgres.answers(f"SELECT pid {listening}")
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        await until(lambda: not any(two.listeners))
        await until(lambda: all(two.listeners))
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


async def test_suspending_a_site_ends_its_streams_everywhere_within_a_second(two: Two) -> None:
    sites = [await two.enrol("north", two.first), await two.enrol("southern", two.second)]
    waiting = [await next_message(site) for site in sites]
    for site in sites:
        set_site_state(two.consortium.folder, site.name, "suspended")
    for task in waiting:
        with pytest.raises(IdentityError, match="suspended"):
            async with asyncio.timeout(1.5):
                await task


async def test_one_keeps_house_and_the_other_takes_over_when_it_stops(two: Two) -> None:
    await until(lambda: two.first._keeps_house)
    assert not two.second._keeps_house
    north = await two.enrol("north", two.second)
    await two.enrol("southern", two.second)
    await north.submit(north.sign_as_steward(request_of(north, "southern")))
    await two.first.stop()
    assert two.first._shared is not None
    await two.first._shared.lease.give_up()
    two.consortium.clock.ahead_ms = 31 * DAY_MS
    state, expired = sa.select(store.transfers.c.state), [{"state": "EXPIRED"}]
    await until(lambda: rows(two.consortium.folder, state) == expired)
    assert two.second._keeps_house


async def test_the_question_a_second_process_answers_carries_the_challenge_of_the_first(
    two: Two,
) -> None:
    north = await two.enrol("north", two.first)
    question = wire.CompareRequest(inbox_after=99)
    question.challenge = (await north.stub.Compare(question)).challenge
    two.reconnect(north, two.second)
    assert "frozen" in (await north.stub.Compare(question)).reason
    # The same question, delayed on its way to the first process, judges nothing any more.
    assert rows(two.consortium.folder, sa.select(store.challenges)) == []


async def test_nothing_is_upgraded_while_one_of_them_runs(two: Two) -> None:
    with pytest.raises(RefusedError, match="a coordinator runs on postgresql://"):
        upgrade_database(two.consortium.folder)


@pytest.fixture
def writers(database: str, tmp_path: Path) -> Iterator[list[Writer]]:
    new_folder(tmp_path / "coordinator", database=database)
    engines = [open_engine(database) for _ in range(2)]
    opened = [Writer(engine) for engine in engines]
    yield opened
    for writer, engine in zip(opened, engines, strict=True):
        writer.close()
        engine.dispose()


async def test_who_was_stalled_until_the_lease_was_anothers_can_change_nothing(
    writers: list[Writer], database: str, tmp_path: Path
) -> None:
    stalled, next_one = (Lease(writer, seconds=0.3) for writer in writers)
    house = Ledger(open_engine(database), writers[0], Spool(tmp_path / "spool")).under(stalled)
    assert await stalled.hold()
    assert not await next_one.hold()
    await house.write(lambda t: t.record("coordinator", "tidied", "before"))
    # It is not renewed: the process does not run.
    await asyncio.sleep(0.4)
    assert await next_one.hold()

    def tidy(transaction: Transaction) -> None:
        transaction.record("coordinator", "tidied", "after")

    with pytest.raises(NotKeeperError):
        await house.write(tidy)
    assert not await stalled.hold()
    with house.engine.connect() as connection:
        subjects = sa.select(store.events.c.subject).where(store.events.c.action == "tidied")
        assert connection.execute(subjects).scalars().all() == ["before"]
        assert connection.execute(sa.select(store.leases.c.epoch)).scalars().all() == [2]
    await next_one.give_up()
    await asyncio.sleep(0.11)
    assert await stalled.hold()
    # A long piece of work does not stop because the lease is renewed beside it.
    await asyncio.sleep(0.11)
    renewing = asyncio.create_task(stalled.hold())
    await asyncio.sleep(0)
    await house.write(tidy)
    assert await renewing
    house.engine.dispose()
