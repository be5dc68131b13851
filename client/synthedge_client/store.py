"""A site's state: one SQLite file, changed only in whole transactions.

Every change writes its audit event in the same transaction. Received samples and prepared manifests are kept
encrypted (see `keystore`); nothing else in the file is about a patient.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.event_log import EventLog
from synthedge_protocols.schema import open_tables
from synthedge_protocols.writer import WRITES, sqlite_engine

# Facts that name the site's current keys by their ids, hex; absent until the first rotation.
STATEMENT_KEY = "statement key"
HPKE_KEY = "hpke key"
# When the current HPKE key ends, Unix time in milliseconds.
HPKE_UNTIL = "hpke key until"

SCHEMA_VERSION = 1
metadata = sa.MetaData()

facts = sa.Table(
    "facts",  # what enrolment told: consortium, address; before it, the pending request
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
dictionaries = sa.Table(
    "dictionaries",  # every one the coordinator told of; see `dictionaries`
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False, unique=True),
    sa.Column("toml", sa.Text, nullable=False),
    sa.Column("told_at_ms", sa.Integer, nullable=False),
    sa.Column("accepted_at_ms", sa.Integer),  # NULL until a steward accepted it
    sa.Column("accepted_by", sa.Text),
)
peers = sa.Table(
    "peers",
    metadata,
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("statement_public_key", sa.LargeBinary, nullable=False),
    sa.Column("hpke_key", sa.LargeBinary, nullable=False),  # serialised SignedStatement
    sa.Column("verified_at_ms", sa.Integer),  # NULL until somebody compared fingerprints
    sa.Column("problem", sa.Text),  # what was wrong with the keys last shown for it
    sa.Column("pending_public_key", sa.LargeBinary),  # announced by a rotation, not compared yet
    sa.Column("pending_hpke_key", sa.LargeBinary),
    sa.Column("standing", sa.Text),  # NULL, or why it takes no part: paused, left, revoked, ...
)
peer_keys = sa.Table(
    "peer_keys",  # keys that peers replaced, statement and HPKE: transfers finish under them
    metadata,
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("key_id", sa.LargeBinary, primary_key=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
)
releases = sa.Table(
    "releases",  # gap reports, byte for byte; see `releases`
    metadata,
    sa.Column("release_id", sa.LargeBinary, primary_key=True),
    sa.Column("dictionary_digest", sa.Text, nullable=False),
    sa.Column("snapshot", sa.Text),  # NULL: known from the coordinator alone
    sa.Column("disclosure", sa.Text, nullable=False),
    sa.Column("epsilon", sa.Float, nullable=False),
    sa.Column("min_count", sa.Integer, nullable=False),
    sa.Column("report", sa.LargeBinary),  # serialised GapReport
    sa.Column("working", sa.LargeBinary),  # encrypted: true counts and reasons
    sa.Column("statement", sa.LargeBinary),  # as last signed; NULL until it was published
    sa.Column("created_at_ms", sa.Integer, nullable=False),
    sa.Column("spent_at_ms", sa.Integer),  # first published; NULL: nothing has left
    sa.Column("published_at_ms", sa.Integer),  # last
    sa.UniqueConstraint("dictionary_digest", "snapshot", "disclosure", "epsilon", "min_count"),
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("statement", sa.LargeBinary, nullable=False),
    sa.Column("sent_at_ms", sa.Integer),
    sa.Column("refusal", sa.Text),  # the coordinator's reason, when it will never take it
)
inbox = sa.Table(
    "inbox",
    metadata,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("handled_at_ms", sa.Integer),
)
hints = sa.Table(
    "hints",  # the coordinator's latest profile and proposals of each dictionary
    metadata,
    sa.Column("dictionary_digest", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
transfers = sa.Table(
    "transfers",
    metadata,
    sa.Column("transfer_id", sa.LargeBinary, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),  # donor | recipient
    sa.Column("peer", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),  # serialised SignedStatement
    sa.Column("approval", sa.LargeBinary),
    sa.Column("payload", sa.LargeBinary),  # donor: manifest and samples, encrypted, until uploaded
    sa.Column("shipment", sa.LargeBinary),
    sa.Column("rows", sa.Integer),  # prepared, or received
    sa.Column("gate", sa.Text),  # recipient: what the gate found, once a delivery passed it
    sa.Column("reason", sa.Text),
    sa.Column("problem", sa.Text),  # what the agent could not get past, until the next change
    sa.Column("created_at_ms", sa.Integer, nullable=False),
    sa.Column("changed_at_ms", sa.Integer, nullable=False),
)
policies = sa.Table(
    "policies",  # standing policies, as their stewards signed them
    metadata,
    sa.Column("policy_id", sa.LargeBinary, primary_key=True),
    sa.Column("statement", sa.LargeBinary, nullable=False),
    sa.Column("removed_at_ms", sa.Integer),
)
disclosed = sa.Table(
    "disclosed",  # the donor's ledger: which patient's row left under which token
    metadata,
    sa.Column("token", sa.LargeBinary, primary_key=True),
    sa.Column("transfer_id", sa.LargeBinary, nullable=False),
    sa.Column("recipient", sa.Text, nullable=False),
    sa.Column("patient", sa.LargeBinary, nullable=False),  # encrypted local id
    sa.Column("patient_tag", sa.LargeBinary, nullable=False),  # keyed hash, to find a patient again
)
received = sa.Table(
    "received",
    metadata,
    sa.Column("token", sa.LargeBinary, primary_key=True),
    sa.Column("transfer_id", sa.LargeBinary, nullable=False),
    sa.Column(
        "sample", sa.LargeBinary, nullable=False
    ),  # encrypted, in the site's own units and codes
    sa.Column(
        "row_tag", sa.LargeBinary, nullable=False
    ),  # keyed hash of the row, to refuse it a second time
)
coordinator_heads = sa.Table(
    "coordinator_heads",  # of the coordinator's audit log, as it signed them for this site
    metadata,
    sa.Column("size", sa.Integer, primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("seen_at_ms", sa.Integer, nullable=False),
)
peer_heads = sa.Table(
    "peer_heads",  # the newest head of it that another site says it was shown, and that site's own
    metadata,
    sa.Column("site", sa.Text, primary_key=True),
    sa.Column("coordinator_size", sa.Integer, nullable=False),
    sa.Column("coordinator_note", sa.Text, nullable=False),
    sa.Column("own_note", sa.Text, nullable=False),
    sa.Column("seen_at_ms", sa.Integer, nullable=False),
    sa.Column("is_compared", sa.Boolean, nullable=False),
)
# Who (a steward, 'agent' or 'coordinator') did what; details are JSON: names, counts and digests only.
event_log = EventLog(metadata, "what", "who", "details")
events = event_log.table

withdrawn_patients = sa.Table(
    "withdrawn_patients",  # the donor's: who withdrew by command, whatever the table of patients says
    metadata,
    sa.Column("patient_tag", sa.LargeBinary, primary_key=True),
    sa.Column("purpose", sa.Text, primary_key=True),  # a DUO code; empty: every purpose
    sa.Column("at_ms", sa.Integer, nullable=False),
)
withdrawals = sa.Table(
    "withdrawals",  # notices sent as donor or taken in as recipient
    metadata,
    sa.Column("notice_id", sa.LargeBinary, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),  # donor | recipient
    sa.Column("peer", sa.Text, nullable=False),
    sa.Column("transfer_id", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("statement", sa.LargeBinary, nullable=False),  # the signed notice
    sa.Column("reason", sa.Text),  # the donor's words; at a recipient once it was opened
    sa.Column("rows", sa.Integer),
    sa.Column("since_ms", sa.Integer, nullable=False),
    sa.Column("settled_at_ms", sa.Integer),
    sa.Column("report", sa.Text),  # JSON of the recipient's report: counts and file names
    sa.Column("problem", sa.Text),  # why it could not be carried out
)
withdrawn_tokens = sa.Table(
    "withdrawn_tokens",  # donor: tokens a notice was sent for; recipient: rows never taken in again
    metadata,
    sa.Column("token", sa.LargeBinary, primary_key=True),
    sa.Column("notice_id", sa.LargeBinary, nullable=False),
)
exports = sa.Table(
    "exports",  # files that were written with received rows in them
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("written_at_ms", sa.Integer, nullable=False),
    sa.Column("holds", sa.Text),  # NULL, or what it holds that it should not any more
)
export_tokens = sa.Table(
    "export_tokens",
    metadata,
    sa.Column("export_id", sa.Integer, primary_key=True),
    sa.Column("token", sa.LargeBinary, primary_key=True),
)


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def when(at_ms: int | None) -> str:
    """A time of `now_ms` in ISO 8601, UTC, to the second; empty for none."""
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).isoformat(timespec="seconds")


class Store:
    """A site's database.

    Rules
    -----
    * `write` is one transaction: all of its changes are durable together or none is.
    * `read` sees one consistent state.
    """

    def __init__(self, path: Path) -> None:
        """Open the database, creating its tables when it is new.

        Raises
        ------
        UnavailableError
            If it cannot be opened, or holds tables of another version.
        """
        self._engine = sqlite_engine(path)
        open_tables(self._engine, metadata, SCHEMA_VERSION, f"the site's database '{path}'")

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Change the state in one transaction."""
        with (
            self._engine.connect().execution_options(**{WRITES: True}) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Look at the state."""
        with self._engine.connect() as connection:
            yield connection

    def scrub(self) -> None:
        """Empty the write-ahead log: it holds pages as they were before rows were deleted.

        Nothing happens while another process reads; its own next change then does it.
        """
        with self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Release the file."""
        self._engine.dispose()


def record(connection: sa.Connection, what: str, who: str, **details: Any) -> None:
    """Write an audit event; `details` hold names, counts and digests, never a value."""
    event_log.append(
        connection, now_ms(), what=what, who=who, details=json.dumps(details, sort_keys=True)
    )


def get_fact(connection: sa.Connection, name: str) -> str | None:
    """One fact, or None before enrolment wrote it."""
    value: str | None = connection.execute(
        sa.select(facts.c.value).where(facts.c.name == name)
    ).scalar_one_or_none()
    return value


def set_fact(connection: sa.Connection, name: str, value: str) -> None:
    """Set or replace one fact."""
    delete_fact(connection, name)
    connection.execute(facts.insert().values(name=name, value=value))


def delete_fact(connection: sa.Connection, name: str) -> None:
    """Forget one fact, if it is there."""
    connection.execute(facts.delete().where(facts.c.name == name))


def require_fact(connection: sa.Connection, name: str) -> str:
    """One fact that only an enrolled site has.

    Raises
    ------
    SynthEdgeError
        If the site is not enrolled yet.
    """
    value = get_fact(connection, name)
    if value is None:
        raise SynthEdgeError(
            "this site is not enrolled yet; run 'synthedge site enrol --token-file FILE'"
        )
    return value
