"""The release ledger: each gap report once, byte for byte, and what it cost.

Rules
-----
* A release is keyed by (dictionary, snapshot of the data, mode, epsilon, k). It is drawn once, when it is first
  looked at; `publish` signs exactly those bytes, and publishing again sends them again at no cost.
* A release costs when it is first published. The spend is written down in the transaction that queues the bytes.
* A release that would exceed the budget is refused.
* In threshold mode a release is held against the one published before it (see `thresholds`).
* A ledger that lacks a release which the coordinator has received is frozen (see `ledger_check`).
"""

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import sqlalchemy as sa

from synthedge_client import outbound, store
from synthedge_client.counting import (
    Disclosure,
    PatientCounts,
    count_patients,
    effective_disclosure,
    protect,
)
from synthedge_client.dictionaries import require_accepted
from synthedge_client.protection import Figures, guarantees
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_client.standing import require_taking_part
from synthedge_client.stewards import Steward
from synthedge_core.errors import DisclosureRefusedError
from synthedge_protocols.v1 import statements_pb2 as pb

# The fact that names why nothing may be published.
FROZEN = "ledger_frozen"
# Sums of epsilons are sums of floats.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Release:
    """One release of the ledger.

    Attributes
    ----------
    release_id : bytes
    report : bytes
        The serialised GapReport that leaves, byte for byte.
    reasons : dict of str to list of str
        Grid to why each voxel is told as it is; for the site's own eyes.
    statement : SignedStatement or None
        As last signed; None until it was published.
    is_latest : bool
        Whether no other release under the dictionary was published after it.
    """

    release_id: bytes
    report: bytes
    reasons: dict[str, list[str]]
    statement: pb.SignedStatement | None
    is_latest: bool

    @property
    def message(self) -> pb.GapReport:
        """The report as a message."""
        return pb.GapReport.FromString(self.report)


@dataclass(frozen=True)
class Preview:
    """What `publish` would send, and what that means.

    Attributes
    ----------
    release : Release
    disclosure : Disclosure
    cost : float
        Epsilon that publishing it spends; 0 if it was published before, and in threshold mode.
    guarantees : dict
        Epsilon per kind of neighbouring tables; empty in threshold mode.
    """

    release: Release
    disclosure: Disclosure
    cost: float
    guarantees: dict[str, float]


def preview(site: Site) -> Preview:
    """Draw the release of the present data, or read the one drawn before; nothing is spent, nothing leaves.

    Raises
    ------
    DisclosureRefusedError
        If no report can be protected as agreed.
    TableError
        If the site's table cannot be used.
    """
    counts, disclosure = _present(site)
    release = _draw(site, counts, disclosure)
    return Preview(
        release=release,
        disclosure=disclosure,
        cost=0.0 if release.statement else disclosure.epsilon,
        guarantees=_guarantees(counts, disclosure),
    )


def publish(site: Site, steward: Steward) -> dict[str, Any]:
    """Sign and queue the release of the present data: the bytes that `preview` shows.

    Raises
    ------
    DisclosureRefusedError
        If the ledger is frozen, the budget does not allow another release, or no report can be protected.
    RefusedError
        If this site paused or left, or a newer dictionary waits for a steward.
    TableError
        If the site's table cannot be used.
    """
    with site.store.read() as connection:
        require_taking_part(connection)
        require_accepted(connection)
    counts, disclosure = _present(site)
    with site.store.read() as connection:
        _require_sound(connection)
    _draw(site, counts, disclosure)
    with site.store.write() as connection:
        _require_sound(connection)
        release = _stored(connection, site, counts, disclosure)
        if release is None:
            raise DisclosureRefusedError(
                "another command published while this one drew a report; look at 'gaps preview' and publish again"
            )
        signed, is_new = release.statement, release.statement is None
        if is_new:
            _check_budget(connection, site, disclosure)
        if signed is None or not release.is_latest:
            # A report that was followed by another is signed anew: the coordinator acts once on one statement.
            signed = steward.sign(site, release.message)
            _mark_published(connection, release.release_id, signed)
        if is_new:
            store.record(
                connection,
                "gap report released",
                steward.label,
                disclosure=disclosure.mode,
                epsilon=disclosure.epsilon,
                statement_digest=outbound.sha256(signed.statement).hex(),
            )
        outbound.enqueue(connection, "gap-report", signed, steward.label)
        spent = _spent(connection, site)
    return {
        "new": is_new,
        "disclosure": disclosure.mode,
        "voxels": sum(len(grid.voxels) for grid in release.message.grids),
        "report_bytes": len(release.report),
        "bytes": len(signed.statement),
        "spent": spent,
        "total": disclosure.epsilon_total,
    }


def budget(site: Site) -> dict[str, Any]:
    """What this dictionary's releases have cost, what is left, and whether the last one still describes the data.

    Returns
    -------
    dict
        ``spent``, ``left``, ``total``; ``releases`` with dates, oldest first; ``state`` as of `report_state`;
        ``frozen``, a sentence or None.
    """
    disclosure = effective_disclosure(site.dictionary.policy, site.settings.disclosure)
    with site.store.read() as connection:
        rows = _published(connection, site)
        spent = _spent(connection, site)
        frozen = store.get_fact(connection, FROZEN)
    return {
        "disclosure": disclosure.mode,
        "spent": spent,
        "left": max(0.0, disclosure.epsilon_total - spent),
        "total": disclosure.epsilon_total,
        "releases": [
            {
                "release": row.release_id.hex()[:8],
                "published": datetime.fromtimestamp(row.spent_at_ms / 1000, tz=UTC).isoformat(
                    timespec="seconds"
                ),
                "disclosure": row.disclosure,
                "epsilon": row.epsilon,
                "min_count": row.min_count,
                "known_from": "this site" if row.report else "the coordinator",
            }
            for row in rows
        ],
        "report": report_state(site),
        "frozen": frozen,
    }


def report_state(site: Site) -> dict[str, Any]:
    """Whether the report the others know still describes the data, and what a new one costs.

    Returns
    -------
    dict
        ``state``: ``none`` (nothing published under this dictionary), ``current`` or ``stale``;
        ``refresh_cost``: epsilon of publishing now; ``refreshes_left``: how many such releases the budget
        still allows, None where they cost nothing.

    Raises
    ------
    DisclosureRefusedError
        If no report can be protected as agreed.
    TableError
        If the site's table cannot be used.
    """
    counts, disclosure = _present(site)
    with site.store.read() as connection:
        published = _published(connection, site)
        latest = max(published, key=lambda row: row.published_at_ms, default=None)
        here = connection.execute(_query(site, counts, disclosure)).one_or_none()
        spent = _spent(connection, site)
    if latest is None:
        state = "none"
    else:
        is_same = here is not None and here.release_id == latest.release_id
        state = "current" if is_same else "stale"
    is_paid = here is not None and here.spent_at_ms is not None
    cost = 0.0 if is_paid else disclosure.epsilon
    left = disclosure.epsilon_total - spent
    return {
        "state": state,
        "refresh_cost": cost,
        "refreshes_left": None
        if disclosure.epsilon == 0
        else max(0, int((left + _TOLERANCE) / disclosure.epsilon)),
    }


def state_in_words(state: dict[str, Any]) -> str:
    """One sentence about `report_state`."""
    if state["state"] == "current":
        return "The published report describes the present data."
    cost = f"epsilon {state['refresh_cost']:g}" if state["refresh_cost"] else "no epsilon"
    if state["refreshes_left"] == 0 and state["refresh_cost"]:
        cost += ", more than is left under this dictionary"
    if state["state"] == "none":
        return f"No report is published under this dictionary; publishing one costs {cost}."
    return f"The published report is stale: the data changed since; 'gaps publish' costs {cost}."


def is_frozen(connection: sa.Connection) -> bool:
    """Whether gap reports are held back."""
    return store.get_fact(connection, FROZEN) is not None


def latest_statement(
    connection: sa.Connection, dictionary_digest: str
) -> pb.SignedStatement | None:
    """The report that the others know, as it was last signed; None if none was published under a dictionary."""
    table = store.releases
    statement: bytes | None = connection.execute(
        sa.select(table.c.statement)
        .where(
            (table.c.dictionary_digest == dictionary_digest) & table.c.published_at_ms.is_not(None)
        )
        .order_by(table.c.published_at_ms.desc())
        .limit(1)
    ).scalar_one_or_none()
    return None if statement is None else pb.SignedStatement.FromString(statement)


def _present(site: Site) -> tuple[PatientCounts, Disclosure]:
    disclosure = effective_disclosure(site.dictionary.policy, site.settings.disclosure)
    table = load_site_table(site.settings, site.dictionary)
    return count_patients(table, site.dictionary, disclosure), disclosure


def _guarantees(counts: PatientCounts, disclosure: Disclosure) -> dict[str, float]:
    return guarantees(len(counts.grids), disclosure.epsilon) if disclosure.mode == "dp" else {}


def _query(
    site: Site, counts: PatientCounts, disclosure: Disclosure
) -> "sa.Select[tuple[Any, ...]]":
    table = store.releases
    return sa.select(table).where(
        (table.c.dictionary_digest == site.dictionary.digest)
        & (table.c.snapshot == counts.snapshot)
        & (table.c.disclosure == disclosure.mode)
        & (table.c.epsilon == disclosure.epsilon)
        & (table.c.min_count == disclosure.min_count)
    )


def _published(connection: sa.Connection, site: Site) -> list[sa.Row[Any]]:
    table = store.releases
    return list(
        connection.execute(
            sa.select(table)
            .where(
                (table.c.dictionary_digest == site.dictionary.digest)
                & table.c.spent_at_ms.is_not(None)
            )
            .order_by(table.c.spent_at_ms, table.c.created_at_ms)
        )
    )


def _stored(
    connection: sa.Connection, site: Site, counts: PatientCounts, disclosure: Disclosure
) -> Release | None:
    """The release of the present data; None if it is to be drawn, or drawn anew."""
    published = _published(connection, site)
    row = connection.execute(_query(site, counts, disclosure)).one_or_none()
    if row is None:
        return None
    working = _open_working(site, row)
    if row.statement is None and working["before"] != _id_of(_before(published, disclosure)):
        return None  # never published, and held against a release that another has followed since
    latest = max(published, key=lambda r: r.published_at_ms, default=None)
    return Release(
        release_id=row.release_id,
        report=row.report,
        reasons=working["reasons"],
        statement=None if row.statement is None else pb.SignedStatement.FromString(row.statement),
        is_latest=latest is not None and latest.release_id == row.release_id,
    )


def _id_of(row: sa.Row[Any] | None) -> str:
    return "" if row is None else row.release_id.hex()


def _draw(site: Site, counts: PatientCounts, disclosure: Disclosure) -> Release:
    """The release of the present data, drawn and stored if it was not.

    Drawing takes a second or more, in which the agent must be able to write: it is done between two
    transactions, and what another command stored meanwhile stands.
    """
    with site.store.read() as connection:
        release = _stored(connection, site, counts, disclosure)
        if release is not None:
            return release
        before = _before(_published(connection, site), disclosure)
    earlier = None if before is None else _figures(_open_working(site, before))
    protected, figures = protect(counts, disclosure, earlier)
    release_id = secrets.token_bytes(16)
    report = outbound.build_gap_report(counts, protected, disclosure, release_id)
    release = Release(
        release_id=release_id,
        report=report.SerializeToString(deterministic=True),
        reasons={
            grid.name: list(p.reasons) for grid, p in zip(counts.grids, protected, strict=True)
        },
        statement=None,
        is_latest=False,
    )
    working = {
        "before": _id_of(before),
        "reasons": release.reasons,
        "figures": {
            name: [f.positives.tolist(), f.negatives.tolist(), f.suppressed.tolist()]
            for name, f in figures.items()
        },
    }
    with site.store.write() as connection:
        stored = _stored(connection, site, counts, disclosure)
        if stored is not None:
            return stored
        overtaken = _query(site, counts, disclosure).with_only_columns(store.releases.c.release_id)
        connection.execute(
            store.releases.delete().where(store.releases.c.release_id.in_(overtaken))
        )
        connection.execute(
            store.releases.insert().values(
                release_id=release_id,
                dictionary_digest=site.dictionary.digest,
                snapshot=counts.snapshot,
                disclosure=disclosure.mode,
                epsilon=disclosure.epsilon,
                min_count=disclosure.min_count,
                report=release.report,
                working=site.keys.encrypt(json.dumps(working).encode(), b"release" + release_id),
                created_at_ms=store.now_ms(),
            )
        )
    return release


def _before(published: list[sa.Row[Any]], disclosure: Disclosure) -> sa.Row[Any] | None:
    """The release whose figures a new one would be compared with; noise needs none.

    Raises
    ------
    DisclosureRefusedError
        If its figures are not here, or rest on another k.
    """
    if disclosure.mode != "threshold":
        return None
    rows = [row for row in published if row.disclosure == "threshold"]
    if any(row.working is None for row in rows):
        raise DisclosureRefusedError(
            "the coordinator holds a report that this site's ledger has lost, so a new one cannot be held against "
            "it; restore a newer backup of site.db, or wait for the next dictionary"
        )
    if not rows:
        return None
    before = max(rows, key=lambda row: row.published_at_ms)
    if before.min_count != disclosure.min_count:
        raise DisclosureRefusedError(
            f"min_count was {before.min_count} in the last report and is {disclosure.min_count} now: the two together "
            "would tell more than either; keep it until the next dictionary"
        )
    return before


def _open_working(site: Site, row: sa.Row[Any]) -> dict[str, Any]:
    working: dict[str, Any] = json.loads(
        site.keys.decrypt(row.working, b"release" + row.release_id)
    )
    return working


def _figures(working: dict[str, Any]) -> dict[str, Figures]:
    return {
        name: Figures(
            np.array(positives, dtype=np.int64),
            np.array(negatives, dtype=np.int64),
            np.array(suppressed, dtype=np.bool_),
        )
        for name, (positives, negatives, suppressed) in working["figures"].items()
    }


def _mark_published(
    connection: sa.Connection, release_id: bytes, signed: pb.SignedStatement
) -> None:
    table = store.releases
    now = store.now_ms()
    last = connection.execute(sa.select(sa.func.max(table.c.published_at_ms))).scalar_one() or 0
    connection.execute(
        table.update()
        .where(table.c.release_id == release_id)
        .values(
            statement=signed.SerializeToString(),
            spent_at_ms=sa.func.coalesce(table.c.spent_at_ms, now),
            # Strictly increasing, whatever the clock does: the order decides which report is the latest.
            published_at_ms=max(now, last + 1),
        )
    )


def _spent(connection: sa.Connection, site: Site) -> float:
    return float(sum(row.epsilon for row in _published(connection, site)))


def _require_sound(connection: sa.Connection) -> None:
    problem = store.get_fact(connection, FROZEN)
    if problem is not None:
        raise DisclosureRefusedError(problem)


def _check_budget(connection: sa.Connection, site: Site, disclosure: Disclosure) -> None:
    if disclosure.mode != "dp":
        return
    spent = _spent(connection, site)
    if not spent + disclosure.epsilon <= disclosure.epsilon_total + _TOLERANCE:
        raise DisclosureRefusedError(
            f"a release costs epsilon {disclosure.epsilon:g}, {spent:g} of {disclosure.epsilon_total:g} is spent "
            "on this dictionary; wait for a new dictionary, or publish the stored release again"
        )
