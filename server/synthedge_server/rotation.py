"""New keys of an enrolled site: accepted when the old key signed them, shown to the others, never believed for them."""

from collections.abc import Collection
from typing import Final

from google.protobuf.message import DecodeError, Message
from sqlalchemy import Connection, bindparam, func, insert, select, update

from synthedge_protocols.errors import IdentityError, LimitExceededError, MalformedError
from synthedge_protocols.keys import key_id
from synthedge_protocols.limits import Limits
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.rotation import MAX_ROTATIONS, site_key_id, verify_rotation
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.ledger import Transaction
from synthedge_server.transfer_records import find_transfer

_CURRENT_KEY: Final = Prepared(
    select(store.sites.c.statement_public_key).where(store.sites.c.site == bindparam("of_site"))
)


def accept_rotation(
    transaction: Transaction,
    verified: Verified[pb.KeyRotation],
    *,
    consortium: str,
    limits: Limits,
) -> None:
    """Register a site's next keys; open transfers finish under the ones they name.

    Raises
    ------
    IdentityError
        If another rotation came first, or a key belongs to anybody already.
    LimitExceededError
        If the site has rotated too often; it must enrol anew.
    ProtocolError
        As `rotation.verify_rotation`.
    """
    connection, site = transaction.connection, verified.site
    old: bytes = connection.execute(
        select(store.sites.c.statement_public_key).where(store.sites.c.site == site)
    ).scalar_one()
    _, keys = verify_rotation(
        verified.signed,
        consortium=consortium,
        site=site,
        old_public_key=old,
        now_ms=transaction.now_ms,
        limits=limits,
    )
    _require_new(connection, site, old, keys.statement_public_key, keys.hpke.key_id)
    connection.execute(
        insert(store.keys).values(
            key_id=keys.hpke.key_id,
            site=site,
            statement=verified.payload.hpke_key.SerializeToString(),
            registered_at_ms=transaction.now_ms,
        )
    )
    if keys.statement_public_key != old:
        n_before = connection.execute(
            select(func.count()).select_from(store.rotations).where(store.rotations.c.site == site)
        ).scalar_one()
        if n_before >= MAX_ROTATIONS:
            raise LimitExceededError(
                f"site '{site}' changed its statement key {n_before} times already; enrol it anew"
            )
        connection.execute(
            insert(store.rotations).values(
                site=site,
                step=n_before + 1,
                old_key_id=key_id(old),
                old_public_key=old,
                statement=verified.signed.SerializeToString(),
                rotated_at_ms=transaction.now_ms,
            )
        )
    connection.execute(
        update(store.sites)
        .where(store.sites.c.site == site)
        .values(statement_public_key=keys.statement_public_key, hpke_key_id=keys.hpke.key_id)
    )
    transaction.record(site, "keys-rotated", keys.fingerprint, f"by {verified.payload.steward}")


def _require_new(
    connection: Connection, site: str, old: bytes, statement_key: bytes, hpke_key_id: bytes
) -> None:
    sites, rotations, keys = store.sites, store.rotations, store.keys
    taken = connection.execute(
        select(sites.c.site).where(
            sites.c.statement_public_key == statement_key, sites.c.site != site
        )
    ).first()
    retired = connection.execute(
        select(rotations.c.site).where(rotations.c.old_public_key == statement_key)
    ).first()
    known = connection.execute(select(keys.c.site).where(keys.c.key_id == hpke_key_id)).first()
    if taken is not None or known is not None or (retired is not None and statement_key != old):
        raise IdentityError(
            f"the rotation of site '{site}' names a key that was used before; make new ones"
        )


def statement_key(
    connection: Connection, site: str, signed: pb.SignedStatement, payload: type[Message]
) -> bytes:
    """Find the raw statement key under which a statement of a site is to be judged.

    That is the site's current one; or a replaced one, where the statement is about a transfer that was
    requested under it.

    Raises
    ------
    IdentityError
        If the site never enrolled.
    MalformedError
        If the statement does not decode.
    """
    row = _CURRENT_KEY.one(connection, of_site=site)
    if row is None:
        raise IdentityError(f"no site '{site[:63]}' is enrolled here")
    current: bytes = row.statement_public_key
    named = site_key_id(signed)
    if named == key_id(current) or "transfer_id" not in payload.DESCRIPTOR.fields_by_name:
        return current
    retired: bytes | None = connection.execute(
        select(store.rotations.c.old_public_key).where(
            store.rotations.c.site == site, store.rotations.c.old_key_id == named
        )
    ).scalar_one_or_none()
    if retired is None:
        return current
    try:
        body = payload.FromString(pb.Statement.FromString(signed.statement).payload)
    except DecodeError:
        raise MalformedError("the statement does not decode") from None
    transfer = find_transfer(connection, getattr(body, "transfer_id"))  # noqa: B009 - not of every payload
    if transfer is not None and named in (
        transfer.recipient_key_id if transfer.recipient == site else b"",
        transfer.donor_key_id if transfer.donor == site else b"",
    ):
        return retired
    return current


def directory_entries(connection: Connection, of: Collection[str]) -> list[pb.SiteKeys]:
    """Keys of some sites that are active, each with the rotations that led to them; in order of their names."""
    sites, keys, rotations = store.sites, store.keys, store.rotations
    steps: dict[str, list[pb.SignedStatement]] = {}
    for row in connection.execute(
        select(rotations.c.site, rotations.c.statement)
        .where(rotations.c.site.in_(of))
        .order_by(rotations.c.site, rotations.c.step)
    ):
        steps.setdefault(row.site, []).append(pb.SignedStatement.FromString(row.statement))
    rows = connection.execute(
        select(sites.c.site, sites.c.statement_public_key, keys.c.statement)
        .join(keys, keys.c.key_id == sites.c.hpke_key_id)
        .where(sites.c.state == "active", sites.c.site.in_(of))
        .order_by(sites.c.site)
    )
    return [
        pb.SiteKeys(
            site=row.site,
            statement_public_key=row.statement_public_key,
            hpke_key=pb.SignedStatement.FromString(row.statement),
            rotations=steps.get(row.site, []),
        )
        for row in rows
    ]
