"""Files that were written with received rows in them: which rows, and whether they should still hold them.

A withdrawal deletes rows here; it cannot reach into a file somebody took away. So every file that leaves the store is
on record with its digest and the tokens in it, is named in the receipt, and is marked until somebody deletes it.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa

from synthedge_client import store
from synthedge_protocols.v1 import statements_pb2 as pb


def record_export(
    connection: sa.Connection, path: Path, kind: str, sha256: bytes, tokens: Iterable[bytes]
) -> int:
    """Write down that a file is about to be written; return the record's id.

    Parameters
    ----------
    path : Path
    kind : str
        What writes it: ``fill`` or ``export``.
    sha256 : bytes
        Of the file's content, 32 bytes.
    tokens : iterable of bytes
        Of the received rows in it.
    """
    export_id: int = connection.execute(
        store.exports.insert()
        .values(path=str(path.resolve()), kind=kind, sha256=sha256, written_at_ms=store.now_ms())
        .returning(store.exports.c.id)
    ).scalar_one()
    rows = [{"export_id": export_id, "token": token} for token in tokens]
    if rows:
        connection.execute(store.export_tokens.insert(), rows)
    return export_id


def mark_exports(connection: sa.Connection, tokens: Iterable[bytes], holds: str) -> None:
    """Mark every file that holds one of these rows.

    Parameters
    ----------
    holds : str
        What it holds that it should not, for example ``withdrawn rows``.
    """
    affected = _exports_with(connection, set(tokens))
    if affected:
        connection.execute(
            store.exports.update().where(store.exports.c.id.in_(affected)).values(holds=holds)
        )


def copies_of(connection: sa.Connection, tokens: Iterable[bytes]) -> list[pb.HeldCopy]:
    """Every file that was written with one of these rows, oldest first, and whether it is still there."""
    counts = _exports_with(connection, set(tokens))
    rows = connection.execute(
        sa.select(store.exports)
        .where(store.exports.c.id.in_(list(counts)))
        .order_by(store.exports.c.id)
    ).all()
    return [
        pb.HeldCopy(
            name=Path(row.path).name,
            kind=row.kind,
            written_at_ms=row.written_at_ms,
            sha256=row.sha256,
            rows=counts[row.id],
            state=file_state(Path(row.path), row.sha256),
        )
        for row in rows
    ]


def file_state(path: Path, sha256: bytes) -> str:
    """``there``, ``changed`` since it was written, or ``gone``; a copy elsewhere cannot be seen."""
    if path.exists() and not path.is_file():
        return "changed"  # a pipe or a device has no end, and whoever asks may hold the database
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return "gone"
    return "there" if found == sha256 else "changed"


def list_exports(connection: sa.Connection) -> list[dict[str, object]]:
    """All files on record, for `received` and the audit."""
    rows = connection.execute(sa.select(store.exports).order_by(store.exports.c.id)).all()
    return [
        {
            "path": row.path,
            "kind": row.kind,
            "sha256": row.sha256.hex(),
            "written_at_ms": row.written_at_ms,
            "state": file_state(Path(row.path), row.sha256),
            "holds": row.holds or "",
        }
        for row in rows
    ]


def _exports_with(connection: sa.Connection, tokens: set[bytes]) -> dict[int, int]:
    """Export ids, each with how many of the tokens went into it."""
    counts: dict[int, int] = {}
    for row in connection.execute(sa.select(store.export_tokens)):
        if row.token in tokens:
            counts[row.export_id] = counts.get(row.export_id, 0) + 1
    return counts
