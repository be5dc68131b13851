"""What Prometheus is told: this process's tallies, and what the database holds at the moment it asks.

No label is a peer's text: methods, statuses, states and kinds are ours, and sites are counted, not named.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from synthedge_protocols.certificates import CERTIFICATE_DAYS
from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.standing import Standing
from synthedge_server import dictionaries, store
from synthedge_server.certificate_files import read_certificate
from synthedge_server.doctor import hpke_keys
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.health import Health
from synthedge_server.ledger import Ledger
from synthedge_server.tallies import Histogram, Tallies
from synthedge_server.withdrawals import open_withdrawals

_MS_PER_DAY: Final = 86_400_000
_S_PER_MS: Final = 0.001


def registry_of(
    folder: CoordinatorFolder, ledger: Ledger, tallies: Tallies, health: Health
) -> CollectorRegistry:
    """Everything one coordinator shows, and what it costs as a process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Coordinator(folder, ledger, tallies, health))
    return registry


class _Coordinator(Collector):
    def __init__(
        self, folder: CoordinatorFolder, ledger: Ledger, tallies: Tallies, health: Health
    ) -> None:
        self._folder, self._ledger, self._tallies, self._health = folder, ledger, tallies, health

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: naming would ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, in the thread that was asked."""
        yield from _calls(self._tallies)
        yield _gauge("ready", "1 while sites can be served.", float(not self._health.problem()))
        yield _gauge(
            "housekeeping_age_seconds",
            "Since housekeeping last went round.",
            self._health.housekeeping_age_s,
        )
        yield from _files(self._folder)
        try:
            with self._ledger.engine.connect() as connection:
                held = list(_database(connection, self._ledger.clock()))
        except (ProtocolError, SQLAlchemyError):
            held = []
        yield _gauge("database_up", "1 if the database answered.", float(bool(held)))
        yield from held


def _calls(tallies: Tallies) -> Iterator[Metric]:
    calls = CounterMetricFamily("synthedge_calls", "Calls that ended.", labels=["method", "status"])
    for (method, status), n in dict(tallies.calls).items():
        calls.add_metric([method, status], n)
    yield calls
    seconds = HistogramMetricFamily(
        "synthedge_call_seconds",
        "How long calls took; streams until they ended.",
        labels=["method"],
    )
    for method, histogram in dict(tallies.call_seconds).items():
        seconds.add_metric([method], *_cumulative(histogram))
    yield seconds
    yield _by(
        "calls_under_way", "Calls that began and did not end.", "method", dict(tallies.under_way)
    )
    limited = CounterMetricFamily(
        "synthedge_calls_limited", "Calls refused because of a limit.", labels=["limit"]
    )
    for limit in ("calls", "statements", "kept", "reads", "at-once"):
        limited.add_metric([limit], tallies.limited[limit])
    yield limited
    for name, text, histogram in (
        ("write_group_changes", "Changes in one transaction.", tallies.group_sizes),
        (
            "write_seconds",
            "From the begin of a transaction until it is durable.",
            tallies.group_seconds,
        ),
    ):
        family = HistogramMetricFamily(f"synthedge_{name}", text)
        family.add_metric([], *_cumulative(histogram))
        yield family


def _files(folder: CoordinatorFolder) -> Iterator[Metric]:
    sizes = (
        [path.stat().st_size for path in folder.spool.iterdir()] if folder.spool.exists() else []
    )
    yield _gauge("sealed_bytes", "Sealed bytes on disk.", sum(sizes))
    expiry = {
        name: read_certificate(path).not_valid_after_utc.timestamp()
        for name, path in (("ca", folder.ca_certificate), ("server", folder.tls_certificate))
        if path.exists()
    }
    yield _by(
        "certificate_expiry_timestamp_seconds",
        "When the coordinator's own certificates run out, Unix time.",
        "certificate",
        expiry,
    )


def _database(connection: Connection, now_ms: int) -> Iterator[Metric]:
    sites, transfers, inbox = store.sites.c, store.transfers.c, store.inbox.c
    standings = _counts(connection, sites.state)
    yield _by(
        "sites",
        "Enrolled sites.",
        "standing",
        {s.value: standings.get(s.value, 0) for s in Standing},
    )
    states = _counts(connection, transfers.state)
    yield _by(
        "transfers",
        "Transfers on record.",
        "state",
        {s.value: states.get(s.value, 0) for s in State if s is not State.PROPOSED},
    )
    near = select(func.count()).where(transfers.expires_at_ms <= now_ms + _MS_PER_DAY)
    yield _gauge(
        "transfers_near_limit",
        "Transfers that expire within a day.",
        connection.execute(near).scalar_one(),
    )
    lengths = _counts(connection, inbox.site)
    yield _gauge("inbox_messages", "Messages kept for sites.", sum(lengths.values()))
    yield _gauge(
        "inbox_longest", "Messages kept for one site at most.", max(lengths.values(), default=0)
    )
    waiting = open_withdrawals(connection)
    yield _gauge("withdrawals_open", "Withdrawals without a receipt.", len(waiting))
    yield _gauge(
        "withdrawals_overdue",
        "Of those, past their time.",
        sum(row.due_at_ms < now_ms for row in waiting),
    )
    yield from _members(connection, now_ms)
    yield _gauge("audit_entries", "Entries of the audit log.", store.event_log.size(connection))


def _members(connection: Connection, now_ms: int) -> Iterator[Metric]:
    sites = store.sites.c
    is_member = sites.state.in_([Standing.ACTIVE, Standing.PAUSED, Standing.SILENT])
    first = connection.execute(
        select(func.min(sites.certified_at_ms)).where(is_member)
    ).scalar_one()
    if first is not None:
        yield _gauge(
            "site_certificate_expiry_timestamp_seconds",
            "When the first site's certificate runs out, Unix time.",
            (first + CERTIFICATE_DAYS * _MS_PER_DAY) * _S_PER_MS,
        )
    keys = hpke_keys(connection)
    if keys:
        yield _gauge(
            "site_key_expiry_timestamp_seconds",
            "When the first site's sealing key runs out, Unix time.",
            min(keys.values()) * _S_PER_MS,
        )
    digest = dictionaries.newest(connection).digest
    members = set(connection.execute(select(sites.site).where(is_member)).scalars())
    acceptances, reports = store.acceptances.c, store.reports.c
    accepted = set(
        connection.execute(select(acceptances.site).where(acceptances.digest == digest)).scalars()
    )
    yield _gauge(
        "sites_behind_dictionary",
        "Members whose steward has not accepted the current dictionary.",
        len(members - accepted),
    )
    current = {
        row.site: row.received_at_ms
        for row in connection.execute(
            select(reports.site, reports.received_at_ms).where(
                reports.is_current, reports.dictionary_digest == digest
            )
        )
    }
    yield _gauge(
        "sites_without_report",
        "Members without a gap report under the current dictionary.",
        len(members - current.keys()),
    )
    if current:
        yield _gauge(
            "oldest_report_age_seconds",
            "Since the oldest current gap report came.",
            (now_ms - min(current.values())) * _S_PER_MS,
        )


def _counts(connection: Connection, column: Any) -> dict[str, int]:
    query = select(column, func.count()).group_by(column)
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def _cumulative(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    buckets, n = [], 0
    for bound, count in zip([*histogram.bounds, float("inf")], list(histogram.counts), strict=True):
        n += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), float(n)))
    return buckets, histogram.total


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"synthedge_{name}", text, value=value)


def _by(name: str, text: str, label: str, values: dict[str, Any]) -> Metric:
    family = GaugeMetricFamily(f"synthedge_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
