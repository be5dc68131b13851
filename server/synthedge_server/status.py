"""What `synthedge-coordinator status` tells."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from synthedge_core.dictionary import parse_dictionary
from synthedge_protocols.certificates import load_certificate
from synthedge_server import store
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.operations import current_dictionary, reading
from synthedge_server.settings import read_settings


def read_status(folder: CoordinatorFolder) -> dict[str, Any]:
    """Count what the database and the spool hold.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's.
    UnavailableError
        If the database cannot be opened.
    """
    settings = read_settings(folder.settings)
    dictionary = parse_dictionary(current_dictionary(folder))
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
    data: dict[str, Any] = {
        "consortium": settings.consortium,
        "listen": str(settings.listen),
        "enrolment_listen": str(settings.enrolment_listen),
        "dictionary": dictionary.name,
        "dictionary_digest": dictionary.digest,
        "sites": n_sites,
        "current_reports": n_reports,
        "transfers": states,
        "sealed_bytes": sum(path.stat().st_size for path in spooled),
        "events": n_events,
    }
    for name, path in (("ca", folder.ca_certificate), ("server", folder.tls_certificate)):
        if path.exists():
            expires = load_certificate(path.read_bytes()).not_valid_after_utc.astimezone(UTC)
            data[f"{name}_certificate_expires"] = _date(expires)
    return data


def _date(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
