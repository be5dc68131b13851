"""The release ledger against what the coordinator received: a site restored from an old backup must not spend again.

Rules
-----
* Before a gap report is sent, and once for each run of the agent, the site asks which releases the coordinator has.
* A release that the ledger does not know as published freezes publishing, and holds back reports that wait: their
  budget was counted without it.
* Only a steward takes such releases into the ledger. What the coordinator says is counted as spent, nothing else is
  believed of it: a coordinator that lies can cost a site its budget, never its data.
"""

import json
import logging
from typing import Any

import sqlalchemy as sa

from synthedge_client import outbound, store
from synthedge_client.connection import Connection
from synthedge_client.releases import FROZEN, budget, is_frozen
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_core.errors import RefusedError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

log = logging.getLogger(__name__)

# The coordinator's list at the time, for the steward to take in.
_MISSING = "ledger_missing"
_KNOWN_MODES = ("dp", "threshold")


def compare(site: Site, connection: Connection) -> None:
    """Ask the coordinator, and freeze the ledger if it lacks a release.

    Raises
    ------
    UnavailableError, DeadlineError, IdentityError
        If the coordinator cannot be asked.
    """
    digest = site.dictionary.digest
    received = connection.releases(bytes.fromhex(digest)).releases
    with site.store.write() as transaction:
        table = store.releases
        published = {
            row.release_id: row.report
            for row in transaction.execute(
                sa.select(table.c.release_id, table.c.report).where(
                    (table.c.dictionary_digest == digest) & table.c.spent_at_ms.is_not(None)
                )
            )
        }
        missing = [release for release in received if release.release_id not in published]
        changed = [
            release
            for release in received
            if published.get(release.release_id)
            and outbound.sha256(published[release.release_id]) != release.report_digest
        ]
        if changed:
            problem = (
                f"the coordinator holds release {changed[0].release_id.hex()[:8]} with other content than this site "
                "published; ask the operator, nothing is published until it agrees"
            )
        elif missing:
            problem = (
                f"the coordinator has received {len(missing)} release(s) of this site that its ledger does not know: "
                "the database was restored from an older backup; a steward must run 'synthedge site gaps repair' "
                "before anything is published"
            )
        else:
            _thaw(transaction)
            return
        if store.get_fact(transaction, FROZEN) != problem:
            log.error("%s", problem)
            store.record(transaction, "ledger frozen", "agent", releases=len(missing or changed))
        store.set_fact(transaction, FROZEN, problem)
        store.set_fact(
            transaction,
            _MISSING,
            json.dumps(
                {
                    "dictionary": digest,
                    "releases": [_plain(r) for r in missing],
                    "received": [r.release_id.hex() for r in received],
                }
            ),
        )


def has_waiting_report(site: Site) -> bool:
    """Whether a gap report waits in the outbox."""
    outbox = store.outbox
    with site.store.read() as transaction:
        found = transaction.execute(
            sa.select(outbox.c.id)
            .where(
                (outbox.c.kind == "gap-report")
                & outbox.c.sent_at_ms.is_(None)
                & outbox.c.refusal.is_(None)
            )
            .limit(1)
        ).first()
        return found is not None and not is_frozen(transaction)


def repair(site: Site, steward: Steward) -> dict[str, Any]:
    """Count the releases that only the coordinator remembers as spent, and let the site publish again.

    Returns
    -------
    dict
        ``taken_in``, and ``spent``, ``left``, ``total`` as of `releases.budget`.

    Raises
    ------
    RefusedError
        If the ledger lacks nothing, or disagrees with the coordinator in content.
    """
    with site.store.write() as transaction:
        fact = store.get_fact(transaction, _MISSING)
        noted: dict[str, Any] = {"releases": []} if fact is None else json.loads(fact)
        missing = noted["releases"]
        if not missing:
            raise RefusedError(
                store.get_fact(transaction, FROZEN)
                or "the ledger lacks no release the coordinator has; there is nothing to repair"
            )
        _take_back_held(transaction, set(noted["received"]))
        for release in missing:
            _take_in(transaction, noted["dictionary"], release)
        _thaw(transaction)
        store.record(transaction, "ledger repaired", steward.label, releases=len(missing))
    state = budget(site)
    return {"taken_in": len(missing)} | {key: state[key] for key in ("spent", "left", "total")}


def _take_back_held(transaction: sa.Connection, received: set[str]) -> None:
    """Undo what was signed and never left: it was not held against the releases that are now taken in."""
    outbox, table = store.outbox, store.releases
    is_held = (
        (outbox.c.kind == "gap-report") & outbox.c.sent_at_ms.is_(None) & outbox.c.refusal.is_(None)
    )
    for row in transaction.execute(sa.select(outbox).where(is_held)).all():
        signed = pb.SignedStatement.FromString(row.statement)
        report = pb.GapReport.FromString(pb.Statement.FromString(signed.statement).payload)
        if report.release_id.hex() in received:
            continue
        transaction.execute(
            outbox.update()
            .where(outbox.c.id == row.id)
            .values(refusal="signed before the release ledger was repaired; publish again")
        )
        transaction.execute(
            table.update()
            .where(table.c.release_id == report.release_id)
            .values(statement=None, spent_at_ms=None, published_at_ms=None)
        )


def _take_in(transaction: sa.Connection, digest: str, release: dict[str, Any]) -> None:
    table = store.releases
    identifier = bytes.fromhex(release["release_id"])
    # Drawn here, then published by the database that was lost: the bytes are here, and now count as spent.
    drawn = transaction.execute(
        table.update()
        .where((table.c.release_id == identifier) & (table.c.spent_at_ms.is_(None)))
        .values(spent_at_ms=release["received_at_ms"], published_at_ms=release["received_at_ms"])
    )
    if drawn.rowcount:
        return
    transaction.execute(
        table.insert().values(
            release_id=identifier,
            dictionary_digest=digest,
            disclosure=release["disclosure"],
            epsilon=release["epsilon"],
            min_count=release["min_count"],
            created_at_ms=release["received_at_ms"],
            spent_at_ms=release["received_at_ms"],
            published_at_ms=release["received_at_ms"],
        )
    )


def _thaw(transaction: sa.Connection) -> None:
    store.delete_fact(transaction, FROZEN)
    store.delete_fact(transaction, _MISSING)


def _plain(release: wire.Release) -> dict[str, Any]:
    return {
        "release_id": release.release_id.hex(),
        "disclosure": release.disclosure if release.disclosure in _KNOWN_MODES else "unknown",
        "epsilon": max(0.0, release.epsilon),
        "min_count": release.min_count,
        "received_at_ms": release.received_at_ms,
    }
