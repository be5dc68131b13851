"""The coordinator's audit log, verified in place and exported as a file."""

from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from synthedge_core.errors import UsageError
from synthedge_protocols.log_export import export_lines
from synthedge_server import store
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.log_heads import load_log_key, signed_head
from synthedge_server.operations import reading
from synthedge_server.settings import read_settings


def verify_log(folder: CoordinatorFolder) -> dict[str, Any]:
    """Recompute the log from its entries.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's.
    VerificationError
        If an entry was changed, removed or put in; the message names the first.
    """
    with reading(folder) as engine, engine.connect() as connection:
        key = load_log_key(folder)
        frontier = store.event_log.verify(connection)
        n_witnesses = connection.execute(
            select(func.count(store.site_heads.c.site.distinct()))
        ).scalar_one()
    return {
        "entries": frontier.size,
        "root": frontier.root.hex(),
        "witnesses": n_witnesses,
        "fingerprint": key.fingerprint,
    }


def export_log(folder: CoordinatorFolder, output: Path) -> dict[str, Any]:
    """Write the log as one file that verifies offline.

    Raises
    ------
    UsageError
        If the file exists, or cannot be written.
    VerificationError
        As `verify_log`: nothing is exported that would not verify.
    """
    if output.exists():
        raise UsageError(f"{output} exists already; name a new file")
    consortium, key = read_settings(folder.settings).consortium, load_log_key(folder)
    with reading(folder) as engine, engine.connect() as connection:
        store.event_log.verify(connection)
        signed = signed_head(connection, key, consortium)
        shown = [(entry, True) for entry in store.event_log.entries(connection)]
    staged = output.with_name(output.name + ".new")
    try:
        with staged.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(export_lines(shown, signed, key.public_bytes))
        staged.replace(output)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise UsageError(f"{output} cannot be written: {error.strerror}") from None
    return {"file": str(output), "entries": len(shown), "fingerprint": key.fingerprint}
