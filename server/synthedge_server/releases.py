"""What a site has released under a dictionary: its budget, and what its own ledger is checked against."""

import hashlib
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from synthedge_core.dictionary import Policy
from synthedge_protocols.errors import PolicyError
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store

# Sums of epsilons are sums of floats.
_TOLERANCE: Final = 1e-9
_RECEIVED: Final = Prepared(
    select(store.reports.c.payload, store.reports.c.received_at_ms)
    .where(
        store.reports.c.site == bindparam("of_site"),
        store.reports.c.dictionary_digest == bindparam("of_digest"),
    )
    .order_by(store.reports.c.received_at_ms, store.reports.c.release_id)
)


def check_budget(
    connection: Connection,
    site: str,
    dictionary_digest: bytes,
    policy: Policy,
    report: pb.GapReport,
) -> None:
    """Return if a new release keeps a site within the budget of its dictionary.

    The site's own ledger refuses first; this holds for a site whose ledger was lost or changed.

    Raises
    ------
    PolicyError
        If the epsilons of all releases would exceed the policy's ``epsilon_total``.
    """
    table = store.reports
    spent: float = connection.execute(
        select(func.coalesce(func.sum(table.c.epsilon), 0.0)).where(
            table.c.site == site, table.c.dictionary_digest == dictionary_digest
        )
    ).scalar_one()
    if not spent + report.epsilon <= policy.epsilon_total + _TOLERANCE:
        raise PolicyError(
            f"gap report: epsilon {report.epsilon:g} on top of {spent:g} that was received before; the consortium "
            f"allows {policy.epsilon_total:g} under one dictionary"
        )


def received_releases(connection: Connection, site: str, dictionary_digest: bytes) -> wire.Releases:
    """Every release of a site under a dictionary, in the order they came."""
    rows = _RECEIVED.run(connection, of_site=site, of_digest=dictionary_digest)
    releases = []
    for row in rows:
        report = pb.GapReport.FromString(row.payload)
        releases.append(
            wire.Release(
                release_id=report.release_id,
                disclosure=report.disclosure,
                epsilon=report.epsilon,
                min_count=report.min_count,
                report_digest=hashlib.sha256(row.payload).digest(),
                received_at_ms=row.received_at_ms,
            )
        )
    return wire.Releases(releases=releases)
