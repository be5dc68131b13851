"""Who decides at a site: a steward, or the site's own key on a steward's word; and the words they give as reasons."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from synthedge_core.errors import UsageError
from synthedge_protocols.limits import Limits
from synthedge_protocols.texts import printable
from synthedge_protocols.v1 import statements_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from synthedge_client.site import Site

LIMITS = Limits()


class Decider(Protocol):
    """Someone whose signature lets a transfer go on."""

    @property
    def label(self) -> str:
        """Who, and with which key, as the audit names it."""

    def sign(self, site: "Site", payload: "Message") -> pb.SignedStatement:
        """Sign a decision."""


@dataclass(frozen=True)
class _SiteKey:
    label: str

    def sign(self, site: "Site", payload: "Message") -> pb.SignedStatement:
        """Sign with the site's own key."""
        return site.sign(payload)


class RequestItself(_SiteKey):
    """The steward's word in a request signed with ``accept_if_gate_passes``; the site's key carries it out."""

    def __init__(self) -> None:
        super().__init__("the request, as its steward signed it")


class GateItself(_SiteKey):
    """The gate that refuses a delivery: nobody needs to agree."""

    def __init__(self) -> None:
        super().__init__("gate")


def check_reason(reason: str) -> str:
    """Return a reason that can be sent to the other side, on one line.

    Raises
    ------
    UsageError
        If it is empty or too long.
    """
    size = len(reason.encode())
    if not reason.strip() or size > LIMITS.text_bytes:
        raise UsageError(
            f"a reason of {size} bytes; write 1 to {LIMITS.text_bytes}: it goes to the other side, so name no patient"
        )
    return printable(reason)
