"""This site's audit log: verified in place, exported as a file, and that file verified anywhere."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.audit_files import write_whole
from synthedge_client.log_heads import alarms
from synthedge_client.site import Site
from synthedge_core.errors import UsageError
from synthedge_protocols.checkpoints import SignedCheckpoint, site_origin
from synthedge_protocols.errors import VerificationError
from synthedge_protocols.event_log import Entry
from synthedge_protocols.log_export import export_lines, verify_export
from synthedge_protocols.v1 import statements_pb2 as pb


def verify_log(site: Site) -> dict[str, Any]:
    """Recompute the log from its entries and compare it with every head this site ever gave away.

    Raises
    ------
    VerificationError
        If an entry was changed, removed or put in, or the log was cut back behind a head that others hold; or if the
        coordinator's log was found to have two histories.
    """
    name = site_origin(site.consortium, site.settings.id)
    with site.store.read() as connection:
        frontier = store.event_log.verify(connection)
        given = _heads_given(connection)
        for head in given:
            if head.size > frontier.size:
                raise VerificationError(
                    f"the audit log has {frontier.size} entries, but this site signed a head over {head.size} "
                    "that others hold: the database was restored from an older copy"
                )
            if store.event_log.head(connection, name, head.size).root != head.root:
                raise VerificationError(
                    f"the first {head.size} entries of the audit log are not those whose head this site signed "
                    "before: the log was rewritten"
                )
        raised = alarms(connection)
    if raised:
        raise VerificationError(
            f"this site's own log is whole, the coordinator's is not: {raised[0]['what']}; "
            "keep the site's folder as it is and tell the other sites"
        )
    return {
        "log": name,
        "entries": frontier.size,
        "root": frontier.root.hex(),
        "heads_given": len(given),
        "fingerprint": site.fingerprint,
    }


def export_log(
    site: Site, output: Path, since: datetime | None, until: datetime | None
) -> dict[str, Any]:
    """Write the log as one file that verifies offline; what lies outside the period is there as commitments.

    Raises
    ------
    UsageError
        If the file exists, or cannot be written.
    VerificationError
        As `verify_log`, of this site's own log: nothing is exported that would not verify.
    """
    if output.exists():
        raise UsageError(f"{output} exists already; name a new file")
    name = site_origin(site.consortium, site.settings.id)
    with site.store.write() as connection:
        store.record(connection, "audit log exported", "steward", file=output.name)
    with site.store.read() as connection:
        frontier = store.event_log.verify(connection)
        signed = store.event_log.head(connection, name, frontier.size).sign(site.keys.statement)
        shown = [
            (entry, _lies_within(entry, since, until))
            for entry in store.event_log.entries(connection)
        ]
    write_whole(output, export_lines(shown, signed, site.keys.statement.public_bytes))
    return {
        "file": str(output),
        "entries": len(shown),
        "shown": sum(is_shown for _, is_shown in shown),
        "fingerprint": site.fingerprint,
    }


def verify_file(path: Path) -> dict[str, Any]:
    """Verify an exported log; needs neither keys nor network nor a site.

    Raises
    ------
    UsageError
        If there is no such file.
    MalformedError
        If it is no exported audit log.
    VerificationError
        If anything in it was changed; the message names the wrong entry where there is one.
    """
    try:
        with path.open("rb") as file:
            verified = verify_export(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return {
        "log": verified.head.origin,
        "entries": verified.head.size,
        "shown": verified.n_shown,
        "root": verified.head.root.hex(),
        "fingerprint": verified.fingerprint,
    }


def parse_day(text: str | None, *, end: bool = False) -> datetime | None:
    """Read a date or a time in ISO 8601, in UTC where it names no zone; a bare date ends with its day.

    Raises
    ------
    UsageError
        If it is none.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"'{text}' is no date; write it as 2026-01-31 or 2026-01-31T12:00"
        ) from None
    if end and len(text) == len("2026-01-31"):
        moment = moment.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _lies_within(entry: Entry, since: datetime | None, until: datetime | None) -> bool:
    at = datetime.fromtimestamp(entry.at_ms / 1000, UTC)
    return (since is None or at >= since) and (until is None or at <= until)


def _heads_given(connection: sa.Connection) -> list[Any]:
    blobs = connection.execute(
        sa.select(store.outbox.c.statement).where(store.outbox.c.kind == "witnessed-head")
    ).scalars()
    heads = []
    for blob in blobs:
        signed = pb.SignedStatement.FromString(blob)
        payload = pb.Statement.FromString(signed.statement).payload
        own = pb.WitnessedHead.FromString(payload).own_head
        heads.append(SignedCheckpoint.parse(own).checkpoint)
    return heads
