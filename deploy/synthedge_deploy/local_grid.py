"""A Flower grid without a network: the real ClientApp answers in this process, for simulations and tests."""

import itertools
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

# As a SuperNode answers for an app that raised.
_RAISED = 2
_UNREACHABLE = 5


class LocalGrid(Grid):
    """Runs a ClientApp for every message when its reply is pulled.

    Parameters
    ----------
    app : ClientApp
    nodes : mapping of int to UserConfig
        Node id to its node config, which tells the app whose node it is.
    offline : iterable of int
        Nodes that give no sign of life.
    """

    def __init__(
        self, app: ClientApp, nodes: Mapping[int, UserConfig], offline: Iterable[int] = ()
    ) -> None:
        self._app = app
        self._nodes = nodes
        self._offline = frozenset(offline)
        self._numbers = itertools.count(1)
        self._pending: dict[str, Message] = {}
        # What Flower sets where it starts an app, and without which no message can be made.
        TaskIdentity.task_id = TaskIdentity.run_id = 0
        TaskIdentity.node_id = SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Not needed here."""

    @property
    def run(self) -> Run:
        """There is none.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError("a local grid belongs to no run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; Flower's own interface, deprecated there."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every node that is not offline."""
        return [node for node in self._nodes if node not in self._offline]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; an empty identifier for a node that is not there, as a SuperLink gives."""
        identifiers = []
        for message in messages:
            identifier = ""
            if message.metadata.dst_node_id in self._nodes:
                identifier = str(next(self._numbers))
                message.metadata.__dict__["_message_id"] = identifier
                self._pending[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Reply to messages, in the order asked for."""
        for identifier in message_ids:
            message = self._pending.pop(identifier, None)
            if message is not None:
                yield self._reply(message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node in self._offline:
            return Message(Error(_UNREACHABLE, "no heartbeat"), reply_to=message)
        context = Context(
            run_id=0,
            node_id=node,
            node_config=dict(self._nodes[node]),
            state=RecordDict(),
            run_config={},
        )
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - what a SuperNode does: the error is the reply
            return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
