"""Keys over time: this site's own, and those its peers show. A transfer finishes under the keys its request names.

Rules
-----
* Which of the own keys is current is a fact in the database, changed in the transaction that queues the rotation:
  the outbox is sent in order, so the coordinator hears of the new key before anything it signed.
* A peer's new key, signed by the pinned one, waits until a person compared its fingerprint; until then nothing new
  goes to that peer or comes from it. A new key that the pinned one did not sign is refused.
* A peer's HPKE key follows its statement key, and never goes back to an older one.
"""

import json
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from synthedge_client import outbound, store
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import IdentityError, PolicyError, VerificationError
from synthedge_protocols.keys import HpkeKeyPair, HpkePublicKey, StatementKey, fingerprint, key_id
from synthedge_protocols.lifecycle import State, is_final
from synthedge_protocols.limits import Limits
from synthedge_protocols.rotation import (
    HPKE_DAYS,
    follow_rotations,
    sign_rotation,
    site_key_id,
)
from synthedge_protocols.statements import verify_site_keys
from synthedge_protocols.v1 import statements_pb2 as pb

LIMITS = Limits()
KIND = "key-rotation"
AGENT = "agent"
ROTATED = "keys rotated"
_BEFORE = "keys before the rotation"
_DAY_MS = 86_400_000
_WARN_DAYS = 60
_BY_ITSELF_DAYS = 30


def rotate(site: Site, steward: Steward | None, *, sealing_only: bool) -> dict[str, Any]:
    """Make new keys and queue their announcement, signed by the old statement key.

    Parameters
    ----------
    site : Site
    steward : Steward or None
        Who orders it, named in the announcement and the audit; None: the agent, of a sealing key that ends.
    sealing_only : bool
        Keep the statement key, so that no peer has to compare fingerprints; only the HPKE key is new.

    Raises
    ------
    RefusedError
        If an earlier rotation was not sent yet.
    """
    by, who = (AGENT, AGENT) if steward is None else (steward.name, steward.label)
    old = site.statement_key
    new = old if sealing_only else StatementKey.generate()
    hpke = HpkeKeyPair.generate()
    if new is not old:
        site.keys.add_statement_key(new)
    site.keys.add_hpke_key(hpke)
    with site.store.write() as connection:
        waiting = connection.execute(
            sa.select(store.outbox.c.id).where(
                (store.outbox.c.kind == KIND)
                & store.outbox.c.sent_at_ms.is_(None)
                & store.outbox.c.refusal.is_(None)
            )
        ).first()
        if waiting is not None:
            raise RefusedError(
                "an earlier rotation was not sent yet; run 'synthedge site run --once' first"
            )
        signed = sign_rotation(
            old,
            new,
            hpke,
            consortium=site.consortium,
            site=site.settings.id,
            steward=by,
            now_ms=store.now_ms(),
        )
        until = store.get_fact(connection, store.HPKE_UNTIL) or ""
        before = f"{old.key_id.hex()} {site.hpke_key.key_id.hex()} {until}"
        store.set_fact(connection, _BEFORE, before)
        store.set_fact(connection, store.HPKE_UNTIL, str(store.now_ms() + HPKE_DAYS * _DAY_MS))
        outbound.enqueue(connection, KIND, signed, who)
        _make_current(connection, new.key_id, hpke.key_id)
        store.record(
            connection,
            ROTATED,
            who,
            **({} if steward is None else {"steward_key": steward.key.fingerprint}),
            old=old.fingerprint,
            new=new.fingerprint,
            hpke_key=hpke.key_id.hex(),
        )
    return {
        "old_fingerprint": old.fingerprint,
        "fingerprint": new.fingerprint,
        "hpke_key": hpke.key_id.hex(),
    }


def ends_soon(connection: sa.Connection, now_ms: int) -> str:
    """Say that the site's HPKE key ends within two months, and what to do; empty if it does not."""
    days = _days_left(connection, now_ms)
    if days is None or days > _WARN_DAYS:
        return ""
    return (
        f"the key that rows are sealed to ends in {max(0, days)} days; 'synthedge site run' replaces it in its last "
        f"{_BY_ITSELF_DAYS}, or run 'synthedge site keys rotate --sealing-only --steward NAME'"
    )


def rotate_if_due(site: Site) -> bool:
    """Replace a sealing key in its last month; True if it was due: the agent's part.

    Nobody has to compare anything: the statement key, which signs the new one, stays. Without it no row could be
    sealed to this site, nor a withdrawal of rows that are here.
    """
    with site.store.read() as connection:
        days = _days_left(connection, store.now_ms())
    if days is None or days > _BY_ITSELF_DAYS:
        return False
    rotate(site, None, sealing_only=True)
    return True


def _days_left(connection: sa.Connection, now_ms: int) -> int | None:
    until = store.get_fact(connection, store.HPKE_UNTIL)
    return None if until is None else (int(until) - now_ms) // _DAY_MS


def take_back(connection: sa.Connection) -> None:
    """Return to the keys before a rotation that the coordinator refused."""
    before = store.get_fact(connection, _BEFORE)
    if before is not None:
        statement, hpke, *until = before.split()
        _make_current(connection, bytes.fromhex(statement), bytes.fromhex(hpke))
        for text in until:
            store.set_fact(connection, store.HPKE_UNTIL, text)


def _make_current(connection: sa.Connection, statement: bytes, hpke: bytes) -> None:
    store.set_fact(connection, store.STATEMENT_KEY, statement.hex())
    store.set_fact(connection, store.HPKE_KEY, hpke.hex())


def forget_hpke_keys(site: Site) -> int:
    """Delete replaced HPKE keys that nothing can be sealed to any more; return how many.

    Rows are sealed to the key that their request names, a withdrawal of them to that one or one that came later: so
    those go that were replaced before any transfer under way, and any whose rows are here, was requested. What was
    sealed to a deleted key can never be opened again, by whoever holds a copy of it.
    """
    from synthedge_client.transfers import list_transfers

    with site.store.read() as connection:
        transfers = list_transfers(connection, [s for s in State if not is_final(s)])
        before = store.get_fact(connection, _BEFORE)
        details = connection.execute(
            sa.select(store.events.c.details)
            .where(store.events.c.what == ROTATED)
            .order_by(store.events.c.id)
        ).scalars()
        made = [bytes.fromhex(json.loads(text)["hpke_key"]) for text in details]
    named = {t.request.hpke_key_id for t in transfers if t.role == "recipient"}
    # A key that no rotation made is the site's first.
    oldest = min((made.index(key) if key in made else 0 for key in named), default=len(made))
    needed = {*made[oldest:], site.hpke_key.key_id}
    if before is not None:
        needed.add(bytes.fromhex(before.split()[1]))  # the rotation may still be refused
    return site.keys.keep_hpke_keys(needed)


def pin(connection: sa.Connection, keys: pb.SiteKeys, consortium: str) -> None:
    """Take in a peer's directory entry.

    Raises
    ------
    PolicyError
        If it shows a new key that the pinned one signed: a person has to compare it first.
    VerificationError
        If it shows a key the pinned one did not sign, or an HPKE key from before the known one.
    ProtocolError
        As `statements.verify_site_keys`.
    """
    now = store.now_ms()
    verify_site_keys(keys, consortium=consortium, now_ms=now, limits=LIMITS)
    known = connection.execute(
        sa.select(store.peers).where(store.peers.c.site == keys.site)
    ).one_or_none()
    hpke_key = keys.hpke_key.SerializeToString()
    if known is None:
        connection.execute(
            store.peers.insert().values(
                site=keys.site, statement_public_key=keys.statement_public_key, hpke_key=hpke_key
            )
        )
        store.record(connection, "peer first seen", "coordinator", peer=keys.site)
    elif known.statement_public_key == keys.statement_public_key:
        _take_hpke_key(connection, known, keys.hpke_key)
    elif follow_rotations(
        keys, known.statement_public_key, consortium=consortium, now_ms=now, limits=LIMITS
    ):
        _update(
            connection,
            keys.site,
            pending_public_key=keys.statement_public_key,
            pending_hpke_key=hpke_key,
        )
        raise PolicyError(_to_compare(keys.site, keys.statement_public_key))
    else:
        raise VerificationError(
            f"the coordinator shows another statement key for site '{keys.site}' than before; "
            "telephone that site and compare fingerprints before anything else"
        )


def _take_hpke_key(
    connection: sa.Connection, known: "sa.Row[Any]", shown: pb.SignedStatement
) -> None:
    old = pb.SignedStatement.FromString(known.hpke_key)
    if shown.statement == old.statement:
        return
    if _issued_at(shown) <= _issued_at(old):
        raise VerificationError(
            f"the coordinator shows an older sealing key for site '{known.site}' than before; tell the operator"
        )
    _retire(connection, known)
    _update(connection, known.site, hpke_key=shown.SerializeToString())
    store.record(
        connection, "peer sealing key changed", "agent", peer=known.site, key=_hpke_id(shown).hex()
    )


def require_own(site: Site, identifier: bytes) -> None:
    """Refuse a request made under a statement key this site never had.

    Raises
    ------
    VerificationError
        If so: the recipient compared somebody else's fingerprint.
    """
    try:
        site.keys.statement_key(identifier)
    except IdentityError:
        raise VerificationError(
            f"a transfer request was made under key {identifier.hex()[:12] or '(none)'}, which is not this site's; "
            "the recipient must compare fingerprints with this site by telephone"
        ) from None


def confirm(connection: sa.Connection, peer: str) -> bytes:
    """Make a peer's announced key the pinned one, once a person compared it; return the key."""
    known = connection.execute(sa.select(store.peers).where(store.peers.c.site == peer)).one()
    key: bytes = known.pending_public_key
    _retire(connection, known)
    _update(
        connection,
        peer,
        statement_public_key=key,
        hpke_key=known.pending_hpke_key,
        pending_public_key=None,
        pending_hpke_key=None,
        problem=None,
    )
    return key


def retire_peer(connection: sa.Connection, peer: str) -> None:
    """Keep a peer's pinned keys among the replaced ones: what was signed with them can still be read."""
    _retire(
        connection,
        connection.execute(sa.select(store.peers).where(store.peers.c.site == peer)).one(),
    )


def require_settled(connection: sa.Connection, peer: str) -> None:
    """Refuse to begin anything with a peer whose announced key nobody compared.

    Raises
    ------
    RefusedError
        If so.
    """
    pending = connection.execute(
        sa.select(store.peers.c.pending_public_key).where(store.peers.c.site == peer)
    ).scalar_one_or_none()
    if pending is not None:
        raise RefusedError(_to_compare(peer, pending))


def _to_compare(peer: str, key: bytes) -> str:
    return (
        f"site '{peer}' announced a new key, signed by its old one: {fingerprint(key)}; telephone it, then run "
        f"'synthedge site peers verify {peer} FINGERPRINT'; until then nothing new goes there or comes from it"
    )


def peer_key(
    connection: sa.Connection, signed: pb.SignedStatement, payload: type[Message], peer: str
) -> bytes | None:
    """Find the raw statement key under which a peer's statement is to be judged.

    The pinned one; or a replaced one, where the statement is about a transfer whose request names it.

    Returns
    -------
    bytes or None
        None if the peer is not known.

    Raises
    ------
    PolicyError
        If the statement hangs on a key that was announced and not compared yet.
    MalformedError
        If the statement does not decode.
    """
    row = connection.execute(sa.select(store.peers).where(store.peers.c.site == peer)).one_or_none()
    if row is None:
        return None
    pinned: bytes = row.statement_public_key
    named = site_key_id(signed)
    if named == key_id(pinned):
        return pinned
    if row.pending_public_key is not None and named == key_id(row.pending_public_key):
        raise PolicyError(_to_compare(peer, row.pending_public_key))
    if named in _keys_of_transfer(connection, signed, payload, peer):
        return statement_key_of(connection, peer, named) or pinned
    return pinned


def statement_key_of(connection: sa.Connection, peer: str, identifier: bytes) -> bytes | None:
    """A peer's pinned or replaced raw statement key with this id, if it was ever pinned here."""
    pinned: bytes | None = connection.execute(
        sa.select(store.peers.c.statement_public_key).where(store.peers.c.site == peer)
    ).scalar_one_or_none()
    if pinned is not None and key_id(pinned) == identifier:
        return pinned
    return _replaced(connection, peer, identifier)


def hpke_key_of(connection: sa.Connection, peer: str, identifier: bytes) -> HpkePublicKey | None:
    """A peer's HPKE key with this id, current or replaced, if it was ever pinned here."""
    blob: bytes = connection.execute(
        sa.select(store.peers.c.hpke_key).where(store.peers.c.site == peer)
    ).scalar_one()
    # Their signatures were verified when they were stored.
    current = pb.SignedStatement.FromString(blob)
    if _hpke_id(current) == identifier:
        return HpkePublicKey(_hpke(current).public_key)
    replaced = _replaced(connection, peer, identifier)
    return None if replaced is None else HpkePublicKey(replaced)


def _keys_of_transfer(
    connection: sa.Connection, signed: pb.SignedStatement, payload: type[Message], peer: str
) -> set[bytes]:
    if "transfer_id" not in payload.DESCRIPTOR.fields_by_name:
        return set()
    body = payload.FromString(pb.Statement.FromString(signed.statement).payload)
    request = connection.execute(
        sa.select(store.transfers.c.request).where(
            (store.transfers.c.transfer_id == getattr(body, "transfer_id"))  # noqa: B009
            & (store.transfers.c.peer == peer)
        )
    ).scalar_one_or_none()
    if request is None:
        return set()
    asked = pb.SignedStatement.FromString(request)
    terms = pb.TransferRequest.FromString(pb.Statement.FromString(asked.statement).payload)
    return {site_key_id(asked), terms.donor_key_id}


def _retire(connection: sa.Connection, known: "sa.Row[Any]") -> None:
    hpke = _hpke(pb.SignedStatement.FromString(known.hpke_key))
    for key in (known.statement_public_key, hpke.public_key):
        if _replaced(connection, known.site, key_id(key)) is None:
            connection.execute(
                store.peer_keys.insert().values(site=known.site, key_id=key_id(key), public_key=key)
            )


def _replaced(connection: sa.Connection, peer: str, identifier: bytes) -> bytes | None:
    key: bytes | None = connection.execute(
        sa.select(store.peer_keys.c.public_key).where(
            (store.peer_keys.c.site == peer) & (store.peer_keys.c.key_id == identifier)
        )
    ).scalar_one_or_none()
    return key


def _update(connection: sa.Connection, peer: str, **values: object) -> None:
    connection.execute(store.peers.update().where(store.peers.c.site == peer).values(**values))


def _hpke(signed: pb.SignedStatement) -> pb.HpkeKey:
    return pb.HpkeKey.FromString(pb.Statement.FromString(signed.statement).payload)


def _hpke_id(signed: pb.SignedStatement) -> bytes:
    return _hpke(signed).key_id


def _issued_at(signed: pb.SignedStatement) -> int:
    return pb.Statement.FromString(signed.statement).issued_at_ms
