"""What a site has released under a dictionary: its budget, and what its own ledger is checked against."""

import hashlib
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from synthedge_core.dictionary import Policy
from synthedge_protocols.errors import LimitExceededError, PolicyError
from synthedge_protocols.limits import Limits
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store

# Sums of epsilons are sums of floats.
_TOLERANCE: Final = 1e-9
_MAX_RELEASES: Final = Limits().releases
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
    """Return if a new release keeps a site within the budget of its dictionary, and within what is kept of it.

    The site's own ledger refuses first; this holds for a site whose ledger was lost or changed.

    Raises
    ------
    PolicyError
        If the epsilons of all releases would exceed the policy's ``epsilon_total``.
    LimitExceededError
        If there are too many, each of which may have spent little or, in threshold mode, nothing.
    """
    table = store.reports
    n_releases, spent = connection.execute(
        select(func.count(), func.coalesce(func.sum(table.c.epsilon), 0.0)).where(
            table.c.site == site, table.c.dictionary_digest == dictionary_digest
        )
    ).one()
    if n_releases >= _MAX_RELEASES:
        raise LimitExceededError(
            f"gap report: site '{site}' has published {n_releases} under this dictionary, as many as are kept; ask the "
            "operator for a new version of the dictionary"
        )
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
