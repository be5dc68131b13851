"""The site's side of a transfer: what each steward's decision and each arriving statement changes.

Rules
-----
* Every change of state goes through the one table of `synthedge_protocols.lifecycle`.
* Nothing is sealed to, or accepted from, a peer whose fingerprint nobody compared.
* The patient's consent is looked at when rows are selected and again when they are sealed.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from synthedge_client import outbound, store
from synthedge_client.keystore import Steward
from synthedge_client.site import Site
from synthedge_client.site_table import SiteTable, load_site_table
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.grids import NamedGrid
from synthedge_protocols.lifecycle import Event, Party, State, advance
from synthedge_protocols.statements import transfer_id as digest_of_request
from synthedge_protocols.v1 import statements_pb2 as pb


@dataclass(frozen=True)
class Transfer:
    """One row of the transfers table, decoded."""

    id: bytes
    role: str
    peer: str
    state: State
    request: pb.TransferRequest
    signed_request: pb.SignedStatement
    rows: int | None
    reason: str | None
    created_at_ms: int
    changed_at_ms: int

    @property
    def short_id(self) -> str:
        """The first 12 hex digits: what a steward types."""
        return self.id.hex()[:12]


def list_transfers(connection: sa.Connection) -> list[Transfer]:
    """All transfers this site takes part in, oldest first."""
    rows = connection.execute(sa.select(store.transfers).order_by(store.transfers.c.created_at_ms))
    return [_decode(row) for row in rows]


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
        reason=m["reason"],
        created_at_ms=m["created_at_ms"],
        changed_at_ms=m["changed_at_ms"],
    )


def request_id(signed: pb.SignedStatement) -> bytes:
    """The transfer id that a signed request stands for."""
    return digest_of_request(pb.Statement.FromString(signed.statement).payload)


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
    values: dict[str, object] = {"state": state.value, "changed_at_ms": store.now_ms(), **columns}
    if reason is not None:
        values["reason"] = reason
    connection.execute(
        store.transfers.update()
        .where(store.transfers.c.transfer_id == transfer.id)
        .values(**values)
    )
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


# ---- the recipient's steward -------------------------------------------------------------------


def request(
    site: Site,
    steward: Steward,
    *,
    donor: str,
    grid: NamedGrid,
    voxel: int,
    rows: int,
    purpose: str,
) -> bytes:
    """Sign and queue a request for samples; return its transfer id.

    Raises
    ------
    UsageError
        If the number of rows is out of range or the purpose is no DUO code.
    RefusedError
        If the donor's keys were not verified.
    """
    dictionary = site.dictionary
    limit = dictionary.policy.rows_per_transfer
    if not 1 <= rows <= limit:
        raise UsageError(
            f"{rows} rows were asked for, expected 1 to {limit} (the dictionary's policy)"
        )
    prefix, _, number = purpose.partition(":")
    if prefix != "DUO" or len(number) != 7 or not number.isdigit():
        raise UsageError(f"purpose '{purpose}' is no DUO code; write for example DUO:0000007")
    table = load_site_table(site.settings, dictionary)
    with site.store.write() as connection:
        site.require_verified_peer(connection, donor)
        body = pb.TransferRequest(
            recipient=site.settings.id,
            donor=donor,
            grid=grid.name,
            voxel=grid.index_of(voxel),
            purpose=purpose,
            features=[f for f in table.features if dictionary.feature(f).is_shareable],
            rows=rows,
            retention_days=dictionary.policy.retention_days,
            hpke_key_id=site.keys.hpke.key_id,
            nonce=secrets.token_bytes(32),
        )
        signed = steward.sign(site, body)
        transfer_id = request_id(signed)
        _insert(connection, transfer_id, "recipient", donor, signed)
        store.record(
            connection,
            "transfer requested",
            steward.name,
            transfer_id=transfer_id.hex(),
            role="recipient",
            peer=donor,
            rows=rows,
            region=grid.label(voxel),
            purpose=purpose,
        )
        outbound.enqueue(connection, "transfer-request", signed, steward.name)
    return transfer_id


def _insert(
    connection: sa.Connection, transfer_id: bytes, role: str, peer: str, signed: pb.SignedStatement
) -> None:
    now = store.now_ms()
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


def record_request(
    connection: sa.Connection,
    transfer_id: bytes,
    signed: pb.SignedStatement,
    request: pb.TransferRequest,
) -> None:
    """Write down a verified request that arrived for this site as the donor."""
    _insert(connection, transfer_id, "donor", request.recipient, signed)
    store.record(
        connection,
        "transfer requested",
        "coordinator",
        transfer_id=transfer_id.hex(),
        role="donor",
        peer=request.recipient,
        rows=request.rows,
        purpose=request.purpose,
    )


# ---- the donor's steward -----------------------------------------------------------------------


def region_of(site: Site, request: pb.TransferRequest) -> tuple[NamedGrid, int]:
    """The grid and flat voxel index a request is about."""
    grid = NamedGrid(site.dictionary, site.dictionary.grid(request.grid))
    return grid, grid.flat_of(tuple(request.voxel))


def eligible_rows(site: Site, table: SiteTable, transfer: Transfer) -> NDArray[np.int64]:
    """Rows that may go: positive, in the region, consented, one a patient, not sent to this peer before.

    Returns
    -------
    ndarray of int, shape (n_eligible,)
        Positions in the table.
    """
    grid, voxel = region_of(site, transfer.request)
    eligible = (
        (grid.assign(table.values) == voxel)
        & table.positive
        & table.has_consent
        & table.first_row_of_patient
    )
    with site.store.read() as connection:
        sent = set(
            connection.execute(
                sa.select(store.disclosed.c.patient_tag).where(
                    store.disclosed.c.recipient == transfer.peer
                )
            ).scalars()
        )
    return np.array(
        [i for i in np.flatnonzero(eligible) if site.keys.tag(table.patient_ids[i]) not in sent],
        dtype=np.int64,
    )


def prepare(site: Site, transfer: Transfer, who: str) -> pb.TransferPayload:
    """Select rows and show exactly what would leave; nothing leaves.

    Raises
    ------
    RefusedError
        If there is no row to give.
    LifecycleError
        If the request is not waiting for a preparation.
    """
    table = load_site_table(site.settings, site.dictionary)
    eligible = eligible_rows(site, table, transfer)
    if not len(eligible):
        raise RefusedError(
            "no row of the region is positive, consented and not yet sent to this recipient; "
            f"run 'synthedge site requests decline {transfer.short_id} --reason \"not available\"'"
        )
    # The operating system's generator: which patients are picked, and in which order, follows nothing.
    generator = np.random.default_rng(secrets.randbits(128))
    chosen = generator.permutation(eligible)[: transfer.request.rows]
    tokens = [secrets.token_bytes(16) for _ in chosen]
    payload = outbound.build_payload(
        table.values[chosen],
        table.positive[chosen],
        tokens,
        transfer_id=transfer.id,
        donor=site.settings.id,
        dictionary=site.dictionary,
        features=list(transfer.request.features),
    )
    with site.store.write() as connection:
        move(
            connection,
            transfer,
            Event.PREPARE,
            Party.DONOR,
            who,
            payload=site.keys.encrypt(payload.SerializeToString(), transfer.id),
            rows=len(chosen),
        )
        connection.execute(
            store.disclosed.delete().where(store.disclosed.c.transfer_id == transfer.id)
        )
        connection.execute(
            store.disclosed.insert(),
            [
                {
                    "token": token,
                    "transfer_id": transfer.id,
                    "recipient": transfer.peer,
                    "patient": site.keys.encrypt(table.patient_ids[i].encode(), token),
                    "patient_tag": site.keys.tag(table.patient_ids[i]),
                }
                for token, i in zip(tokens, chosen, strict=True)
            ],
        )
    return payload


def approve(site: Site, transfer: Transfer, steward: Steward) -> None:
    """Sign the prepared manifest; the agent seals and ships it.

    Raises
    ------
    RefusedError
        If the recipient's keys were not verified.
    LifecycleError
        If nothing is prepared.
    """
    with site.store.write() as connection:
        site.require_verified_peer(connection, transfer.peer)
        payload = prepared_payload(site, connection, transfer)
        signed = steward.sign(
            site,
            pb.Approval(
                transfer_id=transfer.id,
                request_digest=outbound.sha256(transfer.signed_request.statement),
                manifest_commitment=outbound.commitment(payload),
                rows=pb.Manifest.FromString(payload.manifest).rows,
            ),
        )
        move(
            connection,
            transfer,
            Event.APPROVE,
            Party.DONOR,
            steward.name,
            approval=signed.SerializeToString(),
        )
        outbound.enqueue(connection, "approval", signed, steward.name)


def prepared_payload(
    site: Site, connection: sa.Connection, transfer: Transfer
) -> pb.TransferPayload:
    """The payload that `prepare` stored.

    Raises
    ------
    RefusedError
        If none is stored: not prepared yet, or already delivered.
    """
    blob = connection.execute(
        sa.select(store.transfers.c.payload).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    if blob is None:
        raise RefusedError(
            f"transfer {transfer.short_id} is {transfer.state} and holds no prepared manifest; "
            f"run 'synthedge site requests prepare {transfer.short_id}' first"
        )
    return pb.TransferPayload.FromString(site.keys.decrypt(blob, transfer.id))


def decline(site: Site, transfer: Transfer, steward: Steward, reason: str) -> None:
    """Decline a request; the reason reaches the other side."""
    with site.store.write() as connection:
        signed = steward.sign(
            site,
            pb.Ending(transfer_id=transfer.id, state=State.DECLINED.value, reason=reason),
        )
        move(
            connection,
            transfer,
            Event.DECLINE,
            Party.DONOR,
            steward.name,
            reason=reason,
            payload=None,
        )
        connection.execute(
            store.disclosed.delete().where(store.disclosed.c.transfer_id == transfer.id)
        )
        outbound.enqueue(connection, "ending", signed, steward.name)


def lost_consents(site: Site, connection: sa.Connection, transfer: Transfer) -> int:
    """How many prepared rows belong to patients who no longer consent, or who left the table."""
    table = load_site_table(site.settings, site.dictionary)
    consented = {
        site.keys.tag(patient)
        for patient, active in zip(table.patient_ids, table.has_consent, strict=True)
        if active
    }
    tags = connection.execute(
        sa.select(store.disclosed.c.patient_tag).where(store.disclosed.c.transfer_id == transfer.id)
    ).scalars()
    return sum(tag not in consented for tag in tags)


def outgoing_file(site: Site, transfer: Transfer) -> Path:
    """Where the donor keeps the ciphertext until the recipient's receipt."""
    return site.settings.folder / "outgoing" / f"{transfer.id.hex()}.sealed"


def incoming_file(site: Site, transfer: Transfer) -> Path:
    """Where the recipient gathers the ciphertext."""
    return site.settings.folder / "incoming" / f"{transfer.id.hex()}.part"
