"""How sites stand: active, paused, suspended, silent, left, revoked or reset; who is told, and what ends."""

from typing import Any, Final

from sqlalchemy import Connection, func, select, update

from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.errors import (
    IdentityError,
    LifecycleError,
    LimitExceededError,
    MalformedError,
    PolicyError,
)
from synthedge_protocols.lifecycle import State
from synthedge_protocols.limits import Limits
from synthedge_protocols.standing import ACTIONS, UNFINISHED, Standing, ending_of
from synthedge_protocols.statements import Verified
from synthedge_protocols.texts import printable
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.broker import Broker
from synthedge_server.ledger import Ledger, Transaction
from synthedge_server.transfer_records import site_state

MAY_CALL: Final = frozenset({Standing.ACTIVE, Standing.PAUSED, Standing.LEFT, Standing.SILENT})
"""Standings in which a site's calls are answered."""

_STARTS: Final = frozenset({"gap-report", "transfer-request", "approval"})
_CLOSED: Final = {Standing.PAUSED: _STARTS, Standing.LEFT: _STARTS | {"shipment"}}
_OPEN: Final = tuple(state.value for state in (*UNFINISHED, State.ACTIVE))
_MAX_REASON: Final = Limits().text_bytes
# How old the record of a site's last call may be: every call would else be a write.
_SEEN_EVERY_MS: Final = 60_000
_MS_PER_HOUR: Final = 3_600_000
# Each tells every peer that shares a transfer, a thousand of them for one statement.
_WISHES_AN_HOUR: Final = 60


def standing_of(connection: Connection, site: str) -> Standing:
    """How an enrolled site stands.

    Raises
    ------
    UsageError
        If there is no such site.
    """
    state = site_state(connection, site)
    if state is None:
        raise UsageError(f"no site '{site}' is enrolled; see 'synthedge-coordinator sites'")
    return Standing(state)


def refuse_if_closed(connection: Connection, site: str, statement_type: str) -> None:
    """Refuse what a paused site, or one that left, may not hand in; and everything of one shut out meanwhile.

    Raises
    ------
    IdentityError
        If the operator shut the site out after its call began.
    PolicyError
        If the site paused or left.
    """
    standing = standing_of(connection, site)
    if standing not in MAY_CALL:
        raise IdentityError(f"site '{site}' is {standing}; ask the coordinator's operator")
    if statement_type in _CLOSED.get(standing, ()):
        raise PolicyError(
            f"site '{site}' is {standing}: it starts and gives nothing; a '{statement_type}' is not taken "
            "(a paused site: 'synthedge site resume')"
        )


def change_standing(
    transaction: Transaction,
    broker: Broker,
    site: str,
    standing: Standing,
    reason: str,
    *,
    by: str = "operator",
    statement: pb.SignedStatement | None = None,
) -> int:
    """Let a site stand otherwise, tell its peers, and end what the table says; return how many transfers ended.

    Parameters
    ----------
    transaction : Transaction
    broker : Broker
    site : str
    standing : Standing
        The new one.
    reason : str
        Goes to every peer with an open or active transfer.
    by : str
        For the audit.
    statement : SignedStatement, optional
        What the site itself signed; relayed instead of the coordinator's own word.

    Raises
    ------
    UsageError
        If there is no such site, or the reason is long.
    RefusedError
        If it was revoked, or left: that is for ever; or if it paused, and is to be active without its own word.

    Notes
    -----
    A site that had paused before it was suspended, or fell silent, is paused again afterwards.
    """
    if len(reason.encode()) > _MAX_REASON:
        raise UsageError(f"a reason of {len(reason.encode())} bytes; at most {_MAX_REASON}")
    connection = transaction.connection
    before = standing_of(connection, site)
    if before in (Standing.REVOKED, Standing.RESET) and standing is not Standing.REVOKED:
        raise RefusedError(
            f"site '{site}' is {before}; it can only enrol anew"
            + (" under another id" if before is Standing.REVOKED else "; invite it")
        )
    if before is Standing.LEFT and standing not in (Standing.REVOKED, Standing.RESET):
        raise RefusedError(f"site '{site}' left; reset its keys and invite it to let it in again")
    if standing is before and not reason:
        return 0  # said again: the reason that was given stays
    if standing is Standing.ACTIVE and statement is None:
        if before is Standing.PAUSED:
            raise RefusedError(
                f"site '{site}' paused by its own will; one of its stewards runs 'synthedge site resume'"
            )
        if (wish := _paused_because(connection, site)) is not None:
            standing, reason = Standing.PAUSED, wish
    peers = _peers_of(connection, site)
    connection.execute(
        update(store.sites)
        .where(store.sites.c.site == site)
        .values(state=standing.value, reason=reason)
    )
    transaction.record(by, f"site-{standing.value}", site, reason)
    for peer in peers:
        told = wire.SiteStanding(site=site, standing=standing.value, reason=reason)
        transaction.post(
            peer,
            wire.InboxMessage(standing=told)
            if statement is None
            else wire.InboxMessage(statement=statement),
        )
    text = f"site '{site}' is {standing.value}" + (f": {reason}" if reason else "")
    n_ended = 0
    for row in _transfers_of(connection, site):
        event = ending_of(standing, State(row.state))
        if event is not None:
            broker.end_by_rule(transaction, row, event, text)
            n_ended += 1
    return n_ended


class OwnWill:
    """Takes in what a site's steward signs about the site itself.

    Parameters
    ----------
    broker : Broker
        Ends the transfers of a site that leaves.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def accept(self, transaction: Transaction, verified: Verified[pb.SiteLeaving]) -> None:
        """Pause, resume or leave.

        Raises
        ------
        MalformedError
            If the action is none.
        LimitExceededError
            If the reason is long, or the site changes its mind all the time.
        LifecycleError
            If the site left already.
        """
        wish = verified.payload
        standing = ACTIONS.get(wish.action)
        if standing is None:
            raise MalformedError(f"a site can {', '.join(ACTIONS)}; it cannot {wish.action[:20]!r}")
        if len(wish.reason.encode()) > _MAX_REASON:
            raise LimitExceededError(f"a reason has at most {_MAX_REASON} bytes")
        if _n_wishes(transaction, verified) >= _WISHES_AN_HOUR:
            raise LimitExceededError(
                f"site '{verified.site}' paused or resumed {_WISHES_AN_HOUR} times within the hour; wait before you "
                "do it again"
            )
        before = standing_of(transaction.connection, verified.site)
        if before is Standing.LEFT:
            raise LifecycleError(f"site '{verified.site}' left; its operator can invite it anew")
        change_standing(
            transaction,
            self._broker,
            verified.site,
            standing,
            printable(wish.reason),
            by=f"{verified.site}: {verified.signer.name}",
            statement=verified.signed,
        )


def _n_wishes(transaction: Transaction, verified: Verified[pb.SiteLeaving]) -> int:
    """How many statements of this kind came from the site within the hour."""
    table = store.statements.c
    of_site = select(func.count()).where(
        table.site == verified.site,
        table.received_at_ms > transaction.now_ms - _MS_PER_HOUR,
        table.type == verified.type,
    )
    return int(transaction.connection.execute(of_site).scalar_one())


class Watch:
    """Notices sites that no longer call, and those that call again.

    Parameters
    ----------
    ledger : Ledger
        Its `seen` tells when a site last called this process.
    house : Ledger
        The same, under the lease of who keeps house.
    broker : Broker
        Ends the unfinished transfers of a site that fell silent.
    """

    def __init__(self, ledger: Ledger, house: Ledger, broker: Broker) -> None:
        self._ledger = ledger
        self._house = house
        self._broker = broker
        self._noted: dict[str, int] = {}

    async def note(self) -> None:
        """Write down who called this process."""
        seen, table = self._ledger.seen, store.sites
        due = {
            site: at_ms
            for site, at_ms in seen.items()
            if at_ms - self._noted.get(site, 0) > _SEEN_EVERY_MS
        }
        if not due:
            return
        with self._ledger.engine.connect() as connection:
            rows = connection.execute(select(table.c.site, table.c.last_seen_ms)).all()
        fresh = {
            row.site: due[row.site]
            for row in rows
            if row.site in due and due[row.site] - (row.last_seen_ms or 0) > _SEEN_EVERY_MS
        }
        if fresh:
            await self._ledger.write(lambda t: _note_seen(t, fresh))
        self._noted |= due

    async def look(self, silent_h: float) -> None:
        """Let sites fall silent or return.

        Parameters
        ----------
        silent_h : float
            Hours without a call after which a site is silent.
        """
        now, sites = self._ledger.clock(), store.sites.c
        # The few that may change; all others would be read twice a second.
        looks_late = func.coalesce(sites.last_seen_ms, 0) < now - silent_h * _MS_PER_HOUR
        with self._ledger.engine.connect() as connection:
            rows = connection.execute(
                select(sites.site, sites.state, sites.last_seen_ms, sites.enrolled_at_ms).where(
                    looks_late | (sites.state == Standing.SILENT.value)
                )
            ).all()
        seen = self._ledger.seen
        silent, back = [], []
        for row in rows:
            last = max(seen.get(row.site, 0), row.last_seen_ms or 0, row.enrolled_at_ms)
            is_late = now - last > silent_h * _MS_PER_HOUR
            if is_late and row.state in (Standing.ACTIVE, Standing.PAUSED):
                silent.append(row.site)
            elif not is_late and row.state == Standing.SILENT:
                back.append(row.site)
        if silent or back:
            await self._house.write(lambda t: self._write(t, silent, back, silent_h))

    def _write(
        self,
        transaction: Transaction,
        silent: list[str],
        back: list[str],
        silent_h: float,
    ) -> None:
        for site in silent:
            reason = f"it did not call for {silent_h:g} hours"
            change_standing(
                transaction, self._broker, site, Standing.SILENT, reason, by="coordinator"
            )
        for site in back:
            change_standing(
                transaction, self._broker, site, Standing.ACTIVE, "it calls again", by="coordinator"
            )


def _note_seen(transaction: Transaction, fresh: dict[str, int]) -> None:
    for site, at_ms in fresh.items():
        transaction.connection.execute(
            update(store.sites).where(store.sites.c.site == site).values(last_seen_ms=at_ms)
        )


def _paused_because(connection: Connection, site: str) -> str | None:
    """Why a site paused, if its own last word since it enrolled was to pause."""
    # First what an index answers: most sites never said a word, and the log has no end.
    said = store.statements.c
    own_words = select(said.digest).where(said.site == site, said.type == "site-leaving").limit(1)
    if connection.execute(own_words).first() is None:
        return None
    table, paused = store.events, f"site-{Standing.PAUSED}"
    own = table.c.action.in_((paused, f"site-{Standing.ACTIVE}")) & table.c.actor.startswith(
        f"{site}: ", autoescape=True
    )
    enrolled = (table.c.action == "enrolled") & (table.c.actor == site)
    last = connection.execute(
        select(table.c.action, table.c.detail)
        .where(own | enrolled)
        .order_by(table.c.id.desc())
        .limit(1)
    ).one_or_none()
    return last.detail if last is not None and last.action == paused else None


def _peers_of(connection: Connection, site: str) -> list[str]:
    """Sites that share an open or active transfer with a site, in order of their names."""
    rows = _transfers_of(connection, site)
    return sorted({row.donor if row.recipient == site else row.recipient for row in rows})


def _transfers_of(connection: Connection, site: str) -> list[Any]:
    table = store.transfers
    return list(
        connection.execute(
            select(table).where(
                (table.c.donor == site) | (table.c.recipient == site), table.c.state.in_(_OPEN)
            )
        ).all()
    )
