"""The release ledger: each gap report once, byte for byte, and what it cost.

Rules
-----
* A release is keyed by (dictionary, data snapshot, protection); publishing again sends the stored bytes at no cost.
* The spend is written down with the report, before a byte can leave.
* A release that would exceed the budget is refused.
"""

import hashlib
import secrets
from typing import Any

import sqlalchemy as sa

from synthedge_client import outbound, store
from synthedge_client.dictionaries import require_accepted
from synthedge_client.keystore import Steward
from synthedge_client.outbound import Disclosure, build_gap_report, effective_disclosure
from synthedge_client.site import Site
from synthedge_client.site_table import SiteTable, load_site_table
from synthedge_core.errors import DisclosureRefusedError
from synthedge_protocols.v1 import statements_pb2 as pb


def snapshot_of(table: SiteTable) -> str:
    """Digest of the rows a report is made from; stays at the site."""
    digest = hashlib.sha256()
    digest.update(table.values.tobytes())
    digest.update(table.positive.tobytes())
    digest.update("\0".join(table.patient_ids).encode())
    return digest.hexdigest()


def preview(site: Site) -> tuple[pb.GapReport, bool]:
    """The stored release for the present data, or a draw of what publishing would make.

    Returns
    -------
    tuple
        The report; whether it is the stored one.
    """
    table = load_site_table(site.settings, site.dictionary)
    disclosure = effective_disclosure(site.dictionary.policy, site.settings.disclosure)
    with site.store.read() as connection:
        stored = _find(connection, site, table, disclosure)
    if stored is not None:
        return _report_in(stored), True
    return build_gap_report(table, site.dictionary, disclosure, bytes(16)), False


def publish(site: Site, steward: Steward) -> dict[str, Any]:
    """Sign and queue the report of the present data, or queue the stored one again.

    Raises
    ------
    DisclosureRefusedError
        If the budget does not allow another release.
    """
    with site.store.read() as connection:
        require_accepted(connection)
    table = load_site_table(site.settings, site.dictionary)
    disclosure = effective_disclosure(site.dictionary.policy, site.settings.disclosure)
    with site.store.write() as connection:
        signed = _find(connection, site, table, disclosure)
        is_new = signed is None
        if signed is None:
            _check_budget(connection, site, disclosure)
            report = build_gap_report(table, site.dictionary, disclosure, secrets.token_bytes(16))
            signed = steward.sign(site, report)
            _keep(connection, site, table, disclosure, report, signed)
            store.record(
                connection,
                "gap report released",
                steward.name,
                disclosure=disclosure.mode,
                epsilon=disclosure.epsilon,
                statement_digest=outbound.sha256(signed.statement).hex(),
            )
        outbound.enqueue(connection, "gap-report", signed, steward.name)
        spent = _spent(connection, site)
    report = _report_in(signed)
    return {
        "new": is_new,
        "disclosure": disclosure.mode,
        "voxels": sum(len(grid.voxels) for grid in report.grids),
        "bytes": len(signed.statement),
        "spent": spent,
        "total": disclosure.epsilon_total,
    }


def budget(site: Site) -> dict[str, Any]:
    """How much privacy loss this dictionary's releases have cost, and the most they may."""
    disclosure = effective_disclosure(site.dictionary.policy, site.settings.disclosure)
    with site.store.read() as connection:
        n_releases = connection.execute(
            sa.select(sa.func.count())
            .select_from(store.releases)
            .where(store.releases.c.dictionary_digest == site.dictionary.digest)
        ).scalar_one()
        spent = _spent(connection, site)
    return {"releases": n_releases, "spent": spent, "total": disclosure.epsilon_total}


def _find(
    connection: sa.Connection, site: Site, table: SiteTable, disclosure: Disclosure
) -> pb.SignedStatement | None:
    blob = connection.execute(
        sa.select(store.releases.c.statement).where(
            (store.releases.c.dictionary_digest == site.dictionary.digest)
            & (store.releases.c.snapshot == snapshot_of(table))
            & (store.releases.c.disclosure == disclosure.mode)
            & (store.releases.c.epsilon == disclosure.epsilon)
            & (store.releases.c.min_count == disclosure.min_count)
        )
    ).scalar_one_or_none()
    return None if blob is None else pb.SignedStatement.FromString(blob)


def _keep(
    connection: sa.Connection,
    site: Site,
    table: SiteTable,
    disclosure: Disclosure,
    report: pb.GapReport,
    signed: pb.SignedStatement,
) -> None:
    connection.execute(
        store.releases.insert().values(
            release_id=report.release_id,
            dictionary_digest=site.dictionary.digest,
            snapshot=snapshot_of(table),
            disclosure=disclosure.mode,
            epsilon=disclosure.epsilon,
            min_count=disclosure.min_count,
            statement=signed.SerializeToString(),
            created_at_ms=store.now_ms(),
        )
    )


def _spent(connection: sa.Connection, site: Site) -> float:
    total: float | None = connection.execute(
        sa.select(sa.func.sum(store.releases.c.epsilon)).where(
            store.releases.c.dictionary_digest == site.dictionary.digest
        )
    ).scalar_one()
    return total or 0.0


def _check_budget(connection: sa.Connection, site: Site, disclosure: Disclosure) -> None:
    if disclosure.mode != "dp":
        return
    spent = _spent(connection, site)
    if not spent + disclosure.epsilon <= disclosure.epsilon_total + 1e-9:
        raise DisclosureRefusedError(
            f"a release costs epsilon {disclosure.epsilon:g}, {spent:g} of {disclosure.epsilon_total:g} is spent "
            "on this dictionary; wait for a new dictionary, or publish the stored release again"
        )


def _report_in(signed: pb.SignedStatement) -> pb.GapReport:
    return pb.GapReport.FromString(pb.Statement.FromString(signed.statement).payload)
