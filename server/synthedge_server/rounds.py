"""Rounds of discovery: which sites are asked for their published gap report, and what came of each.

Rules
-----
* A round asks, it decides nothing: a site's answer is a statement it signed, the report inside is its steward's, and
  both go through the one intake, whichever engine carried them.
* Asking again is safe: a report that is here already changes nothing but the new round's own row.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.discovery import ROUND_ID_BYTES, Engine, Refusal
from synthedge_protocols.errors import MalformedError, PolicyError, ProtocolError, UnavailableError
from synthedge_protocols.standing import Standing
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import dictionaries, store
from synthedge_server.ledger import Transaction

# A silent site may call again, and a paused one says for itself that it pauses.
ASKED: Final = (Standing.ACTIVE, Standing.PAUSED, Standing.SILENT)
"""How a site stands that may be asked."""
# An agent calls every ten seconds, and `standing.Watch` writes that down once a minute.
_CALLS_WITHIN_MS: Final = 90_000
MAX_TIMEOUT_S: Final = 24 * 3600.0

TakeReport = Callable[[Transaction, str, pb.SignedStatement], None]


class Outcome(StrEnum):
    """What came of one site in one round."""

    WAITING = "waiting"
    OK = "ok"
    REFUSED = "refused"  # by the site, which said why
    REJECTED = "rejected"  # the site answered, and the coordinator cannot take its report
    OFFLINE = "offline"
    TIMED_OUT = "timed out"


ANSWERED: Final = (Outcome.OK, Outcome.REFUSED, Outcome.REJECTED)


def open_round(
    transaction: Transaction, engine: Engine, sites: Iterable[str] | None, timeout_s: float
) -> wire.DiscoveryRound:
    """Open a round under the current dictionary; over the sites' own channel it is in their inboxes then.

    Parameters
    ----------
    transaction : Transaction
    engine : {"channel", "flower"}
    sites : iterable of str, or None
        Whom to ask; None asks every site that takes part.
    timeout_s : float
        How long answers are waited for, at most a day.

    Raises
    ------
    UsageError
        If no site is named or no such site enrolled, or the time is none.
    RefusedError
        If a named site cannot be asked as it stands, or there is nobody to ask.
    """
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise UsageError(f"a round of {timeout_s:g} s; it takes more than 0 and at most a day")
    connection = transaction.connection
    asked = wire.DiscoveryRound(
        round_id=secrets.token_bytes(ROUND_ID_BYTES),
        dictionary_digest=dictionaries.newest(connection).digest,
        opened_at_ms=transaction.now_ms,
        deadline_ms=transaction.now_ms + max(1, int(timeout_s * 1000)),
    )
    names = _whom(connection, sites)
    connection.execute(
        insert(store.rounds).values(
            round_id=asked.round_id,
            engine=engine,
            dictionary_digest=asked.dictionary_digest,
            opened_at_ms=asked.opened_at_ms,
            deadline_ms=asked.deadline_ms,
        )
    )
    connection.execute(
        insert(store.round_answers),
        [
            {
                "round_id": asked.round_id,
                "site": site,
                "outcome": Outcome.WAITING.value,
                "reason": "",
            }
            for site in names
        ],
    )
    if engine == "channel":
        for site in names:
            transaction.post(site, wire.InboxMessage(round=asked))
    transaction.record(
        "operator", "round-opened", asked.round_id.hex(), f"{engine}, {len(names)} sites"
    )
    return asked


def _whom(connection: Connection, sites: Iterable[str] | None) -> list[str]:
    table = store.sites
    rows = connection.execute(select(table.c.site, table.c.state).order_by(table.c.site))
    standings = {row.site: Standing(row.state) for row in rows}
    names = [site for site, standing in standings.items() if standing in ASKED]
    if sites is not None:
        names = list(dict.fromkeys(sites))
        if not names:
            raise UsageError("no site was named; without --sites every site is asked")
        for site in names:
            if site not in standings:
                raise UsageError(f"no site '{site}' is enrolled; see 'synthedge-coordinator sites'")
            if standings[site] not in ASKED:
                raise RefusedError(f"site '{site}' is {standings[site]}; it cannot be asked")
    if not names:
        raise RefusedError(
            "there is no site to ask; invite one with 'synthedge-coordinator invite'"
        )
    return names


def note_answer(
    transaction: Transaction, verified: Verified[pb.DiscoveryAnswer], take_report: TakeReport
) -> None:
    """Write down what a site answered, and take its report in.

    Parameters
    ----------
    transaction : Transaction
    verified : Verified of DiscoveryAnswer
    take_report : callable
        Takes one gap report of one site in; what it refuses becomes the site's outcome.

    Raises
    ------
    PolicyError
        If the site was not asked in that round.
    MalformedError
        If the answer names another dictionary than the round's, or holds not exactly one of report and refusal.
    """
    answer, connection = verified.payload, transaction.connection
    rounds, answers = store.rounds, store.round_answers
    row = connection.execute(
        select(rounds.c.dictionary_digest, answers.c.outcome)
        .join(answers, answers.c.round_id == rounds.c.round_id)
        .where(rounds.c.round_id == answer.round_id, answers.c.site == verified.site)
    ).one_or_none()
    if row is None:
        raise PolicyError(
            f"site '{verified.site}' answers a round {answer.round_id.hex()[:8]} it was not asked in"
        )
    if answer.dictionary_digest != row.dictionary_digest:
        raise MalformedError("the answer to a round names another dictionary than the round")
    if answer.HasField("report") == bool(answer.refusal):
        raise MalformedError("the answer to a round holds a report or a refusal, one of the two")
    outcome, reason = Outcome.REFUSED, _in_words(answer.refusal)
    if answer.HasField("report"):
        outcome, reason = Outcome.OK, ""
        try:
            with connection.begin_nested():
                take_report(transaction, verified.site, answer.report)
        except UnavailableError:
            raise  # says nothing about the report
        except ProtocolError as error:
            outcome, reason = Outcome.REJECTED, str(error)
    if row.outcome != Outcome.OK:  # a report that is here stays
        _set(connection, answer.round_id, verified.site, outcome, reason, transaction.now_ms)


def _in_words(refusal: str) -> str:
    try:
        return Refusal(refusal).in_words
    except ValueError:
        return f"for a reason this coordinator does not know: {refusal[:40]!r}"


def _set(
    connection: Connection,
    round_id: bytes,
    site: str,
    outcome: Outcome,
    reason: str,
    answered_at_ms: int | None,
) -> None:
    table = store.round_answers
    connection.execute(
        update(table)
        .where(table.c.round_id == round_id, table.c.site == site)
        .values(outcome=outcome.value, reason=reason, answered_at_ms=answered_at_ms)
    )


def outcomes(connection: Connection, round_id: bytes) -> list[dict[str, Any]]:
    """What came of every site of a round: ``site``, ``outcome``, ``reason``."""
    table = store.round_answers
    rows = connection.execute(
        select(table.c.site, table.c.outcome, table.c.reason)
        .where(table.c.round_id == round_id)
        .order_by(table.c.site)
    )
    return [dict(row) for row in rows.mappings()]


def close_round(
    transaction: Transaction, round_id: bytes, unreached: Mapping[str, tuple[Outcome, str]]
) -> list[dict[str, Any]]:
    """Say of every site that did not answer whether it is offline or only late; return the outcomes.

    Parameters
    ----------
    transaction : Transaction
    round_id : bytes
    unreached : mapping of str to (Outcome, str)
        What the engine knows of sites whose answer did not come, and its words.
    """
    connection = transaction.connection
    rows = connection.execute(select(store.sites.c.site, store.sites.c.last_seen_ms))
    seen = {row.site: row.last_seen_ms or 0 for row in rows}
    engine = connection.execute(
        select(store.rounds.c.engine).where(store.rounds.c.round_id == round_id)
    ).scalar_one()
    for row in outcomes(connection, round_id):
        if row["outcome"] != Outcome.WAITING:
            continue
        site, outcome, reason = row["site"], Outcome.TIMED_OUT, "no answer in time"
        if site in unreached:
            outcome, reason = unreached[site]
        elif engine == "channel" and seen[site] < transaction.now_ms - _CALLS_WITHIN_MS:
            outcome, reason = Outcome.OFFLINE, "its agent does not call"
        _set(connection, round_id, site, outcome, reason, None)
    found = outcomes(connection, round_id)
    counts = Counter(row["outcome"] for row in found)
    summary = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
    transaction.record("operator", "round-closed", round_id.hex(), summary)
    return found


def n_waiting(connection: Connection, round_id: bytes) -> int:
    """How many sites of a round have not answered."""
    return sum(row["outcome"] == Outcome.WAITING for row in outcomes(connection, round_id))
