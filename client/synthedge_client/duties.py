"""What an agent owes without being asked: withdrawals carried out and sent, rows purged when their time is over."""

import logging
import time
from collections.abc import Hashable
from typing import Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.consent import today
from synthedge_client.purging import carry_out_notices, purge_expired
from synthedge_client.site import Site
from synthedge_client.withdrawals import withdraw_lost_consents
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import ProtocolError

log = logging.getLogger(__name__)

RETENTION_EVERY_S = 60.0


class Duties:
    """One agent's duties; nothing here is remembered beyond the process.

    Rules: notices are carried out before anything else is looked at; consents are compared with what left whenever
    the table, the register, the day or the ledger changed; a table that cannot be read stops nothing but that.
    """

    def __init__(self) -> None:
        self._compared: Hashable = None
        self._retention_at = 0.0

    def first(self, site: Site) -> bool:
        """Carry out withdrawals of received rows; True if there were any."""
        done = carry_out_notices(site)
        if done:
            site.store.scrub()
        return done

    def then(self, site: Site) -> bool:
        """Send withdrawals of rows that left, and purge what was kept long enough; True if there were any."""
        done = False
        if time.monotonic() >= self._retention_at:
            self._retention_at = time.monotonic() + RETENTION_EVERY_S
            done = purge_expired(site)
            if done:
                site.store.scrub()
        state = _what_consents_depend_on(site)
        if state != self._compared:
            self._compared = state
            try:
                withdrawal = withdraw_lost_consents(site)
            except (SynthEdgeError, ProtocolError) as error:
                log.error("consents of delivered rows could not be compared: %s", error)
            else:
                done |= bool(withdrawal.notices)
                # What it wrote is no reason to look again.
                self._compared = _what_consents_depend_on(site)
        return done


def _what_consents_depend_on(site: Site) -> Hashable:
    files: list[Any] = []
    for path in (site.settings.data, site.settings.consent_register):
        try:
            found = path.stat() if path is not None else None
        except OSError:
            found = None
        files.append(None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino))
    table = store.transfers
    with site.store.read() as connection:
        states = connection.execute(
            sa.select(table.c.state, sa.func.count())
            .where(table.c.role == "donor")
            .group_by(table.c.state)
            .order_by(table.c.state)
        ).all()
        last = connection.execute(
            sa.select(sa.func.max(store.withdrawn_patients.c.at_ms))
        ).scalar_one()
        # Nothing is sealed to a peer whose key was not compared: once it is, what waits goes.
        compared = connection.execute(
            sa.select(sa.func.max(store.peers.c.verified_at_ms))
        ).scalar_one()
    return (*files, today(), tuple(tuple(row) for row in states), last, compared)
