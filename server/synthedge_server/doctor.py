"""What is wrong with a coordinator, all of it at once, and what to do next."""

import shutil
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, select

from synthedge_protocols.errors import UnavailableError, VerificationError
from synthedge_protocols.standing import Standing
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.certificate_files import read_certificate
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import system_clock
from synthedge_server.operations import reading
from synthedge_server.overview import list_sites, list_transfers, list_withdrawals, when
from synthedge_server.relay import spooled
from synthedge_server.transfer_records import spool_keys
from synthedge_server.withdrawals import past_retention

_LOW_DISK_BYTES: Final = 1_000_000_000
_EXPIRES_SOON: Final = timedelta(days=7)
_CA_EXPIRES_SOON: Final = timedelta(days=180)
_KEY_EXPIRES_SOON_MS: Final = 30 * 86_400_000
_MEMBERS: Final = (Standing.ACTIVE, Standing.PAUSED, Standing.SILENT)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    subject : str
        A file, a site or a transfer.
    what : str
        What was found.
    next_step : str
    """

    subject: str
    what: str
    next_step: str


def examine(folder: CoordinatorFolder) -> list[Problem]:
    """Look at everything that can be looked at beside a running `serve` or without one.

    Raises
    ------
    UsageError
        If the folder is not a coordinator's.
    UnavailableError
        If the database cannot be opened.
    """
    with reading(folder) as engine, engine.connect() as connection:
        return [
            *_process(folder),
            *_certificates(folder),
            *_keys(connection, system_clock()),
            *_secrets(folder),
            *_disk(folder),
            *_spool(folder, engine),
            *_database(connection),
            *_people(connection),
        ]


def _process(folder: CoordinatorFolder) -> list[Problem]:
    # Here: a running coordinator warns of what runs out, and need not know how to call one.
    from synthedge_server.ping import ping

    try:
        ping(folder)
    except UnavailableError as error:
        return [
            Problem("serve", str(error), "start 'synthedge-coordinator serve'; its log says why")
        ]
    return []


def _certificates(folder: CoordinatorFolder) -> list[Problem]:
    found = []
    for path, soon, step in (
        (
            folder.ca_certificate,
            _CA_EXPIRES_SOON,
            "plan a new consortium authority: every site must enrol anew",
        ),
        (folder.tls_certificate, _EXPIRES_SOON, "run 'serve': it renews at half of its life"),
    ):
        if not path.exists():
            if path == folder.ca_certificate:
                found.append(Problem(path.name, "is missing", "restore it from a backup"))
            continue
        try:
            left = read_certificate(path).not_valid_after_utc - datetime.now(UTC)
        except UnavailableError as error:
            found.append(Problem(path.name, *str(error).split("; ")))
            continue
        if left < soon:
            ago = left < timedelta(0)
            text = "expired" if ago else f"runs out in {left.days} days"
            found.append(Problem(path.name, text, step))
    if not folder.ca_key.exists():
        found.append(
            Problem(
                "ca/ca.key",
                "is not on this machine: nobody can enrol or renew",
                "put the folder ca/ back before certificates reach half of their 30 days",
            )
        )
    return found


def running_out(folder: CoordinatorFolder, connection: Connection) -> list[Problem]:
    """Say what runs out, is overdue or waits for somebody: what a running coordinator warns of once a day."""
    return [*_certificates(folder), *_keys(connection, system_clock()), *_people(connection)]


def hpke_keys(connection: Connection) -> dict[str, int]:
    """When each member's sealing key runs out: site to Unix time in milliseconds."""
    sites, keys = store.sites.c, store.keys.c
    rows = connection.execute(
        select(sites.site, keys.statement)
        .join(store.keys, keys.key_id == sites.hpke_key_id)
        .where(sites.state.in_(_MEMBERS))
    )
    return {row.site: _not_after_ms(row.statement) for row in rows}


@lru_cache(maxsize=10_000)
def _not_after_ms(statement: bytes) -> int:
    signed = pb.SignedStatement.FromString(statement)
    payload = pb.Statement.FromString(signed.statement).payload
    return int(pb.HpkeKey.FromString(payload).not_after_ms)


def _keys(connection: Connection, now_ms: int) -> list[Problem]:
    return [
        Problem(
            f"site {site}",
            f"its sealing key runs out on {when(at_ms)}: nothing can be sealed to it after that",
            "telephone its data manager: 'synthedge site keys rotate'",
        )
        for site, at_ms in sorted(hpke_keys(connection).items())
        if at_ms - now_ms < _KEY_EXPIRES_SOON_MS
    ]


def _secrets(folder: CoordinatorFolder) -> list[Problem]:
    def is_open(path: Path) -> bool:
        return path.exists() and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))

    secret = (
        folder.ca_key,
        folder.ca_passphrase,
        folder.tls_key,
        folder.tls_passphrase,
        folder.log_key,
        folder.log_passphrase,
        folder.database,
    )
    return [
        *(
            Problem(
                str(path.relative_to(folder.path)), "may be read by others", f"chmod 600 {path}"
            )
            for path in secret
            if is_open(path)
        ),
        *(
            Problem(path.name, "is missing: 'serve' does not start", "restore it from a backup")
            for path in secret
            if path.parent == folder.path and path != folder.database and not path.exists()
        ),
    ]


def _spool(folder: CoordinatorFolder, engine: Engine) -> list[Problem]:
    with engine.connect() as connection:
        missing = spool_keys(connection, complete=True)
    missing -= spooled(folder.spool) if folder.spool.exists() else set()
    if missing:
        # Those that were handed over while the folder was read are on no record any more.
        with engine.connect() as connection:
            missing &= spool_keys(connection, complete=True)
    return [
        Problem(
            f"spool/{key.hex()[:12]}",
            "the sealed bytes of a transfer are missing",
            "restore them from a backup, or let the recipient 'synthedge site requests cancel' it",
        )
        for key in sorted(missing)
    ]


def _disk(folder: CoordinatorFolder) -> list[Problem]:
    free = shutil.disk_usage(folder.path).free
    if free >= _LOW_DISK_BYTES:
        return []
    text = f"{free // 1_000_000} MB are free on its disk"
    return [Problem(str(folder.path), text, "make room: uploads and every change need it")]


def _database(connection: Connection) -> list[Problem]:
    found = []
    if connection.dialect.name == "sqlite":
        answer = connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()
        if answer != "ok":
            found.append(Problem("coordinator.db", "is damaged", "stop 'serve', restore a backup"))
    else:
        from synthedge_server.postgres import is_in_the_open

        if is_in_the_open(connection):
            found.append(
                Problem(
                    "the database's connection",
                    "goes over a network, and does not check whom it speaks to",
                    "add ?sslmode=verify-full&sslrootcert=FILE to 'database' in coordinator.toml",
                )
            )
    try:
        store.event_log.verify(connection)
    except VerificationError as error:
        found.append(
            Problem("audit log", str(error), "keep the folder as it is; compare with a backup")
        )
    # A site holds a head this log does not have: recorded when the site handed it in.
    table = store.events
    refused = connection.execute(
        select(table.c.actor, table.c.detail)
        .where(table.c.action == "statement-refused", table.c.detail.like("%log never had%"))
        .order_by(table.c.id.desc())
        .limit(1)
    ).one_or_none()
    if refused is not None:
        found.append(
            Problem(
                f"site {refused.actor}",
                refused.detail,
                "find out which backup was restored; the sites hold the newer heads",
            )
        )
    return found


def _people(connection: Connection) -> list[Problem]:
    now_ms = system_clock()
    return [
        *(
            Problem(f"site {row.site}", row.problem, row.next_step)
            for row in list_sites(connection, now_ms)
            if row.problem
        ),
        *(
            Problem(f"transfer {row.transfer_id[:12]}", row.problem, f"remind {row.waits_for}")
            for row in list_transfers(connection, now_ms)
            if row.problem
        ),
        *(
            Problem(
                f"withdrawal {row.notice_id[:12]}",
                f"overdue since {row.due}",
                f"telephone '{row.recipient}': withdrawn rows are still there",
            )
            for row in list_withdrawals(connection, now_ms)
            if row.is_overdue
        ),
        *(
            Problem(
                f"transfer {row.transfer_id.hex()[:12]}",
                f"'{row.recipient}' keeps its rows longer than agreed",
                f"telephone '{row.recipient}': its agent purges them when it runs",
            )
            for row in past_retention(connection, now_ms)
        ),
    ]
