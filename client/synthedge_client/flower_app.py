"""A site's Flower ClientApp: the one query ``gap_scan``, answered as the site's own channel would be.

The reply is the site's signed answer, bytes in a ConfigRecord. Centroids and scores are not sent a second time as
arrays: they would be a second truth beside the one a steward signed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from google.protobuf.message import DecodeError

from synthedge_client.discovery import answer_round
from synthedge_client.site import Site
from synthedge_protocols.discovery import Refusal
from synthedge_protocols.errors import MalformedError
from synthedge_protocols.flower_app import QUERY, pack, unpack
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire

OpenSite = Callable[[Context], AbstractContextManager[Site]]


def make_client_app(open_site: OpenSite) -> ClientApp:
    """The ClientApp of a site.

    Parameters
    ----------
    open_site : callable
        Opens the site a context belongs to: a hospital's runner has the one, a simulation many.

    Returns
    -------
    ClientApp
        It raises `MalformedError` if a message holds no round.
    """
    app = ClientApp()

    @app.query(QUERY)
    def gap_scan(message: Message, context: Context) -> Message:
        with open_site(context) as site:
            return answer(site, message)

    return app


def answer(site: Site, message: Message, refusal: Refusal | None = None) -> Message:
    """Answer the round in a Flower message; `refusal` is a reason found before.

    Raises
    ------
    MalformedError
        If it holds none.
    """
    data = unpack(message.content, Limits().message_bytes)
    try:
        asked = wire.DiscoveryRound.FromString(data)
    except DecodeError:
        raise MalformedError("a Flower message whose bytes are no round of discovery") from None
    signed = answer_round(site, asked, "flower", refusal=refusal)
    return Message(pack(signed.SerializeToString()), reply_to=message)
