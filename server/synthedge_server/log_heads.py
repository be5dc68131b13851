"""Heads of the coordinator's audit log: signed, proved to extend earlier ones, and witnessed by the sites.

A site that countersigns a head has it passed on to some others. A coordinator that told two sites two histories would
have to keep every one of these statements from reaching the other side.
"""

import hashlib
import secrets
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from synthedge_protocols.checkpoints import (
    Checkpoint,
    SignedCheckpoint,
    coordinator_origin,
    site_origin,
)
from synthedge_protocols.errors import MalformedError, VerificationError
from synthedge_protocols.keys import StatementKey
from synthedge_protocols.private_files import read_private_file, write_private_file
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import Transaction
from synthedge_server.rotation import statement_key

# How many other sites are shown a witnessed head: to everybody it would be the square of the number of sites.
SHOWN_TO: Final = 3


def create_log_key(folder: CoordinatorFolder) -> None:
    """Make the key that signs heads.

    Raises
    ------
    FileExistsError
        If there is one already.
    """
    passphrase = secrets.token_hex(32).encode()
    write_private_file(folder.log_passphrase, passphrase)
    StatementKey.generate().save(folder.log_key, passphrase)


def load_log_key(folder: CoordinatorFolder) -> StatementKey:
    """Read the key that signs heads.

    Raises
    ------
    IdentityError
        If it is missing, damaged, or readable by others than its owner.
    """
    return StatementKey.load(folder.log_key, read_private_file(folder.log_passphrase))


def signed_head(connection: Connection, key: StatementKey, consortium: str) -> SignedCheckpoint:
    """Sign the head of the whole log."""
    return store.event_log.head(connection, coordinator_origin(consortium)).sign(key)


class LogHeads:
    """What sites may ask of the log, and what they say they saw of it.

    Parameters
    ----------
    consortium : str
    key : StatementKey
    """

    def __init__(self, consortium: str, key: StatementKey) -> None:
        self._consortium = consortium
        self._key = key

    def prove(self, connection: Connection, request: wire.LogHeadRequest) -> wire.LogHead:
        """Answer with the newest head, or with a proof between two heads the site holds.

        Raises
        ------
        MalformedError
            If the log has never had the sizes asked for.
        """
        if request.size:
            proof = store.event_log.consistency(connection, request.old_size, request.size)
            return wire.LogHead(consistency=proof)
        signed = signed_head(connection, self._key, self._consortium)
        proof = store.event_log.consistency(connection, request.old_size, signed.checkpoint.size)
        return wire.LogHead(note=signed.note, consistency=proof)

    def witness(self, transaction: Transaction, verified: Verified[pb.WitnessedHead]) -> None:
        """Keep what a site saw of this log and of its own, and show it to some other sites.

        Raises
        ------
        MalformedError
            If the statement holds no two checkpoints.
        VerificationError
            If this log never had that head, or a checkpoint is not signed as it must be.
        """
        site, connection = verified.site, transaction.connection
        seen = SignedCheckpoint.parse(verified.payload.coordinator_head)
        own = SignedCheckpoint.parse(verified.payload.own_head)
        public_key = statement_key(connection, site, verified.signed, pb.WitnessedHead)
        name = site_origin(self._consortium, site)
        head = seen.verify(self._key.public_bytes, coordinator_origin(self._consortium))
        seen.verify_cosignature(public_key, name)
        own.verify(public_key, name)
        if head != store.event_log.head(connection, head.origin, head.size):
            raise VerificationError(
                f"site '{site}' holds a signed head over {head.size} entries that this log never had: "
                "the database was restored from an older copy, or the log's key is in other hands"
            )
        _refuse_second_history(connection, site, own.checkpoint)
        table = store.site_heads
        connection.execute(
            delete(table).where(table.c.site == site, table.c.size == own.checkpoint.size)
        )
        connection.execute(
            insert(table).values(
                site=site,
                size=own.checkpoint.size,
                note=own.note,
                coordinator_size=head.size,
                seen_at_ms=transaction.now_ms,
            )
        )
        for other in _some_others(connection, site, verified.digest):
            transaction.post(other, wire.InboxMessage(statement=verified.signed))


def _refuse_second_history(connection: Connection, site: str, own: Checkpoint) -> None:
    table = store.site_heads
    note = connection.execute(
        select(table.c.note).where(table.c.site == site, table.c.size == own.size)
    ).scalar_one_or_none()
    if note is not None and SignedCheckpoint.parse(note).checkpoint != own:
        raise VerificationError(
            f"site '{site}' signed two different heads over {own.size} entries of its own log"
        )
    if own.size == 0:
        raise MalformedError(f"the log of site '{site}' is empty; its enrolment is its first entry")


def _some_others(connection: Connection, site: str, digest: bytes) -> list[str]:
    """Pick active sites by the statement's digest, which the site's own signature has made unforeseeable."""
    table = store.sites
    others = connection.execute(
        select(table.c.site).where(table.c.state == "active", table.c.site != site)
    ).scalars()
    ranked = sorted(others, key=lambda other: hashlib.sha256(digest + other.encode()).digest())
    return ranked[:SHOWN_TO]
