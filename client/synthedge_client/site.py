"""An opened site: its settings, keys, database and the dictionary it works under, together."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from synthedge_client import dictionaries, store
from synthedge_client.keystore import KeyStore, create_keys, load_keys
from synthedge_client.settings import SITE_FILE, SiteSettings, load_settings
from synthedge_core.dictionary import Dictionary
from synthedge_core.errors import RefusedError, TableError, UsageError
from synthedge_core.grids import NamedGrid
from synthedge_protocols.keys import (
    HpkeKeyPair,
    StatementKey,
    fingerprint,
    is_fingerprint,
    same_fingerprint,
)
from synthedge_protocols.names import check_name
from synthedge_protocols.statements import STATEMENT_TYPES, sign, type_name
from synthedge_protocols.v1 import statements_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from synthedge_client.connection import Connection


@dataclass(frozen=True)
class Site:
    """An enrolled site, opened for one command or for the agent."""

    settings: SiteSettings
    keys: KeyStore
    store: store.Store
    # None: the one in force.
    only_under: Dictionary | None = None

    @cached_property
    def _facts(self) -> dict[str, str]:
        with self.store.read() as connection:
            names = ("consortium", "address")
            return {name: store.require_fact(connection, name) for name in names}

    @property
    def consortium(self) -> str:
        """The consortium's name."""
        return self._facts["consortium"]

    @property
    def address(self) -> str:
        """Where the coordinator is reached, ``host:port``."""
        return self._facts["address"]

    @cached_property
    def dictionary(self) -> Dictionary:
        """The dictionary this site works under; see `dictionaries`."""
        if self.only_under is not None:
            return self.only_under
        with self.store.read() as connection:
            return dictionaries.in_force(connection).dictionary

    def under(self, dictionary: Dictionary | bytes) -> "Site":
        """This site under another dictionary it accepted: a transfer finishes under the one it was requested with.

        Parameters
        ----------
        dictionary : Dictionary or bytes
            Itself, or its digest.

        Raises
        ------
        RefusedError
            If this site accepted no dictionary of that digest.
        """
        if isinstance(dictionary, bytes):
            if dictionary.hex() == self.dictionary.digest:
                return self
            with self.store.read() as connection:
                dictionary = dictionaries.accepted_dictionary(connection, dictionary)
        return replace(self, only_under=dictionary)

    def refreshed(self) -> "Site":
        """This site as other commands left it since it was opened: its site.toml, the dictionary it accepted."""
        try:
            settings = _load_settings(self.settings.folder, self.store)
        except TableError:
            # Somebody is editing it; the agent goes on with what it has.
            settings = self.settings
        return replace(self, settings=settings)

    @property
    def fingerprint(self) -> str:
        """Of the site's current statement key."""
        return self.statement_key.fingerprint

    @property
    def statement_key(self) -> StatementKey:
        """The current one; a rotation by another process counts at once."""
        identifier = self._current(store.STATEMENT_KEY)
        return self.keys.statement if identifier is None else self.keys.statement_key(identifier)

    @property
    def hpke_key(self) -> HpkeKeyPair:
        """The current one."""
        identifier = self._current(store.HPKE_KEY)
        return self.keys.hpke if identifier is None else self.keys.hpke_key(identifier)

    def _current(self, fact: str) -> bytes | None:
        with self.store.read() as connection:
            identifier = store.get_fact(connection, fact)
        return None if identifier is None else bytes.fromhex(identifier)

    def signing_key(self, payload: "Message") -> StatementKey:
        """The key a statement is signed with: its transfer's, where it is about one, else the current one."""
        from synthedge_client.transfers import own_key_id

        transfer_id: bytes | None = getattr(payload, "transfer_id", None)
        if transfer_id is not None:
            with self.store.read() as connection:
                identifier = own_key_id(connection, transfer_id)
            if identifier is not None:
                return self.keys.statement_key(identifier)
        return self.statement_key

    def grid(self, name: str) -> NamedGrid:
        """One of the dictionary's grids."""
        return NamedGrid(self.dictionary, self.dictionary.grid(name))

    def sign(self, payload: "Message", key: StatementKey | None = None) -> pb.SignedStatement:
        """Sign a statement with the site's own key; see `signing_key` for which."""
        under = STATEMENT_TYPES[type_name(type(payload))].under_dictionary
        return sign(
            key or self.signing_key(payload),
            payload,
            consortium=self.consortium,
            site=self.settings.id,
            dictionary_digest=bytes.fromhex(self.dictionary.digest) if under else b"",
            issued_at_ms=store.now_ms(),
        )

    def connect(self) -> "Connection":
        """Prepare the connection to the coordinator."""
        from synthedge_client.connection import Connection

        return Connection(
            self.address,
            ca=self.keys.ca_file,
            certificate=self.keys.certificate_file,
            key_pem=self.keys.tls.pem(),
        )

    def peer_public_key(self, connection: sa.Connection, peer: str) -> bytes:
        """A peer's pinned statement key.

        Raises
        ------
        UsageError
            If this site has never seen that peer.
        """
        key: bytes | None = connection.execute(
            sa.select(store.peers.c.statement_public_key).where(store.peers.c.site == peer)
        ).scalar_one_or_none()
        if key is None:
            raise UsageError(f"site '{peer}' is not known here; see 'synthedge site peers list'")
        return key

    def require_verified_peer(
        self, connection: sa.Connection, peer: str, *, goes_on: bool = False
    ) -> None:
        """Refuse to deal with a peer whose fingerprint nobody compared.

        Parameters
        ----------
        connection : Connection
        peer : str
        goes_on : bool
            Whether a transfer goes on under the keys it was requested with, so that a new key of the peer does not
            matter.

        Raises
        ------
        RefusedError
            If so.
        """
        from synthedge_client.rotation import require_settled

        self.peer_public_key(connection, peer)
        if not goes_on:
            require_settled(connection, peer)
        verified = connection.execute(
            sa.select(store.peers.c.verified_at_ms).where(store.peers.c.site == peer)
        ).scalar_one()
        if verified is None:
            raise RefusedError(
                f"the key of site '{peer}' was not compared; telephone it, then run "
                f"'synthedge site peers verify {peer} FINGERPRINT'"
            )

    def list_peers(self) -> list[dict[str, Any]]:
        """All known peers with their fingerprints."""
        with self.store.read() as connection:
            rows = connection.execute(sa.select(store.peers).order_by(store.peers.c.site)).all()
        return [
            {
                "site": row.site,
                "fingerprint": fingerprint(row.statement_public_key),
                "verified": row.verified_at_ms is not None,
                "pending": fingerprint(row.pending_public_key) if row.pending_public_key else "",
                "problem": row.problem or row.standing or "",
            }
            for row in rows
        ]

    def verify_peer(self, peer: str, typed: str) -> None:
        """Mark a peer's key as compared; an announced new key becomes the pinned one.

        Raises
        ------
        UsageError
            If what was typed is no fingerprint, or there is no such site.
        RefusedError
            If the fingerprints differ.
        """
        from synthedge_client.rotation import confirm

        with self.store.write() as connection:
            key = self.peer_public_key(connection, peer)
            if not is_fingerprint(typed):
                raise UsageError(
                    f"'{typed[:60]}' is no fingerprint: eight groups of four digits or letters a to f, as "
                    f"'synthedge site fingerprint' shows them at site '{peer}'"
                )
            pending: bytes | None = connection.execute(
                sa.select(store.peers.c.pending_public_key).where(store.peers.c.site == peer)
            ).scalar_one()
            if pending is not None and same_fingerprint(typed, pending):
                key = confirm(connection, peer)
            elif pending is not None:
                raise RefusedError(
                    f"site '{peer}' announced {fingerprint(pending)}, not what was typed; "
                    "read both once more with it by telephone"
                )
            if not same_fingerprint(typed, key):
                raise RefusedError(
                    f"the coordinator shows {fingerprint(key)} for site '{peer}', not what was typed; "
                    "if it was typed right, somebody may be in between: transfer nothing and tell the operator"
                )
            connection.execute(
                store.peers.update()
                .where(store.peers.c.site == peer)
                .values(verified_at_ms=store.now_ms())
            )
            store.record(
                connection, "peer verified", "steward", peer=peer, fingerprint=fingerprint(key)
            )


@contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """Open a site's folder.

    Raises
    ------
    TableError
        If site.toml is missing or wrong.
    IdentityError
        If a key is missing or may be read by others.
    """
    settings = load_settings(folder)
    keys, database = load_keys(settings.keys), store.Store(settings.database)
    site = Site(_load_settings(folder, database), keys, database)
    try:
        yield site
    finally:
        site.store.close()


def _load_settings(folder: Path, database: store.Store) -> SiteSettings:
    with database.read() as connection:
        known = dictionaries.list_known(connection)
    # A column may be described for a dictionary that is no more, or not yet, in force.
    names = frozenset(name for one in known for name in one.dictionary.feature_names)
    return replace(load_settings(folder), known_features=names)


def site_fingerprint(folder: Path) -> str:
    """The fingerprint of a site that need not be enrolled yet."""
    with open_site(folder) as site:
        return site.fingerprint


def create_site(folder: Path, *, id: str, data: Path, patient_id: str, consent: str | Path) -> str:
    """Make a site's folder with keys and site.toml; return the fingerprint.

    Parameters
    ----------
    consent : str or Path
        The table's column of consents, or the file of a consent register.

    Raises
    ------
    UsageError
        If there is a site already, the table is not there, or the folder cannot be made.
    MalformedError
        If the id is not of lower-case letters, digits and hyphens.
    """
    import tomli_w

    check_name("site", id)
    if (folder / SITE_FILE).exists():
        raise UsageError(f"{folder} holds a site already; choose another folder")
    for leftover in (folder / "keys", folder / "site.db"):
        # Keys of a site whose site.toml was lost must never be replaced: nobody could tell it from an impostor.
        if leftover.exists():
            raise UsageError(
                f"{leftover} is there, but no {SITE_FILE}; restore that, or choose another folder"
            )
    table = data if data.is_absolute() else Path.cwd() / data
    if not table.is_file():
        raise UsageError(f"there is no file {data}; name the table of patients with --data")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made: {error.strerror}; choose another folder"
        ) from None
    document = {
        "site": {
            "id": id,
            "data": str(table.resolve()),
            "patient_id": patient_id,
        }
    }
    if isinstance(consent, Path):
        document["consent"] = {"register": str(consent.resolve())}
    else:
        document["site"]["consent"] = consent
    try:
        keys = create_keys(folder / "keys")
        database = store.Store(folder / "site.db")
        with database.write() as connection:
            store.record(connection, "site made", "steward", fingerprint=keys.statement.fingerprint)
        database.close()
        # Last: a folder with a site.toml is a whole site.
        (folder / SITE_FILE).write_text(_HEADER + tomli_w.dumps(document), encoding="utf-8")
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            shutil.rmtree(folder / "keys", ignore_errors=True)
            for database_file in folder.glob("site.db*"):
                database_file.unlink(missing_ok=True)
        raise
    return keys.statement.fingerprint


_HEADER = """\
# How this hospital keeps its table. Add one table per dictionary feature that differs here:
#   [columns.chol]
#   column = "cholesterol"            # own column name
#   unit = "mmol/L"                   # own unit
#   missing = ["0", "?"]              # own codes that mean "not measured"
#   [columns.sex]
#   levels = { "F" = "1", "M" = "2" } # own code = dictionary code
#   [columns.ca]
#   absent = true                     # not recorded here
#   [label]
#   column = "heart_disease"
#   positive = ["yes"]
#   negative = ["no"]
# 'synthedge site doctor' lists every problem at once.

"""
