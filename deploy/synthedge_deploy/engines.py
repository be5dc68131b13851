"""What carries a simulated round: Flower's own simulation engine on Ray, or a grid inside this process.

Both call one ClientApp, once for each of a number of nodes, and hand over the same Flower messages; node `i` learns
from Flower's own ``partition-id`` that it is the i-th.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, get_args

# Before flwr is imported: it reads them then. Nothing here may call anybody.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray listens on loopback alone then, whatever it is told, on systems where it expects a cluster too.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# Else Ray warns of what it will change about graphics cards, which nothing here uses.
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from synthedge_core.errors import SynthEdgeError, UsageError
from synthedge_deploy.local_grid import LocalGrid

Engine = Literal["grid", "ray"]
ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)
PARTITION: Final = "partition-id"
_POLL_S: Final = 0.05
_START_S: Final = 120.0
_STARTS: Final = 3

# What the coordinator's side of a round does with a grid and the nodes on it.
Serve = Callable[[Grid, Sequence[int]], None]


@dataclass
class Traffic:
    """Flower messages of a round, as they would be on the wire.

    Attributes
    ----------
    asked_bytes, answered_bytes : int
        Of the serialised messages, both ways.
    """

    asked_bytes: int = field(default=0)
    answered_bytes: int = field(default=0)


def require(engine: Engine) -> None:
    """Return if an engine is installed.

    Raises
    ------
    UsageError
        If not.
    """
    if engine == "ray" and find_spec("ray") is None:
        raise UsageError(
            "Flower's simulation engine needs Ray: pip install 'synthedge-federation[simulation]', or take "
            "'--engine grid', which simulates up to 200 sites without it"
        )


def run_round(engine: Engine, client_app: ClientApp, n_nodes: int, serve: Serve) -> Traffic:
    """Let the coordinator's side of a round meet a number of nodes.

    Parameters
    ----------
    engine : {"grid", "ray"}
    client_app : ClientApp
        Of every node.
    n_nodes : int
    serve : callable
        Sends and receives.

    Returns
    -------
    Traffic

    Raises
    ------
    UsageError
        If Ray is asked for and not installed.
    SynthEdgeError
        If Flower's engine ends by itself.
    """
    traffic = Traffic()
    if engine == "grid":
        nodes: dict[int, UserConfig] = {i + 1: {PARTITION: i} for i in range(n_nodes)}
        serve(_Counting(LocalGrid(client_app, nodes), traffic, threading.Event()), list(nodes))
    else:
        _run_on_ray(client_app, n_nodes, serve, traffic)
    return traffic


class _Counting(Grid):
    """A grid that counts the messages that pass, and stops when the engine has ended."""

    def __init__(self, grid: Grid, traffic: Traffic, has_ended: threading.Event) -> None:
        self._grid = grid
        self._traffic = traffic
        self._has_ended = has_ended

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        identifiers = self._grid.push_messages(messages)
        self._traffic.asked_bytes += sum(message_to_proto(m).ByteSize() for m in messages)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._has_ended.is_set():
            raise SynthEdgeError("Flower's simulation engine ended before every node had answered")
        replies = list(self._grid.pull_messages(message_ids))
        self._traffic.answered_bytes += sum(message_to_proto(m).ByteSize() for m in replies)
        return replies

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


def _run_on_ray(client_app: ClientApp, n_nodes: int, serve: Serve, traffic: Traffic) -> None:
    require("ray")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    for n_left in reversed(range(_STARTS)):
        traffic.asked_bytes = traffic.answered_bytes = 0
        try:
            _run_once_on_ray(client_app, n_nodes, serve, traffic)
            return
        except RuntimeError as error:
            why: BaseException = error
            while why.__cause__ is not None:
                why = why.__cause__
            # Ray gives itself 30 s to start, which a busy machine may not have.
            if n_left and "timed out during startup" in str(why):
                continue
            raise SynthEdgeError(f"Flower's simulation engine ended by itself: {why}") from error


def _run_once_on_ray(client_app: ClientApp, n_nodes: int, serve: Serve, traffic: Traffic) -> None:
    from flwr.simulation import run_simulation

    failed: list[BaseException] = []
    has_ended = threading.Event()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            serve(_Counting(grid, traffic, has_ended), _all_nodes(grid, n_nodes))
        except BaseException as error:
            failed.append(error)
            raise

    # Short: Ray's sockets lie in it, and a socket's path has at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        with _ended_by_a_signal():
            run_simulation(
                server,
                client_app,
                num_supernodes=n_nodes,
                backend_config={
                    "init_args": {
                        "address": "local",
                        "num_cpus": max(1, len(os.sched_getaffinity(0))),
                        "include_dashboard": False,
                        "log_to_driver": False,
                        "logging_level": logging.CRITICAL,
                        "_node_ip_address": "127.0.0.1",
                        "_temp_dir": folder,
                    },
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
    except RuntimeError:
        if failed:
            raise failed[0] from None
        raise
    finally:
        has_ended.set()
        _leave_nothing_of_ray(folder)


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """Let SIGTERM end the round as Ctrl-C does, so that what was started is stopped."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave_nothing_of_ray(folder: str) -> None:
    """Stop Ray, which Flower does only at the end of a whole round, and what of it did not stop; delete its files."""
    import ray

    ray.shutdown()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # Every process of this Ray, and no other, was started with this folder's name.
            if (
                folder.encode() in (process / "cmdline").read_bytes()
                and int(process.name) != os.getpid()
            ):
                os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _all_nodes(grid: Grid, n_nodes: int) -> list[int]:
    """Wait until Flower has made every node."""
    end = time.monotonic() + _START_S
    while len(nodes := list(grid.get_node_ids())) < n_nodes:
        if time.monotonic() > end:
            raise SynthEdgeError(
                f"Flower made {len(nodes)} of {n_nodes} nodes in {_START_S:.0f} s; try again"
            )
        time.sleep(_POLL_S)
    return nodes
