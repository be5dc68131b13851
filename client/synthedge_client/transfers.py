"""The site's record of each transfer it takes part in, and the one way it changes.

Rules
-----
* Every change of state goes through the one table of `synthedge_protocols.lifecycle`, with its audit event.
* What keeps a transfer from going on is kept beside its state until the next change, so that a steward sees it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.outbound import sha256
from synthedge_client.site import Site
from synthedge_core.errors import UsageError
from synthedge_core.grids import NamedGrid
from synthedge_protocols.errors import LifecycleError, ReplayError
from synthedge_protocols.lifecycle import Event, Party, State, advance
from synthedge_protocols.rotation import site_key_id
from synthedge_protocols.sealing import SealingContext
from synthedge_protocols.statements import transfer_id as digest_of_request
from synthedge_protocols.v1 import statements_pb2 as pb


@dataclass(frozen=True)
class Transfer:
    """One row of the transfers table, decoded.

    Attributes
    ----------
    role : str
        ``donor`` or ``recipient``: this site's own.
    rows : int or None
        Prepared, or received.
    gate : str or None
        At the recipient: what the gate found in a delivery that passed it.
    reason : str or None
        Why it is where it is: a steward's, the gate's or the coordinator's words.
    problem : str or None
        Why the agent could not take it further.
    has_manifest : bool
        Whether a prepared manifest is stored.
    """

    id: bytes
    role: str
    peer: str
    state: State
    request: pb.TransferRequest
    signed_request: pb.SignedStatement
    rows: int | None
    gate: str | None
    reason: str | None
    problem: str | None
    has_manifest: bool
    created_at_ms: int
    changed_at_ms: int

    @property
    def dictionary_digest(self) -> bytes:
        """Of the dictionary it was requested under, and finishes under; 32 bytes."""
        return pb.Statement.FromString(self.signed_request.statement).dictionary_digest

    @property
    def short_id(self) -> str:
        """The first 12 hex digits: what a steward types."""
        return self.id.hex()[:12]


def list_transfers(
    connection: sa.Connection, states: Collection[State] | None = None
) -> list[Transfer]:
    """The transfers this site takes part in, all or those in some states, oldest first."""
    query = sa.select(store.transfers).order_by(store.transfers.c.created_at_ms)
    if states is not None:
        query = query.where(store.transfers.c.state.in_([state.value for state in states]))
    return [_decode(row) for row in connection.execute(query)]


def find_transfer(connection: sa.Connection, typed: str) -> Transfer:
    """The transfer whose id starts with what was typed.

    Raises
    ------
    UsageError
        If none or several do.
    """
    found = [
        t for t in list_transfers(connection) if typed and t.id.hex().startswith(typed.lower())
    ]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} transfers have an id that starts with '{typed}', expected one; "
            "see 'synthedge site requests list'"
        )
    return found[0]


def get_transfer(connection: sa.Connection, transfer_id: bytes) -> Transfer:
    """The transfer with an id that a message named.

    Raises
    ------
    LifecycleError
        If this site takes no part in such a transfer.
    """
    row = connection.execute(
        sa.select(store.transfers).where(store.transfers.c.transfer_id == transfer_id)
    ).one_or_none()
    if row is None:
        raise LifecycleError(f"this site takes no part in a transfer {transfer_id[:6].hex()}")
    return _decode(row)


def _decode(row: sa.Row[tuple[object, ...]]) -> Transfer:
    m = row._mapping
    signed = pb.SignedStatement.FromString(m["request"])
    statement = pb.Statement.FromString(signed.statement)
    return Transfer(
        id=m["transfer_id"],
        role=m["role"],
        peer=m["peer"],
        state=State(m["state"]),
        request=pb.TransferRequest.FromString(statement.payload),
        signed_request=signed,
        rows=m["rows"],
        gate=m["gate"],
        reason=m["reason"],
        problem=m["problem"],
        has_manifest=m["payload"] is not None,
        created_at_ms=m["created_at_ms"],
        changed_at_ms=m["changed_at_ms"],
    )


def request_id(signed: pb.SignedStatement) -> bytes:
    """The transfer id that a signed request stands for."""
    return digest_of_request(pb.Statement.FromString(signed.statement).payload)


def insert_request(
    connection: sa.Connection,
    signed: pb.SignedStatement,
    request: pb.TransferRequest,
    *,
    role: str,
    who: str,
) -> bytes:
    """Begin the record of a transfer with its signed request; return its id.

    Raises
    ------
    ReplayError
        If the transfer is on record already.
    """
    transfer_id, now = request_id(signed), store.now_ms()
    known = connection.execute(
        sa.select(store.transfers.c.state).where(store.transfers.c.transfer_id == transfer_id)
    ).first()
    if known is not None:
        raise ReplayError(f"transfer {transfer_id.hex()[:12]} was requested before")
    peer = request.donor if role == "recipient" else request.recipient
    connection.execute(
        store.transfers.insert().values(
            transfer_id=transfer_id,
            role=role,
            peer=peer,
            state=State.REQUESTED.value,
            request=signed.SerializeToString(),
            created_at_ms=now,
            changed_at_ms=now,
        )
    )
    store.record(
        connection,
        "transfer requested",
        who,
        transfer_id=transfer_id.hex(),
        role=role,
        peer=peer,
        rows=request.rows,
        grid=request.grid,
        voxel=list(request.voxel),
        purpose=request.purpose,
    )
    return transfer_id


def move(
    connection: sa.Connection,
    transfer: Transfer,
    event: Event,
    actor: Party,
    who: str,
    *,
    reason: str | None = None,
    **columns: object,
) -> State:
    """Apply one event of the lifecycle table to a transfer, with its audit entry.

    Raises
    ------
    LifecycleError
        If the table does not allow it.
    """
    current = connection.execute(
        sa.select(store.transfers.c.state).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    state = advance(State(current), event, actor, at=Party(transfer.role))
    values: dict[str, object] = {
        "state": state.value,
        "changed_at_ms": store.now_ms(),
        "problem": None,
        **columns,
    }
    if reason is not None:
        values["reason"] = reason
    _update(connection, transfer, values)
    store.record(
        connection,
        f"transfer {state.value.lower()}",
        who,
        transfer_id=transfer.id.hex(),
        role=transfer.role,
        peer=transfer.peer,
        **({} if reason is None else {"reason": reason}),
    )
    return state


def first_approval(connection: sa.Connection, transfer: Transfer) -> bytes | None:
    """The approval that waits for a second steward's signature, if there is one."""
    approval: bytes | None = connection.execute(
        sa.select(store.transfers.c.approval).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    return approval if transfer.state is State.PREPARED else None


def keep_first_approval(
    connection: sa.Connection, transfer: Transfer, signed: pb.SignedStatement, who: str
) -> None:
    """Keep the first of two signatures; the transfer does not move yet."""
    _update(connection, transfer, {"approval": signed.SerializeToString()})
    store.record(connection, "transfer approved by the first", who, transfer_id=transfer.id.hex())


def note_passed_gate(
    connection: sa.Connection, transfer: Transfer, findings: str, n_rows: int
) -> None:
    """Keep what the gate found in a delivery it let pass: somebody decides on it, later or at once."""
    _update(connection, transfer, {"gate": findings, "rows": n_rows, "problem": None})
    store.record(
        connection,
        "gate passed",
        "gate",
        transfer_id=transfer.id.hex(),
        rows=n_rows,
        findings=findings,
    )


def note_problem(connection: sa.Connection, transfer: Transfer, problem: str) -> None:
    """Keep what the agent could not get past, for `status` and `requests list`."""
    _update(connection, transfer, {"problem": problem})
    store.record(
        connection, "transfer stuck", "agent", transfer_id=transfer.id.hex(), reason=problem
    )


def _update(connection: sa.Connection, transfer: Transfer, values: dict[str, object]) -> None:
    connection.execute(
        store.transfers.update()
        .where(store.transfers.c.transfer_id == transfer.id)
        .values(**values)
    )


def own_key_id(connection: sa.Connection, transfer_id: bytes) -> bytes | None:
    """Id of this site's statement key under which a transfer finishes; None if there is no such transfer."""
    row = connection.execute(
        sa.select(store.transfers.c.role, store.transfers.c.request).where(
            store.transfers.c.transfer_id == transfer_id
        )
    ).one_or_none()
    if row is None:
        return None
    signed = pb.SignedStatement.FromString(row.request)
    if row.role == "recipient":
        return site_key_id(signed)
    statement = pb.Statement.FromString(signed.statement)
    return pb.TransferRequest.FromString(statement.payload).donor_key_id


def region_of(site: Site, request: pb.TransferRequest) -> tuple[NamedGrid, int]:
    """The grid and flat voxel index a request is about."""
    grid = site.grid(request.grid)
    return grid, grid.flat_of(tuple(request.voxel))


def sealing_context(
    site: Site, connection: sa.Connection, transfer: Transfer, manifest_commitment: bytes
) -> SealingContext:
    """What a transfer's sealed bytes belong to, from this site's own records.

    Raises
    ------
    MalformedError
        If one of the digests has another length.
    """
    return SealingContext(
        transfer_id=transfer.id,
        request_digest=sha256(transfer.signed_request.statement),
        manifest_commitment=manifest_commitment,
        donor_key_id=transfer.request.donor_key_id,
        recipient_key_id=site_key_id(transfer.signed_request),
        recipient_hpke_key_id=transfer.request.hpke_key_id,
        dictionary_digest=transfer.dictionary_digest,
    )
