"""One discovery round as a Flower run; its ServerApp runs here, as installed, and nothing that was shipped does."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.flower_app import App, app
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import operations
from synthedge_server.flower_nodes import announced_keys
from synthedge_server.flower_round import Unreached, make_server_app
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import system_clock
from synthedge_server.locks import held
from synthedge_server.rounds import Outcome, outcomes
from synthedge_server.superlink import SuperLink, describe, node_ids
from synthedge_server.taking_in import taking_in

_ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"
_TASK_WITHIN_S: Final = 10.0
# How long a SuperLink that went away in the middle of a round is tried again.
_PATIENCE_S: Final = 5.0


@contextmanager
def ready(folder: CoordinatorFolder) -> Iterator[SuperLink]:
    """The folder's SuperLink, found running, for one round at a time.

    Raises
    ------
    UnavailableError
        If it does not run.
    RefusedError
        If another Flower round runs.
    """
    link = SuperLink(folder)
    busy = "another Flower round runs on this coordinator; wait for it"
    with held(folder.flower / "round.lock", busy):
        with link.control() as control, _as_unavailable():
            node_ids(control)
        yield link


def carry(
    folder: CoordinatorFolder,
    link: SuperLink,
    asked: wire.DiscoveryRound,
    shipped: App | None = None,
) -> Unreached:
    """Ask the SuperNodes of a round's sites, and take in what they answer.

    Parameters
    ----------
    folder : CoordinatorFolder
    link : SuperLink
        Found ready.
    asked : DiscoveryRound
        Opened.
    shipped : App, optional
        Another app than this release's, which no site runs that did not approve it.

    Returns
    -------
    dict of str to (Outcome, str)
        As `flower_round.ask_nodes`.

    Raises
    ------
    UnavailableError
        If the SuperLink went away.
    """
    with operations.reading(folder) as engine, engine.connect() as connection:
        sites = [row["site"] for row in outcomes(connection, asked.round_id)]
        keys = announced_keys(connection)
    unreached: Unreached = {
        site: (Outcome.OFFLINE, "it announced no SuperNode; see 'synthedge site flower run'")
        for site in sites
        if site not in keys
    }
    with _as_unavailable(), link.control() as control:
        ids = node_ids(control)
        nodes = {}
        for site in sites:
            if site in keys and keys[site] in ids:
                nodes[site] = ids[keys[site]]
            elif site in keys:
                unreached[site] = (Outcome.OFFLINE, "its SuperNode is not registered yet")
        if not nodes:
            return unreached
        bundle = shipped or app()
        fab = Fab(hash_str=bundle.digest, content=bundle.content)
        run_id = control.StartRun(StartRunRequest(fab=fab)).run_id
        with _task(link, run_id) as (grid, context), taking_in(folder) as take:
            left_s = (asked.deadline_ms - system_clock()) / 1000
            server_app = make_server_app(asked, nodes, take, unreached, max(left_s, 1.0))
            server_app(grid, context)
    return unreached


class _Grid(HttpGrid):
    """Flower's, which reads replies one at a time: no site's keeps another's from being read, or passes for it."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        identifiers = list(super().push_messages(asked))
        self._asked = dict(zip(identifiers, asked, strict=True))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for identifier in message_ids for reply in self._replies_to(identifier)]

    def _replies_to(self, identifier: str) -> Iterable[Message]:
        try:
            replies = list(super().pull_messages([identifier]))
            is_read = all(reply.metadata.reply_to_message_id == identifier for reply in replies)
        except (httpx.HTTPError, RunNotRunningException):
            raise
        except Exception:  # noqa: BLE001 - whatever Flower's reader makes of a stranger's bytes
            is_read = False
        if is_read:
            return replies
        return [
            Message(
                Error(ErrorCode.UNKNOWN, "what it sent cannot be read"),
                reply_to=self._asked[identifier],
            )
        ]


@contextmanager
def _task(link: SuperLink, run_id: int) -> Iterator[tuple[Grid, Context]]:
    """Take a run's ServerApp task, and tell the SuperLink how it ended."""
    token = _acquire(link, run_id)
    grid = _Grid(str(link.address), insecure=False, root_certificates=link.certificate, token=token)
    # By itself it tries for ever: a SuperLink that died would hold the round beyond its end.
    grid._retry_invoker.max_time = _PATIENCE_S
    client = grid._runtime_client
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    status = SubStatus.FAILED
    try:
        task = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
        yield grid, context_from_proto(task.context)
        status = SubStatus.COMPLETED
    finally:
        grid._retry_invoker.max_tries = 1
        heartbeat.stop()
        # Whatever was answered is taken in: that the SuperLink does not hear of the end changes nothing.
        with suppress(httpx.HTTPError, RunNotRunningException):
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        grid.close()


def _acquire(link: SuperLink, run_id: int) -> str:
    """The token of a run's task; one that an earlier round left behind is put aside.

    Raises
    ------
    UnavailableError
        If the SuperLink gives no such task.
    """
    end = time.monotonic() + _TASK_WITHIN_S
    wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    secret = SuperExecAuthHttpInterceptor(
        master_secret=link.secret, protected_methods=frozenset({_ACQUIRE})
    )
    with _runtime(link, secret) as client:
        while time.monotonic() < end:
            given = client.AcquireTask(wanted)
            if given.HasField("task") and given.task.run_id == run_id:
                return given.token
            if given.HasField("task"):
                with _runtime(link, RuntimeTokenHttpInterceptor(given.token)) as other:
                    other.PushTaskOutput(
                        PushTaskOutputRequest(sub_status=SubStatus.STOPPED, details="left behind")
                    )
            time.sleep(0.05)
    raise UnavailableError("the SuperLink gave no task for the round it was asked to run")


def _runtime(link: SuperLink, interceptor: Any) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        str(link.address),
        insecure=False,
        root_certificates=link.certificate,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"), interceptor],
    )


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise UnavailableError(describe(error)) from None
    except RunNotRunningException:
        raise UnavailableError("the SuperLink does not run the round any more; ask again") from None
