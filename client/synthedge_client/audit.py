"""The audit report of a site: which gaps were found, what left, what was received, and who decided.

One model object; the terminal and JSON show the same. It holds names, counts and digests, never a value of a patient.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.gaps import Gap, list_gaps
from synthedge_client.outbound import sha256
from synthedge_client.site import Site
from synthedge_client.transfers import Transfer, list_transfers, region_of
from synthedge_core import __version__
from synthedge_protocols.lifecycle import State, is_final
from synthedge_protocols.v1 import statements_pb2 as pb

if TYPE_CHECKING:
    from rich.console import Console

_REFUSALS = ("message refused", "peer refused", "refused by the coordinator", "transfer stuck")
# States in which rows have left the donor for good.
_LEFT = frozenset({State.RELAYED, State.DELIVERED, State.ACTIVE, State.REFUSED, State.PURGED})


@dataclass(frozen=True)
class AuditReport:
    """Everything the report shows; all lists are in the order things happened."""

    site: str
    consortium: str
    fingerprint: str
    certificate_expires: str
    dictionary: str
    dictionary_digest: str
    software: str
    written_at: str
    gaps: list[dict[str, Any]]
    published: list[dict[str, Any]]
    sent: list[dict[str, Any]]
    received: list[dict[str, Any]]
    open: list[dict[str, Any]]
    refused_messages: list[dict[str, Any]]
    n_events: int


def collect(site: Site) -> AuditReport:
    """Gather the report from the site's own records."""
    dictionary = site.dictionary
    with site.store.read() as connection:
        transfers = list_transfers(connection)
        told = set(connection.execute(sa.select(store.disclosed.c.transfer_id)).scalars())

        def has_moved_rows(transfer: Transfer) -> bool:
            # Ended after its bytes had left: the recipient may have opened them.
            return transfer.state in _LEFT or (is_final(transfer.state) and transfer.id in told)

        return AuditReport(
            site=site.settings.id,
            consortium=site.consortium,
            fingerprint=site.fingerprint,
            certificate_expires=site.keys.certificate_expires.isoformat(),
            dictionary=dictionary.name,
            dictionary_digest=dictionary.digest,
            software=f"synthedge-federation {__version__}",
            written_at=_when(store.now_ms()),
            gaps=[_gap(gap) for gap in list_gaps(site)],
            published=_published(connection),
            sent=[_transfer(site, t) for t in transfers if t.role == "donor" and has_moved_rows(t)],
            received=[
                _transfer(site, t) for t in transfers if t.role == "recipient" and has_moved_rows(t)
            ],
            open=[_transfer(site, t) for t in transfers if not has_moved_rows(t)],
            refused_messages=_refusals(connection),
            n_events=connection.execute(
                sa.select(sa.func.count()).select_from(store.events)
            ).scalar_one(),
        )


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
    }


def _published(connection: sa.Connection) -> list[dict[str, Any]]:
    releases = connection.execute(
        sa.select(store.releases)
        .where(store.releases.c.statement.is_not(None))
        .order_by(store.releases.c.spent_at_ms)
    ).all()
    shown = []
    for release in releases:
        signed = pb.SignedStatement.FromString(release.statement)
        report = pb.GapReport.FromString(pb.Statement.FromString(signed.statement).payload)
        voxels = [voxel for grid in report.grids for voxel in grid.voxels]
        shown.append(
            {
                "at": _when(release.spent_at_ms),
                "disclosure": release.disclosure,
                "epsilon": release.epsilon,
                "min_count": release.min_count,
                "grids": [grid.grid for grid in report.grids],
                "voxels": len(voxels),
                "suppressed": sum(voxel.suppressed for voxel in voxels),
                "bytes": len(signed.statement),
                "statement_digest": sha256(signed.statement).hex(),
            }
        )
    return shown


def _transfer(site: Site, transfer: Transfer) -> dict[str, Any]:
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
        "requested_at": _when(transfer.created_at_ms),
        "changed_at": _when(transfer.changed_at_ms),
        "retention_days": transfer.request.retention_days,
        "ciphertext_digest": _ciphertext_digest(site, transfer),
        "decided_by": _deciders(site, transfer),
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


def _deciders(site: Site, transfer: Transfer) -> list[str]:
    with site.store.read() as connection:
        rows = connection.execute(
            sa.select(store.events.c.what, store.events.c.who, store.events.c.details)
            .where(
                store.events.c.what.in_(
                    (
                        "transfer requested",
                        "transfer approved",
                        "transfer declined",
                        "transfer cancelled",
                    )
                )
            )
            .order_by(store.events.c.id)
        ).all()
    mine = [r for r in rows if json.loads(r.details).get("transfer_id") == transfer.id.hex()]
    return [f"{r.what.removeprefix('transfer ')} by {r.who}" for r in mine]


def _refusals(connection: sa.Connection) -> list[dict[str, Any]]:
    rows = connection.execute(
        sa.select(store.events)
        .where(store.events.c.what.in_(_REFUSALS))
        .order_by(store.events.c.id)
    ).all()
    return [{"at": _when(r.at_ms), "what": r.what} | json.loads(r.details) for r in rows]


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).isoformat(timespec="seconds")


def render(report: AuditReport, console: "Console") -> None:
    """Print the report for people, at 80 columns."""
    from rich.table import Table

    console.print(f"[bold]Audit report of site {report.site}[/bold]  {report.written_at}")
    console.print(f"consortium   {report.consortium}")
    console.print(f"fingerprint  {report.fingerprint}")
    console.print(f"certificate  until {report.certificate_expires}")
    console.print(f"dictionary   {report.dictionary}, {report.dictionary_digest[:16]}…")
    console.print(f"software     {report.software}; {report.n_events} events on record")

    def section(title: str, rows: list[dict[str, Any]], columns: dict[str, str], none: str) -> None:
        console.print(f"\n[bold]{title}[/bold]")
        if not rows:
            console.print(f"  {none}")
            return
        table = Table(box=None, pad_edge=False)
        for heading in columns.values():
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(str(row[key]) for key in columns))
        console.print(table)

    section(
        "Gaps found",
        report.gaps,
        {
            "region": "region",
            "status": "status",
            "expected": "expected",
            "observed": "observed",
            "z": "z",
        },
        "none: no voxel is short of positives against the other sites",
    )
    section(
        "Published to the coordinator",
        report.published,
        {
            "at": "when",
            "disclosure": "protection",
            "epsilon": "epsilon",
            "voxels": "voxels",
            "suppressed": "suppressed",
            "bytes": "bytes",
        },
        "nothing",
    )
    transfer_columns = {
        "transfer_id": "transfer",
        "region": "region",
        "rows": "rows",
        "state": "state",
        "purpose": "purpose",
    }
    for title, rows, other in (
        ("Sent", report.sent, "recipient"),
        ("Received", report.received, "donor"),
        ("Open or ended without rows", report.open, "donor"),
    ):
        short = [row | {"transfer_id": row["transfer_id"][:12]} for row in rows]
        section(title, short, {other: other} | transfer_columns, "nothing")
        for row in rows:
            for line in (*row["decided_by"], row["reason"]):
                if line:
                    console.print(f"  {row['transfer_id'][:12]}: {line}")
    section(
        "Refused, or stuck",
        report.refused_messages,
        {"at": "when", "what": "what", "reason": "reason"},
        "none",
    )
