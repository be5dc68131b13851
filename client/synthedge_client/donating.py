"""The donor's side of a transfer until rows are sealed: selection, manifest, the steward's decision, and the way back.

Rules
-----
* The patient's consent is looked at when rows are selected, approved, sealed and before they are uploaded.
* A patient's row goes to one recipient once, whatever becomes of the transfer after its bytes left.
* Which rows lie in the region, and which of them go, is `selection`'s to say.
"""

import secrets

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from synthedge_client import outbound, store
from synthedge_client.deciding import Decider, check_reason
from synthedge_client.selection import choose, giveable
from synthedge_client.site import Site
from synthedge_client.site_table import SiteTable, load_site_table
from synthedge_client.standing import require_taking_part
from synthedge_client.stewards import Steward
from synthedge_client.transfers import (
    Transfer,
    first_approval,
    keep_first_approval,
    move,
    region_of,
)
from synthedge_client.two_person import is_complete, sign_once_more
from synthedge_client.withdrawn import withdrawn_tags
from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import LifecycleError
from synthedge_protocols.lifecycle import Event, Party, State
from synthedge_protocols.v1 import statements_pb2 as pb


def eligible_rows(
    site: Site, connection: sa.Connection, table: SiteTable, transfer: Transfer
) -> NDArray[np.int64]:
    """Rows that may go: positive, in the region, consented, one a patient, not sent to this peer before.

    A selection of this same transfer does not count as sent: it is being replaced.

    Returns
    -------
    ndarray of int, shape (n_eligible,)
        Positions in the table.
    """
    site = site.under(transfer.dictionary_digest)
    grid, voxel = region_of(site, transfer.request)
    may_leave = table.consents.to(transfer.request.purpose) & table.first_row_of_patient
    eligible = giveable(table.values, table.positive, may_leave, site.dictionary, grid, voxel)
    sent = set(
        connection.execute(
            sa.select(store.disclosed.c.patient_tag).where(
                (store.disclosed.c.recipient == transfer.peer)
                & (store.disclosed.c.transfer_id != transfer.id)
            )
        ).scalars()
    )
    sent |= withdrawn_tags(connection, transfer.request.purpose)
    return np.array(
        [i for i in eligible if site.keys.tag(table.patient_ids[i]) not in sent],
        dtype=np.int64,
    )


def prepare(site: Site, transfer: Transfer, who: str) -> pb.TransferPayload:
    """Select rows and show exactly what would leave; nothing leaves. A second time selects anew.

    Raises
    ------
    RefusedError
        If fewer patients are eligible than the policy's minimum count.
    DisclosureRefusedError
        If a requested feature may not leave.
    LifecycleError
        If the request is not waiting for a preparation.
    """
    if transfer.role != "donor" or transfer.state not in (State.REQUESTED, State.PREPARED):
        raise LifecycleError(
            f"transfer {transfer.short_id} is {transfer.state} and this site its {transfer.role}; "
            "only a donor prepares, and only before its approval"
        )
    site = site.under(transfer.dictionary_digest)
    table = load_site_table(site.settings, site.dictionary)
    with site.store.write() as connection:
        eligible = eligible_rows(site, connection, table, transfer)
        # A handful of patients is who they are; "not available" tells the other side nothing about how many.
        if len(eligible) < site.dictionary.policy.min_count:
            raise RefusedError(
                f"fewer than {site.dictionary.policy.min_count} patients of the region are positive, consented and "
                f"not yet sent to '{transfer.peer}'; run 'synthedge site requests decline {transfer.short_id} "
                '--reason "not available"\''
            )
        # The operating system's generator: which patients are picked, and in which order, follows nothing.
        generator = np.random.default_rng(secrets.randbits(128))
        chosen = choose(eligible, transfer.request.rows, generator)
        tokens = [secrets.token_bytes(16) for _ in chosen]
        payload = outbound.build_payload(
            table.values[chosen],
            table.positive[chosen],
            tokens,
            transfer_id=transfer.id,
            donor=site.settings.id,
            dictionary=site.dictionary,
            features=list(transfer.request.features),
            region=site.dictionary.grid(transfer.request.grid).features,
        )
        if transfer.state is State.PREPARED:
            lapse(connection, transfer, who, "prepared anew")
        move(
            connection,
            transfer,
            Event.PREPARE,
            Party.DONOR,
            who,
            payload=site.keys.encrypt(payload.SerializeToString(), _payload_context(transfer)),
            rows=len(chosen),
        )
        connection.execute(
            store.disclosed.insert(),
            [
                {
                    "token": token,
                    "transfer_id": transfer.id,
                    "recipient": transfer.peer,
                    "patient": site.keys.encrypt(table.patient_ids[i].encode(), b"patient" + token),
                    "patient_tag": site.keys.tag(table.patient_ids[i]),
                }
                for token, i in zip(tokens, chosen, strict=True)
            ],
        )
    return payload


def approve(site: Site, transfer: Transfer, decider: Decider) -> bool:
    """Sign the prepared manifest; the agent seals and ships it once every signature is there.

    Returns
    -------
    bool
        False: by the two-person rule another steward has to sign too.

    Raises
    ------
    RefusedError
        If the recipient's key was not compared, nothing is prepared, a consent was lost since, the same
        steward signs twice, or this site pauses or left.
    LifecycleError
        If the transfer is past its approval or ended.
    """
    site = site.under(transfer.dictionary_digest)
    with site.store.write() as connection:
        require_taking_part(connection)
        site.require_verified_peer(connection, transfer.peer)
        payload = prepared_payload(site, connection, transfer)
        n_lost = lost_consents(site, connection, transfer)
        if n_lost:
            raise RefusedError(
                f"{n_lost} of the prepared patients no longer consent; "
                f"run 'synthedge site requests prepare {transfer.short_id}' again"
            )
        body = pb.Approval(
            transfer_id=transfer.id,
            request_digest=outbound.sha256(transfer.signed_request.statement),
            manifest_commitment=outbound.commitment(payload),
            rows=pb.Manifest.FromString(payload.manifest).rows,
        )
        if isinstance(decider, Steward):
            signed = sign_once_more(site, decider, body, first_approval(connection, transfer))
            if not is_complete(site, body):
                keep_first_approval(connection, transfer, signed, decider.label)
                return False
        else:
            signed = decider.sign(site, body)
        move(
            connection,
            transfer,
            Event.APPROVE,
            Party.DONOR,
            decider.label,
            approval=signed.SerializeToString(),
            reason="",
        )
        outbound.enqueue(connection, "approval", signed, decider.label)
    return True


def prepared_payload(
    site: Site, connection: sa.Connection, transfer: Transfer
) -> pb.TransferPayload:
    """The payload that `prepare` stored.

    Raises
    ------
    RefusedError
        If none is stored: not prepared yet.
    LifecycleError
        If the transfer has ended, or its rows have left.
    """
    blob = connection.execute(
        sa.select(store.transfers.c.payload).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    if blob is not None:
        return pb.TransferPayload.FromString(site.keys.decrypt(blob, _payload_context(transfer)))
    if transfer.role == "donor" and transfer.state in (State.REQUESTED, State.PREPARED):
        raise RefusedError(
            f"transfer {transfer.short_id} holds no prepared manifest; "
            f"run 'synthedge site requests prepare {transfer.short_id}' first"
        )
    raise LifecycleError(
        f"transfer {transfer.short_id} is {transfer.state} and this site its {transfer.role}; "
        "there is nothing to approve or send"
    )


def _payload_context(transfer: Transfer) -> bytes:
    return b"payload" + transfer.id


def decline(site: Site, transfer: Transfer, steward: Steward, reason: str) -> None:
    """Decline a request; the reason reaches the other side.

    Raises
    ------
    LifecycleError
        If the transfer cannot be declined any more.
    UsageError
        If the reason is empty or too long.
    """
    check_reason(reason)
    site = site.under(transfer.dictionary_digest)
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
            steward.label,
            reason=reason,
            payload=None,
        )
        forget_selection(connection, transfer)
        outbound.enqueue(connection, "ending", signed, steward.label)


def lost_consents(site: Site, connection: sa.Connection, transfer: Transfer) -> int:
    """How many prepared rows belong to patients who no longer consent, or who left the table."""
    table = load_site_table(site.settings, site.dictionary)
    consented = {
        site.keys.tag(patient)
        for patient, active in zip(
            table.patient_ids, table.consents.to(transfer.request.purpose), strict=True
        )
        if active
    }
    consented -= withdrawn_tags(connection, transfer.request.purpose)
    tags = connection.execute(
        sa.select(store.disclosed.c.patient_tag).where(store.disclosed.c.transfer_id == transfer.id)
    ).scalars()
    return sum(tag not in consented for tag in tags)


def withdraw_approval(connection: sa.Connection, transfer: Transfer, reason: str) -> None:
    """Take a transfer that was approved or sealed back to its steward; what was prepared is forgotten.

    Raises
    ------
    LifecycleError
        If the rows have left already.
    """
    move(
        connection,
        transfer,
        Event.LOSE_CONSENT,
        Party.DONOR,
        "agent",
        reason=reason,
        payload=None,
        approval=None,
        shipment=None,
        rows=None,
    )
    forget_selection(connection, transfer)


def lapse(connection: sa.Connection, transfer: Transfer, who: str, reason: str) -> None:
    """Take a prepared transfer back to its request; what was prepared is forgotten."""
    move(
        connection,
        transfer,
        Event.LAPSE,
        Party.DONOR,
        who,
        reason=reason,
        payload=None,
        approval=None,
        rows=None,
    )
    forget_selection(connection, transfer)


def forget_selection(connection: sa.Connection, transfer: Transfer) -> None:
    """Forget which patients were selected; only while none of their rows has left."""
    connection.execute(store.disclosed.delete().where(store.disclosed.c.transfer_id == transfer.id))
