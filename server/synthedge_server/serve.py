"""One running coordinator: two ports, the housekeeping, and an orderly end."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

# Before gRPC makes its first credentials: with an ECDSA certificate this RSA suite leaves nothing of TLS 1.2, and
# TLS 1.3 has suites of its own. gRPC has no setting for a version floor.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
# gRPC's own lines about strangers' broken handshakes are not ours to write.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from sqlalchemy import func, select

from synthedge_protocols.errors import IdentityError, UnavailableError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_protocols.writer import Writer
from synthedge_server import dictionaries, store
from synthedge_server.boundary import Boundary
from synthedge_server.broker import Broker
from synthedge_server.callers import Callers, Context
from synthedge_server.certificate_files import read_certificate
from synthedge_server.enrolment import Enrolment
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.intake import Intake
from synthedge_server.lease import NotKeeperError
from synthedge_server.ledger import Ledger, system_clock
from synthedge_server.locks import alone
from synthedge_server.log import log
from synthedge_server.log_heads import LogHeads, load_log_key
from synthedge_server.memory import give_back, hold_memory_small
from synthedge_server.rates import Admission, Rates, network_of
from synthedge_server.registries import Registries
from synthedge_server.relay import Spool
from synthedge_server.renewal import Renewal, ServerCertificate
from synthedge_server.servicer import CoordinatorServicer
from synthedge_server.settings import Address, Settings, read_settings
from synthedge_server.sharing import Shared, sharing
from synthedge_server.standing import Watch
from synthedge_server.tallies import Tallies
from synthedge_server.telling import Telling
from synthedge_server.transfer_records import spool_keys
from synthedge_server.watched import Watched
from synthedge_server.withdrawals import any_newly_overdue, note_overdue

_GRACE_S: Final = 3.0
_WINDOW_BYTES: Final = 512 * 1024
# A revoked site's streams end within a second of the operator's command.
_TICK_S: Final = 0.5
_METADATA_BYTES: Final = 8 * 1024
_STRANGER_MS: Final = 60_000
# Calls under way on one connection; more wait at the caller. gRPC takes messages in whole before anybody looks at who
# calls, so this times the largest one is what each connection may make this process hold, some three times over.
_AT_ONCE: Final = 32
_STRANGER_AT_ONCE: Final = 8
_MAX_FILES: Final = 65_536
_PACKAGE: Final = "synthedge_protocols.v1"


class EnrolmentServicer(rpc.EnrolmentServicer):
    """What a site without a certificate may call."""

    def __init__(self, enrolment: Enrolment, renewal: Renewal) -> None:
        self._enrolment = enrolment
        self._renewal = renewal

    async def Enrol(self, request: wire.EnrolRequest, context: Context) -> wire.EnrolResponse:
        """Turn a token into a certificate."""
        response = await self._enrolment.enrol(request)
        log("enrolled", site=request.site)
        return response

    async def RenewExpired(
        self, request: wire.RenewRequest, context: Context
    ) -> wire.RenewResponse:
        """Certify an enrolled site that was away until its certificate had expired."""
        return await self._renewal.renew(request)


class Coordinator:
    """A started coordinator.

    Attributes
    ----------
    sites_port, enrolment_port : int
        Where it listens, also when the settings said 0.
    metrics_port : int
        The same for metrics; 0 if they are off.
    """

    def __init__(
        self,
        ledger: Ledger,
        broker: Broker,
        registries: Registries,
        servicer: CoordinatorServicer,
        certificate: ServerCertificate,
        servers: tuple[grpc.aio.Server, grpc.aio.Server],
        ports: tuple[int, int],
        shared: Shared | None,
        watched: Watched,
    ) -> None:
        self._ledger = ledger
        self._shared = shared
        self._house = ledger if shared is None else ledger.under(shared.lease)
        self._broker = broker
        self._registries = registries
        self._watch = Watch(ledger, self._house, broker)
        self._servicer = servicer
        self._certificate = certificate
        self._servers = servers
        self.sites_port, self.enrolment_port = ports
        self._telling = Telling(self._house, registries)
        # On SQLite, whose folder is locked, the only process keeps house.
        self._keeps_house = shared is None
        self._news: list[object] = []
        self._watched = watched
        self.metrics_port = watched.metrics_port
        self._housekeeping = asyncio.create_task(self._keep_house())
        watched.start(lambda: self._keeps_house)

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for an event, or raise what ended the housekeeping: without it nothing expires."""
        waiting = asyncio.create_task(stop.wait())
        needed = {self._housekeeping} | ({self._shared.listening} if self._shared else set())
        done, _ = await asyncio.wait({waiting} | needed, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in done & needed:
            await task

    async def stop(self) -> None:
        """End streams with a status, let calls finish, close the ports."""
        self._servicer.stop()
        await self._watched.stop()
        await asyncio.gather(*(server.stop(_GRACE_S) for server in self._servers))
        self._housekeeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._housekeeping
        self._ledger.reading.close()

    async def _keep_house(self) -> None:
        """Look for what others changed, and keep house while it is this process's to do, until cancelled."""
        # Beside the rest: at a thousand sites it takes seconds.
        telling = asyncio.create_task(self._keep_telling())
        waits = ""
        try:
            while True:
                try:
                    if self._shared is not None:
                        self._keeps_house = await self._shared.lease.hold()
                    self._look_around()
                    await self._watch.note()
                    if self._keeps_house:
                        await self._tidy()
                    waits = ""
                except UnavailableError as error:
                    self._keeps_house = self._shared is None
                    # A database that is away, or a full disk, comes back: what is due then is done then.
                    if str(error) != waits and not isinstance(error, NotKeeperError):
                        waits = str(error)
                        log("housekeeping-waits", level=logging.ERROR, reason=waits)
                self._watched.health.ticked()
                await self._certificate.renew_if_due(may_issue=self._keeps_house)
                if telling.done():
                    await telling
                await asyncio.sleep(_TICK_S)
        finally:
            telling.cancel()

    async def _keep_telling(self) -> None:
        while True:
            if self._keeps_house:
                with contextlib.suppress(UnavailableError):
                    await self._telling.tell_if_due()
            await asyncio.sleep(_TICK_S)

    def _look_around(self) -> None:
        """Wake the inboxes after what other processes changed."""
        sites = store.sites.c
        with self._ledger.engine.connect() as connection:
            inactive = select(sites.site).where(sites.state != "active").order_by(sites.site)
            news: list[object] = [
                *connection.execute(inactive).scalars(),
                dictionaries.newest(connection).version,
                connection.execute(select(func.max(store.rounds.c.opened_at_ms))).scalar_one(),
            ]
            if self._shared is not None and not self._shared.listener.is_up:
                # Nobody is heard: every change writes into the audit log.
                news.append(store.event_log.size(connection))
        if news != self._news:
            self._news = news
            self._ledger.wake()

    async def _tidy(self) -> None:
        """Expire transfers, note what is overdue or silent, delete sealed bytes that nobody waits for."""
        spooled = await asyncio.to_thread(self._ledger.spool.keys)
        with self._ledger.engine.connect() as connection:
            is_late = connection.execute(
                select(store.transfers.c.transfer_id)
                .where(store.transfers.c.expires_at_ms <= self._ledger.clock())
                .limit(1)
            ).first()
            live = spool_keys(connection)
            current = self._registries.current(connection)
            is_overdue = any_newly_overdue(connection, self._ledger.clock())
        # A shipment is on record before its first byte: what was stored before the look and is on none is nobody's.
        for key in spooled - live:
            await asyncio.to_thread(self._ledger.spool.delete, key)
        if is_overdue:
            log("withdrawals-overdue", new=await self._house.write(note_overdue))
        await self._watch.look(current.dictionary.policy.silent_h)
        if is_late is not None:
            n_expired = await self._house.write(self._broker.expire)
            log("expired", transfers=n_expired)


@asynccontextmanager
async def running(
    folder: CoordinatorFolder,
    *,
    clock: Callable[[], int] = system_clock,
    limits: Limits | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Coordinator]:
    """Run a coordinator for as long as the body runs.

    Parameters
    ----------
    folder : CoordinatorFolder
        Made by `synthedge-coordinator init`.
    clock : callable
        Milliseconds since the Unix epoch.
    limits : Limits, optional
        Bounds on peers.
    settings : Settings, optional
        Instead of the folder's.

    Raises
    ------
    RefusedError
        If another coordinator runs on the folder.
    UsageError, IdentityError
        If the folder is not one, or its keys cannot be read.
    UnavailableError
        If a port is taken or the database cannot be opened.
    """
    limits = limits or Limits()
    settings = settings or read_settings(folder.settings)
    # On PostgreSQL several processes may serve one folder.
    with alone(folder) if settings.database is None else contextlib.nullcontext():
        engine = store.open_database(folder, settings)
        tallies = Tallies()
        writer = Writer(engine, tallies.committed)
        try:
            spool = Spool(folder.spool)
            with engine.connect() as connection:
                spool.cut_what_a_power_loss_tore(spool_keys(connection, complete=True))
            ledger = Ledger(engine, writer, spool, clock)
            async with sharing(folder, settings, ledger, writer) as shared:
                coordinator = await _start(folder, settings, ledger, limits, shared, tallies)
                try:
                    yield coordinator
                finally:
                    await coordinator.stop()
        finally:
            writer.close()
            engine.dispose()


async def serve(
    folder: CoordinatorFolder,
    settings: Settings,
    announce: Callable[[Address, Address], None],
) -> None:
    """Run a coordinator until SIGTERM or SIGINT.

    Parameters
    ----------
    folder : CoordinatorFolder
    settings : Settings
        The folder's, perhaps with other addresses to listen on.
    announce : callable
        Called with both addresses once sites can connect.

    Raises
    ------
    SynthEdgeError, ProtocolError
        As `running`.
    """
    hold_memory_small()
    _open_many_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(folder, settings=settings) as coordinator:
        announce(
            Address(host=settings.listen.host, port=coordinator.sites_port),
            Address(host=settings.enrolment_listen.host, port=coordinator.enrolment_port),
        )
        give_back()
        log(
            "ready",
            sites=coordinator.sites_port,
            enrolment=coordinator.enrolment_port,
            metrics=coordinator.metrics_port,
        )
        await coordinator.until(stop)
        log("stopping")


async def _start(
    folder: CoordinatorFolder,
    settings: Settings,
    ledger: Ledger,
    limits: Limits,
    shared: Shared | None,
    tallies: Tallies,
) -> Coordinator:
    registries = Registries()
    broker = Broker(registries, limits)
    ca_certificate = read_certificate(folder.ca_certificate)
    certificate = ServerCertificate(folder, settings, ledger.clock)
    callers = Callers(settings.consortium, ca_certificate, ledger)
    log_key = load_log_key(folder)
    heads = LogHeads(settings.consortium, log_key)
    intake = Intake(settings.consortium, ledger, registries, broker, heads, limits)
    renewal = Renewal(folder, ledger, intake, limits)
    servicer = CoordinatorServicer(callers, intake, broker, renewal, heads, ledger, limits)

    watched = Watched(folder, settings, ledger, tallies)
    sites = _server(
        Boundary(callers.site_of, _admission(limits, tallies), limits, tallies),
        limits,
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_concurrent_streams", _AT_ONCE),
    )
    rpc.add_CoordinatorServicer_to_server(servicer, sites)
    watched.add_services(sites, f"{_PACKAGE}.Coordinator")
    strangers = Boundary(_anybody_over_tls_13, _admission(limits, tallies), limits, tallies)
    # Nothing lasts on this port but what somebody holds up.
    enrolment = _server(
        strangers,
        limits,
        ("grpc.max_receive_message_length", limits.stranger_bytes),
        ("grpc.max_concurrent_streams", _STRANGER_AT_ONCE),
        ("grpc.max_connection_age_ms", _STRANGER_MS),
        ("grpc.max_connection_age_grace_ms", _STRANGER_MS),
    )
    watched.add_services(enrolment, f"{_PACKAGE}.Enrolment")
    rpc.add_EnrolmentServicer_to_server(
        EnrolmentServicer(
            Enrolment(
                settings.consortium,
                folder,
                ledger,
                log_key.public_bytes,
                limits,
            ),
            renewal,
        ),
        enrolment,
    )
    ports = (
        _bind(sites, settings.listen, certificate.credentials(with_clients=True)),
        _bind(enrolment, settings.enrolment_listen, certificate.credentials(with_clients=False)),
    )
    await sites.start()
    await enrolment.start()
    return Coordinator(
        ledger,
        broker,
        registries,
        servicer,
        certificate,
        (sites, enrolment),
        ports,
        shared,
        watched,
    )


def _open_many_files() -> None:
    """Take as many descriptors as the system lets this process have: each site's connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _admission(limits: Limits, tallies: Tallies) -> Admission:
    return Admission(
        Rates(limits.calls_per_s, limits.calls_burst),
        Rates(limits.statements_per_s, limits.statements_burst),
        Rates(limits.kept_bytes_per_s, limits.kept_bytes_burst),
        Rates(limits.read_share, limits.read_burst_s),
        limits,
        tallies,
    )


def _server(boundary: Boundary, limits: Limits, *more: tuple[str, Any]) -> grpc.aio.Server:
    options: list[tuple[str, Any]] = [
        # It counts calls that have ended, and breaks those of who stays within the bound.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.handshake_timeout_s)),
        # A port taken by another process must fail, not be shared.
        ("grpc.so_reuseport", 0),
        # Sites ping every 30 s, so that clouds do not drop an idle inbox stream after 4 minutes; a server
        # that does not expect that answers ENHANCE_YOUR_CALM.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # What one stream may have under way: gRPC's own estimate grows to 16 MiB, which an interrupted upload sends
        # twice and a slow disk keeps in memory. At 100 ms there and back half a MiB still lets 5 MB/s through.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        *more,
    ]
    return grpc.aio.server(interceptors=[boundary], options=options)


def _bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(str(address), credentials)
    except RuntimeError:
        raise UnavailableError(
            f"cannot listen on {address}: the port is taken or the address is not this machine's; "
            "change coordinator.toml"
        ) from None


def _anybody_over_tls_13(context: Context) -> str:
    """Name a caller without a certificate by its address."""
    if list((context.auth_context() or {}).get("ssl_tls_version", ())) != [b"TLSv1.3"]:
        raise IdentityError("the connection is not TLS 1.3; update the site's software")
    return network_of(context.peer())
