"""Versions of the consortium's dictionary, and which sites have accepted them.

Rules
-----
* The newest version is the current one; a version is set once and never changes.
* Setting one ends the use of every report made under another: no profile and no proposal mixes two frames.
* Every site is told through its inbox; the coordinator takes reports and requests only of sites whose steward
  accepted the current version, outcome definition included. Transfers under way finish under their own.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import DictionaryError, RefusedError, UsageError
from synthedge_protocols.errors import PolicyError
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.ledger import Transaction

# It travels in one inbox message; far more than people write or read.
MAX_BYTES: Final = 262_144

_NEWEST: Final = Prepared(
    select(store.dictionaries).order_by(store.dictionaries.c.version.desc()).limit(1)
)
_ACCEPTED: Final = Prepared(
    select(store.acceptances.c.site).where(
        store.acceptances.c.site == bindparam("of_site"),
        store.acceptances.c.digest == bindparam("of_digest"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of the dictionary.

    Attributes
    ----------
    version : int
        From 1.
    digest : bytes of length 32
    toml : str
        Its text, comments included.
    set_at_ms : int
        Unix time.
    """

    version: int
    digest: bytes
    toml: str
    set_at_ms: int

    def document(self) -> wire.DictionaryDocument:
        """What sites are sent."""
        return wire.DictionaryDocument(digest=self.digest, toml=self.toml, version=self.version)


def history(connection: Connection) -> list[Version]:
    """All versions, oldest first."""
    rows = connection.execute(select(store.dictionaries).order_by(store.dictionaries.c.version))
    return [_decode(row) for row in rows]


def newest(connection: Connection) -> Version:
    """The current version."""
    (row,) = _NEWEST.run(connection)
    return _decode(row)


def find(connection: Connection, version: int | None) -> Version:
    """The version of a number; the current one for None.

    Raises
    ------
    UsageError
        If there is no such version.
    """
    if version is None:
        return newest(connection)
    for known in history(connection):
        if known.version == version:
            return known
    raise UsageError(
        f"there is no version {version} of the dictionary; see 'synthedge-coordinator dictionary show --history'"
    )


def of_digest(connection: Connection, digest: bytes) -> Version | None:
    """The version with a digest, if there is one."""
    row = connection.execute(
        select(store.dictionaries).where(store.dictionaries.c.digest == digest)
    ).one_or_none()
    return None if row is None else _decode(row)


def add(transaction: Transaction, toml: str) -> Version:
    """Set a new version, tell every site, and put aside what was reported under earlier ones.

    Parameters
    ----------
    transaction : Transaction
    toml : str
        Text of consortium.toml.

    Raises
    ------
    DictionaryError
        If it is not valid, or larger than `MAX_BYTES`.
    RefusedError
        If some version has this content already.
    """
    if len(toml.encode()) > MAX_BYTES:
        raise DictionaryError(
            f"the dictionary has {len(toml.encode())} bytes, at most {MAX_BYTES} are sent to sites"
        )
    dictionary = parse_dictionary(toml)
    digest, connection = bytes.fromhex(dictionary.digest), transaction.connection
    known = history(connection)
    for earlier in known:
        if earlier.digest == digest:
            raise RefusedError(
                f"this is version {earlier.version} of the dictionary, set before; acceptances and privacy "
                "budgets hang on its content, so a version is set once: change the content, if only its name"
            )
    version = Version(
        version=len(known) + 1, digest=digest, toml=toml, set_at_ms=transaction.now_ms
    )
    connection.execute(
        insert(store.dictionaries).values(
            digest=digest, version=version.version, toml=toml, set_at_ms=version.set_at_ms
        )
    )
    connection.execute(update(store.reports).values(is_current=False))
    connection.execute(delete(store.proposals))
    sites = connection.execute(select(store.sites.c.site).where(store.sites.c.state != "revoked"))
    for site in sites.scalars().all():
        transaction.post(site, wire.InboxMessage(dictionary=version.document()))
    transaction.record(
        "operator", "dictionary-set", dictionary.digest, f"version {version.version}"
    )
    return version


def accept(transaction: Transaction, verified: Verified[pb.DictionaryAcceptance]) -> None:
    """Note that a site's steward accepted a version.

    Raises
    ------
    PolicyError
        If there is no such version, or another outcome definition was acknowledged than its own.
    """
    connection, payload = transaction.connection, verified.payload
    version = of_digest(connection, verified.dictionary_digest)
    if version is None or version.version != payload.version:
        raise PolicyError(
            f"site '{verified.site}' accepts a dictionary {verified.dictionary_digest.hex()[:12]} as version "
            f"{payload.version}; this coordinator has set none such"
        )
    outcome = parse_dictionary(version.toml).target.outcome_digest
    if payload.outcome_digest.hex() != outcome:
        raise PolicyError(
            f"site '{verified.site}' acknowledges another outcome definition than that of version "
            f"{version.version} of the dictionary"
        )
    table = store.acceptances
    connection.execute(
        delete(table).where(table.c.site == verified.site, table.c.digest == version.digest)
    )
    connection.execute(
        insert(table).values(
            site=verified.site,
            digest=version.digest,
            steward=verified.signer.name,
            statement=verified.signed.SerializeToString(),
            accepted_at_ms=transaction.now_ms,
        )
    )


def require_acceptance(connection: Connection, site: str, digest: bytes) -> None:
    """Return if a site has accepted the dictionary of a digest, and it is the current one.

    Raises
    ------
    PolicyError
        If not.
    """
    current = newest(connection)
    if digest != current.digest:
        raise PolicyError(
            f"dictionary {digest.hex()[:12]} is not the current one any more; site '{site}' reads its inbox and "
            f"accepts version {current.version}"
        )
    if _ACCEPTED.one(connection, of_site=site, of_digest=digest) is None:
        raise PolicyError(
            f"site '{site}' has not accepted version {current.version} of the dictionary; its steward runs "
            "'synthedge site dictionary accept'"
        )


def acceptances(connection: Connection, digest: bytes) -> list[dict[str, Any]]:
    """Every site that takes part, with who accepted the dictionary of a digest and when, or None."""
    sites, table = store.sites, store.acceptances
    rows = connection.execute(
        select(sites.c.site, table.c.steward, table.c.accepted_at_ms)
        .join(
            table,
            (table.c.site == sites.c.site) & (table.c.digest == digest),
            isouter=True,
        )
        .where(sites.c.state.not_in(("left", "revoked", "reset")))
        .order_by(sites.c.site)
    )
    return [dict(row._mapping) for row in rows]


def _decode(row: Row[Any]) -> Version:
    return Version(version=row.version, digest=row.digest, toml=row.toml, set_at_ms=row.set_at_ms)
