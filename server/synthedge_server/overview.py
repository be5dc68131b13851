"""What an operator asks: who is here, who could help whom, which transfer is stuck, since when, waiting for whom.

One set of rows; the commands' tables, their `--json` and the web console all show these and can never disagree.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, func, select

from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_core.grids import NamedGrid
from synthedge_protocols.certificates import CERTIFICATE_DAYS
from synthedge_protocols.keys import fingerprint
from synthedge_protocols.lifecycle import State, is_final
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.withdrawal import NoticeState
from synthedge_server import dictionaries, store

_MS_PER_DAY: Final = 86_400_000
# An agent calls every few seconds while it runs.
UNSEEN_MS: Final = 3_600_000
EXPIRES_SOON_MS: Final = 7 * _MS_PER_DAY
_RECOVER: Final = (
    "find out which backup was restored, then 'synthedge-coordinator sites recover {site}'"
)

# Who must act for a transfer to go on, in the coordinator's record, and what for.
_WAITS_FOR: Final = {
    State.REQUESTED: ("donor", "steward to prepare and approve"),
    State.APPROVED: ("donor", "agent to seal and upload"),
    State.RELAYED: ("recipient", "agent to fetch"),
    State.DELIVERED: ("recipient", "gate and steward to accept"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRow:
    """One site.

    Attributes
    ----------
    site, state, reason, fingerprint : str
    enrolled, certificate_expires : str
        ISO 8601, UTC.
    last_seen, reported, log_seen : str
        When it last called, published under the current dictionary, and countersigned the log; empty: never.
    dictionary_version : int
        The newest it accepted; 0: none.
    open_transfers : int
    problem, next_step : str
        What the operator should look at, and do; empty: nothing.
    """

    site: str
    state: str
    reason: str
    fingerprint: str
    enrolled: str
    last_seen: str
    certificate_expires: str
    dictionary_version: int
    reported: str
    log_seen: str
    open_transfers: int
    problem: str
    next_step: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferRow:
    """One transfer.

    Attributes
    ----------
    transfer_id, recipient, donor, region, grid, purpose, state, reason : str
    voxel : list of int
    rows : int
        At most; how many were sent is sealed.
    requested, since, expires : str
        ISO 8601, UTC; `expires` is empty where no time limit runs.
    waits_for : str
        Whose move it is; empty when nobody's.
    problem : str
        Why it may be stuck; empty: it is not.
    """

    transfer_id: str
    recipient: str
    donor: str
    region: str
    grid: str
    voxel: list[int]
    rows: int
    purpose: str
    state: str
    requested: str
    since: str
    expires: str
    waits_for: str
    reason: str
    problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchRow:
    """One proposal: a recipient's gap and a donor's voxel, in words and by index."""

    recipient: str
    region: str
    grid: str
    voxel: list[int]
    donor: str
    donor_region: str
    donor_voxel: list[int]
    rank: int
    similarity: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WithdrawalRow:
    """One withdrawal notice."""

    notice_id: str
    transfer_id: str
    donor: str
    recipient: str
    state: str
    notified: str
    due: str
    is_overdue: bool


def list_sites(connection: Connection, now_ms: int) -> list[SiteRow]:
    """All sites ever enrolled, by name."""
    current = dictionaries.newest(connection)
    accepted = _accepted_versions(connection)
    reported = {
        row.site: row.received_at_ms
        for row in connection.execute(
            select(store.reports).where(
                store.reports.c.is_current, store.reports.c.dictionary_digest == current.digest
            )
        )
    }
    divergences = store.divergences.c
    frozen = set(
        connection.execute(
            select(divergences.site).where(divergences.recovered_at_ms.is_(None))
        ).scalars()
    )
    log_seen: dict[str, int] = {}
    for row in connection.execute(select(store.site_heads).order_by(store.site_heads.c.size)):
        log_seen[row.site] = row.seen_at_ms
    n_open: dict[str, int] = {}
    for transfer in connection.execute(select(store.transfers)):
        if State(transfer.state) in _WAITS_FOR:
            for site in (transfer.donor, transfer.recipient):
                n_open[site] = n_open.get(site, 0) + 1
    rows = []
    for row in connection.execute(select(store.sites).order_by(store.sites.c.site)):
        expires_ms = row.certified_at_ms + CERTIFICATE_DAYS * _MS_PER_DAY
        problem, next_step = (
            (row.reason, _RECOVER.format(site=row.site))
            if row.site in frozen
            else _site_problem(row, now_ms, expires_ms, accepted.get(row.site, 0), current.version)
        )
        rows.append(
            SiteRow(
                site=row.site,
                state=row.state,
                reason=row.reason or "",
                fingerprint=fingerprint(row.statement_public_key),
                enrolled=when(row.enrolled_at_ms),
                last_seen=when(row.last_seen_ms),
                certificate_expires=when(expires_ms),
                dictionary_version=accepted.get(row.site, 0),
                reported=when(reported.get(row.site)),
                log_seen=when(log_seen.get(row.site)),
                open_transfers=n_open.get(row.site, 0),
                problem=problem,
                next_step=next_step,
            )
        )
    return rows


def _accepted_versions(connection: Connection) -> dict[str, int]:
    query = (
        select(store.acceptances.c.site, func.max(store.dictionaries.c.version).label("version"))
        .join(store.dictionaries, store.dictionaries.c.digest == store.acceptances.c.digest)
        .group_by(store.acceptances.c.site)
    )
    return {row.site: row.version for row in connection.execute(query)}


def _site_problem(
    row: Any, now_ms: int, expires_ms: int, accepted: int, current: int
) -> tuple[str, str]:
    """What is wrong with a site that is not frozen, and what to do; two empty texts if nothing is."""
    if row.state in ("left", "revoked", "reset"):
        return "", ""
    if row.state == "suspended":
        return (
            "suspended" + (f": {row.reason}" if row.reason else ""),
            f"decide: 'synthedge-coordinator sites resume {row.site}', or 'revoke'",
        )
    agent = "telephone its data manager: its agent does not run, or cannot connect"
    if expires_ms <= now_ms:
        return "its certificate has expired; its agent renews it when it runs", agent
    if expires_ms - now_ms < EXPIRES_SOON_MS:
        left = _days(expires_ms - now_ms)
        return f"its certificate runs out in {left}; its agent is not renewing it", agent
    if row.last_seen_ms is not None and now_ms - row.last_seen_ms > UNSEEN_MS:
        return f"not seen for {_days(now_ms - row.last_seen_ms)}", agent
    if accepted < current:
        return (
            f"its steward has not accepted version {current} of the dictionary",
            "telephone its steward: 'synthedge site dictionary accept'",
        )
    return "", ""


def list_transfers(connection: Connection, now_ms: int) -> list[TransferRow]:
    """All transfers, those that wait first, the longest waiting before the others."""
    seen = {row.site: row.last_seen_ms for row in connection.execute(select(store.sites))}
    labels = _Labels(connection)
    rows = []
    for row in connection.execute(select(store.transfers).order_by(store.transfers.c.since_ms)):
        state = State(row.state)
        side, what = _WAITS_FOR.get(state, ("", ""))
        site = getattr(row, side) if side else ""
        expires_ms = row.expires_at_ms if not is_final(state) else None
        rows.append(
            TransferRow(
                transfer_id=row.transfer_id.hex(),
                recipient=row.recipient,
                donor=row.donor,
                region=labels.region(row.dictionary_digest, row.grid, json.loads(row.voxel)),
                grid=row.grid,
                voxel=json.loads(row.voxel),
                rows=row.rows,
                purpose=row.purpose,
                state=state.value,
                requested=when(row.requested_at_ms),
                since=when(row.since_ms),
                expires=when(expires_ms),
                waits_for=f"{site}'s {what}" if site else "",
                reason=row.reason,
                problem=_transfer_problem(row, now_ms, site, seen.get(site)) if site else "",
            )
        )
    return sorted(rows, key=lambda row: not row.waits_for)


def _transfer_problem(row: Any, now_ms: int, site: str, seen_ms: int | None) -> str:
    if seen_ms is not None and now_ms - seen_ms > UNSEEN_MS:
        return f"'{site}' was not seen for {_days(now_ms - seen_ms)}"
    if row.expires_at_ms is not None and row.expires_at_ms - now_ms < now_ms - row.since_ms:
        return f"waiting for {_days(now_ms - row.since_ms)}, more than half of its time"
    return ""


def list_matches(connection: Connection) -> list[MatchRow]:
    """The newest proposals to every site, best first."""
    labels = _Labels(connection)
    rows = []
    for row in connection.execute(select(store.proposals).order_by(store.proposals.c.site)):
        message = wire.Proposals.FromString(row.message)
        digest = message.dictionary_digest
        rows += [
            MatchRow(
                recipient=row.site,
                region=labels.region(digest, proposal.grid, list(proposal.voxel)),
                grid=proposal.grid,
                voxel=list(proposal.voxel),
                donor=proposal.donor,
                donor_region=labels.region(digest, proposal.grid, list(proposal.donor_voxel)),
                donor_voxel=list(proposal.donor_voxel),
                rank=proposal.rank,
                similarity=round(proposal.similarity, 3),
                reason=proposal.reason,
            )
            for proposal in message.proposals
        ]
    return rows


def list_withdrawals(connection: Connection, now_ms: int) -> list[WithdrawalRow]:
    """All withdrawal notices, open ones first, the longest overdue before the others."""
    query = select(store.withdrawals).order_by(store.withdrawals.c.due_at_ms)
    rows = [
        WithdrawalRow(
            notice_id=row.notice_id.hex(),
            transfer_id=row.transfer_id.hex(),
            donor=row.donor,
            recipient=row.recipient,
            state=row.state,
            notified=when(row.notified_at_ms),
            due=when(row.due_at_ms),
            is_overdue=row.state == NoticeState.NOTIFIED and row.due_at_ms < now_ms,
        )
        for row in connection.execute(query)
    ]
    return sorted(rows, key=lambda row: row.state != NoticeState.NOTIFIED)


def when(at_ms: int | None) -> str:
    """A time in ISO 8601, UTC, to the second; empty for none."""
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def _days(duration_ms: int) -> str:
    hours = duration_ms / 3_600_000
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


class _Labels:
    """Voxels in words, each by the dictionary it was named under."""

    def __init__(self, connection: Connection) -> None:
        self._texts = {version.digest: version.toml for version in dictionaries.history(connection)}

    def region(self, digest: bytes, grid: str, voxel: list[int]) -> str:
        named = _grid(_parsed(self._texts[digest]), grid)
        return named.label(named.flat_of(tuple(voxel)))


@cache
def _parsed(toml: str) -> Dictionary:
    return parse_dictionary(toml)


def _grid(dictionary: Dictionary, name: str) -> NamedGrid:
    return NamedGrid(dictionary, dictionary.grid(name))
