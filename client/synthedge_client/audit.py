"""The audit report of a site: which gaps were found, what left, what was received, and who decided.

One model object; the terminal, JSON, CSV and HTML show the same (see `audit_sections`). It holds names, counts and
digests, never a value of a patient: it may be handed to an auditor.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.exports import list_exports
from synthedge_client.gaps import Gap, list_gaps
from synthedge_client.log_heads import alarms
from synthedge_client.outbound import sha256
from synthedge_client.site import Site
from synthedge_client.transfers import Transfer, list_transfers, region_of
from synthedge_client.withdrawal_status import describe_withdrawals
from synthedge_core import __version__
from synthedge_core.errors import SynthEdgeError
from synthedge_core.frame import Frame
from synthedge_protocols.checkpoints import site_origin
from synthedge_protocols.keys import fingerprint
from synthedge_protocols.lifecycle import State, is_final
from synthedge_protocols.v1 import statements_pb2 as pb

_REFUSALS = (
    "message refused",
    "peer refused",
    "refused by the coordinator",
    "transfer stuck",
    "withdrawal stuck",
    "coordinator log diverged",
    "ledger frozen",
)
# States in which rows have left the donor for good.
_LEFT = frozenset({State.RELAYED, State.DELIVERED, State.ACTIVE, State.REFUSED, State.PURGED})


@dataclass(frozen=True, kw_only=True)
class Period:
    """What is reported: from `since` to `until`, Unix time in milliseconds, each open when None."""

    since_ms: int | None = None
    until_ms: int | None = None

    def holds(self, at_ms: int) -> bool:
        """Whether a moment lies in it."""
        return (self.since_ms is None or at_ms >= self.since_ms) and (
            self.until_ms is None or at_ms <= self.until_ms
        )

    def overlaps(self, begin_ms: int, end_ms: int) -> bool:
        """Whether something that lasted has a moment in it."""
        return (self.until_ms is None or begin_ms <= self.until_ms) and (
            self.since_ms is None or end_ms >= self.since_ms
        )


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Everything the report shows; all lists are in the order things happened, overdue withdrawals first.

    Attributes
    ----------
    site, consortium, fingerprint, certificate_expires, software, written_at, since, until : str
        Who, by which software, when, about which period; times in ISO 8601, UTC, empty for an open end.
    dictionary, dictionary_digest, frame, outcome : str
        What the site agreed to.
    log_entries, log_root, verify_command
        The audit log as it stood, and how to check a copy of it.
    alarms : list of str
        What speaks against the coordinator's own log.
    withdrawals, gaps, published, decisions, sent, received, open, exports, peers, refused_messages : list of dict
    gaps_problem : str
        Why no gaps are listed, if that is not because there are none.
    """

    site: str
    consortium: str
    fingerprint: str
    certificate_expires: str
    dictionary: str
    dictionary_digest: str
    frame: str
    outcome: str
    software: str
    written_at: str
    since: str
    until: str
    log_entries: int
    log_root: str
    verify_command: str
    alarms: list[str]
    withdrawals: list[dict[str, Any]]
    gaps: list[dict[str, Any]]
    gaps_problem: str
    published: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    sent: list[dict[str, Any]]
    received: list[dict[str, Any]]
    open: list[dict[str, Any]]
    exports: list[dict[str, Any]]
    peers: list[dict[str, Any]]
    refused_messages: list[dict[str, Any]]


def collect(site: Site, period: Period | None = None) -> AuditReport:
    """Gather the report from the site's own records.

    Parameters
    ----------
    site : Site
    period : Period, optional
        Of what happened; gaps, peers and open matters are always those of now.
    """
    period = period or Period()
    dictionary = site.dictionary
    gaps, gaps_problem = _gaps(site)
    with site.store.read() as connection:
        told = set(connection.execute(sa.select(store.disclosed.c.transfer_id)).scalars())

        def has_moved_rows(transfer: Transfer) -> bool:
            # Ended after its bytes had left: the recipient may have opened them.
            return transfer.state in _LEFT or (is_final(transfer.state) and transfer.id in told)

        transfers = [
            t
            for t in list_transfers(connection)
            if period.overlaps(t.created_at_ms, t.changed_at_ms)
        ]
        decided = _deciders(_decisions(connection, Period()))
        moved = [(t, _transfer(site, t, decided)) for t in transfers if has_moved_rows(t)]
        head = store.event_log.head(connection, site_origin(site.consortium, site.settings.id))
        return AuditReport(
            site=site.settings.id,
            consortium=site.consortium,
            fingerprint=site.fingerprint,
            certificate_expires=site.keys.certificate_expires.isoformat(timespec="seconds"),
            dictionary=dictionary.name,
            dictionary_digest=dictionary.digest,
            frame=Frame(dictionary).frame_id,
            outcome="; ".join(dictionary.target.in_words()),
            software=f"synthedge-federation {__version__}",
            written_at=store.when(store.now_ms()),
            since=store.when(period.since_ms),
            until=store.when(period.until_ms),
            log_entries=head.size,
            log_root=head.root.hex(),
            verify_command="synthedge audit verify FILE   (FILE from 'synthedge site audit export')",
            alarms=[alarm["what"] for alarm in alarms(connection)],
            withdrawals=[_withdrawal(entry) for entry in describe_withdrawals(site)],
            gaps=gaps,
            gaps_problem=gaps_problem,
            published=_published(connection, period),
            decisions=_decisions(connection, period),
            sent=[row for t, row in moved if t.role == "donor"],
            received=[row for t, row in moved if t.role == "recipient"],
            open=[_transfer(site, t, decided) for t in transfers if not has_moved_rows(t)],
            exports=[_export(row) for row in list_exports(connection)],
            peers=_peers(connection),
            refused_messages=_refusals(connection, period),
        )


def _gaps(site: Site) -> tuple[list[dict[str, Any]], str]:
    try:
        return [_gap(gap) for gap in list_gaps(site)], ""
    except SynthEdgeError as error:
        # An auditor's report must not depend on whether the table can be read today.
        return [], f"the gaps could not be computed: {error}"


def _gap(gap: Gap) -> dict[str, Any]:
    return {
        "kind": gap.kind,
        "region": gap.label,
        "grid": gap.grid,
        "status": gap.status,
        "z": round(gap.z, 2),
        "expected": round(gap.expected, 1),
        # A small count is somebody: reports leave the house.
        "observed": "<5" if gap.observed < 5 else int(gap.observed),
        "proposed": [proposed.donor for proposed in gap.proposals],
    }


def _published(connection: sa.Connection, period: Period) -> list[dict[str, Any]]:
    releases = connection.execute(
        sa.select(store.releases)
        .where(store.releases.c.statement.is_not(None))
        .order_by(store.releases.c.spent_at_ms)
    ).all()
    shown = []
    for release in releases:
        if not period.holds(release.spent_at_ms):
            continue
        signed = pb.SignedStatement.FromString(release.statement)
        report = pb.GapReport.FromString(pb.Statement.FromString(signed.statement).payload)
        voxels = [voxel for grid in report.grids for voxel in grid.voxels]
        shown.append(
            {
                "at": store.when(release.spent_at_ms),
                "disclosure": release.disclosure,
                "epsilon": release.epsilon,
                "min_count": release.min_count,
                "grids": [grid.grid for grid in report.grids],
                "voxels": len(voxels),
                "suppressed": sum(voxel.suppressed for voxel in voxels),
                "why": f"below {release.min_count}, or derivable from the others"
                if release.min_count
                else "",
                "bytes": len(signed.statement),
                "statement_digest": sha256(signed.statement).hex(),
            }
        )
    return shown


def _transfer(site: Site, transfer: Transfer, decided: Mapping[str, list[str]]) -> dict[str, Any]:
    grid, voxel = region_of(site.under(transfer.dictionary_digest), transfer.request)
    donor, recipient = site.settings.id, transfer.peer
    if transfer.role == "recipient":
        donor, recipient = recipient, donor
    return {
        "transfer_id": transfer.id.hex(),
        "donor": donor,
        "recipient": recipient,
        "region": grid.label(voxel),
        "purpose": transfer.request.purpose,
        "features": list(transfer.request.features),
        "rows": transfer.rows or 0,
        "state": transfer.state.value,
        "reason": transfer.reason or "",
        "requested_at": store.when(transfer.created_at_ms),
        "changed_at": store.when(transfer.changed_at_ms),
        "retention_days": transfer.request.retention_days,
        "ciphertext_digest": _ciphertext_digest(site, transfer),
        "decided_by": decided.get(transfer.id.hex(), []),
    }


def _ciphertext_digest(site: Site, transfer: Transfer) -> str:
    """What both sides can compare: SHA-256 of the sealed bytes; empty before there are any."""
    with site.store.read() as connection:
        blob = connection.execute(
            sa.select(store.transfers.c.shipment).where(
                store.transfers.c.transfer_id == transfer.id
            )
        ).scalar_one()
    if blob is None:
        return ""
    signed = pb.SignedStatement.FromString(blob)
    shipment = pb.Shipment.FromString(pb.Statement.FromString(signed.statement).payload)
    return shipment.ciphertext_digest.hex()


def _decisions(connection: sa.Connection, period: Period) -> list[dict[str, Any]]:
    """What people decided, or rules in their place, about transfers; the agent's own steps are none."""
    rows = connection.execute(
        sa.select(store.events)
        .where(store.events.c.what.like("transfer %"), store.events.c.who != "agent")
        .order_by(store.events.c.id)
    ).all()
    shown = []
    for row in rows:
        details = json.loads(row.details)
        if period.holds(row.at_ms) and "transfer_id" in details:
            shown.append(
                {
                    "at": store.when(row.at_ms),
                    "transfer_id": details["transfer_id"],
                    "what": row.what.removeprefix("transfer "),
                    "who": row.who,
                    "reason": details.get("reason", ""),
                }
            )
    return shown


def _deciders(decisions: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Who decided what, by transfer."""
    found: dict[str, list[str]] = {}
    for decision in decisions:
        line = f"{decision['what']} by {decision['who']}"
        found.setdefault(decision["transfer_id"], []).append(line)
    return found


def _withdrawal(entry: dict[str, Any]) -> dict[str, Any]:
    report = entry["report"] or {}
    return {
        "notice_id": entry["notice_id"],
        "transfer_id": entry["transfer_id"],
        "role": entry["role"],
        "peer": entry["peer"],
        "state": "OVERDUE" if entry["overdue"] else entry["state"],
        "since": entry["since"],
        "settled": entry["settled"],
        "rows": entry["rows"],
        "files": [f"{copy['name']} ({copy['state']})" for copy in report.get("copies", [])],
        "problem": entry["problem"],
    }


def _export(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "written_at": store.when(row["written_at_ms"]),
        "file": row["path"],
        "kind": row["kind"],
        "state": row["state"],
        "holds": row["holds"],
        "sha256": row["sha256"],
    }


def _peers(connection: sa.Connection) -> list[dict[str, Any]]:
    peers = connection.execute(sa.select(store.peers).order_by(store.peers.c.site)).all()
    heads = {
        row.site: row.seen_at_ms for row in connection.execute(sa.select(store.peer_heads)).all()
    }
    return [
        {
            "site": peer.site,
            "fingerprint": fingerprint(peer.statement_public_key),
            "compared": store.when(peer.verified_at_ms) or "NOT COMPARED",
            "standing": peer.standing or "active",
            "log_compared": store.when(heads.get(peer.site)),
            "problem": peer.problem or "",
        }
        for peer in peers
    ]


def _refusals(connection: sa.Connection, period: Period) -> list[dict[str, Any]]:
    rows = connection.execute(
        sa.select(store.events)
        .where(store.events.c.what.in_(_REFUSALS))
        .order_by(store.events.c.id)
    ).all()
    return [
        {"at": store.when(row.at_ms), "what": row.what}
        | {name: json.loads(row.details).get(name, "") for name in ("kind", "reason")}
        for row in rows
        if period.holds(row.at_ms)
    ]
