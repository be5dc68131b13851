"""Tells whether a site's agent does its work, without opening the site's keys."""

from pathlib import Path
from typing import Final

from synthedge_client import store
from synthedge_client.settings import load_settings
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError

# The agent reads the whole inbox once a minute.
LONGEST_SILENCE_S: Final = 300.0
_NEXT: Final = "see that 'synthedge site run' runs, and what 'synthedge site doctor' finds"


def ping(folder: Path) -> float:
    """How many seconds ago an agent last read the site's inbox at the coordinator.

    Raises
    ------
    TableError
        If the folder is not a site's.
    UsageError
        If it is, and never enrolled.
    UnavailableError
        If that was longer ago than `LONGEST_SILENCE_S`.
    """
    settings = load_settings(folder)
    if not (settings.keys / "tls.pem").exists():
        raise UsageError(f"site '{settings.id}' is not enrolled; run 'synthedge site enrol'")
    database = store.Store(settings.database)
    try:
        with database.read() as connection:
            read_at_ms = store.get_fact(connection, "inbox_read_at_ms")
    finally:
        database.close()
    if read_at_ms is None:
        raise UnavailableError(
            f"no agent of site '{settings.id}' has reached the coordinator yet; {_NEXT}"
        )
    silent_s = (store.now_ms() - int(read_at_ms)) / 1000
    if silent_s > LONGEST_SILENCE_S:
        raise UnavailableError(
            f"no agent of site '{settings.id}' has reached the coordinator for {silent_s / 60:.0f} minutes; {_NEXT}"
        )
    return silent_s
