"""`coordinator.toml`: read once, checked as a whole, passed down."""

import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from synthedge_core.errors import UsageError
from synthedge_core.toml_reader import TableReader
from synthedge_protocols.errors import MalformedError
from synthedge_protocols.names import check_name

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a port listens; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


FLOWER_LISTEN: Final = Address(host="127.0.0.1", port=9092)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the operator decides about one coordinator.

    Attributes
    ----------
    consortium : str
        The consortium's name, one DNS label; part of every certificate and signature.
    listen : Address
        The port of enrolled sites (client certificates required).
    enrolment_listen : Address
        The port of sites that have a token and no certificate yet.
    names : tuple of str
        Host names and IP addresses that sites reach this coordinator by; they stand in its TLS certificate.
        The first one is what an enrolment token tells a site to connect to.
    database : str, optional
        URL of a PostgreSQL database, without a password; else SQLite in the folder.
    database_password_file : str, optional
        File with the password of the database's user; a relative path starts at the folder.
    flower_listen : Address
        Where Flower's SuperLink listens, on loopback: its control interface has no login.
    metrics_listen : Address, optional
        Where metrics and probes are answered, on loopback: they have no login.
    reflection : bool
        Whether callers may list services and messages by gRPC reflection.
    """

    consortium: str
    listen: Address
    enrolment_listen: Address
    names: tuple[str, ...]
    database: str | None = None
    database_password_file: str | None = None
    flower_listen: Address = FLOWER_LISTEN
    metrics_listen: Address | None = None
    reflection: bool = False


def parse_address(text: str) -> Address:
    """Read ``host:port``.

    Raises
    ------
    UsageError
        If the host is neither a name nor an IP address, or the port is not in [0, 65535].
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not is_host(host) or not re.fullmatch(r"\d{1,5}", port):
        raise UsageError(f"address {text[:100]!r} is not host:port, e.g. 127.0.0.1:7443")
    if int(port) > 65535:
        raise UsageError(f"address {text!r}: port {port} is above 65535")
    return Address(host=host, port=int(port))


def is_host(text: str) -> bool:
    """Tell whether a text is an IP address or could be a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None
    return True


def check_database(url: str) -> None:
    """Check the URL of a database.

    Raises
    ------
    UsageError
        If it is not one of PostgreSQL, or holds a password; the message repeats none of it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # looks only now whether it is a number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("postgresql", "postgresql+psycopg") or not parts.path.strip("/"):
        raise UsageError(
            "the database is named as postgresql://USER@HOST:PORT/NAME; one on several hosts as "
            "postgresql://USER@/NAME?host=HOST,HOST&port=PORT,PORT"
        )
    if parts.password is not None or "password" in parts.query:
        raise UsageError(
            "the database's URL holds a password; give it by PGPASSFILE, PGPASSWORD or database_password_file"
        )


def parse_settings(text: str) -> Settings:
    """Check the text of `coordinator.toml`.

    Raises
    ------
    UsageError
        Naming every problem of the file at once, unknown keys included.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"coordinator.toml is not TOML: {error}") from None
    problems: list[str] = []
    reader = TableReader(table, "coordinator.toml", problems)
    consortium = reader.text("consortium", required=True) or ""
    if consortium:
        try:
            check_name("consortium", consortium)
        except MalformedError as error:
            problems.append(f"coordinator.toml: {error}")
    addresses = []
    for key in ("listen", "enrolment_listen"):
        try:
            addresses.append(parse_address(reader.text(key, required=True) or "0.0.0.0:0"))
        except UsageError as error:
            problems.append(f"coordinator.toml: {key}: {error}")
    names = reader.texts("names", required=True)
    if not all(is_host(name) for name in names):
        reader.note("names", "must be host names or IP addresses")
    database = reader.text("database")
    if database is not None:
        try:
            check_database(database)
        except UsageError as error:
            problems.append(f"coordinator.toml: {error}")
    flower_listen = FLOWER_LISTEN
    password_file = reader.text("database_password_file")
    if password_file is not None and database is None:
        reader.note("database_password_file", "is for a database named by 'database'")
    flower = reader.text("flower_listen")
    if flower is not None:
        try:
            flower_listen = on_loopback(
                parse_address(flower),
                "where alone Flower's control interface may listen; sites reach the SuperLink through the proxy",
            )
        except UsageError as error:
            problems.append(f"coordinator.toml: flower_listen: {error}")
    metrics_listen = None
    metrics = reader.text("metrics_listen")
    if metrics is not None:
        try:
            metrics_listen = parse_metrics_address(metrics)
        except UsageError as error:
            problems.append(f"coordinator.toml: metrics_listen: {error}")
    reflection = reader.boolean("reflection")
    reader.finish()
    if problems:
        raise UsageError("; ".join(problems))
    listen, enrolment_listen = addresses
    return Settings(
        consortium=consortium,
        listen=listen,
        enrolment_listen=enrolment_listen,
        names=names,
        database=database,
        database_password_file=password_file,
        flower_listen=flower_listen,
        metrics_listen=metrics_listen,
        reflection=reflection,
    )


def parse_metrics_address(text: str) -> Address:
    """Read where metrics are answered; raises UsageError as `parse_address`, and unless it is on loopback."""
    return on_loopback(
        parse_address(text),
        "where alone metrics and probes are answered, for they have no login; name e.g. 127.0.0.1:9464, and "
        "let an agent of this machine pass them on",
    )


def on_loopback(address: Address, what: str) -> Address:
    """Return an address that only this machine reaches.

    Raises
    ------
    UsageError
        If others may reach it; `what` says what listens there and why alone.
    """
    try:
        is_loopback = ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        is_loopback = address.host == "localhost"
    if not is_loopback:
        raise UsageError(f"{address} is not on loopback, {what}")
    return address


def read_settings(path: Path) -> Settings:
    """Read and check a settings file.

    Raises
    ------
    UsageError
        If there is no such file, or `parse_settings` refuses it.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent} is not a coordinator's folder (no {path.name}); "
            "run 'synthedge-coordinator init', or name the folder with --dir"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return parse_settings(text)


def settings_toml(settings: Settings) -> str:
    """Write the file that `parse_settings` reads back to the same settings."""
    import tomli_w

    optional = {
        "database": settings.database,
        "database_password_file": settings.database_password_file,
        "flower_listen": str(settings.flower_listen)
        if settings.flower_listen != FLOWER_LISTEN
        else None,
        "metrics_listen": None if settings.metrics_listen is None else str(settings.metrics_listen),
        "reflection": settings.reflection or None,
    }
    return tomli_w.dumps(
        {
            "consortium": settings.consortium,
            "listen": str(settings.listen),
            "enrolment_listen": str(settings.enrolment_listen),
            "names": list(settings.names),
            **{key: value for key, value in optional.items() if value is not None},
        }
    )
