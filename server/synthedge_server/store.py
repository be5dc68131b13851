"""Tables of the coordinator's database.

Nothing in them describes a patient: keys, digests, voxel statistics that sites published, states and times.
Sealed bytes lie beside the database (see `relay`), the keys that open them only ever pass through sealed.
Times are milliseconds since the Unix epoch.

These are the tables of the newest version. Who changes them adds a revision to `migrations/`, with the next number, and
a golden database of the version before (`tests/support/write_golden_schema.py`).
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
)
from sqlalchemy import Text as AnyText

from synthedge_core.errors import UsageError
from synthedge_protocols.event_log import EventLog
from synthedge_protocols.private_files import read_private_file
from synthedge_protocols.schema import found_version, open_tables
from synthedge_protocols.writer import sqlite_engine
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.settings import Settings

SCHEMA_VERSION: Final = 6
METADATA: Final = MetaData()
# In the order of its bytes wherever it is kept, as SQLite has it, and not of some language.
Text: Final = AnyText().with_variant(AnyText(collation="C"), "postgresql")

# state: one of `standing.Standing`, `reason` is why. `last_seen_ms`: when it last called. `last_sequence` numbers
# the site's inbox without gaps being reused.
sites: Final = Table(
    "sites",
    METADATA,
    Column("site", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("statement_public_key", LargeBinary, nullable=False),
    Column("hpke_key_id", LargeBinary, nullable=False),
    Column("tls_key_digest", LargeBinary, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("enrolled_at_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger),
    Column("reason", Text),
    Column("certified_at_ms", BigInteger, nullable=False),
)

# HPKE keys as the sites signed them; a site's current one is named by `sites.hpke_key_id`.
keys: Final = Table(
    "keys",
    METADATA,
    Column("key_id", LargeBinary, primary_key=True),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("registered_at_ms", BigInteger, nullable=False),
)

# The SHA-256 of a secret only: who reads the database cannot enrol. What a used token bought is kept, so that
# a site that lost the answer gets the same one again.
tokens: Final = Table(
    "tokens",
    METADATA,
    Column("secret_digest", LargeBinary, primary_key=True),
    Column("site", Text, nullable=False),
    Column("issued_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("used_at_ms", BigInteger),
    Column("request_digest", LargeBinary),
    Column("certificate", LargeBinary),
)

# Statement keys that a site replaced, each with the rotation it signed; `step` counts from 1.
rotations: Final = Table(
    "rotations",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("old_key_id", LargeBinary, nullable=False),
    Column("old_public_key", LargeBinary, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("rotated_at_ms", BigInteger, nullable=False),
)

dictionaries: Final = Table(
    "dictionaries",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    Column("version", Integer, nullable=False, unique=True),
    Column("toml", Text, nullable=False),
    Column("set_at_ms", BigInteger, nullable=False),
)

# Which site's steward accepted which dictionary; the statement is the evidence.
acceptances: Final = Table(
    "acceptances",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("digest", LargeBinary, ForeignKey("dictionaries.digest"), primary_key=True),
    Column("steward", Text, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("accepted_at_ms", BigInteger, nullable=False),
)

# Every statement that was accepted, for ever: the same bytes get the same receipt.
statements: Final = Table(
    "statements",
    METADATA,
    Column("digest", LargeBinary, primary_key=True),
    Column("site", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    Column("transfer_id", LargeBinary),
)
Index("statements_by_site", statements.c.site, statements.c.received_at_ms)

# A site whose records and ours differ, one row a time: it stays frozen until `recovered_at_ms` is set. Transfers
# (JSON, hex ids) are those about which the site does not know what it signed.
divergences: Final = Table(
    "divergences",
    METADATA,
    Column("divergence", Integer, primary_key=True),
    Column("site", Text, ForeignKey("sites.site"), nullable=False),
    Column("found_at_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("inbox_after", BigInteger, nullable=False),
    Column("transfers", Text, nullable=False),
    Column("recovered_at_ms", BigInteger),
)

# What the next request of a site that seems to differ has to carry to count; see `divergence`.
challenges: Final = Table(
    "challenges",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("challenge", LargeBinary, nullable=False),
)

# One row a release; a site's current report under a dictionary is its newest one.
reports: Final = Table(
    "reports",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("dictionary_digest", LargeBinary, primary_key=True),
    Column("release_id", LargeBinary, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("epsilon", Float, nullable=False),  # 0 in threshold mode
    Column("received_at_ms", BigInteger, nullable=False),
    Column("is_current", Boolean, nullable=False),
)

# How often current reports under a dictionary changed, and after how many changes every site was told.
tellings: Final = Table(
    "tellings",
    METADATA,
    Column("dictionary_digest", LargeBinary, primary_key=True),
    Column("n_reported", BigInteger, nullable=False),
    Column("n_told", BigInteger, nullable=False),
)

# The newest proposals to each site, for `synthedge-coordinator matches`.
proposals: Final = Table(
    "proposals",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("message", LargeBinary, nullable=False),
    Column("made_at_ms", BigInteger, nullable=False),
)

inbox: Final = Table(
    "inbox",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("posted_at_ms", BigInteger, nullable=False),
)

transfers: Final = Table(
    "transfers",
    METADATA,
    Column("transfer_id", LargeBinary, primary_key=True),
    Column("recipient", Text, ForeignKey("sites.site"), nullable=False),
    Column("donor", Text, ForeignKey("sites.site"), nullable=False),
    Column("dictionary_digest", LargeBinary, nullable=False),
    Column("grid", Text, nullable=False),
    Column("voxel", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("request_digest", LargeBinary, nullable=False),
    Column(
        "request", LargeBinary, nullable=False
    ),  # as signed: what policies and receipts must fit
    Column("recipient_key_id", LargeBinary, nullable=False),
    Column("donor_key_id", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("reason", Text, nullable=False),
    Column("requested_at_ms", BigInteger, nullable=False),
)
Index("transfers_by_expiry", transfers.c.expires_at_ms)
Index("transfers_by_recipient", transfers.c.recipient, transfers.c.state)

# Notices of donors; `statement` is the sealed notice until its receipt is here. `is_noted`: the audit tells it is
# overdue. Nothing but a receipt ends one.
withdrawals: Final = Table(
    "withdrawals",
    METADATA,
    Column("notice_id", LargeBinary, primary_key=True),
    Column("transfer_id", LargeBinary, ForeignKey("transfers.transfer_id"), nullable=False),
    Column("donor", Text, ForeignKey("sites.site"), nullable=False),
    Column("recipient", Text, ForeignKey("sites.site"), nullable=False),
    Column("state", Text, nullable=False),
    Column("statement", LargeBinary),
    Column("notified_at_ms", BigInteger, nullable=False),
    Column("due_at_ms", BigInteger, nullable=False),
    Column("settled_at_ms", BigInteger),
    Column("is_noted", Boolean, nullable=False),
)
Index("withdrawals_by_recipient", withdrawals.c.recipient, withdrawals.c.state)

# The donor's shipment while its sealed bytes are here; the row goes when they go, and a file in the spool
# without a row is deleted.
uploads: Final = Table(
    "uploads",
    METADATA,
    Column("transfer_id", LargeBinary, ForeignKey("transfers.transfer_id"), primary_key=True),
    Column("shipment", LargeBinary, nullable=False),
    Column("ciphertext_digest", LargeBinary, nullable=False),
    Column("ciphertext_bytes", BigInteger, nullable=False),
    Column("completed_at_ms", BigInteger),
)

# Heads of the sites' own audit logs, as they signed them when they countersigned one of the coordinator's.
site_heads: Final = Table(
    "site_heads",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("size", BigInteger, primary_key=True),
    Column("note", Text, nullable=False),
    Column("coordinator_size", BigInteger, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
)

# Which process does what only one may do, until when by the database's clock. Every new holder raises `epoch`: a write
# of an earlier one is refused.
leases: Final = Table(
    "leases",
    METADATA,
    Column("lease", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)

# Rounds of discovery and what came of each site that was asked; outcome: one of `rounds.Outcome`.
rounds: Final = Table(
    "rounds",
    METADATA,
    Column("round_id", LargeBinary, primary_key=True),
    Column("engine", Text, nullable=False),
    Column("dictionary_digest", LargeBinary, nullable=False),
    Column("opened_at_ms", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
)
round_answers: Final = Table(
    "round_answers",
    METADATA,
    Column("round_id", LargeBinary, ForeignKey("rounds.round_id"), primary_key=True),
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("answered_at_ms", BigInteger),
)

# The key of each site's Flower SuperNode, as the site announced it; the statement is the evidence.
flower_nodes: Final = Table(
    "flower_nodes",
    METADATA,
    Column("site", Text, ForeignKey("sites.site"), primary_key=True),
    Column("public_key", LargeBinary, nullable=False, unique=True),
    Column("statement", LargeBinary, nullable=False),
    Column("announced_at_ms", BigInteger, nullable=False),
)

# Who did what to what; written in the transaction of the change it tells about.
event_log: Final = EventLog(METADATA, "actor", "action", "subject", "detail")
events: Final = event_log.table


def engine_of(folder: CoordinatorFolder, settings: Settings) -> Engine:
    """Open the coordinator's database, whatever it holds.

    Raises
    ------
    UnavailableError
        If it cannot be opened.
    IdentityError
        If the file with its password may be read by others.
    """
    if settings.database is None:
        # Sites hear of its failures; where it lies is not theirs to know.
        return sqlite_engine(folder.database, folder.database.name)
    # Most coordinators work on SQLite: their processes stay free of the driver.
    from synthedge_server.postgres import postgres_engine

    return postgres_engine(settings.database, postgres_arguments(folder, settings))


def postgres_arguments(folder: CoordinatorFolder, settings: Settings) -> dict[str, Any]:
    """What psycopg connects with; raises IdentityError as `engine_of`."""
    from synthedge_server.postgres import connect_arguments

    password = None
    if settings.database_password_file is not None:
        path = folder.path / settings.database_password_file
        password = read_private_file(path).decode().strip()
    return connect_arguments(settings.database or "", password)


def open_database(folder: CoordinatorFolder, settings: Settings, *, make: bool = False) -> Engine:
    """Open the coordinator's database.

    Parameters
    ----------
    folder : CoordinatorFolder
    settings : Settings
    make : bool
        Whether it is a new one, to be filled with tables.

    Raises
    ------
    UsageError
        If it is to be new, and holds tables.
    UnavailableError, IdentityError
        As `engine_of`; also if it is lost, or holds tables of another version.
    """
    name = f"the coordinator's database {settings.database or repr(str(folder.database))}"
    engine = engine_of(folder, settings)
    try:
        if make:
            with engine.connect() as connection:
                if found_version(connection) is not None:
                    raise UsageError(f"{name} holds tables already; name an empty one")
        open_tables(
            engine,
            METADATA,
            SCHEMA_VERSION,
            name,
            make=make,
            if_older=f"stop 'serve', then run 'synthedge-coordinator database upgrade --dir {folder.path}'",
        )
    except BaseException:
        engine.dispose()
        raise
    return engine


def take_time(connection: Connection) -> None:
    """Lift the time limits of a transaction that nobody waits behind."""
    if connection.dialect.name == "postgresql":
        for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
        connection.connection.dbapi_connection.patience_s = None  # type: ignore[union-attr]
