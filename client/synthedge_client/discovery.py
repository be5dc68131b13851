"""The one answer to a round of discovery, whichever engine asks: the report as its steward signed it, or why none.

Rules
-----
* A round publishes nothing: what no steward published is not sent, nothing is drawn and nothing is spent.
* Every round gets the same signed bytes, over either engine, until a steward publishes another release.
* The answer is signed by the site and names the round: the coordinator believes no channel.
* Every answer goes into the outbox: Flower only carries it sooner. Both ends then remember the same statements (see
  `divergence`), and what Flower loses arrives all the same.
"""

import sqlalchemy as sa

from synthedge_client import dictionaries, divergence, outbound, releases, store
from synthedge_client.site import Site
from synthedge_client.standing import own_standing
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.discovery import Engine, Refusal, check_round
from synthedge_protocols.errors import MalformedError
from synthedge_protocols.limits import Limits
from synthedge_protocols.standing import Standing
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb


def answer_round(
    site: Site, asked: wire.DiscoveryRound, engine: Engine, *, refusal: Refusal | None = None
) -> pb.SignedStatement:
    """Answer a round; the answer is queued before anything carries it.

    Parameters
    ----------
    site : Site
    asked : DiscoveryRound
    engine : {"channel", "flower"}
        What carries the round.
    refusal : Refusal, optional
        A reason found before the site was asked; nothing else is looked at then.

    Returns
    -------
    SignedStatement
        Of type "discovery-answer".

    Raises
    ------
    MalformedError
        If what was asked is no round.
    RefusedError
        If the site is frozen (see `divergence`): then nothing is sent, no refusal either.
    """
    check_round(asked)
    divergence.refuse_if_frozen(site)
    found = refusal or _report(site, asked.dictionary_digest, engine)
    answer = outbound.build_answer(asked, found)
    signed = site.sign(answer)
    with site.store.write() as connection:
        store.record(
            connection,
            "round answered",
            "agent",
            round=asked.round_id.hex(),
            engine=engine,
            said=answer.refusal or "report",
        )
        outbound.enqueue(connection, "discovery-answer", signed, "agent")
    return signed


def is_over(asked: wire.DiscoveryRound, now_ms: int) -> bool:
    """Whether nobody waits for an answer any more, be it because what was asked is no round."""
    try:
        check_round(asked)
    except MalformedError:
        return True
    return now_ms > asked.deadline_ms + int(Limits().clock_skew_s * 1000)


def _report(site: Site, dictionary_digest: bytes, engine: Engine) -> pb.SignedStatement | Refusal:
    settings = site.settings.discovery
    if engine not in settings.engines:
        return Refusal.ENGINE
    with site.store.read() as connection:
        found = _published(connection, dictionary_digest)
    if isinstance(found, Refusal) or settings.send_stale:
        return found
    try:
        state = releases.report_state(site)["state"]
    except SynthEdgeError:
        return Refusal.UNREADABLE
    return found if state == "current" else Refusal.STALE


def _published(connection: sa.Connection, dictionary_digest: bytes) -> pb.SignedStatement | Refusal:
    if own_standing(connection) is not Standing.ACTIVE:
        return Refusal.PAUSED
    if releases.is_frozen(connection):
        return Refusal.FROZEN
    known = dictionaries.in_force(connection)
    if not known.is_accepted or bytes.fromhex(known.dictionary.digest) != dictionary_digest:
        return Refusal.DICTIONARY
    return releases.latest_statement(connection, known.dictionary.digest) or Refusal.NOTHING
