"""The dictionaries a site knows: the one it works under, older ones its transfers finish under, a new one that waits.

Rules
-----
* A site works under the newest dictionary that one of its stewards accepted; before the first acceptance it reads
  its table by the one that came with enrolment, and publishes nothing.
* Accepting acknowledges the outcome definition. A site accepts or does not: a deviation in words would reach nobody
  who reads its samples.
* While a newer dictionary waits, no report and no request is signed under the older one: the coordinator has stopped
  using those. Transfers under way finish under the dictionary they were requested with.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.errors import MalformedError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

if TYPE_CHECKING:
    from synthedge_client.site import Site
    from synthedge_client.stewards import Steward


@dataclass(frozen=True)
class KnownDictionary:
    """One dictionary the coordinator told this site of.

    Attributes
    ----------
    version : int
        As the coordinator counts, from 1.
    dictionary : Dictionary
    told_at_ms : int
        Unix time.
    accepted_at_ms : int or None
        Unix time; None while no steward accepted it.
    accepted_by : str or None
        The steward's name.
    """

    version: int
    dictionary: Dictionary
    told_at_ms: int
    accepted_at_ms: int | None
    accepted_by: str | None

    @property
    def is_accepted(self) -> bool:
        """Whether a steward of this site accepted it."""
        return self.accepted_at_ms is not None


def remember(connection: sa.Connection, document: wire.DictionaryDocument) -> Dictionary:
    """Write down a dictionary that arrived; it is in force only when a steward accepts it.

    Raises
    ------
    DictionaryError
        If it is not valid.
    MalformedError
        If its digest is another than the one it is sent under, or its version is none or taken.
    """
    dictionary = _parsed(document.toml)
    if bytes.fromhex(dictionary.digest) != document.digest:
        raise MalformedError("the coordinator's dictionary does not have the digest it names")
    if document.version < 1:
        raise MalformedError(
            "the coordinator sent a dictionary without a version; ask its operator"
        )
    for known in list_known(connection):
        if known.dictionary.digest == dictionary.digest:
            return dictionary
        if known.version == document.version:
            raise MalformedError(
                f"the coordinator sent two dictionaries as version {document.version}; ask its operator"
            )
    connection.execute(
        store.dictionaries.insert().values(
            digest=dictionary.digest,
            version=document.version,
            toml=document.toml,
            told_at_ms=store.now_ms(),
        )
    )
    store.record(
        connection,
        "dictionary received",
        "coordinator",
        dictionary=dictionary.digest,
        version=document.version,
    )
    return dictionary


def list_known(connection: sa.Connection) -> list[KnownDictionary]:
    """Every dictionary this site was told of, oldest version first."""
    rows = connection.execute(sa.select(store.dictionaries).order_by(store.dictionaries.c.version))
    return [
        KnownDictionary(
            row.version, _parsed(row.toml), row.told_at_ms, row.accepted_at_ms, row.accepted_by
        )
        for row in rows
    ]


def in_force(connection: sa.Connection) -> KnownDictionary:
    """The dictionary the site works under: the newest accepted, or the first while none is.

    Raises
    ------
    SynthEdgeError
        If the site is not enrolled.
    """
    store.require_fact(connection, "consortium")
    known = list_known(connection)
    accepted = [one for one in known if one.is_accepted]
    return accepted[-1] if accepted else known[0]


def accepted_dictionary(connection: sa.Connection, digest: bytes) -> Dictionary:
    """The accepted dictionary of a digest: what a transfer of an earlier time finishes under.

    Raises
    ------
    RefusedError
        If this site has accepted none such.
    """
    for known in list_known(connection):
        if known.is_accepted and bytes.fromhex(known.dictionary.digest) == digest:
            return known.dictionary
    raise RefusedError(
        f"dictionary {digest.hex()[:12]} is none that this site accepted; see 'synthedge site dictionary show'"
    )


def require_accepted(connection: sa.Connection) -> None:
    """Return if the newest dictionary the site knows is accepted.

    Raises
    ------
    RefusedError
        If it waits for a steward: nothing new may be signed before.
    SynthEdgeError
        If the site is not enrolled.
    """
    store.require_fact(connection, "consortium")
    newest = list_known(connection)[-1]
    if not newest.is_accepted:
        raise RefusedError(
            f"version {newest.version} of the consortium's dictionary is not accepted here; look at it with "
            "'synthedge site dictionary show', then run 'synthedge site dictionary accept --steward NAME'"
        )


def standing(connection: sa.Connection) -> str:
    """Which version the site works under, and whether one waits; one line for `status`."""
    now, newest = in_force(connection), list_known(connection)[-1]
    words = f"version {now.version}"
    if now.is_accepted:
        words += f", accepted by {now.accepted_by}"
    if not newest.is_accepted:
        words += f"; version {newest.version} waits for our steward: dictionary accept"
    return words


def budget_in_words(connection: sa.Connection, dictionary: Dictionary) -> str:
    """What reports under a dictionary may still cost, and what those under others have cost already.

    A new dictionary opens a new budget, but what was told of the same patients before stays told.
    """
    table = store.releases
    rows = connection.execute(
        sa.select(table.c.dictionary_digest, sa.func.sum(table.c.epsilon))
        .where(table.c.spent_at_ms.is_not(None))
        .group_by(table.c.dictionary_digest)
    )
    spent = {digest: float(epsilon) for digest, epsilon in rows}
    here = spent.pop(dictionary.digest, 0.0)
    if dictionary.policy.disclosure != "dp" and not spent:
        return "reports under it are not differentially private, so there is no budget"
    return (
        f"its own privacy budget: epsilon {here:g} of {dictionary.policy.epsilon_total:g} is spent; under other "
        f"dictionaries {sum(spent.values()):g} was spent on the same patients"
    )


def choose(connection: sa.Connection, version: int | None) -> KnownDictionary:
    """The dictionary of a version; without one the newest.

    Raises
    ------
    UsageError
        If this site was told of no such version.
    SynthEdgeError
        If the site is not enrolled.
    """
    store.require_fact(connection, "consortium")
    known = {one.version: one for one in list_known(connection)}
    wanted = max(known) if version is None else version
    if wanted not in known:
        versions = ", ".join(map(str, known))
        raise UsageError(
            f"this site knows no version {wanted} of the dictionary; it has {versions}"
        )
    return known[wanted]


def accept(site: "Site", steward: "Steward", version: int | None = None) -> dict[str, Any]:
    """Sign and queue that this site labels its patients as a dictionary says, and works under it from now on.

    Parameters
    ----------
    site : Site
    steward : Steward
    version : int or None
        None takes the newest; accepting once more sends a new statement and changes nothing here.

    Returns
    -------
    dict
        Version, digest, the outcome definition that was acknowledged, and the privacy budget in words.

    Raises
    ------
    UsageError
        If there is no such version.
    RefusedError
        If a newer one was accepted already.
    """
    from synthedge_client import outbound

    with site.store.write() as connection:
        chosen = choose(connection, version)
        now = in_force(connection)
        if now.is_accepted and now.version > chosen.version:
            raise RefusedError(
                f"version {now.version} of the dictionary is accepted already, there is no way back to "
                f"{chosen.version}; ask the operator for a new version"
            )
        digest = chosen.dictionary.digest
        connection.execute(
            store.dictionaries.update()
            .where(
                (store.dictionaries.c.digest == digest)
                & store.dictionaries.c.accepted_at_ms.is_(None)
            )
            .values(accepted_at_ms=store.now_ms(), accepted_by=steward.name)
        )
        target = chosen.dictionary.target
        signed = steward.sign(
            site.under(chosen.dictionary),
            pb.DictionaryAcceptance(
                version=chosen.version, outcome_digest=bytes.fromhex(target.outcome_digest)
            ),
        )
        store.record(
            connection,
            "dictionary accepted",
            steward.label,
            dictionary=digest,
            version=chosen.version,
            outcome=target.outcome_digest,
        )
        outbound.enqueue(connection, "dictionary-acceptance", signed, steward.label)
        budget = budget_in_words(connection, chosen.dictionary)
    return {
        "version": chosen.version,
        "digest": digest,
        "outcome": target.in_words(),
        "outcome_digest": target.outcome_digest,
        "budget": budget,
    }


@lru_cache(maxsize=16)
def _parsed(toml: str) -> Dictionary:
    # The agent asks several times a second.
    return parse_dictionary(toml)
