"""How a site stands in its consortium, and what a change of that does to its transfers: one table.

*Unfinished* are transfers whose rows were requested and are not active yet. Rows that are active stay under their
agreement as long as a withdrawal can still reach them; where it cannot, because the site is shut out or its keys are
lost, they go.
"""

from dataclasses import dataclass
from enum import StrEnum

from synthedge_protocols.lifecycle import Event, State

__all__ = [
    "ACTIONS",
    "CHANGES",
    "UNFINISHED",
    "Change",
    "Standing",
    "ending_of",
    "standing_markdown",
]


class Standing(StrEnum):
    """How a site stands, in the coordinator's record."""

    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    SILENT = "silent"
    LEFT = "left"
    REVOKED = "revoked"
    RESET = "reset"


UNFINISHED: tuple[State, ...] = (
    State.REQUESTED,
    State.APPROVED,
    State.RELAYED,
    State.DELIVERED,
)
"""States of the coordinator's record in which a transfer waits for something."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of standing does.

    Attributes
    ----------
    by : str
        Who causes it.
    unfinished, active : Event or None
        What happens to the site's unfinished and active transfers; None: they stay as they are.
    may : str
        What the site itself may still do.
    keeps : str
        What it keeps, and what must be purged.
    """

    by: str
    unfinished: Event | None
    active: Event | None
    may: str
    keeps: str


CHANGES: dict[Standing, Change] = {
    Standing.PAUSED: Change(
        "its steward: site suspend",
        None,
        None,
        "everything but reports, requests and approvals; no key is released to it or for its rows",
        "all rows, on both sides; withdrawals and receipts go on; time limits run on",
    ),
    Standing.SUSPENDED: Change(
        "operator: sites suspend",
        None,
        None,
        "nothing: no call is answered; withdrawals wait and become overdue",
        "all rows, on both sides; time limits run on",
    ),
    Standing.SILENT: Change(
        "nobody: no call for `silent_h` hours",
        Event.EXPIRE,
        None,
        "everything, as soon as it calls again",
        "active rows, on both sides, until their retention ends; withdrawals wait and become overdue",
    ),
    Standing.LEFT: Change(
        "its steward: site leave",
        Event.REVOKE,
        None,
        "what it owes: withdrawals, receipts, purges, until its certificate expires",
        "active rows, on both sides, until their retention ends or the donor withdraws them",
    ),
    Standing.REVOKED: Change(
        "operator: sites revoke",
        Event.REVOKE,
        Event.REVOKE,
        "nothing, for ever",
        "nothing: both sides must purge, since no withdrawal would reach them; peers purge by themselves, "
        "the revoked site must prove it to each donor outside this system",
    ),
    Standing.RESET: Change(
        "operator: sites reset-keys",
        Event.REVOKE,
        Event.REVOKE,
        "enrol anew under the same id, with new keys and a new token",
        "nothing: its ledger no longer finds a patient again, so peers purge its rows; rows it received it "
        "cannot read any more",
    ),
}
"""Every standing but active, with what becoming it does."""

ACTIONS: dict[str, Standing] = {
    "suspend": Standing.PAUSED,
    "resume": Standing.ACTIVE,
    "leave": Standing.LEFT,
}
"""What a site's own steward can sign."""


def ending_of(standing: Standing, state: State) -> Event | None:
    """What a site's new standing does to a transfer of it.

    Parameters
    ----------
    standing : Standing
        What the site becomes.
    state : State
        Of the coordinator's record.

    Returns
    -------
    Event or None
        An event the coordinator causes; None if the transfer stays where it is.
    """
    change = CHANGES.get(standing)
    if change is None:
        return None
    if state in UNFINISHED:
        return change.unfinished
    return change.active if state is State.ACTIVE else None


def standing_markdown() -> str:
    """Write the table of `docs/withdrawal.md`."""
    lines = [
        "| standing | caused by | unfinished transfers | active transfers | the site may still | kept |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {standing} | {change.by} | {_ends(change.unfinished)} | {_ends(change.active)} | "
        f"{change.may} | {change.keeps} |"
        for standing, change in CHANGES.items()
    ]
    return "\n".join(lines) + "\n"


def _ends(event: Event | None) -> str:
    return {Event.EXPIRE: "EXPIRED", Event.REVOKE: "REVOKED"}[event] if event else "stay"
