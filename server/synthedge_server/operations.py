"""What the operator's commands do to a coordinator's folder while no RPC is involved."""

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import UsageError
from synthedge_protocols.limits import Limits
from synthedge_protocols.names import check_name
from synthedge_protocols.standing import Standing
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.writer import SNAPSHOT, Writer
from synthedge_server import authority, dictionaries, store
from synthedge_server.broker import Broker
from synthedge_server.certificate_files import read_certificate
from synthedge_server.divergence import recover, refuse_if_frozen
from synthedge_server.enrolment import add_token
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import Transaction, system_clock
from synthedge_server.log_heads import create_log_key
from synthedge_server.registries import Registries
from synthedge_server.settings import (
    Address,
    Settings,
    check_database,
    is_host,
    read_settings,
    settings_toml,
)
from synthedge_server.standing import change_standing, standing_of

T = TypeVar("T")


def create_coordinator(
    folder: CoordinatorFolder,
    *,
    name: str,
    dictionary_toml: str,
    listen: Address,
    enrolment_listen: Address,
    hosts: tuple[str, ...] = (),
    database: str | None = None,
    database_password_file: str | None = None,
) -> str:
    """Make a coordinator's folder: settings, authority, database with the dictionary.

    Parameters
    ----------
    folder : CoordinatorFolder
        Must not exist, or be empty.
    name : str
        The consortium's name.
    dictionary_toml : str
        Text of consortium.toml.
    listen, enrolment_listen : Address
    hosts : tuple of str
        Names or addresses that sites reach this coordinator by; none: where it listens.
    database, database_password_file : str, optional
        See `Settings`; the database must be empty.

    Returns
    -------
    str
        The dictionary's digest, hex.

    Raises
    ------
    UsageError
        If the database holds something already, a host is neither a name nor an address, or it listens everywhere and
        nothing says what sites dial; and as `CoordinatorFolder.being_made`.
    UnavailableError
        If the database cannot be reached; and as `CoordinatorFolder.being_made`.
    DictionaryError
        If the dictionary is not valid; nothing was made then.
    MalformedError
        If the name is not one.
    """
    check_name("consortium", name)
    dictionary = parse_dictionary(dictionary_toml)
    if database is not None:
        check_database(database)
    for host in hosts:
        if not is_host(host):
            raise UsageError(f"host {host[:100]!r} is neither a host name nor an IP address")
    names = tuple(dict.fromkeys(hosts or (_reachable(a.host) for a in (listen, enrolment_listen))))
    settings = Settings(
        consortium=name,
        listen=listen,
        enrolment_listen=enrolment_listen,
        names=names,
        database=database,
        database_password_file=database_password_file,
    )
    with folder.being_made():
        # First what may fail because of somebody else.
        engine = store.open_database(folder, settings, make=True)
        authority.create(folder, name, datetime.now(UTC))
        create_log_key(folder)
        _change(engine, lambda t: dictionaries.add(t, dictionary_toml))
        # Last: a folder without settings is not a coordinator's, whatever else an interrupted init left.
        folder.settings.write_text(settings_toml(settings), "utf-8")
    return dictionary.digest


def invite(folder: CoordinatorFolder, site: str, valid_hours: float) -> EnrolmentToken:
    """Make a one-time token for a site.

    Raises
    ------
    UsageError
        If it would be valid for no time at all, or the settings name port 0.
    MalformedError
        If the site id is not one.
    IdentityError
        If the site is enrolled already.
    """
    settings = read_settings(folder.settings)
    if not 0 < valid_hours <= 24 * 365:
        raise UsageError(f"a token cannot be valid for {valid_hours:g} hours; at most a year")
    if 0 in (settings.listen.port, settings.enrolment_listen.port):
        raise UsageError("coordinator.toml listens on port 0; sites need to be told a real one")
    host = settings.names[0]
    return change(
        folder,
        lambda t: _new_token(
            t,
            folder,
            settings.consortium,
            check_name("site", site),
            Address(host=host, port=settings.listen.port),
            Address(host=host, port=settings.enrolment_listen.port),
            valid_hours,
        ),
    )


def set_site_state(folder: CoordinatorFolder, site: str, state: str, reason: str = "") -> int:
    """Suspend, resume or revoke a site, or let it enrol with new keys; return how many of its transfers ended.

    Parameters
    ----------
    folder : CoordinatorFolder
    site : str
    state : str
        ``active``, ``suspended``, ``revoked`` or ``reset``; `standing.CHANGES` tells what each does.
    reason : str
        Goes to every site that shares an open or active transfer with it.

    Raises
    ------
    UsageError
        If there is no such site, or the reason is long.
    RefusedError
        If it was revoked, or left, or is frozen or paused by its own will and to be resumed.
    """
    broker = Broker(Registries(), Limits())

    def apply(transaction: Transaction) -> int:
        if state == Standing.ACTIVE:
            refuse_if_frozen(transaction.connection, site)
        return change_standing(transaction, broker, site, Standing(state), reason)

    return change(folder, apply)


def recover_site(folder: CoordinatorFolder, site: str) -> dict[str, Any]:
    """Let a frozen site in again, once a person knows which database was restored; see `divergence.recover`.

    Raises
    ------
    UsageError
        If there is no such site.
    RefusedError
        If the site is not frozen.
    """
    broker = Broker(Registries(), Limits())

    def apply(transaction: Transaction) -> dict[str, Any]:
        standing_of(transaction.connection, site)
        return recover(transaction, broker, site)

    return change(folder, apply)


def current_dictionary(folder: CoordinatorFolder) -> str:
    """Text of the current dictionary; raises as `reading`."""
    with reading(folder) as engine, engine.connect() as connection:
        return dictionaries.newest(connection).toml


def rows(folder: CoordinatorFolder, query: Any) -> list[dict[str, Any]]:
    """Run one query; raises as `reading`."""
    with reading(folder) as engine, engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


@contextmanager
def reading(folder: CoordinatorFolder) -> Iterator[Engine]:
    """Open the database of a coordinator's folder, beside a running `serve` or without one.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's.
    UnavailableError
        If the database cannot be opened.
    """
    engine = store.open_database(folder, read_settings(folder.settings))
    try:
        # What a command tells is of one moment.
        yield engine.execution_options(**{SNAPSHOT: True})
    finally:
        engine.dispose()


def change(folder: CoordinatorFolder, function: Callable[[Transaction], T]) -> T:
    """Apply one change to the database, beside a running `serve` or without one; raises as `reading`."""
    return _change(store.open_database(folder, read_settings(folder.settings)), function)


def _change(engine: Engine, function: Callable[[Transaction], T]) -> T:
    def apply(connection: Connection) -> T:
        transaction = Transaction(connection, system_clock())
        result = function(transaction)
        transaction.announce()
        return result

    writer = Writer(engine)
    try:
        return writer.submit(apply).result()
    finally:
        writer.close()
        engine.dispose()


def _new_token(
    transaction: Transaction,
    folder: CoordinatorFolder,
    consortium: str,
    site: str,
    address: Address,
    enrolment_address: Address,
    valid_hours: float,
) -> EnrolmentToken:
    from cryptography.hazmat.primitives.serialization import Encoding

    certificate = read_certificate(folder.ca_certificate)
    token = EnrolmentToken(
        consortium=consortium,
        site=site,
        address=str(address),
        enrolment_address=str(enrolment_address),
        ca_certificate=certificate.public_bytes(Encoding.DER),
        secret=secrets.token_bytes(32),
        expires_at_ms=transaction.now_ms + int(valid_hours * 3_600_000),
    )
    add_token(transaction, token)
    return token


def _reachable(host: str) -> str:
    """Name sites can dial: "all interfaces" is no address to put into a certificate."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104
        return host
    name = socket.getfqdn()
    if name.startswith("localhost"):
        raise UsageError(
            f"{host} is every address of this machine, which knows itself only as '{name}'; name with --host what "
            "sites dial"
        )
    return name


def read_dictionary_file(path: Path) -> str:
    """Read the text of a dictionary file.

    Raises
    ------
    UsageError
        If it cannot be read as UTF-8 text.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"dictionary {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"dictionary {path} cannot be read: {error}") from None
