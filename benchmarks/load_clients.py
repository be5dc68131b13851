"""A process of many clients: each with a connection of its own, all calling in bytes, as any rival is called too."""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

# As the site's own program does, before gRPC is imported.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio
from load_sites import Identity

from synthedge_protocols.v1 import coordinator_pb2 as wire

_OPTIONS = [
    # Sites are separate machines: no two of them share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.http2.bdp_probe", 0),
]
_CALL_S = 60.0
_HANDSHAKES_AT_ONCE = 32


@dataclass(frozen=True)
class Call:
    """One call of one site.

    Attributes
    ----------
    site : int
        Index among the process's identities.
    path : str
        The method.
    request : bytes
    is_stream : bool
        Whether the answer is a stream, which is read to its end.
    """

    site: int
    path: str
    request: bytes
    is_stream: bool = False


@dataclass
class Timing:
    """What a run of calls took.

    Attributes
    ----------
    seconds : float
        Of the whole run.
    latencies : list of float
        Seconds of each call that was answered.
    answer_bytes : list of int
        Of each call that was answered.
    refused : dict
        Status name to how many calls ended with it.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answer_bytes: list[int] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)


class Clients:
    """The near end of a process of clients; every method waits for its answer, but for `start`.

    Parameters
    ----------
    identities : sequence of Identity
        Sites of this process.
    """

    def __init__(self, identities: Sequence[Identity]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, list(identities)), daemon=True)
        self._process.start()

    def follow(self, port: int) -> int:
        """Open a followed inbox for every site; return how many are open."""
        self._pipe.send(("follow", port))
        return int(self.result())

    def start(self, port: int, calls: Sequence[Call], at_once: int, rate: float = 0.0) -> None:
        """Begin calling, `at_once` calls under way; with a rate, that many begin each second instead."""
        self._pipe.send(("call", port, list(calls), at_once, rate))

    def result(self) -> Any:
        """Wait for the answer to what was started."""
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, identities: list[Identity]) -> None:
    asyncio.run(_Process(identities).run(pipe))


class _Process:
    def __init__(self, identities: list[Identity]) -> None:
        self._identities = identities
        self._channels: dict[tuple[int, int], grpc.aio.Channel] = {}
        self._methods: dict[tuple[int, int, str], Any] = {}
        self._open: list[asyncio.Task[None]] = []

    async def run(self, pipe: Connection) -> None:
        do: dict[str, Callable[..., Awaitable[Any]]] = {"follow": self._follow, "call": self._call}
        while True:
            name, *arguments = await asyncio.to_thread(pipe.recv)
            try:
                pipe.send(await do[name](*arguments))
            except Exception as error:  # noqa: BLE001 - the near end raises it
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))

    def _channel(self, port: int, site: int) -> grpc.aio.Channel:
        if (port, site) not in self._channels:
            identity = self._identities[site]
            credentials = grpc.ssl_channel_credentials(
                identity.ca, identity.key, identity.certificate
            )
            self._channels[port, site] = grpc.aio.secure_channel(
                f"127.0.0.1:{port}", credentials, options=_OPTIONS
            )
        return self._channels[port, site]

    def _method(self, port: int, call: Call) -> Any:
        key = (port, call.site, call.path)
        if key not in self._methods:
            channel = self._channel(port, call.site)
            build = channel.unary_stream if call.is_stream else channel.unary_unary
            self._methods[key] = build(call.path)
        return self._methods[key]

    async def _follow(self, port: int) -> int:
        request = wire.InboxRequest(follow=True).SerializeToString()
        sites = iter(range(len(self._identities)))

        async def connect() -> None:
            for site in sites:
                call = self._method(port, Call(site, _INBOX, b"", is_stream=True))(request)
                await call.initial_metadata()
                self._open.append(asyncio.create_task(_read_on(call)))

        await asyncio.gather(*(connect() for _ in range(_HANDSHAKES_AT_ONCE)))
        return sum(not task.done() for task in self._open)

    async def _call(self, port: int, calls: list[Call], at_once: int, rate: float) -> Timing:
        timing = Timing()
        waiting = iter(calls)

        async def caller() -> None:
            for call in waiting:
                await self._one(port, call, timing)

        start = time.perf_counter()
        if rate:
            tasks = []
            for i, call in enumerate(waiting):
                await asyncio.sleep(max(0.0, start + i / rate - time.perf_counter()))
                tasks.append(asyncio.create_task(self._one(port, call, timing)))
            await asyncio.gather(*tasks)
        else:
            await asyncio.gather(*(caller() for _ in range(at_once)))
        timing.seconds = time.perf_counter() - start
        return timing

    async def _one(self, port: int, call: Call, timing: Timing) -> None:
        method = self._method(port, call)
        start = time.perf_counter()
        try:
            if call.is_stream:
                n_bytes = 0
                async for answer in method(call.request, timeout=_CALL_S):
                    n_bytes += len(answer)
            else:
                n_bytes = len(await method(call.request, timeout=_CALL_S))
        except grpc.aio.AioRpcError as error:
            name = f"{call.path.rpartition('/')[2]}: {error.code().name} {error.details()}"
            timing.refused[name] = timing.refused.get(name, 0) + 1
            return
        timing.latencies.append(time.perf_counter() - start)
        timing.answer_bytes.append(n_bytes)


_INBOX = "/synthedge_protocols.v1.Coordinator/Inbox"


async def _read_on(call: Any) -> None:
    async for _ in call:
        pass
