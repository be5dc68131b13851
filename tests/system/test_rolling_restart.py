"""Two coordinator processes on one PostgreSQL, stopped, killed and started in turn while sites and agents go on."""

import asyncio
import hashlib
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa

from asked_and_given import ask, give, states
from coordinator_processes import free_ports, serving
from enrolled import enrolled
from postgres_server import PostgresServer, postgres
from server_fixtures import (
    Clock,
    Consortium,
    Hospital,
    as_protocol_error,
    counts_of_site,
    gap_report,
    new_folder,
    request_of,
    ship,
)
from sites import patients, with_hole
from synthedge_client.agent import run_forever
from synthedge_client.status import describe_transfers
from synthedge_protocols.errors import DeadlineError, LifecycleError, UnavailableError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.audit import verify_log
from synthedge_server.operations import rows

__all__ = ["postgres"]

T = TypeVar("T")
PAYLOAD = bytes(400_000)
PATIENCE_S = 30.0


class Balancer:
    """What stands in front of several processes: takes a connection to one that accepts it."""

    def __init__(self, backends: list[int]) -> None:
        self._backends = backends
        self._next = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self._backends:
            self._next = (self._next + 1) % len(self._backends)
            with suppress(OSError):
                there = await asyncio.open_connection("127.0.0.1", self._backends[self._next])
                await asyncio.gather(_carry(reader, there[1]), _carry(there[0], writer))
                return
        writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def balanced(port: int, backends: list[int]) -> AsyncIterator[None]:
    server = await asyncio.start_server(Balancer(backends).take, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


async def persistently(call: Callable[[], Awaitable[T]]) -> T:
    """Do what every site does with a call that was not answered: make it again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(UnavailableError, DeadlineError):
                return await call()
            await asyncio.sleep(0.05)


async def submit_on(hospital: Hospital, donor: str, until: asyncio.Event) -> list[bytes]:
    """Submit one request after the other; return their digests in order."""
    sent: list[bytes] = []
    while not until.is_set():
        signed = hospital.sign_as_steward(request_of(hospital, donor))
        receipt = await persistently(lambda signed=signed: hospital.submit(signed))  # type: ignore[misc]
        assert receipt.statement_digest == hashlib.sha256(signed.statement).digest()
        sent.append(receipt.statement_digest)
        await asyncio.sleep(0.02)
    return sent


async def follow(hospital: Hospital, messages: list[wire.InboxMessage]) -> None:
    """Follow an inbox for ever, from the last message on whenever the stream ends."""
    while True:
        after = messages[-1].sequence if messages else 0
        with suppress(UnavailableError, DeadlineError):
            async with as_protocol_error():
                stream = hospital.stub.Inbox(wire.InboxRequest(after=after, follow=True))
                async for message in stream:
                    messages.append(message)
        await asyncio.sleep(0.05)


async def upload_on(donor: Hospital, identifier: bytes, data: bytes) -> None:
    """Upload piece by piece, from where the last one that arrived ended."""

    async def piece() -> bool:
        progress = await donor.progress(identifier)
        if not progress.complete:
            at = progress.stored_bytes
            with suppress(LifecycleError):
                progress = await donor.upload(identifier, data, at, until=min(at + 8192, len(data)))
        return progress.complete

    while not await persistently(piece):  # noqa: ASYNC110 - a slow line, not a wait
        await asyncio.sleep(0.1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - of agents, and of other tasks
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_sites_notice_nothing_of_a_rolling_restart_and_of_a_kill(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    front, first, second = free_ports(2), free_ports(3), free_ports(3)
    folder = new_folder(
        tmp_path / "coordinator",
        sites_port=front[0],
        enrolment_port=front[1],
        database=postgres.new_database(),
    )
    consortium = Consortium(folder, Clock())
    consortium.sites_port, consortium.enrolment_port = front
    options = [
        tuple(
            f"--{option}=127.0.0.1:{port}"
            for option, port in zip(
                ("listen", "enrolment-listen", "metrics-listen"), ports, strict=True
            )
        )
        for ports in (first, second)
    ]
    async with AsyncExitStack() as stack:
        for port, backends in zip(front, zip(first, second, strict=True), strict=False):
            await stack.enter_async_context(balanced(port, list(backends)))
        processes = []
        for each in options:
            processes.append(await stack.enter_async_context(serving(folder, *each)))
        tables = {"north": patients("n", with_hole()), "south": patients("s")}
        north, south = await stack.enter_async_context(enrolled(consortium, tmp_path, **tables))
        east, west = [await consortium.enrol(name) for name in ("east", "west")]
        for i, site in enumerate((east, west)):
            await site.submit(site.sign_as_steward(gap_report(*counts_of_site(i))))
        shipped = await ship(east, west, PAYLOAD)
        done, messages = asyncio.Event(), list[wire.InboxMessage]()
        following = asyncio.create_task(follow(west, messages))
        submitting = asyncio.create_task(submit_on(east, "west", done))
        uploading = asyncio.create_task(upload_on(west, shipped.identifier, shipped.ciphertext))
        stop = threading.Event()
        agents = [
            asyncio.create_task(asyncio.to_thread(run_forever, site, site.connect(), stop))
            for site in (north, south)
        ]
        identifier = b""
        for number, how in ((0, signal.SIGTERM), (1, signal.SIGTERM), (0, signal.SIGKILL)):
            await asyncio.sleep(1.0)
            processes[number].send_signal(how)
            await processes[number].wait()
            # One is away while the agents carry a request, the other while they carry approval and rows.
            if not identifier:
                identifier = ask(north)
            elif number == 1:
                await until(lambda: bool(describe_transfers(south)))
                give(south, identifier)
            await asyncio.sleep(0.5)
            processes[number] = await stack.enter_async_context(serving(folder, *options[number]))
        await asyncio.sleep(1.0)
        done.set()
        sent = await submitting
        await uploading
        assert await persistently(lambda: east.download(shipped.identifier)) == shipped.ciphertext
        await until(lambda: states(identifier, north, south) == ["ACTIVE", "ACTIVE"])
        stop.set()
        await asyncio.gather(*agents)

        def requests() -> list[bytes]:
            return [
                hashlib.sha256(m.statement.statement).digest()
                for m in messages
                if pb.Statement.FromString(m.statement.statement).type == "transfer-request"
            ]

        await until(lambda: len(requests()) > len(sent))
        following.cancel()
        # The first one is that of the shipment.
        assert requests()[1:] == sent
        assert len(sent) > 50
        sequences = [message.sequence for message in messages]
        # Older hints disappear when newer ones come; nothing else is missing, and nothing comes twice.
        assert sequences == sorted(set(sequences))
        await consortium.close()
    stored = rows(
        folder,
        sa.select(sa.func.count().label("n")).where(store.statements.c.type == "transfer-request"),
    )
    # One is that of the agents.
    assert stored == [{"n": len(sent) + 2}]
    verify_log(folder)
