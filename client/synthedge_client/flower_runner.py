"""The site's own runner: takes messages from its SuperNode and answers them with what is installed here.

Rules
-----
* Nothing that Flower shipped is unpacked, imported or run. The bundle is hashed, and its digest must be the one the
  data manager approved; then the locally installed ClientApp answers.
* One kind of message is answered, ``query.gap_scan``.
* The SuperNode is another process. It holds its own key and nothing else of the site; the runner starts it again
  whenever it ends.

It speaks to the SuperNode through modules that Flower does not promise to keep: flwr is pinned exactly.
"""

import hashlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import httpx
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from synthedge_client import store
from synthedge_client.connection_doctor import explain_way
from synthedge_client.flower_app import answer, make_client_app
from synthedge_client.flower_node import announce_node, approved_app, node_key
from synthedge_client.locks import only_one
from synthedge_client.site import Site
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.discovery import Refusal
from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.flower_app import MESSAGE_TYPE

log = logging.getLogger(__name__)

POLL_S = 0.2
# A SuperNode that ended is refused until the SuperLink noticed, or until its key is registered: it is started again
# soon, and ever later while it does not stay.
START_AGAIN_S = 2.0
LATER_BY = 1.5
AT_LAST_S = 60.0
STAYS_S = 30.0
STOP_S = 5.0
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


def run(site: Site, superlink: str, stop: threading.Event) -> None:
    """Keep a SuperNode running and answer its messages until `stop` is set.

    Parameters
    ----------
    site : Site
        Enrolled. Its agent announces the SuperNode's key.
    superlink : str
        Where the coordinator's proxy listens, ``host:port``.

    Raises
    ------
    RefusedError
        If a runner of this site runs already.
    """
    announce_node(site)
    with only_one(site, "flower"), _SuperNode(site, superlink) as node:
        told = False
        while not stop.is_set():
            node.look_after()
            try:
                token = node.next_task()
                if token is not None:
                    with node.client(RuntimeTokenHttpInterceptor(token)) as client:
                        _carry_out(site.refreshed(), client)
                    continue
                told = False
            except httpx.HTTPError as error:
                # Starting, or just ended: the loop looks after it.
                if node.is_old and not told:
                    told = True
                    log.warning("the SuperNode does not answer (%s)", type(error).__name__)
            stop.wait(POLL_S)


def _carry_out(site: Site, client: RuntimeHttpClient) -> None:
    try:
        message, context, _, fab = pull_task_input(client)
    except httpx.HTTPError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever Flower's reader makes of a stranger's bytes
        log.error("a Flower message was refused: it cannot be read (%s)", type(error).__name__)
        push_task_output(client, None, SubStatus.FAILED, "the message cannot be read")
        return
    reply = reply_to(site, message, context, hashlib.sha256(fab.content).hexdigest())
    push_message(client, reply, context)
    push_task_output(client, context, SubStatus.COMPLETED, "")


def reply_to(site: Site, message: Message, context: Context, digest: str) -> Message:
    """Answer one message that came with an app of a digest; what cannot be answered is an error to the asker.

    Parameters
    ----------
    site : Site
    message : Message
    context : Context
    digest : str
        SHA-256 of the bundle that was shipped, hex.
    """
    try:
        problem = _refused_because(site, message, digest)
        if problem == "app":
            return answer(site, message, Refusal.APP)
        if problem:
            return _error(message, f"this site answers {MESSAGE_TYPE} and nothing else")
        return make_client_app(lambda _: nullcontext(site))(message, context)
    except (ProtocolError, SynthEdgeError) as error:
        return _error(message, str(error))
    except sa.exc.OperationalError:
        return _error(message, "the site's database could not be written")


def _refused_because(site: Site, message: Message, digest: str) -> str:
    """What of a message is not approved, on record then; empty if all of it is."""
    with site.store.read() as connection:
        is_approved = approved_app(connection) == digest
    problem = "" if message.metadata.message_type == MESSAGE_TYPE else "message type"
    if not is_approved:
        problem = "app"
    if problem:
        log.error(
            "a Flower message was refused: %s not approved (app %s, type %.60r)",
            problem,
            digest,
            message.metadata.message_type,
        )
        with site.store.write() as connection:
            store.record(
                connection, "flower message refused", "agent", because=problem, digest=digest
            )
    return problem


def _error(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


class _SuperNode:
    """The SuperNode process, and how the runner talks to it."""

    def __init__(self, site: Site, superlink: str) -> None:
        self._site = site
        self._superlink = superlink
        self._secret = secrets.token_bytes(32)
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._seen_alive = 0.0
        self._wait_s = START_AGAIN_S

    def __enter__(self) -> "_SuperNode":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def is_old(self) -> bool:
        """Whether it was started a while ago."""
        return time.monotonic() - self._started > STAYS_S

    def look_after(self) -> None:
        """Start it if it does not run; not too often."""
        if self._process is not None and self._process.poll() is None:
            self._seen_alive = time.monotonic()
            return
        if self._process is not None:
            if self._seen_alive - self._started > STAYS_S:
                self._wait_s = START_AGAIN_S
            if time.monotonic() - self._seen_alive < self._wait_s:
                return
            self._wait_s = min(self._wait_s * LATER_BY, AT_LAST_S)
            log.warning("the SuperNode ended with code %s; starting it again", self._process.poll())
        self._stack.close()
        # Flower says that it tries again, and not why.
        if problem := explain_way(self._superlink, self._site.keys, is_grpc=False):
            log.warning("the coordinator's Flower proxy: %s", problem)
        self._started = self._seen_alive = time.monotonic()
        self._address = f"127.0.0.1:{_free_port()}"
        key = node_key(self._site).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        with _readable(key) as key_fd, _readable(self._secret) as secret_fd:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    *(sys.executable, "-m", "synthedge_client.flower_supernode"),
                    *("--superlink", self._superlink),
                    *("--root-certificates", str(self._site.keys.ca_file)),
                    *("--auth-supernode-private-key", f"/dev/fd/{key_fd}"),
                    *("--host", "127.0.0.1", "--port", self._address.rpartition(":")[2]),
                    *("--isolation", "process"),
                    *("--superexec-auth-secret-file", f"/dev/fd/{secret_fd}"),
                ],
                env={**os.environ, "FLWR_HOME": str(self._site.settings.folder)},
                pass_fds=(key_fd, secret_fd),
                stdout=sys.stderr,
            )
        self._runtime = self._stack.enter_context(
            self.client(
                SuperExecAuthHttpInterceptor(master_secret=self._secret, protected_methods=_ACQUIRE)
            )
        )

    def next_task(self) -> str | None:
        """The token of a message that waits; None if none does."""
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        return self._runtime.AcquireTask(wanted).token or None

    def client(self, interceptor: Any) -> RuntimeHttpClient:
        """A client of its interface on loopback."""
        return RuntimeHttpClient.from_server_address(
            self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                interceptor,
            ],
        )


@contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """A descriptor that another process reads some bytes from once; they are in no file."""
    source, sink = os.pipe()
    try:
        os.write(sink, data)
        os.close(sink)
        yield source
    finally:
        os.close(source)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
