"""Slow, hostile and half-open callers are bounded, and everybody else goes on being answered."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from server_fixtures import (
    TIMEOUT_S,
    Clock,
    Consortium,
    Hospital,
    acceptance,
    as_protocol_error,
    new_folder,
)
from synthedge_protocols.certificates import load_certificate, pem
from synthedge_protocols.errors import BusyError, DeadlineError, PolicyError, UnavailableError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_server import enrolment
from synthedge_server.operations import change
from synthedge_server.rates import Admission, Rates, network_of
from synthedge_server.serve import running
from synthedge_server.tallies import Tallies

LARGE = wire.DictionaryDocument(digest=bytes(32), toml="x" * 200_000, version=1)


@asynccontextmanager
async def consortium_with(tmp_path: Path, **limits: Any) -> AsyncIterator[Consortium]:
    consortium = Consortium(new_folder(tmp_path / "coordinator"), Clock())
    async with running(consortium.folder, limits=Limits(**limits)) as started:
        consortium.listens(started)
        yield consortium
        await consortium.close()


async def dictionary_of(hospital: Hospital) -> None:
    async with as_protocol_error():
        await hospital.stub.GetDictionary(wire.DictionaryRequest(), timeout=TIMEOUT_S)


async def outcomes(hospital: Hospital, n_calls: int) -> list[BaseException | None]:
    return await asyncio.gather(
        *(dictionary_of(hospital) for _ in range(n_calls)), return_exceptions=True
    )


async def test_who_floods_is_told_how_long_to_wait_and_the_others_are_answered(
    tmp_path: Path,
) -> None:
    async with consortium_with(tmp_path, calls_per_s=20, calls_burst=40) as consortium:
        north, south = await consortium.enrol("north"), await consortium.enrol("south")
        flood = asyncio.create_task(outcomes(north, 100))
        answered = await outcomes(south, 10)
        refused = [error for error in await flood if error is not None]

        assert answered == [None] * 10
        assert len(refused) > 50
        assert all(isinstance(error, BusyError) for error in refused)
        worst = max(error.wait_s for error in refused if isinstance(error, BusyError))
        assert worst > 0
        await asyncio.sleep(worst)
        await dictionary_of(north)


async def test_a_statement_too_much_is_put_off_and_leaves_no_trace(tmp_path: Path) -> None:
    async with consortium_with(tmp_path, statements_per_s=0.5, statements_burst=1) as consortium:
        north = await consortium.enrol("north", accepts=False)
        first, second = (north.sign_as_steward(acceptance()) for _ in range(2))
        await north.submit(first)
        with pytest.raises(BusyError) as caught:
            await north.submit(second)
        with contextlib.closing(sqlite3.connect(consortium.folder.database)) as database:
            refused = "SELECT count(*) FROM events WHERE action = 'statement-refused'"
            assert database.execute(refused).fetchone() == (0,)
        await asyncio.sleep(caught.value.wait_s)
        await north.submit(second)


async def test_what_is_kept_of_one_site_is_bounded_refused_or_not(tmp_path: Path) -> None:
    async with consortium_with(
        tmp_path, kept_bytes_burst=10_000, kept_bytes_per_s=1_000
    ) as consortium:
        north = await consortium.enrol("north", accepts=False)
        south = await consortium.enrol("south", accepts=False)
        refused = north.sign_as_steward(acceptance(version=7))
        for _ in range(6):
            with pytest.raises(PolicyError):
                await north.submit(refused)
        with pytest.raises(BusyError, match="more than is kept") as caught:
            await north.submit(refused)
        await south.submit(south.sign_as_steward(acceptance()))
        await asyncio.sleep(caught.value.wait_s)
        await north.submit(north.sign_as_steward(acceptance()))


async def test_who_asks_for_what_takes_long_waits_as_long_as_that_cost(tmp_path: Path) -> None:
    async with consortium_with(tmp_path, read_share=0.001, read_burst_s=0.0001) as consortium:
        north, south = await consortium.enrol("north"), await consortium.enrol("south")
        refused = [error for error in await outcomes(north, 60) if error is not None]
        assert refused
        assert all(isinstance(error, BusyError) for error in refused)
        assert await outcomes(south, 1) == [None]


def test_a_database_that_is_away_uses_up_nobodys_time() -> None:
    now = 0.0
    many = Rates(per_s=1e6, burst=1e6)
    reads = Rates(per_s=0.1, burst=1e-9, clock=lambda: now)
    admission = Admission(many, many, many, reads, Limits(), Tallies())

    def read(error: Exception | None) -> None:
        with admission.admitted("north", changes=False, is_stream=False):
            if error is not None:
                raise error

    for _ in range(3):
        with pytest.raises(UnavailableError):
            read(UnavailableError("the database is away"))
    read(None)
    with pytest.raises(BusyError, match="asks for what takes too long"):
        read(None)


async def test_a_site_has_so_many_streams_at_once(tmp_path: Path) -> None:
    async with consortium_with(tmp_path, streams_at_once=2) as consortium:
        north = await consortium.enrol("north")
        streams = [
            north.stub.Inbox(wire.InboxRequest(follow=True), timeout=TIMEOUT_S) for _ in range(2)
        ]
        for stream in streams:
            await stream.initial_metadata()
        with pytest.raises(BusyError, match="2 streams under way"):
            await north.inbox()
        streams[0].cancel()
        await asyncio.sleep(0.2)
        assert await north.inbox() == []


async def test_connections_that_never_say_who_they_are_are_closed_and_stop_nobody(
    tmp_path: Path,
) -> None:
    async with consortium_with(tmp_path, handshake_timeout_s=1.0) as consortium:
        north = await consortium.enrol("north")
        stalled = []
        for i in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", consortium.sites_port)
            if i % 2:
                writer.write(bytes.fromhex("160301020001"))  # the beginning of a ClientHello
            stalled.append((reader, writer))
        assert await outcomes(north, 20) == [None] * 20
        newcomer = await consortium.enrol("south")
        assert await outcomes(newcomer, 1) == [None]
        async with asyncio.timeout(10):
            ends = await asyncio.gather(
                *(reader.read() for reader, _ in stalled), return_exceptions=True
            )
        assert all(end == b"" or isinstance(end, ConnectionError) for end in ends)
        for _, writer in stalled:
            writer.close()


async def test_few_certificates_are_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[int] = [0]

    async def counted(*arguments: Any) -> Any:
        under_way.append(under_way[-1] + 1)
        await asyncio.sleep(0.05)
        under_way.append(under_way[-1] - 1)
        raise UnavailableError("the authority is away")

    monkeypatch.setattr(enrolment, "certify_site", counted)
    async with consortium_with(tmp_path) as consortium:
        request = Hospital("north").enrol_request(consortium.invite("north"))
        calls = (consortium.ask_to_enrol(request) for _ in range(20))
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError] * 20
    assert max(under_way) == 4


def slow_stub(consortium: Consortium, hospital: Hospital) -> Any:
    """A reader whose buffers are small, as a slow line's are."""
    credentials = grpc.ssl_channel_credentials(
        consortium.ca_pem, hospital.tls.pem(), pem(load_certificate(hospital.certificate))
    )
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{consortium.sites_port}", credentials, options=options
    )
    consortium.channels.append(channel)
    return rpc.CoordinatorStub(channel)


async def test_who_does_not_read_its_inbox_is_cut_off_and_reads_on_later(tmp_path: Path) -> None:
    async with consortium_with(tmp_path, stream_idle_s=0.5) as consortium:
        north, south = await consortium.enrol("north"), await consortium.enrol("south")

        def post(transaction: Any) -> None:
            for _ in range(20):
                transaction.post("north", wire.InboxMessage(dictionary=LARGE))

        change(consortium.folder, post)
        call = slow_stub(consortium, north).Inbox(wire.InboxRequest(), timeout=30)
        first = await call.read()
        await asyncio.sleep(1.5)
        assert await outcomes(south, 10) == [None] * 10
        with pytest.raises(DeadlineError, match="go on where you stopped"):
            await read_to_the_end(call)
        assert [m.sequence for m in await north.inbox(first.sequence)] == list(range(2, 21))


@pytest.mark.parametrize("n_messages", [1, 2, 5])
async def test_an_inbox_of_many_batches_is_sent_to_its_end(tmp_path: Path, n_messages: int) -> None:
    async with consortium_with(tmp_path, inbox_batch=2) as consortium:
        north = await consortium.enrol("north")

        def post(transaction: Any) -> None:
            for _ in range(n_messages):
                transaction.post("north", wire.InboxMessage(dictionary=LARGE))

        change(consortium.folder, post)
        stream = north.stub.Inbox(wire.InboxRequest(follow=True), timeout=TIMEOUT_S)
        followed = [(await stream.read()).sequence for _ in range(n_messages)]
        stream.cancel()
        read = [message.sequence for message in await north.inbox()]
        assert followed == read == list(range(1, n_messages + 1))


async def read_to_the_end(call: Any) -> None:
    async with as_protocol_error():
        while await call.read() is not grpc.aio.EOF:
            pass


async def test_a_call_that_takes_too_long_is_ended_by_the_coordinator(tmp_path: Path) -> None:
    async with consortium_with(tmp_path, call_timeout_s=0.5) as consortium:
        north = await consortium.enrol("north", accepts=False)
        with contextlib.closing(sqlite3.connect(consortium.folder.database)) as database:
            database.execute("BEGIN IMMEDIATE")
            start = time.monotonic()
            with pytest.raises(DeadlineError, match="'Submit' took longer"):
                await north.submit(north.sign_as_steward(acceptance()))
            assert time.monotonic() - start < TIMEOUT_S / 2
            await dictionary_of(north)
            database.rollback()


async def test_many_sites_connect_at_once(tmp_path: Path) -> None:
    async with consortium_with(tmp_path) as consortium:
        north = await consortium.enrol("north")
        credentials = grpc.ssl_channel_credentials(
            consortium.ca_pem, north.tls.pem(), pem(load_certificate(north.certificate))
        )
        channels = [
            grpc.aio.secure_channel(
                f"127.0.0.1:{consortium.sites_port}",
                credentials,
                options=[("grpc.use_local_subchannel_pool", 1)],
            )
            for _ in range(64)
        ]
        consortium.channels += channels
        calls = [
            rpc.CoordinatorStub(channel).GetDictionary(wire.DictionaryRequest(), timeout=TIMEOUT_S)
            for channel in channels
        ]
        assert len({answer.digest for answer in await asyncio.gather(*calls)}) == 1


def test_a_bucket_gives_what_flowed_in_and_no_more_than_it_holds() -> None:
    now = 0.0
    rates = Rates(per_s=2, burst=3, clock=lambda: now)
    assert [rates.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert rates.take("b") == 0
    now = 0.5
    assert rates.take("a") == 0
    now = 100.0
    assert [rates.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert rates.owe("a", 4) == 2


def test_strangers_are_counted_by_address_and_by_network_of_ipv6() -> None:
    assert network_of("ipv4:192.0.2.1:50000") == "192.0.2.1"
    assert network_of("ipv6:%5B2001:db8::1%5D:50000") == "2001:db8::/64"
    assert network_of("unix:") == "unknown"
