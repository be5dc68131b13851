"""An audit log in a database: an append-only table whose rows are the leaves of a Merkle tree.

Rules
-----
* An entry is written in the transaction of the change it tells about: neither is ever without the other.
* Entries are numbered from 1 without gaps. Entry n is leaf n - 1 of the tree.
* A leaf is a salted commitment to the entry's canonical bytes: whoever is shown the leaf, or its place in the tree,
  can guess nothing of an entry that is not shown to them.
* Every row keeps the roots of the subtrees it completed (two hashes on average): any proof is a few look-ups.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
)

from synthedge_protocols.checkpoints import Checkpoint
from synthedge_protocols.errors import MalformedError, VerificationError
from synthedge_protocols.merkle import (
    EMPTY_FRONTIER,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
)
from synthedge_protocols.prepared import Prepared

__all__ = ["Entry", "EventLog", "leaf_of"]

_HASH_BYTES: Final = 32
_SALT_BYTES: Final = 32
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, as it was written.

    Attributes
    ----------
    number : int
        From 1.
    at_ms : int
        Unix time in milliseconds.
    data : bytes
        Canonical JSON of the entry: sorted keys, no white space, ASCII.
    salt : bytes of length 32
    """

    number: int
    at_ms: int
    data: bytes
    salt: bytes

    @property
    def leaf(self) -> bytes:
        """Hash of the entry's leaf, 32 bytes."""
        return leaf_of(self.data, self.salt)


def leaf_of(data: bytes, salt: bytes) -> bytes:
    """Hash of the leaf that commits to some bytes: RFC 6962's over ``SHA-256(salt + data)``."""
    return leaf_hash(hashlib.sha256(salt + data).digest())


class EventLog:
    """One log, in one table of a database.

    Parameters
    ----------
    metadata : MetaData
        Of the database; the table ``events`` is added to it.
    texts : sequence of str
        The text columns an entry has beside its time.

    Attributes
    ----------
    table : Table
        For queries; written by `append` alone.
    """

    def __init__(self, metadata: MetaData, *texts: str) -> None:
        self._texts = texts
        self.table = Table(
            "events",
            metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("at_ms", BigInteger, nullable=False),
            *(Column(text, Text, nullable=False) for text in texts),
            Column("salt", LargeBinary, nullable=False),
            Column("subtrees", LargeBinary, nullable=False),
        )
        # Every leaf is salted: the same last leaf means the same log up to there. So this may be kept across
        # transactions that fail, other processes that write, and more than one database.
        self._tip: tuple[bytes, Frontier] | None = None
        columns = self.table.c
        self._insert = Prepared(insert(self.table))
        self._last = Prepared(select(columns.subtrees).order_by(columns.id.desc()).limit(1))

    def append(self, connection: Connection, at_ms: int, **texts: str) -> None:
        """Write one entry.

        Parameters
        ----------
        connection : Connection
            Inside the transaction of the change, which must hold the database's write lock.
        at_ms : int
            Unix time in milliseconds.
        **texts : str
            One for every text column.
        """
        frontier = self._frontier_now(connection)
        number = frontier.size + 1
        salt = secrets.token_bytes(_SALT_BYTES)
        leaf = leaf_of(_canonical({"id": number, "at_ms": at_ms, **texts}), salt)
        grown, completed = frontier.append(leaf)
        self._insert.run(
            connection,
            id=number,
            at_ms=at_ms,
            **texts,
            salt=salt,
            subtrees=b"".join(completed),
        )
        self._tip = (leaf, grown)

    def size(self, connection: Connection) -> int:
        """Number of entries."""
        return connection.execute(select(func.max(self.table.c.id))).scalar() or 0

    def head(self, connection: Connection, origin: str, size: int | None = None) -> Checkpoint:
        """Return the tree head after `size` entries; after all of them if none is given.

        Raises
        ------
        MalformedError
            If the log has not that many entries.
        """
        frontier = self._frontier(connection, self._checked_size(connection, size))
        return Checkpoint(origin, frontier.size, frontier.root)

    def inclusion(self, connection: Connection, number: int, size: int) -> list[bytes]:
        """Prove that entry `number` is among the first `size`.

        Raises
        ------
        MalformedError
            If the log has not that many entries.
        """
        if not 1 <= number <= self._checked_size(connection, size):
            raise MalformedError(f"a log of {size} entries has no entry {number}")
        return inclusion_proof(number - 1, size, self._subtrees(connection))

    def consistency(self, connection: Connection, old_size: int, size: int) -> list[bytes]:
        """Prove that the first `size` entries begin with the first `old_size`.

        Raises
        ------
        MalformedError
            If the log has not that many entries.
        """
        if not 0 <= old_size <= self._checked_size(connection, size):
            raise MalformedError(f"a log of {size} entries has never had {old_size} of them")
        return consistency_proof(old_size, size, self._subtrees(connection))

    def entries(self, connection: Connection, after: int = 0) -> Iterator[Entry]:
        """Read the entries behind a number, in order."""
        query = select(self.table).where(self.table.c.id > after).order_by(self.table.c.id)
        for row in connection.execute(query):
            yield self._entry(row)

    def verify(self, connection: Connection) -> Frontier:
        """Recompute the whole tree from the entries and return it.

        Raises
        ------
        VerificationError
            If an entry was changed, removed or put in; the message names the first.
        """
        frontier = EMPTY_FRONTIER
        for row in connection.execute(select(self.table).order_by(self.table.c.id)):
            number = frontier.size + 1
            if row.id != number:
                raise VerificationError(f"entry {number} of the audit log is missing")
            frontier, completed = frontier.append(self._entry(row).leaf)
            if row.subtrees != b"".join(completed):
                raise VerificationError(f"entry {number} of the audit log was changed")
        return frontier

    def _entry(self, row: Any) -> Entry:
        texts = {text: getattr(row, text) for text in self._texts}
        return Entry(
            row.id, row.at_ms, _canonical({"id": row.id, "at_ms": row.at_ms, **texts}), row.salt
        )

    def _checked_size(self, connection: Connection, size: int | None) -> int:
        now = self.size(connection)
        if size is None:
            return now
        if not 0 <= size <= now:
            raise MalformedError(f"the log has {now} entries, not {size}")
        return size

    def _frontier_now(self, connection: Connection) -> Frontier:
        last = self._last.one(connection)
        if last is None:
            return EMPTY_FRONTIER
        if self._tip is not None and self._tip[0] == last.subtrees[:_HASH_BYTES]:
            return self._tip[1]
        return self._frontier(connection, self.size(connection))

    def _frontier(self, connection: Connection, size: int) -> Frontier:
        subtree = self._subtrees(connection)
        roots, end = [], 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                end += 1 << level
                roots.append(subtree(level, end))
        return Frontier(size, tuple(roots))

    def _subtrees(self, connection: Connection) -> Any:
        columns = self.table.c

        def subtree(level: int, end: int) -> bytes:
            completed: bytes = connection.execute(
                select(columns.subtrees).where(columns.id == end)
            ).scalar_one()
            return completed[level * _HASH_BYTES : (level + 1) * _HASH_BYTES]

        return subtree


def _canonical(entry: dict[str, Any]) -> bytes:
    return _ENCODER.encode(entry).encode("ascii")
