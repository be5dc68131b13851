"""The states of a transfer and the one table of what may move it, by whom, and in whose records.

Three parties keep a record of every transfer. A record moves only along `TRANSITIONS`; some steps
are local to one party (a donor preparing rows tells nobody), so the same event can find the records
of two parties in different states.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, groupby
from typing import Literal

from synthedge_protocols.errors import LifecycleError

__all__ = [
    "ENDING_EVENTS",
    "TIME_LIMITS",
    "TRANSITIONS",
    "Event",
    "Party",
    "State",
    "Transition",
    "advance",
    "ending_event",
    "is_final",
    "lifecycle_markdown",
]


class State(StrEnum):
    """Where a record of a transfer stands."""

    PROPOSED = "PROPOSED"
    REQUESTED = "REQUESTED"
    PREPARED = "PREPARED"
    APPROVED = "APPROVED"
    SEALED = "SEALED"
    RELAYED = "RELAYED"
    DELIVERED = "DELIVERED"
    ACTIVE = "ACTIVE"
    PURGED = "PURGED"
    REFUSED = "REFUSED"
    DECLINED = "DECLINED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


class Event(StrEnum):
    """What can happen to a transfer."""

    REQUEST = "request"
    PREPARE = "prepare"
    LAPSE = "lapse"
    APPROVE = "approve"
    LOSE_CONSENT = "lose-consent"
    SEAL = "seal"
    RELAY = "relay"
    DELIVER = "deliver"
    ACCEPT = "accept"
    REFUSE = "refuse"
    PURGE = "purge"
    DECLINE = "decline"
    CANCEL = "cancel"
    EXPIRE = "expire"
    REVOKE = "revoke"


class Party(StrEnum):
    """Who acts, and whose record moves."""

    RECIPIENT = "recipient"
    DONOR = "donor"
    COORDINATOR = "coordinator"


SignedBy = Literal["steward", "site", "steward or policy", "steward or site", "nobody"]


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table.

    Attributes
    ----------
    source, event, target : State, Event, State
        What moves where.
    actor : Party
        Who may cause it.
    signed_by : {"steward", "site", "steward or policy", "steward or site", "nobody"}
        Whose key signs the statement that carries it. "steward or policy": the site's key too, where
        it names a standing policy that a steward signed (or, to accept, the request says so).
        "nobody": hints, local steps and time limits.
    where : frozenset of Party
        Whose records it moves.
    limit : str or None
        Field of the dictionary's policy after which it happens by itself.
    """

    source: State
    event: Event
    target: State
    actor: Party
    signed_by: SignedBy
    where: frozenset[Party]
    limit: str | None = None


_R, _D, _C = Party.RECIPIENT, Party.DONOR, Party.COORDINATOR
_ALL = frozenset(Party)
_AT_D = frozenset({_D})
_AT_RC = frozenset({_R, _C})
_AT_RD = frozenset({_R, _D})
_AT_R = frozenset({_R})

_ENDED_BY_R = "CANCELLED REFUSED PURGED"
_ENDED_BY_D = "DECLINED CANCELLED"

TIME_LIMITS: dict[State, str] = {
    State.PROPOSED: "proposed_h",
    State.REQUESTED: "requested_h",
    State.PREPARED: "prepared_h",
    State.APPROVED: "approved_h",
    State.SEALED: "sealed_h",
    State.RELAYED: "sealed_h",
    State.DELIVERED: "delivered_h",
    State.ACTIVE: "retention_days",
}
"""State to the policy field that bounds the time in it; final states have none."""


def _step(
    sources: str,
    event: Event,
    target: State,
    actor: Party,
    signed_by: SignedBy,
    where: frozenset[Party] = _ALL,
    *,
    timed: bool = False,
) -> list[Transition]:
    return [
        Transition(
            State(source),
            event,
            target,
            actor,
            signed_by,
            where,
            TIME_LIMITS[State(source)] if timed else None,
        )
        for source in sources.split()
    ]


TRANSITIONS: tuple[Transition, ...] = tuple(
    chain(
        # The way to success. A donor's own record passes through PREPARED and SEALED, which
        # the others never see; the recipient's and coordinator's through DELIVERED.
        _step("PROPOSED", Event.REQUEST, State.REQUESTED, _R, "steward or policy"),
        _step("REQUESTED", Event.PREPARE, State.PREPARED, _D, "nobody", _AT_D),
        _step("PREPARED", Event.APPROVE, State.APPROVED, _D, "steward or policy", _AT_D),
        # From APPROVED too: a consent was lost, the rows changed, the steward approved anew.
        _step("REQUESTED APPROVED", Event.APPROVE, State.APPROVED, _D, "steward or policy", _AT_RC),
        _step("APPROVED", Event.SEAL, State.SEALED, _D, "nobody", _AT_D),
        _step("SEALED", Event.RELAY, State.RELAYED, _D, "site", _AT_D),
        _step("APPROVED", Event.RELAY, State.RELAYED, _D, "site", _AT_RC),
        _step("RELAYED", Event.DELIVER, State.DELIVERED, _R, "site", _AT_RC),
        _step("DELIVERED", Event.ACCEPT, State.ACTIVE, _R, "steward or policy", _AT_RC),
        # SEALED too: the donor may have stopped between its last upload and noting it.
        _step("SEALED RELAYED", Event.ACCEPT, State.ACTIVE, _R, "steward or policy", _AT_D),
        # Back, locally: nothing has left the donor yet.
        _step("PREPARED", Event.LAPSE, State.REQUESTED, _D, "nobody", _AT_D, timed=True),
        _step("APPROVED SEALED", Event.LOSE_CONSENT, State.PREPARED, _D, "nobody", _AT_D),
        # The recipient's gate, the opening itself, or its steward refused: the rows were deleted.
        _step("DELIVERED", Event.REFUSE, State.REFUSED, _R, "steward or site", _AT_RC),
        _step("SEALED RELAYED", Event.REFUSE, State.REFUSED, _R, "steward or site", _AT_D),
        # The recipient deleted active rows: its retention was over, its steward wished it, or all were withdrawn.
        _step("ACTIVE", Event.PURGE, State.PURGED, _R, "site", timed=True),
        # People changing their minds.
        _step("REQUESTED", Event.DECLINE, State.DECLINED, _D, "steward"),
        _step("PREPARED", Event.DECLINE, State.DECLINED, _D, "steward", _AT_D),
        # After an approval that lost a consent: the donor is back at PREPARED, they are not.
        _step("APPROVED", Event.DECLINE, State.DECLINED, _D, "steward", _AT_RC),
        _step("REQUESTED APPROVED RELAYED", Event.CANCEL, State.CANCELLED, _R, "steward"),
        _step("PREPARED SEALED", Event.CANCEL, State.CANCELLED, _R, "steward", _AT_D),
        _step("APPROVED RELAYED", Event.CANCEL, State.CANCELLED, _D, "steward"),
        _step("SEALED", Event.CANCEL, State.CANCELLED, _D, "steward", _AT_D),
        # Rules: a time limit passed; a site was revoked, left or vanished; or, once the upload had begun, the donor
        # withdrew rows: the key stays unreleased, or, if the recipient was faster, it deletes what it opened.
        _step(
            "REQUESTED APPROVED RELAYED",
            Event.EXPIRE,
            State.EXPIRED,
            _C,
            "nobody",
            timed=True,
        ),
        _step("DELIVERED", Event.EXPIRE, State.EXPIRED, _C, "nobody", _AT_RC, timed=True),
        _step("PREPARED SEALED", Event.EXPIRE, State.EXPIRED, _C, "nobody", _AT_D),
        _step(
            "REQUESTED APPROVED RELAYED ACTIVE",
            Event.REVOKE,
            State.REVOKED,
            _C,
            "nobody",
        ),
        _step("DELIVERED", Event.REVOKE, State.REVOKED, _C, "nobody", _AT_RC),
        _step("PREPARED SEALED", Event.REVOKE, State.REVOKED, _C, "nobody", _AT_D),
        # Two may end a transfer at once. What the coordinator put on record first holds for all
        # three, and replaces what a site had written down but the coordinator then refused.
        _step(_ENDED_BY_R, Event.EXPIRE, State.EXPIRED, _C, "nobody", _AT_R),
        _step(_ENDED_BY_R, Event.REVOKE, State.REVOKED, _C, "nobody", _AT_R),
        # At the donor too: a coordinator that was restored from a backup forgot the delivery.
        _step("ACTIVE", Event.EXPIRE, State.EXPIRED, _C, "nobody", _AT_RD),
        _step("CANCELLED", Event.DECLINE, State.DECLINED, _D, "steward", _AT_R),
        _step("CANCELLED", Event.CANCEL, State.CANCELLED, _D, "steward", _AT_R),
        _step(_ENDED_BY_D, Event.EXPIRE, State.EXPIRED, _C, "nobody", _AT_D),
        _step(_ENDED_BY_D, Event.REVOKE, State.REVOKED, _C, "nobody", _AT_D),
        _step(_ENDED_BY_D, Event.CANCEL, State.CANCELLED, _R, "steward", _AT_D),
        _step("CANCELLED", Event.ACCEPT, State.ACTIVE, _R, "steward or policy", _AT_D),
        _step("CANCELLED", Event.REFUSE, State.REFUSED, _R, "steward or site", _AT_D),
    )
)

ENDING_EVENTS: dict[State, Event] = {
    State.DECLINED: Event.DECLINE,
    State.CANCELLED: Event.CANCEL,
    State.EXPIRED: Event.EXPIRE,
    State.REVOKED: Event.REVOKE,
    State.PURGED: Event.PURGE,
}
"""State named by an `Ending` or `TransferEnded` message to the event it reports."""

_TABLE = {(t.source, t.event, t.actor, party): t for t in TRANSITIONS for party in t.where}


def is_final(state: State) -> bool:
    """Whether nothing can follow in the coordinator's record.

    A site's own record may still change to the end that the coordinator put on record first.
    """
    return state not in TIME_LIMITS


def advance(state: State, event: Event, actor: Party, *, at: Party) -> State:
    """Return the state that follows in the record of one party.

    Parameters
    ----------
    state : State
        Where that record stands.
    event : Event
        What happened.
    actor : Party
        Who caused it, as authenticated.
    at : Party
        Whose record it is.

    Raises
    ------
    LifecycleError
        If the table has no such row.
    """
    row = _TABLE.get((state, event, actor, at))
    if row is None:
        allowed = sorted(
            {f"{e.value} by the {a.value}" for (s, e, a, p) in _TABLE if s is state and p is at}
        )
        raise LifecycleError(
            f"a transfer that is {state.value} in the {at.value}'s record cannot take "
            f"'{event.value}' by the {actor.value}; possible: {', '.join(allowed) or 'nothing'}"
        )
    return row.target


def ending_event(state: str) -> Event:
    """Return the event that an `Ending` or `TransferEnded` with this `state` text reports.

    Raises
    ------
    LifecycleError
        If a message cannot put a transfer into that state.
    """
    try:
        return ENDING_EVENTS[State(state)]
    except (KeyError, ValueError):
        raise LifecycleError(
            f"a transfer cannot be ended as {state[:40]!r}; "
            f"possible: {', '.join(s.value for s in ENDING_EVENTS)}"
        ) from None


def lifecycle_markdown() -> str:
    """Write the table as `docs/lifecycle.md`."""
    lines = [
        "# Lifecycle of a transfer",
        "",
        "Written by `synthedge_protocols.lifecycle.lifecycle_markdown()`; a test compares.",
        "Recipient, donor and coordinator each keep a record; *records* says whose moves.",
        "*By itself after* names the field of the dictionary's `[policy]` that sets the time.",
        "PROPOSED is where every record begins; a proposal itself is a hint, and nobody keeps a record of it.",
        "Final states: " + ", ".join(s.value for s in State if is_final(s)) + ".",
        "Where two end a transfer at once, what the coordinator put on record first replaces",
        "what a site had written down itself: the only rows that leave a final state.",
        "",
        "| from | event | to | caused by | signed by | records | by itself after |",
        "|---|---|---|---|---|---|---|",
    ]
    order = list(State)
    rows = sorted(TRANSITIONS, key=lambda t: order.index(t.source))
    for source, group in groupby(rows, key=lambda t: t.source):
        for t in group:
            where = "all" if t.where == _ALL else ", ".join(sorted(t.where))
            lines.append(
                f"| {source} | {t.event} | {t.target} | {t.actor} | {t.signed_by} | {where} | "
                f"{t.limit or ''} |"
            )
    return "\n".join(lines) + "\n"
