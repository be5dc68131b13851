"""The donor's agent seals approved rows to the recipient and uploads the sealed bytes.

Rules
-----
* Each step is written down before the next begins; every step may be repeated after a crash.
* Consent is looked at once more before rows are sealed and before they are uploaded.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from synthedge_client import outbound
from synthedge_client.connection import Connection
from synthedge_client.donating import lost_consents, prepared_payload, withdraw_approval
from synthedge_client.rotation import hpke_key_of
from synthedge_client.sealed_files import open_private, outgoing_file
from synthedge_client.site import Site
from synthedge_client.transfers import Transfer, move, sealing_context
from synthedge_protocols.compression import compress
from synthedge_protocols.errors import IdentityError
from synthedge_protocols.keys import HpkePublicKey
from synthedge_protocols.lifecycle import Event, Party, State
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import seal

LIMITS = Limits()


def ship(site: Site, connection: Connection, transfer: Transfer) -> bool:
    """Seal an approved transfer, or upload a sealed one; True if anything was done.

    Raises
    ------
    ProtocolError, SynthEdgeError
        If it cannot go on now; nothing has changed then.
    """
    if transfer.state is State.APPROVED:
        seal_approved(site, transfer)
        return True
    return _upload(site, connection, transfer)


def seal_approved(site: Site, transfer: Transfer) -> None:
    """Seal the approved rows and queue the shipment, or go back to the steward if a consent was lost."""
    with site.store.write() as transaction:
        if _has_lost_consents(site, transaction, transfer):
            return
        payload = prepared_payload(site, transaction, transfer)
        recipient = _peer_hpke(site, transaction, transfer)
        context = sealing_context(site, transaction, transfer, outbound.commitment(payload))
        with open_private(outgoing_file(site, transfer), "wb") as file:
            sealed = seal(
                io.BytesIO(compress(payload.SerializeToString())),
                file,
                recipient=recipient,
                context=context,
                limits=LIMITS,
            )
            file.flush()
            os.fsync(file.fileno())
        signed = site.sign(sealed.shipment(transfer.id))
        move(
            transaction,
            transfer,
            Event.SEAL,
            Party.DONOR,
            "agent",
            shipment=signed.SerializeToString(),
        )
        outbound.enqueue(transaction, "shipment", signed, "agent")


def _has_lost_consents(site: Site, transaction: sa.Connection, transfer: Transfer) -> bool:
    n_lost = lost_consents(site, transaction, transfer)
    if n_lost:
        withdraw_approval(
            transaction,
            transfer,
            f"{n_lost} of the approved patients no longer consent; prepare and approve again",
        )
    return n_lost > 0


def _peer_hpke(site: Site, transaction: sa.Connection, transfer: Transfer) -> HpkePublicKey:
    site.require_verified_peer(transaction, transfer.peer, goes_on=True)
    key = hpke_key_of(transaction, transfer.peer, transfer.request.hpke_key_id)
    if key is None:
        raise IdentityError(
            f"the request of site '{transfer.peer}' names a sealing key that its directory entry never showed here"
        )
    return key


def _upload(site: Site, connection: Connection, transfer: Transfer) -> bool:
    path = outgoing_file(site, transfer)
    progress = connection.upload_progress(transfer.id)
    if not progress.complete:
        with site.store.write() as transaction:
            if _has_lost_consents(site, transaction, transfer):
                return True
            if not path.is_file():
                withdraw_approval(
                    transaction,
                    transfer,
                    "the sealed bytes are gone from this site's disk; prepare and approve again",
                )
                return True
        progress = connection.upload(transfer.id, _chunks(path, progress.stored_bytes))
    if not progress.complete:
        return False
    with site.store.write() as transaction:
        # The manifest has served: the coordinator holds every sealed byte.
        move(transaction, transfer, Event.RELAY, Party.DONOR, "agent", payload=None)
    return True


def _chunks(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(LIMITS.sent_bytes):
            yield offset, data
            offset += len(data)
