"""The states of a withdrawal notice and the one table of what may move it.

A withdrawal is not a state of a transfer: rows of one transfer may be withdrawn one by one, months
apart, and corrected in between. Each notice has a record at donor, coordinator and recipient. It
ends only with the recipient's receipt; a time limit that passes raises a flag and ends nothing.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from synthedge_protocols.errors import LifecycleError
from synthedge_protocols.lifecycle import Party

__all__ = [
    "NOTICE_ID_BYTES",
    "NOTICE_LIMIT",
    "NOTICE_TRANSITIONS",
    "NoticeEvent",
    "NoticeState",
    "NoticeTransition",
    "advance_notice",
    "is_overdue",
    "withdrawal_markdown",
]

NOTICE_ID_BYTES = 16
NOTICE_LIMIT = "withdrawal_h"
"""Field of the dictionary's policy: hours after which an open notice is overdue."""

_MS_PER_HOUR = 3_600_000


class NoticeState(StrEnum):
    """Where a record of a notice stands."""

    NOTIFIED = "NOTIFIED"
    PURGED = "PURGED"


class NoticeEvent(StrEnum):
    """What can happen to a notice."""

    NOTIFY = "notify"
    PURGE = "purge"


@dataclass(frozen=True, slots=True)
class NoticeTransition:
    """One row of the table.

    Attributes
    ----------
    source : NoticeState or None
        None: no record yet.
    event, target : NoticeEvent, NoticeState
        What moves where.
    actor : Party
        Who may cause it.
    signed_by : {"site", "either"}
        Whose key signs the statement that carries it.
    """

    source: NoticeState | None
    event: NoticeEvent
    target: NoticeState
    actor: Party
    signed_by: Literal["site", "either"]


NOTICE_TRANSITIONS: tuple[NoticeTransition, ...] = (
    NoticeTransition(
        None, NoticeEvent.NOTIFY, NoticeState.NOTIFIED, Party.DONOR, signed_by="either"
    ),
    # The same notice again: the coordinator sends it on every stream until the receipt is there.
    NoticeTransition(
        NoticeState.NOTIFIED,
        NoticeEvent.NOTIFY,
        NoticeState.NOTIFIED,
        Party.DONOR,
        signed_by="either",
    ),
    NoticeTransition(
        NoticeState.PURGED, NoticeEvent.NOTIFY, NoticeState.PURGED, Party.DONOR, signed_by="either"
    ),
    NoticeTransition(
        NoticeState.NOTIFIED,
        NoticeEvent.PURGE,
        NoticeState.PURGED,
        Party.RECIPIENT,
        signed_by="site",
    ),
)

_TABLE = {(t.source, t.event, t.actor): t.target for t in NOTICE_TRANSITIONS}


def advance_notice(state: NoticeState | None, event: NoticeEvent, actor: Party) -> NoticeState:
    """Return the state that follows in any party's record.

    Parameters
    ----------
    state : NoticeState or None
        Where the record stands; None if there is none yet.
    event : NoticeEvent
        What happened.
    actor : Party
        Who caused it, as authenticated.

    Raises
    ------
    LifecycleError
        If the table has no such row.
    """
    target = _TABLE.get((state, event, actor))
    if target is None:
        raise LifecycleError(
            f"a withdrawal that is {state or 'not on record'} cannot take '{event}' by the {actor}"
        )
    return target


def is_overdue(state: NoticeState, since_ms: int, now_ms: int, withdrawal_h: float) -> bool:
    """Whether a notice has waited longer than the policy allows; only a receipt ends that.

    Parameters
    ----------
    state : NoticeState
    since_ms, now_ms : int
        Unix time in milliseconds: when it was notified, and now.
    withdrawal_h : float
        Hours the policy allows.
    """
    return state is NoticeState.NOTIFIED and now_ms - since_ms > withdrawal_h * _MS_PER_HOUR


def withdrawal_markdown() -> str:
    """Write the second table of `docs/lifecycle.md`."""
    lines = [
        "",
        "# Lifecycle of a withdrawal",
        "",
        "Written by `synthedge_protocols.withdrawal.withdrawal_markdown()`; a test compares.",
        "A notice names rows of one transfer that were delivered: to be purged, or corrected. The",
        "table is the same for the donor's, the coordinator's and the recipient's record. An open",
        f"notice is *overdue* after `{NOTICE_LIMIT}` hours and stays so until the receipt is there.",
        "",
        "| from | event | to | caused by | signed by |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {t.source or '(none)'} | {t.event} | {t.target} | {t.actor} | "
        f"{'site or steward' if t.signed_by == 'either' else t.signed_by} |"
        for t in NOTICE_TRANSITIONS
    ]
    return "\n".join(lines) + "\n"
