"""The coordinator's Flower ServerApp: asks named SuperNodes, and hands every reply to the coordinator's intake."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from flwr.app import Context, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.flower_app import MESSAGE_TYPE, pack, unpack
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server.rounds import Outcome

_POLL_S: Final = 0.25

Take = Callable[[str, bytes], None]
Unreached = dict[str, tuple[Outcome, str]]


def make_server_app(
    asked: wire.DiscoveryRound,
    nodes: Mapping[str, int],
    take: Take,
    unreached: Unreached,
    timeout_s: float,
) -> ServerApp:
    """The ServerApp of one round; parameters as `ask_nodes`, whose result goes into `unreached`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        unreached.update(ask_nodes(grid, asked, nodes, take, timeout_s))

    return app


def ask_nodes(
    grid: Grid,
    asked: wire.DiscoveryRound,
    nodes: Mapping[str, int],
    take: Take,
    timeout_s: float,
) -> Unreached:
    """Ask each site's SuperNode, and no other, and hand over the replies as they come.

    Parameters
    ----------
    grid : Grid
    asked : DiscoveryRound
    nodes : mapping of str to int
        Site to the id of its SuperNode: a reply counts as that site's whatever it says of itself.
    take : callable
        Takes the bytes one site replied with: a serialised SignedStatement, if the site is honest. A `ProtocolError`
        it raises is that site's outcome.
    timeout_s : float
        How long replies are waited for.

    Returns
    -------
    dict of str to (Outcome, str)
        Sites that gave nothing to take and are known to have not, with why; late ones are not in it.
    """
    end = time.monotonic() + timeout_s
    unreached: Unreached = {}
    messages = [
        Message(
            pack(asked.SerializeToString()),
            node,
            MESSAGE_TYPE,
            ttl=timeout_s,
            group_id=asked.round_id.hex(),
        )
        for node in nodes.values()
    ]
    waiting: dict[str, str] = {}
    for site, identifier in zip(nodes, grid.push_messages(messages), strict=True):
        if identifier:
            waiting[identifier] = site
        else:
            unreached[site] = (Outcome.OFFLINE, "its SuperNode has not connected yet")
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            identifier = reply.metadata.reply_to_message_id
            if identifier not in waiting:
                continue
            site = waiting.pop(identifier)
            problem = _take(site, reply, take)
            if problem is not None:
                unreached[site] = problem
        if time.monotonic() > end:
            break
        if waiting:
            time.sleep(_POLL_S)
    return unreached


def _take(site: str, reply: Message, take: Take) -> tuple[Outcome, str] | None:
    if reply.has_error():
        # These are the SuperLink's word for a node it does not hear of, or for a message that expired.
        if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            return Outcome.OFFLINE, "its SuperNode gives no sign of life"
        if reply.error.code in (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE):
            return None
        return Outcome.REJECTED, f"its SuperNode answered with error {reply.error.code}: " + _shown(
            reply.error.reason
        )
    try:
        take(site, unpack(reply.content, Limits().message_bytes))
    except ProtocolError as error:
        return Outcome.REJECTED, str(error)
    return None


def _shown(reason: str | None) -> str:
    """What a stranger wrote, on one line and not without end."""
    return " ".join((reason or "no reason").split())[:200]
