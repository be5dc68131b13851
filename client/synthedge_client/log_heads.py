"""Heads of the coordinator's audit log: kept, countersigned, and compared with what other sites were shown.

Rules
-----
* Every head must extend the one before it: the coordinator's history can grow, not change.
* A head that another site countersigned must lie on the same history. A coordinator that tells two sites two
  histories is caught by the first statement of one that reaches the other.
* What was caught is kept with both heads, signed by the coordinator itself, and shown until a person has looked.
"""

import json
import logging

import sqlalchemy as sa

from synthedge_client import outbound, store
from synthedge_client.connection import Connection
from synthedge_client.site import Site
from synthedge_protocols.checkpoints import (
    Checkpoint,
    SignedCheckpoint,
    coordinator_origin,
    site_origin,
)
from synthedge_protocols.errors import (
    DeadlineError,
    IdentityError,
    ProtocolError,
    UnavailableError,
    VerificationError,
)
from synthedge_protocols.merkle import EMPTY_FRONTIER, verify_consistency
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import statements_pb2 as pb

log = logging.getLogger(__name__)

LOG_KEY_FACT = "log key"  # raw Ed25519, hex, as enrolment told it
ALARM_FACT = "log alarm"  # JSON of `Alarm`s raised so far; empty is no alarm
# How often a site countersigns: its statement makes the log grow, which must not call for the next one.
WITNESS_EVERY_MS = 3_600_000


def exchange_heads(site: Site, connection: Connection) -> None:
    """Fetch the newest head, check it, countersign it if it is time, and compare what other sites were shown.

    Raises
    ------
    UnavailableError, DeadlineError, IdentityError
        If the coordinator is not reached, is too slow, or does not accept this site.
    """
    known = _newest(site)
    note = ""
    try:
        answer = connection.log_head(old_size=known.size)
        note = answer.note
        signed = SignedCheckpoint.parse(note)
        head = signed.verify(_log_key(site), coordinator_origin(site.consortium))
        verify_consistency(known.size, known.root, head.size, head.root, list(answer.consistency))
    except (UnavailableError, DeadlineError, IdentityError):
        raise
    except ProtocolError as error:
        with site.store.write() as transaction:
            _raise_alarm(transaction, f"the coordinator's own newest head: {error}", note)
        return
    with site.store.write() as transaction:
        if head.size > known.size:
            transaction.execute(
                store.coordinator_heads.insert().values(
                    size=head.size, note=signed.note, seen_at_ms=store.now_ms()
                )
            )
        _witness_if_due(site, transaction, signed)
    _compare_waiting(site, connection)


def keep_peer_head(
    site: Site, transaction: sa.Connection, verified: Verified[pb.WitnessedHead]
) -> None:
    """Keep what another site was shown, to be compared as soon as the coordinator can be asked for a proof.

    Raises
    ------
    VerificationError, MalformedError
        If the coordinator never signed it, or the other site did not countersign it.
    """
    peer, payload = verified.site, verified.payload
    public_key = site.peer_public_key(transaction, peer)
    seen = SignedCheckpoint.parse(payload.coordinator_head)
    head = seen.verify(_log_key(site), coordinator_origin(site.consortium))
    name = site_origin(site.consortium, peer)
    seen.verify_cosignature(public_key, name)
    own = SignedCheckpoint.parse(payload.own_head)
    own.verify(public_key, name)
    table = store.peer_heads
    transaction.execute(table.delete().where(table.c.site == peer))
    transaction.execute(
        table.insert().values(
            site=peer,
            coordinator_size=head.size,
            coordinator_note=seen.note,
            own_note=own.note,
            seen_at_ms=store.now_ms(),
            is_compared=False,
        )
    )


def alarms(transaction: sa.Connection) -> list[dict[str, str]]:
    """What was caught and no person has looked at yet; each with ``at``, ``what`` and the signed ``note``."""
    found: list[dict[str, str]] = json.loads(store.get_fact(transaction, ALARM_FACT) or "[]")
    return found


def clear_alarms(transaction: sa.Connection, who: str) -> None:
    """Note that a person looked; the events stay on record."""
    store.delete_fact(transaction, ALARM_FACT)
    store.record(transaction, "log alarm looked at", who)


def _newest(site: Site) -> Checkpoint:
    table = store.coordinator_heads
    with site.store.read() as transaction:
        note = transaction.execute(
            sa.select(table.c.note).order_by(table.c.size.desc()).limit(1)
        ).scalar_one_or_none()
    if note is None:
        return Checkpoint(coordinator_origin(site.consortium), 0, EMPTY_FRONTIER.root)
    return SignedCheckpoint.parse(note).checkpoint


def _witness_if_due(site: Site, transaction: sa.Connection, signed: SignedCheckpoint) -> None:
    now_ms = store.now_ms()
    last_ms = transaction.execute(
        sa.select(sa.func.max(store.events.c.at_ms)).where(
            store.events.c.what == "coordinator log witnessed"
        )
    ).scalar()
    # A clock that was set back must not silence the witness until it has caught up.
    if last_ms is not None and 0 <= now_ms - last_ms < WITNESS_EVERY_MS:
        return
    store.record(
        transaction,
        "coordinator log witnessed",
        "agent",
        size=signed.checkpoint.size,
        root=signed.checkpoint.root.hex(),
    )
    name = site_origin(site.consortium, site.settings.id)
    key = site.keys.statement
    witnessed = pb.WitnessedHead(
        coordinator_head=signed.cosign(key, name, now_ms // 1000).note,
        own_head=store.event_log.head(transaction, name).sign(key).note,
    )
    outbound.enqueue(transaction, "witnessed-head", site.sign(witnessed), "agent")


def _compare_waiting(site: Site, connection: Connection) -> None:
    table = store.peer_heads
    with site.store.read() as transaction:
        waiting = transaction.execute(sa.select(table).where(~table.c.is_compared)).all()
    mine = _newest(site)
    for row in waiting:
        theirs = SignedCheckpoint.parse(row.coordinator_note).checkpoint
        try:
            _require_one_history(connection, *sorted((mine, theirs), key=lambda head: head.size))
            problem = None
        except (UnavailableError, DeadlineError, IdentityError):
            raise
        except ProtocolError as error:
            problem = (
                f"site '{row.site}' was shown another history of the coordinator's log: {error}"
            )
        with site.store.write() as transaction:
            transaction.execute(
                table.update()
                .where(table.c.site == row.site, table.c.coordinator_note == row.coordinator_note)
                .values(is_compared=True)
            )
            if problem is not None:
                _raise_alarm(transaction, problem, row.coordinator_note)


def _require_one_history(connection: Connection, old: Checkpoint, new: Checkpoint) -> None:
    proof: list[bytes] = []
    if 0 < old.size < new.size:
        answer = connection.log_head(old_size=old.size, size=new.size)
        proof = list(answer.consistency)
    verify_consistency(old.size, old.root, new.size, new.root, proof)


def _raise_alarm(transaction: sa.Connection, what: str, note: str) -> None:
    raised = alarms(transaction)
    if any(alarm["what"] == what for alarm in raised):
        return
    log.error("%s", what)
    store.record(transaction, "coordinator log diverged", "agent", reason=what, note=note)
    raised.append({"at_ms": str(store.now_ms()), "what": what, "note": note})
    store.set_fact(transaction, ALARM_FACT, json.dumps(raised))


def _log_key(site: Site) -> bytes:
    with site.store.read() as transaction:
        text = store.require_fact(transaction, LOG_KEY_FACT)
    key = bytes.fromhex(text)
    if len(key) != 32:
        raise VerificationError("the coordinator's log key in this site's records is no key")
    return key
