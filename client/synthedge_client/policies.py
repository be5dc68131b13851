"""Standing policies: what a steward lets the site do without asking again, and what was done under each.

Rules
-----
* A policy counts as its steward signed it: under one dictionary, until its day, until it is removed.
* Rows per peer and period are counted from the signed requests, approvals and receipts themselves.
* Where two stewards approve transfers, two sign a policy that approves them.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_client.two_person import needs_two, sign_once_more
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import PolicyError, ProtocolError
from synthedge_protocols.limits import Limits
from synthedge_protocols.purposes import is_condition
from synthedge_protocols.standing_policies import check_policy, require_covered
from synthedge_protocols.statements import Verified, verify
from synthedge_protocols.v1 import statements_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

LIMITS = Limits()
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class PolicyDecider:
    """A policy in force, in a steward's place; the site's key signs and names it."""

    policy: pb.StandingPolicy
    signed: pb.SignedStatement
    label: str

    def sign(self, site: Site, payload: "Message") -> pb.SignedStatement:
        """Sign a request, approval or receipt that carries the policy."""
        if not isinstance(payload, pb.TransferRequest | pb.Approval | pb.Receipt):
            raise TypeError(f"{type(payload).__name__} is signed under no policy")
        payload.policy.CopyFrom(self.signed)
        return site.sign(payload)


def add_policy(site: Site, steward: Steward, body: pb.StandingPolicy) -> tuple[bytes, bool]:
    """Sign and keep a policy; its id is made here.

    Returns
    -------
    tuple of bytes and bool
        The id; whether it is in force (False: another steward has to sign it too).

    Raises
    ------
    UsageError
        If it names a peer, feature or grid nobody knows, or a purpose that permits nothing.
    MalformedError
        If it leaves out what every policy says.
    """
    body.policy_id = secrets.token_bytes(16)
    check_policy(body)
    _check_names(site, body)
    signed = steward.sign(site, body)
    with site.store.write() as connection:
        connection.execute(
            store.policies.insert().values(
                policy_id=body.policy_id, statement=signed.SerializeToString()
            )
        )
        _record(connection, "policy signed", steward, body)
    return body.policy_id, _is_in_force(site, body)


def countersign(site: Site, steward: Steward, typed: str) -> bytes:
    """Sign a policy as the second of two stewards, or anew, as it stands, after new keys or a new dictionary.

    Returns
    -------
    bytes
        Its id; what was done under it before counts.

    Raises
    ------
    UsageError
        If no policy that lacks a signature has an id that begins so, or it does not fit the new dictionary.
    RefusedError
        If the same key signed it before.
    """
    with site.store.read() as connection:
        lapsed = _body(_named(connection, typed).statement)
    _check_names(site, lapsed)
    with site.store.write() as connection:
        row = _named(connection, typed)
        body = _body(row.statement)
        if not _problem(site, row.statement, body):
            raise UsageError(f"policy {typed} needs no further signature")
        if _is_in_force(site, body):
            body.ClearField("first")
            signed = steward.sign(site, body)
        else:
            signed = sign_once_more(site, steward, body, row.statement)
        connection.execute(
            store.policies.update()
            .where(store.policies.c.policy_id == row.policy_id)
            .values(statement=signed.SerializeToString())
        )
        _record(connection, "policy signed", steward, body)
    return body.policy_id


def remove_policy(site: Site, steward: Steward, typed: str) -> bytes:
    """End a policy at once; what was done under it stands.

    Raises
    ------
    UsageError
        If no policy has an id that begins so.
    """
    with site.store.write() as connection:
        row = _named(connection, typed)
        connection.execute(
            store.policies.update()
            .where(store.policies.c.policy_id == row.policy_id)
            .values(removed_at_ms=store.now_ms())
        )
        _record(connection, "policy removed", steward, _body(row.statement))
    return bytes(row.policy_id)


def list_policies(site: Site) -> list[dict[str, Any]]:
    """Every policy that was not removed, oldest first."""
    with site.store.read() as connection:
        return [
            {
                "policy": row.policy_id.hex(),
                "may": list(body.acts),
                "peers": list(body.peers),
                "purposes": list(body.purposes),
                "features": list(body.features),
                "regions": list(body.regions),
                "rows": body.rows,
                "period_days": body.period_days,
                "valid_until": _day(body.valid_until_ms),
                "problem": _problem(site, row.statement, body),
            }
            for row in _rows(connection)
            for body in (_body(row.statement),)
        ]


def has_policies(site: Site) -> bool:
    """Whether any policy is kept; the agent asks before it looks any further."""
    with site.store.read() as connection:
        return bool(_rows(connection))


def policies_for(site: Site, connection: sa.Connection, act: str) -> list[PolicyDecider]:
    """Policies in force that allow an act, oldest first; `site` under the transfer's dictionary."""
    found = []
    for row in _rows(connection):
        body = _body(row.statement)
        if act in body.acts and not _problem(site, row.statement, body):
            verified = _verify(site, row.statement)
            found.append(PolicyDecider(body, verified.signed, _label(verified)))
    return found


def policy_for(
    site: Site, connection: sa.Connection, act: str, peer: str, request: pb.TransferRequest
) -> PolicyDecider | None:
    """The first policy that covers an act on a request and has rows left for this peer.

    Parameters
    ----------
    act : {"request", "approve", "accept"}
    """
    for decider in policies_for(site, connection, act):
        try:
            require_covered(decider.policy, act, peer=peer, request=request, now_ms=store.now_ms())
        except PolicyError:
            continue
        if request.rows <= rows_left(connection, decider.policy, act, peer):
            return decider
    return None


def rows_left(connection: sa.Connection, policy: pb.StandingPolicy, act: str, peer: str) -> int:
    """Rows that a policy still allows for one peer: its own, less those of the period that ends now."""
    since_ms = store.now_ms() - policy.period_days * _DAY_MS
    table = store.transfers
    used = 0
    if act == "accept":
        blobs = connection.execute(
            sa.select(store.outbox.c.statement).where(store.outbox.c.kind == "receipt")
        ).scalars()
        peers = {
            row.transfer_id: row.peer
            for row in connection.execute(sa.select(table.c.transfer_id, table.c.peer))
        }
        for blob in blobs:
            statement = _statement(blob)
            receipt = pb.Receipt.FromString(statement.payload)
            if peers.get(receipt.transfer_id) == peer and statement.issued_at_ms >= since_ms:
                used += receipt.rows * _is_under(receipt, policy)
        return policy.rows - used
    column = table.c.approval if act == "approve" else table.c.request
    role = "donor" if act == "approve" else "recipient"
    blobs = connection.execute(
        sa.select(column).where(
            (table.c.peer == peer) & (table.c.role == role) & column.is_not(None)
        )
    ).scalars()
    kind = pb.Approval if act == "approve" else pb.TransferRequest
    for blob in blobs:
        statement = _statement(blob)
        said = kind.FromString(statement.payload)
        if statement.issued_at_ms >= since_ms:
            used += said.rows * _is_under(said, policy)
    return policy.rows - used


def _is_under(
    said: pb.TransferRequest | pb.Approval | pb.Receipt, policy: pb.StandingPolicy
) -> bool:
    if not said.HasField("policy"):
        return False
    return _body(said.policy.SerializeToString()).policy_id == policy.policy_id


def _rows(connection: sa.Connection) -> list[sa.Row[Any]]:
    return list(
        connection.execute(
            sa.select(store.policies)
            .where(store.policies.c.removed_at_ms.is_(None))
            .order_by(sa.literal_column("rowid"))
        ).all()
    )


def _named(connection: sa.Connection, typed: str) -> sa.Row[Any]:
    found = [r for r in _rows(connection) if typed and r.policy_id.hex().startswith(typed.lower())]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} policies have an id that starts with '{typed}', expected one; "
            "see 'synthedge site policies list'"
        )
    return found[0]


def _statement(blob: bytes) -> pb.Statement:
    return pb.Statement.FromString(pb.SignedStatement.FromString(blob).statement)


def _body(blob: bytes) -> pb.StandingPolicy:
    return pb.StandingPolicy.FromString(_statement(blob).payload)


def _is_in_force(site: Site, body: pb.StandingPolicy) -> bool:
    return "approve" not in body.acts or body.HasField("first") or not needs_two(site)


def _verify(site: Site, blob: bytes) -> Verified[pb.StandingPolicy]:
    return verify(
        pb.SignedStatement.FromString(blob),
        expected_type=pb.StandingPolicy,
        consortium=site.consortium,
        site=site.settings.id,
        site_public_key=site.statement_key.public_bytes,
        dictionary_digest=bytes.fromhex(site.dictionary.digest),
        now_ms=store.now_ms(),
        limits=LIMITS,
    )


def _problem(site: Site, blob: bytes, body: pb.StandingPolicy) -> str:
    """Why a policy is not in force now; empty if it is."""
    if body.valid_until_ms < store.now_ms():
        return "its time has passed"
    if not _is_in_force(site, body):
        return "waits for a second steward: policies sign"
    try:
        _verify(site, blob)
    except ProtocolError as error:
        again = f"synthedge site policies sign {body.policy_id.hex()[:12]} --steward NAME"
        return f"{error}; a steward who still wants it runs '{again}'"
    return ""


def _label(verified: Verified[pb.StandingPolicy]) -> str:
    return f"standing policy {verified.payload.policy_id.hex()[:8]} of {verified.by_whom}"


def _record(
    connection: sa.Connection, what: str, steward: Steward, body: pb.StandingPolicy
) -> None:
    store.record(
        connection,
        what,
        steward.label,
        policy=body.policy_id.hex(),
        may=list(body.acts),
        peers=list(body.peers),
        purposes=list(body.purposes),
        rows=body.rows,
        period_days=body.period_days,
    )


def _check_names(site: Site, body: pb.StandingPolicy) -> None:
    with site.store.read() as connection:
        peers = set(connection.execute(sa.select(store.peers.c.site)).scalars())
    unknown = {
        "site": set(body.peers) - peers,
        "shareable feature": set(body.features)
        - {f.name for f in site.dictionary.features if f.is_shareable},
        "grid": {region.partition("/")[0] for region in body.regions}
        - {grid.name for grid in site.dictionary.grids},
        "permission of the Data Use Ontology": {p for p in body.purposes if is_condition(p)},
    }
    for what, names in unknown.items():
        if names:
            raise UsageError(f"there is no {what} '{sorted(names)[0]}'; correct the policy")
    if body.valid_until_ms <= store.now_ms():
        raise UsageError("the policy's last day has passed; name a later one")


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone().date().isoformat()
