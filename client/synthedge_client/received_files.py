"""Tables with received rows in them, written to files that are on record before they exist."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from synthedge_client import store
from synthedge_client.accounts import row_name
from synthedge_client.exports import record_export
from synthedge_client.purging import check_current, require_current
from synthedge_client.received import all_tokens, load_with_tokens
from synthedge_client.site import Site
from synthedge_client.tables import whole_numbers
from synthedge_core.errors import RefusedError, UsageError


def check_output(site: Site, output: Path) -> None:
    """Refuse to write over the site's own table or what is no file, or into a folder that is not there.

    Raises
    ------
    UsageError
        If so.
    """
    if output.resolve() == site.settings.data.resolve():
        raise UsageError(f"{output} is the site's own table; name another file with --output")
    if output.exists() and not output.is_file():
        raise UsageError(f"{output} is no file; name one with --output")
    if not output.parent.is_dir():
        raise UsageError(f"there is no folder {output.parent}; make it, or name another --output")


def write_table(
    site: Site, rows: pd.DataFrame, output: Path, kind: str, tokens: Sequence[bytes]
) -> None:
    """Write a table, complete or not at all, and write down which received rows are in it.

    Parameters
    ----------
    site : Site
    rows : DataFrame
    output : Path
        A CSV file; replaced only when the new one is complete.
    kind : str
        What writes it: ``fill`` or ``export``.
    tokens : sequence of bytes
        Of the received rows in it.

    Raises
    ------
    RefusedError
        If rows were withdrawn meanwhile, or a withdrawal waits.
    UsageError
        If the file cannot be written.
    """
    staged = output.with_name(f".{output.name}.new")
    try:
        # Patients' rows, other hospitals' among them: for the owner's eyes until the owner decides otherwise. Never
        # into what is there already: in a shared folder it may be somebody else's, or lead elsewhere.
        staged.unlink(missing_ok=True)
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            rows.to_csv(file, index=False)
        with staged.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").digest()
        with site.store.write() as connection:
            if tokens:
                check_current(site, connection)
                if not set(tokens) <= all_tokens(connection):
                    raise RefusedError(
                        "rows were withdrawn while the file was written; run the command again"
                    )
                # Before the file exists: one that is on record and was never written is "gone", the other way
                # round nobody would look for it.
                record_export(connection, output, kind, digest, tokens)
        staged.replace(output)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}; nothing was") from None
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()


def export_received(site: Site, output: Path) -> dict[str, Any]:
    """Write the received rows alone, each with the site it came from.

    Returns
    -------
    dict
        ``output`` and ``received``, the number of rows.

    Raises
    ------
    UsageError
        As `check_output`.
    RefusedError
        If a withdrawal waits, the inbox is too old, or nothing was received.
    """
    check_output(site, output)
    require_current(site)
    rows, tokens = load_with_tokens(site)
    if not tokens:
        raise RefusedError("no received rows are here; there is nothing to export")
    write_table(
        site,
        whole_numbers(rows, complete=True).assign(
            _origin="received", _row=[row_name(token) for token in tokens]
        ),
        output,
        "export",
        tokens,
    )
    with site.store.write() as connection:
        store.record(connection, "received rows exported", "data manager", received=len(tokens))
    return {"output": str(output), "received": len(tokens)}
