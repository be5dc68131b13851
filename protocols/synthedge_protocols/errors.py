"""Error types of the wire, their exit codes, and their one mapping to gRPC statuses."""

from collections.abc import Iterable
from typing import ClassVar

import grpc

from synthedge_protocols.texts import printable

__all__ = [
    "ERROR_NAME_KEY",
    "STATUS",
    "WAIT_KEY",
    "BusyError",
    "ConsentError",
    "DeadlineError",
    "IdentityError",
    "LifecycleError",
    "LimitExceededError",
    "MalformedError",
    "PolicyError",
    "ProtocolError",
    "ReplayError",
    "TransferAuthenticationError",
    "UnavailableError",
    "VerificationError",
    "from_status",
    "status_of",
]

ERROR_NAME_KEY = "synthedge-error"
"""Trailing metadata key that carries the class name, so that the caller rebuilds the same type."""

WAIT_KEY = "synthedge-wait-ms"
"""Trailing metadata key of a `BusyError`: the time to wait, whole milliseconds."""

_MAX_DETAILS = 1_000
_MAX_WAIT_S = 300.0
_INTERNAL_TEXT = "the peer failed internally; its operator finds the cause in its log"


class ProtocolError(Exception):
    """Root of everything this package raises on purpose.

    Attributes
    ----------
    exit_code : int
        What a command ends with when this error reaches it. Codes are never reused.
    """

    exit_code: ClassVar[int] = 5


class LimitExceededError(ProtocolError):
    """Something is larger, or there is more of it, than agreed."""

    exit_code = 1


class ConsentError(ProtocolError):
    """A consent is absent, expired, withdrawn or does not cover what was asked."""

    exit_code = 1


class PolicyError(ProtocolError):
    """Refused by a rule of the consortium or of a site; the message names the rule."""

    exit_code = 1


class LifecycleError(ProtocolError):
    """A transfer is not in a state in which this may happen to it."""

    exit_code = 1


class ReplayError(ProtocolError):
    """Something valid that was already accepted once and must not be accepted again."""

    exit_code = 1


class IdentityError(ProtocolError):
    """Unknown, revoked or wrong identity; a bad certificate, key file or token."""

    exit_code = 2


class UnavailableError(ProtocolError):
    """The peer, or the local store, cannot be reached now; trying again later may help."""

    exit_code = 2


class BusyError(UnavailableError):
    """The caller asks for too much at a time; nothing else is wrong with what it asks.

    Parameters
    ----------
    text : str
    wait_s : float
        When asking again may help.
    """

    def __init__(self, text: str, wait_s: float = 1.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class DeadlineError(ProtocolError):
    """The answer did not come within the time limit."""

    exit_code = 3


class MalformedError(ProtocolError):
    """Bytes that do not decode, or decode to something of the wrong shape."""

    exit_code = 4


class TransferAuthenticationError(ProtocolError):
    """A sealed transfer could not be opened; why is never said."""

    exit_code = 7


class VerificationError(ProtocolError):
    """A signature, digest or proof does not hold."""

    exit_code = 7


STATUS: dict[type[ProtocolError], tuple[grpc.StatusCode, str | None]] = {
    ProtocolError: (grpc.StatusCode.INTERNAL, _INTERNAL_TEXT),
    LimitExceededError: (grpc.StatusCode.RESOURCE_EXHAUSTED, None),
    ConsentError: (grpc.StatusCode.FAILED_PRECONDITION, None),
    PolicyError: (grpc.StatusCode.PERMISSION_DENIED, None),
    LifecycleError: (grpc.StatusCode.FAILED_PRECONDITION, None),
    ReplayError: (grpc.StatusCode.ALREADY_EXISTS, None),
    IdentityError: (grpc.StatusCode.UNAUTHENTICATED, None),
    UnavailableError: (grpc.StatusCode.UNAVAILABLE, None),
    BusyError: (grpc.StatusCode.RESOURCE_EXHAUSTED, None),
    DeadlineError: (grpc.StatusCode.DEADLINE_EXCEEDED, None),
    MalformedError: (grpc.StatusCode.INVALID_ARGUMENT, None),
    TransferAuthenticationError: (
        grpc.StatusCode.DATA_LOSS,
        "transfer could not be authenticated",
    ),
    VerificationError: (grpc.StatusCode.DATA_LOSS, None),
}
"""Error type to (status, public text); ``None`` says that the message itself is public."""

# What gRPC itself answers, without our metadata: by status alone.
_BY_CODE: dict[grpc.StatusCode, type[ProtocolError]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceededError,
    grpc.StatusCode.FAILED_PRECONDITION: LifecycleError,
    grpc.StatusCode.PERMISSION_DENIED: PolicyError,
    grpc.StatusCode.ALREADY_EXISTS: ReplayError,
    grpc.StatusCode.UNAUTHENTICATED: IdentityError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.INVALID_ARGUMENT: MalformedError,
    grpc.StatusCode.DATA_LOSS: VerificationError,
}
_BY_NAME = {error.__name__: error for error in STATUS}


def status_of(error: ProtocolError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Say how a servicer answers a call that ended in `error`.

    Parameters
    ----------
    error : ProtocolError
        Of a type listed in `STATUS`, or below one.

    Returns
    -------
    tuple of (grpc.StatusCode, str, tuple of (str, str))
        Status, public text and trailing metadata, in the order ``context.abort`` takes them.
    """
    code, text = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    metadata: tuple[tuple[str, str], ...] = ((ERROR_NAME_KEY, type(error).__name__),)
    if isinstance(error, BusyError):
        metadata += ((WAIT_KEY, str(int(error.wait_s * 1000) + 1)),)
    return code, str(error) if text is None else text, metadata


def from_status(
    code: grpc.StatusCode,
    details: str | None,
    trailing_metadata: Iterable[tuple[str, str | bytes]] | None = None,
) -> ProtocolError:
    """Rebuild the error a peer answered with.

    Parameters
    ----------
    code : grpc.StatusCode
        Status of the failed call.
    details : str or None
        The peer's text; control characters are replaced and its length is cut before users see it.
    trailing_metadata : iterable of (str, str or bytes), optional
        Names the type under `ERROR_NAME_KEY`; without it, or when the name does not fit the
        status, the status alone decides.

    Returns
    -------
    ProtocolError
        To be raised by the caller; of the root type when the status says nothing better.
    """
    text = printable((details or "")[:_MAX_DETAILS]).strip()
    text = text or f"the peer answered {code.name} without a reason"
    metadata = dict(trailing_metadata or ())
    named = _BY_NAME.get(str(metadata.get(ERROR_NAME_KEY, "")))
    if named is BusyError and STATUS[named][0] is code:
        return BusyError(text, _wait_s(str(metadata.get(WAIT_KEY, ""))))
    if named is not None and STATUS[named][0] is code:
        return named(text)
    return _BY_CODE.get(code, ProtocolError)(text)


def _wait_s(text: str) -> float:
    """The time to wait, as the peer says; bounded, since it is a peer's word."""
    milliseconds = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 1000
    return min(milliseconds / 1000, _MAX_WAIT_S)
