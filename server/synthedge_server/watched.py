"""What lets an operator and programs watch a running coordinator: health, reflection, metrics, warnings in the log."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME, aio
from sqlalchemy.exc import SQLAlchemyError

from synthedge_protocols.errors import ProtocolError
from synthedge_server.doctor import Problem, running_out
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.health import Health
from synthedge_server.ledger import Ledger
from synthedge_server.log import log
from synthedge_server.settings import Settings
from synthedge_server.tallies import Tallies

_LOOK_S: Final = 3_600.0
_SAY_AGAIN_S: Final = 86_400.0


class Watched:
    """Beside one running coordinator.

    Parameters
    ----------
    folder : CoordinatorFolder
    settings : Settings
    ledger : Ledger
    tallies : Tallies

    Attributes
    ----------
    health : Health
    metrics_port : int
        0 if metrics are off.
    """

    def __init__(
        self, folder: CoordinatorFolder, settings: Settings, ledger: Ledger, tallies: Tallies
    ) -> None:
        self._folder, self._settings, self._ledger = folder, settings, ledger
        self.health = Health(ledger, folder.path)
        self._services: list[tuple[aio.HealthServicer, str]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._close: Callable[[], None] = lambda: None
        self.metrics_port = 0
        if settings.metrics_listen is not None:
            # A coordinator without metrics is smaller by all of this.
            from synthedge_server.metrics import registry_of
            from synthedge_server.probes import Probes

            registry = registry_of(folder, ledger, tallies, self.health)
            probes = Probes(settings.metrics_listen, registry, self.health)
            self.metrics_port, self._close = probes.port, probes.close

    def add_services(self, server: grpc.aio.Server, name: str) -> None:
        """Add health, and reflection if it is on, to a server of the service `name`."""
        servicer = aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        self._services.append((servicer, name))
        if self._settings.reflection:
            from grpc_reflection.v1alpha import reflection

            names = (name, SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)

    def start(self, keeps_house: Callable[[], bool]) -> None:
        """Begin to look.

        Parameters
        ----------
        keeps_house : callable
            Whether this process is the one that warns.
        """
        self._tasks = [
            asyncio.create_task(self.health.watch(self._tell)),
            asyncio.create_task(self._warn(keeps_house)),
        ]

    async def stop(self) -> None:
        """Say that nothing is served any more, and close the port."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for servicer, _ in self._services:
            await servicer.enter_graceful_shutdown()
        # Its thread may wait for the database, or for whom it answers.
        await asyncio.to_thread(self._close)

    async def _tell(self, serves: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for servicer, name in self._services:
            for service in ("", name):
                await servicer.set(service, status.SERVING if serves else status.NOT_SERVING)

    async def _warn(self, keeps_house: Callable[[], bool]) -> None:
        told: dict[tuple[str, str], float] = {}
        while True:
            now = time.monotonic()
            for problem in await asyncio.to_thread(self._problems) if keeps_house() else []:
                key = (problem.subject, problem.next_step)
                if now - told.get(key, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
                    told[key] = now
                    log(
                        "look-at",
                        level=logging.WARNING,
                        subject=problem.subject,
                        what=problem.what,
                        next_step=problem.next_step,
                    )
            told = {key: at for key, at in told.items() if now - at < _SAY_AGAIN_S}
            await asyncio.sleep(_LOOK_S)

    def _problems(self) -> list[Problem]:
        try:
            with self._ledger.engine.connect() as connection:
                return running_out(self._folder, connection)
        except (ProtocolError, SQLAlchemyError):
            return []  # housekeeping and probes say that the database is away
