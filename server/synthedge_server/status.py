"""What `synthedge-coordinator status` tells."""

from datetime import UTC, datetime
from importlib.metadata import version as release
from typing import Any

from sqlalchemy import func, select

from synthedge_core.dictionary import parse_dictionary
from synthedge_server import dictionaries, store
from synthedge_server.certificate_files import read_certificate
from synthedge_server.doctor import running_out
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import system_clock
from synthedge_server.operations import reading
from synthedge_server.overview import list_sites, when
from synthedge_server.settings import read_settings
from synthedge_server.withdrawals import open_withdrawals, past_retention


def read_status(folder: CoordinatorFolder, now_ms: int | None = None) -> dict[str, Any]:
    """Count what the database and the spool hold; withdrawals that wait, and sites that do not take part, one by one.

    Parameters
    ----------
    folder : CoordinatorFolder
    now_ms : int, optional
        Unix time in milliseconds; the system's if left out.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's.
    UnavailableError
        If the database cannot be opened.
    """
    settings = read_settings(folder.settings)
    now = system_clock() if now_ms is None else now_ms
    spooled = list(folder.spool.iterdir()) if folder.spool.exists() else []
    with reading(folder) as engine, engine.connect() as connection:
        states = {
            row.state: row.n
            for row in connection.execute(
                select(store.transfers.c.state, func.count().label("n")).group_by(
                    store.transfers.c.state
                )
            )
        }
        n_sites = connection.execute(select(func.count()).select_from(store.sites)).scalar_one()
        n_reports = connection.execute(
            select(func.count()).select_from(store.reports).where(store.reports.c.is_current)
        ).scalar_one()
        n_events = connection.execute(select(func.count()).select_from(store.events)).scalar_one()
        version = dictionaries.newest(connection)
        behind = [
            row["site"]
            for row in dictionaries.acceptances(connection, version.digest)
            if row["accepted_at_ms"] is None
        ]
        members = [
            row
            for row in list_sites(connection, now)
            if row.state not in ("left", "revoked", "reset")
        ]
        oldest = min(
            (row for row in members if row.reported), key=lambda row: row.reported, default=None
        )
        invited = {
            row.site: when(row.expires_at_ms)
            for row in connection.execute(
                select(store.tokens)
                .where(store.tokens.c.used_at_ms.is_(None), store.tokens.c.expires_at_ms > now)
                .order_by(store.tokens.c.site)
            )
        }
        waiting = open_withdrawals(connection)
        warnings = [f"{p.subject}: {p.what}" for p in running_out(folder, connection)]
        kept_too_long = {
            row.transfer_id.hex(): row.recipient for row in past_retention(connection, now)
        }
        standings = {
            row.site: f"{row.state}: {row.reason}" if row.reason else row.state
            for row in connection.execute(
                select(store.sites).where(store.sites.c.state != "active").order_by("site")
            )
        }
    dictionary = parse_dictionary(version.toml)
    data: dict[str, Any] = {
        "program": release("synthedge-federation"),
        "consortium": settings.consortium,
        "listen": str(settings.listen),
        "enrolment_listen": str(settings.enrolment_listen),
        "dictionary": dictionary.name,
        "dictionary_version": version.version,
        "dictionary_digest": dictionary.digest,
        "dictionary_not_accepted_by": behind,
        "sites": n_sites,
        "invited_until": invited,
        "current_reports": n_reports,
        "oldest_report": {} if oldest is None else {oldest.site: oldest.reported},
        "no_report_from": [row.site for row in members if not row.reported],
        "sites_not_active": standings,
        "transfers": states,
        "retention_overdue": kept_too_long,
        "withdrawals_overdue": [_withdrawal(row) for row in waiting if row.due_at_ms < now],
        "withdrawals_open": [_withdrawal(row) for row in waiting if row.due_at_ms >= now],
        "sealed_bytes": sum(path.stat().st_size for path in spooled),
        "events": n_events,
        "warnings": warnings,
    }
    for name, path in (("ca", folder.ca_certificate), ("server", folder.tls_certificate)):
        if path.exists():
            expires = read_certificate(path).not_valid_after_utc.astimezone(UTC)
            data[f"{name}_certificate_expires"] = _date(expires)
    return data


def _withdrawal(row: Any) -> dict[str, str]:
    """What the coordinator knows of a notice; how many rows it names is sealed."""
    return {
        "notice_id": row.notice_id.hex(),
        "transfer_id": row.transfer_id.hex(),
        "donor": row.donor,
        "recipient": row.recipient,
        "since": _date(datetime.fromtimestamp(row.notified_at_ms / 1000, UTC)),
        "due": _date(datetime.fromtimestamp(row.due_at_ms / 1000, UTC)),
    }


def _date(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
