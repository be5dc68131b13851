"""Telling every site what follows from all current reports: by the housekeeping, not by every report.

One report changes what all sites are told. Were everybody told at once, a consortium of a thousand sites that
publish one after the other would work out and write a million messages.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final

from sqlalchemy import Connection, delete, insert, select, update

from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import dictionaries, store
from synthedge_server.ledger import Ledger, Transaction
from synthedge_server.registries import Registries
from synthedge_server.registry import Conclusion, Registry

# Between two tellings lies ten times what the last one took: at most a tenth of the time goes into them.
PAUSE_FACTOR: Final = 10.0
# Sites told in one transaction, so that others write in between: some 50 ms of the writer's time.
_SLICE: Final = 32


class Telling:
    """Tells sites in batches.

    Rules: that telling is due is a row in the database, so that a restart or another process tells; what was
    told half is told again, and a site gets only what differs from the last it was told; a new dictionary
    ends what is told of the old one.

    Parameters
    ----------
    ledger : Ledger
    registries : Registries
    """

    def __init__(self, ledger: Ledger, registries: Registries) -> None:
        self._ledger = ledger
        self._registries = registries
        self._not_before_s = 0.0
        # The matcher is brought up to date by one at a time.
        self._alone = asyncio.Lock()

    async def tell_if_due(self) -> bool:
        """Tell everybody if reports changed and the pause after the last telling is over.

        Returns
        -------
        bool
            Whether it told.
        """
        async with self._alone:
            started_s = time.monotonic()
            if started_s < self._not_before_s:
                return False
            with self._ledger.engine.connect() as connection:
                registry = self._registries.current(connection)
                n_reported = _due(connection, registry.digest)
            if n_reported is None:
                return False
            await self._tell(registry, n_reported)
            ended_s = time.monotonic()
            self._not_before_s = ended_s + PAUSE_FACTOR * (ended_s - started_s)
            return True

    async def _tell(self, registry: Registry, n_reported: int) -> None:
        # Worked out slice by slice in another thread, without a transaction: sites are served meanwhile.
        conclusions = self._conclusions(registry)
        n_sites = n_told = 0
        while part := await asyncio.to_thread(lambda: list(islice(conclusions, _SLICE))):
            told = await self._ledger.write(partial(_post, digest=registry.digest, part=part))
            if told is None:
                return
            n_sites, n_told = n_sites + len(part), n_told + told
        await self._ledger.write(lambda t: _note(t, registry.digest, n_reported, n_sites, n_told))

    def _conclusions(self, registry: Registry) -> Iterator[Conclusion]:
        with self._ledger.engine.connect() as connection:
            reports = registry.current_reports(connection)
        yield from registry.conclusions(reports)


def _due(connection: Connection, dictionary_digest: bytes) -> int | None:
    """How many changes of reports there were, if not everybody was told after the last."""
    table = store.tellings
    return connection.execute(
        select(table.c.n_reported).where(
            table.c.dictionary_digest == dictionary_digest, table.c.n_reported > table.c.n_told
        )
    ).scalar_one_or_none()


def _post(transaction: Transaction, *, digest: bytes, part: Sequence[Conclusion]) -> int | None:
    """Tell some sites; how many messages it took, or None if the dictionary is another one by now."""
    connection, proposals = transaction.connection, store.proposals
    if dictionaries.newest(connection).digest != digest:
        return None
    n_told = 0
    for told in part:
        n_told += _post_if_new(transaction, told.site, wire.InboxMessage(profile=told.profile))
        message = wire.InboxMessage(proposals=told.proposals)
        if _post_if_new(transaction, told.site, message):
            n_told += 1
            connection.execute(delete(proposals).where(proposals.c.site == told.site))
            connection.execute(
                insert(proposals).values(
                    site=told.site,
                    message=told.proposals.SerializeToString(),
                    made_at_ms=transaction.now_ms,
                )
            )
    return n_told


def _post_if_new(transaction: Transaction, site: str, message: wire.InboxMessage) -> bool:
    """Post a message unless the newest of its kind in the site's inbox says the same."""
    table = store.inbox
    last = transaction.connection.execute(
        select(table.c.sequence, table.c.message)
        .where(table.c.site == site, table.c.kind == message.WhichOneof("body"))
        .order_by(table.c.sequence.desc())
        .limit(1)
    ).first()
    if last is not None:
        message.sequence = last.sequence
        if message.SerializeToString() == last.message:
            return False
    transaction.post(site, message)
    return True


def _note(
    transaction: Transaction,
    dictionary_digest: bytes,
    n_reported: int,
    n_sites: int,
    n_told: int,
) -> None:
    """Write down that everybody was told after so many changes; reports since then stay due."""
    table = store.tellings
    transaction.connection.execute(
        update(table)
        .where(table.c.dictionary_digest == dictionary_digest)
        .values(n_told=n_reported)
    )
    if n_sites:
        detail = f"{n_sites} sites have reported; {n_told} messages"
        transaction.record("coordinator", "matched", "all", detail)
