"""A coordinator and its sites in one process, over a network that loses, cuts, repeats and delays what it carries.

Everything is the product's own, from the site's command to the coordinator's database: only gRPC's channel and server
are replaced, below the generated stubs. Either end can be made to crash just before or just after any of its durable
writes; it is then opened again on what its disk holds. Time is the test's.
"""

import asyncio
import resource
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import grpc
import pandas as pd
import sqlalchemy as sa

from server_fixtures import CONSORTIUM, DICTIONARY_TOML
from sites import make_site, steward
from synthedge_client import store
from synthedge_client.agent import run_once
from synthedge_client.connection import Connection
from synthedge_client.dictionaries import accept
from synthedge_client.enrolment import enrol_site
from synthedge_client.releases import publish
from synthedge_client.site import Site, open_site
from synthedge_protocols.writer import sqlite_engine
from synthedge_server import health, operations, serve, telling
from synthedge_server import store as server_store
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.operations import create_coordinator
from synthedge_server.settings import Address

HOUR_MS = 3_600_000
COORDINATOR = "coordinator"
# Hours; short, so that certificates outlive every time limit.
LIMITS_TOML = "\n".join(
    f"{name} = {hours}"
    for name, hours in {
        "requested_h": 48,
        "prepared_h": 12,
        "approved_h": 24,
        "sealed_h": 24,
        "delivered_h": 24,
    }.items()
)


class CrashError(BaseException):
    """A party stops here, at once."""


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow beyond 4 KB; a pipe still can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class CommitCounter:
    """Counts a party's durable writes, and crashes it at one of them; or its disk is full.

    Attributes
    ----------
    commits : int
    has_room : bool
        Whether the party's disk is not full.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.has_room = True
        self._at: tuple[int, str] | None = None

    def crash_at(self, n_commits: int, when: str) -> None:
        """Crash ``before`` or ``after`` the n-th commit from now, the next one being 0."""
        self._at = (self.commits + n_commits, when)

    def forget(self) -> None:
        """Crash at nothing."""
        self._at = None

    def watch(self, engine: sa.Engine) -> None:
        """Count the commits of an engine."""
        commit = engine.dialect.do_commit

        def counted(connection: Any) -> None:
            self._pass("before")
            with nullcontext() if self.has_room else no_room():
                commit(connection)
            self._pass("after")
            self.commits += 1

        engine.dialect.do_commit = counted  # type: ignore[method-assign, assignment]

    def _pass(self, when: str) -> None:
        if self._at == (self.commits, when):
            self.forget()
            raise CrashError


class NetworkError(grpc.RpcError):
    """What gRPC raises at the caller."""

    def __init__(self, code: grpc.StatusCode, details: str = "", metadata: Any = ()) -> None:
        super().__init__(details)
        self._answer = (code, details, metadata)

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> Any:
        return self._answer[2]


class _Aborted(grpc.aio.AbortError):
    def __init__(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        super().__init__(details)
        self.as_error = NetworkError(code, details, metadata)


class _Context:
    """What a handler learns of its caller."""

    def __init__(self, certificate: bytes | None) -> None:
        self._certificate = certificate
        self.written: list[Any] = []

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def write(self, message: Any) -> None:
        self.written.append(message)

    def auth_context(self) -> dict[str, list[bytes]]:
        shown = [] if self._certificate is None else [self._certificate]
        return {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": shown}

    async def send_initial_metadata(self, metadata: Any) -> None:
        pass

    async def abort(self, code: grpc.StatusCode, details: str = "", metadata: Any = ()) -> None:
        raise _Aborted(code, details, metadata)


class MemoryServer:
    """Stands in for `grpc.aio.server`: keeps the handlers, behind their interceptors."""

    def __init__(self, *, interceptors: Any, options: Any) -> None:
        self._interceptors = interceptors
        self._handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        pass

    def add_secure_port(self, address: str, credentials: Any) -> int:
        return 1

    async def start(self) -> None:
        pass

    async def stop(self, grace: float | None) -> None:
        pass

    async def handler(self, method: str) -> Any:
        """The handler of a method; None if this server does not have it."""
        details = SimpleNamespace(method=method, invocation_metadata=())

        async def find(details: Any) -> Any:
            found = (handler.service(details) for handler in self._handlers)
            return next((handler for handler in found if handler is not None), None)

        if await find(details) is None:
            return None
        (interceptor,) = self._interceptors
        return await interceptor.intercept_service(find, details)


class MemoryChannel:
    """Stands in for a site's `grpc.Channel`."""

    def __init__(self, consortium: "MemoryConsortium", certificate: bytes | None) -> None:
        self._consortium = consortium
        self._certificate = certificate

    # Parameters are named as the generated stubs name them.

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = bytes,
        response_deserializer: Any = bytes,
        **_: Any,
    ) -> Any:
        return lambda request, timeout=None: response_deserializer(
            self._consortium.call(self._certificate, method, [request_serializer(request)])[0]
        )

    def unary_stream(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Any:
        def call(request: Any, timeout: float | None = None) -> Iterator[Any]:
            data = request_serializer(request)
            answers = self._consortium.stream(self._certificate, method, data)
            return map(response_deserializer, answers)

        return call

    def stream_unary(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Any:
        return lambda requests, timeout=None: response_deserializer(
            self._consortium.call(
                self._certificate, method, [request_serializer(r) for r in requests]
            )[0]
        )

    def stream_stream(self, method: str, **_: Any) -> Any:
        raise NotImplementedError(method)

    def close(self) -> None:
        pass

    def __enter__(self) -> "MemoryChannel":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class MemoryConsortium:
    """A folder with a coordinator and sites, running.

    Attributes
    ----------
    commits : dict of str to CommitCounter
        By party.
    faults : deque of str
        What happens to the next calls, one entry a call, then nothing: ``""``; ``lost``, the request; ``unanswered``,
        carried out but the answer is lost; ``twice``; ``late``, carried out when `arrive_late` says so; ``cut``, only
        the first part of a stream comes through.
    late : list
        Calls that are still on their way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits = {COORDINATOR: CommitCounter()}
        self.faults: deque[str] = deque()
        self.late: list[tuple[bytes | None, str, list[bytes]]] = []
        self.sites: dict[str, Site] = {}
        self.n_crashes = 0
        self._now_ms = store.now_ms()
        self._loop = asyncio.new_event_loop()
        self._servers: list[MemoryServer] = []
        self._patches = ExitStack()
        for target, name, value in (
            (grpc, "secure_channel", self._channel),
            (grpc.aio, "server", self._server),
            (server_store, "sqlite_engine", self._engine),
            # The housekeeping is a step of the test's, and tells whenever it is due.
            (serve.Coordinator, "_keep_house", lambda _: asyncio.Event().wait()),
            # So that every commit is one of these steps'.
            (health.Health, "watch", lambda _, tell: asyncio.Event().wait()),
            (telling, "PAUSE_FACTOR", 0.0),
            (operations, "system_clock", self.clock),
            (store, "now_ms", self.clock),
        ):
            self._patches.enter_context(mock.patch.object(target, name, value))
        self._start()

    # ---- time and parties ----------------------------------------------------------------------------------------

    def clock(self) -> int:
        """Milliseconds since the Unix epoch; never the same twice."""
        self._now_ms += 1
        return self._now_ms

    def wait(self, hours: float) -> None:
        """Let time pass, or run backwards."""
        self._now_ms += int(hours * HOUR_MS)

    @property
    def coordinator_folder(self) -> CoordinatorFolder:
        return CoordinatorFolder(self.folder / COORDINATOR)

    @property
    def database(self) -> sa.Engine:
        """The coordinator's, for looking."""
        engine: sa.Engine = self.coordinator._ledger.engine
        return engine

    def open(self, name: str) -> Site:
        """Open a site, once more after a crash or as if its program was started again."""
        if name in self.sites:
            self.sites[name].store.close()
        context = open_site(self.folder / name)
        site = context.__enter__()
        self._patches.push(context)
        self.commits.setdefault(name, CommitCounter()).watch(site.store._engine)
        self.sites[name] = site
        return site

    def at(self, name: str, action: Callable[[Site], Any]) -> Any:
        """Do something at a site; None if the site crashes on the way, and opens again."""
        try:
            return action(self.sites[name])
        except CrashError:
            self.n_crashes += 1
            self.open(name)
            return None

    def exchange(self, name: str) -> None:
        """One ``synthedge site run --once``."""
        connection = self.connect(name)
        try:
            run_once(self.sites[name], connection)
        finally:
            connection.close()

    def connect(self, name: str) -> Connection:
        self._caller = self.sites[name].keys.certificate_file.read_bytes()
        return self.sites[name].connect()

    def keep_house(self) -> None:
        """One round of the coordinator's housekeeping."""
        try:
            self.coordinator._look_around()
            self._run(self.coordinator._tidy())
            self._run(self.coordinator._telling.tell_if_due())
        except CrashError:
            self._restart()

    def close(self) -> None:
        self._run(self._running.aclose())
        self._patches.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _start(self) -> None:
        self._servers.clear()
        self._running = AsyncExitStack()
        context = serve.running(self.coordinator_folder, clock=self.clock)
        self.coordinator = self._run(self._running.enter_async_context(context))
        self.keep_house()

    def _restart(self) -> None:
        self.n_crashes += 1
        self.restart_coordinator()

    def restart_coordinator(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Stop it, do something, and start it again."""
        self._run(self._running.aclose())
        meanwhile()
        self._start()

    def _run(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)

    def _engine(self, path: Path, name: str | None = None) -> sa.Engine:
        engine = sqlite_engine(path, name)
        self.commits[COORDINATOR].watch(engine)
        return engine

    # ---- the network ---------------------------------------------------------------------------------------------

    def _server(self, **arguments: Any) -> MemoryServer:
        self._servers.append(MemoryServer(**arguments))
        return self._servers[-1]

    def _channel(self, address: str, credentials: Any, options: Any = None) -> MemoryChannel:
        return MemoryChannel(self, self._caller)

    _caller: bytes | None = None

    def call(self, certificate: bytes | None, method: str, requests: list[bytes]) -> list[bytes]:
        """Carry one call that has one answer."""
        if method.startswith(
            "/grpc.health."
        ):  # `doctor` asks from a process that is not of this network
            raise NetworkError(grpc.StatusCode.UNAVAILABLE)
        fault = self.faults.popleft() if self.faults else ""
        if fault == "late":
            self.late.append((certificate, method, requests))
            raise NetworkError(grpc.StatusCode.DEADLINE_EXCEEDED)
        if fault == "lost":
            raise NetworkError(grpc.StatusCode.UNAVAILABLE)
        if fault == "cut" and len(requests) > 1:
            self._carry(certificate, method, requests[:1])
            raise NetworkError(grpc.StatusCode.UNAVAILABLE)
        answers = self._carry(certificate, method, requests)
        if fault == "twice":
            answers = self._carry(certificate, method, requests)
        if fault == "unanswered":
            raise NetworkError(grpc.StatusCode.UNAVAILABLE)
        return answers

    def stream(self, certificate: bytes | None, method: str, request: bytes) -> Iterator[bytes]:
        """Carry one call that has many answers."""
        fault = self.faults.popleft() if self.faults else ""
        if fault in ("lost", "late"):
            raise NetworkError(grpc.StatusCode.UNAVAILABLE)
        answers = self._carry(certificate, method, [request])
        if fault in ("cut", "unanswered"):
            yield from answers[:1]
            raise NetworkError(grpc.StatusCode.UNAVAILABLE)
        yield from answers
        if fault == "twice":
            yield from answers

    def arrive_late(self, i_call: int) -> None:
        """Let a delayed call arrive; nobody waits for its answer."""
        certificate, method, requests = self.late.pop(i_call)
        with suppress(NetworkError):
            self._carry(certificate, method, requests)

    def _carry(self, certificate: bytes | None, method: str, requests: list[bytes]) -> list[bytes]:
        try:
            answers: list[bytes] = self._run(self._handle(certificate, method, requests))
        except _Aborted as error:
            raise error.as_error from None
        except CrashError:
            self._restart()
            raise NetworkError(grpc.StatusCode.UNAVAILABLE) from None
        return answers

    async def _handle(
        self, certificate: bytes | None, method: str, requests: list[bytes]
    ) -> list[bytes]:
        found = [await server.handler(method) for server in self._servers]
        (handler,) = (handler for handler in found if handler is not None)
        read, write = handler.request_deserializer, handler.response_serializer
        context = _Context(certificate)
        if handler.response_streaming:
            await handler.unary_stream(read(requests[0]), context)
            return [write(message) for message in context.written]
        if handler.request_streaming:
            return [write(await handler.stream_unary(_each(map(read, requests)), context))]
        return [write(await handler.unary_unary(read(requests[0]), context))]


async def _each(messages: Iterator[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


def new_consortium(
    folder: Path, *, ports: tuple[int, int] = (7443, 7444), **tables: pd.DataFrame
) -> MemoryConsortium:
    """Make a consortium whose sites published and compared keys; its settings name `ports`."""
    create_coordinator(
        CoordinatorFolder(folder / COORDINATOR),
        name=CONSORTIUM,
        dictionary_toml=f"{DICTIONARY_TOML}\n{LIMITS_TOML}\n",
        listen=Address(host="127.0.0.1", port=ports[0]),
        enrolment_listen=Address(host="127.0.0.1", port=ports[1]),
    )
    consortium = MemoryConsortium(folder)
    for name, rows in tables.items():
        make_site(folder, name, rows)
        token = operations.invite(consortium.coordinator_folder, name, 24)
        file = folder / f"{name}.token"
        file.write_text(token.encode())
        consortium._caller = None
        enrol_site(folder / name, file)
        site = consortium.open(name)
        accept(site, steward())
        publish(site, steward())
    for _ in range(2):  # the first to come has not seen the last
        for name in tables:
            consortium.exchange(name)
        consortium.keep_house()
    for site in consortium.sites.values():
        for other in consortium.sites.values():
            if other is not site:
                site.verify_peer(other.settings.id, other.fingerprint)
    return consortium


def copied(template: Path, folder: Path) -> MemoryConsortium:
    """Open a copy of a consortium's folder."""
    shutil.copytree(template, folder)
    consortium = MemoryConsortium(folder)
    for settings in sorted(folder.glob("*/site.toml")):
        settings.write_text(settings.read_text().replace(str(template), str(folder)))
        consortium.open(settings.parent.name)
    return consortium
