"""Sealed bytes on their way: the donor seals and uploads, the recipient fetches, opens, checks and stores.

Rules
-----
* Each step is written down before the next begins; every step may be repeated after a crash.
* The recipient verifies the donor's signature over the shipment before it opens anything.
* What the gate refuses is deleted; the receipt says so.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from google.protobuf.message import DecodeError

from synthedge_client import outbound, store
from synthedge_client.connection import Connection
from synthedge_client.gate import check_delivery
from synthedge_client.inbound import verify_from_peer
from synthedge_client.received import ReceivedSamples, keep_samples, received_before
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_client.transfers import (
    Transfer,
    incoming_file,
    lost_consents,
    move,
    outgoing_file,
    prepared_payload,
    region_of,
)
from synthedge_protocols.compression import compress, decompress
from synthedge_protocols.errors import (
    LimitExceededError,
    MalformedError,
    TransferAuthenticationError,
)
from synthedge_protocols.keys import HpkePublicKey, key_id
from synthedge_protocols.lifecycle import Event, Party, State
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import Sealed, SealingContext, open_sealed, seal
from synthedge_protocols.v1 import statements_pb2 as pb

LIMITS = Limits()


def ship(site: Site, connection: Connection, transfer: Transfer) -> bool:
    """Seal an approved transfer, or upload a sealed one; True if anything was done."""
    if transfer.state is State.APPROVED:
        _seal(site, transfer)
        return True
    return _upload(site, connection, transfer)


def _seal(site: Site, transfer: Transfer) -> None:
    with site.store.write() as transaction:
        n_lost = lost_consents(site, transaction, transfer)
        if n_lost:
            move(
                transaction,
                transfer,
                Event.LOSE_CONSENT,
                Party.DONOR,
                "agent",
                reason=f"{n_lost} patients no longer consent; prepare and approve again",
            )
            return
        payload = prepared_payload(site, transaction, transfer)
        hpke = pb.HpkeKey.FromString(_statement(_peer_hpke(site, transaction, transfer)).payload)
        context = _context(site, transaction, transfer, outbound.commitment(payload), hpke.key_id)
        path = outgoing_file(site, transfer)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("wb") as file:
            sealed = seal(
                io.BytesIO(compress(payload.SerializeToString())),
                file,
                recipient=HpkePublicKey(hpke.public_key),
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


def _upload(site: Site, connection: Connection, transfer: Transfer) -> bool:
    progress = connection.upload_progress(transfer.id)
    if not progress.complete:
        progress = connection.upload(
            transfer.id, _chunks(outgoing_file(site, transfer), progress.stored_bytes)
        )
    if not progress.complete:
        return False
    with site.store.write() as transaction:
        move(transaction, transfer, Event.RELAY, Party.DONOR, "agent")
    return True


def _chunks(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(LIMITS.chunk_bytes):
            yield offset, data
            offset += len(data)


def fetch(site: Site, connection: Connection, transfer: Transfer) -> bool:
    """Download, release the key, open, check and store one transfer; always True."""
    path = incoming_file(site, transfer)
    _download(connection, transfer, path)
    signed = connection.release_key(transfer.id)
    if transfer.state is State.RELAYED:
        with site.store.write() as transaction:
            move(
                transaction,
                transfer,
                Event.DELIVER,
                Party.RECIPIENT,
                "agent",
                shipment=signed.SerializeToString(),
            )
    _take_in(site, transfer, signed, path)
    path.unlink(missing_ok=True)
    return True


def _download(connection: Connection, transfer: Transfer, path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with path.open("ab") as file:
        for chunk in connection.download(transfer.id, file.tell()):
            if chunk.offset != file.tell():
                raise TransferAuthenticationError("transfer could not be authenticated")
            file.write(chunk.data)


def _take_in(site: Site, transfer: Transfer, signed: pb.SignedStatement, path: Path) -> None:
    table = load_site_table(site.settings, site.dictionary)
    with site.store.write() as transaction:
        shipment: pb.Shipment | None = None
        try:
            verified = verify_from_peer(site, transaction, signed, pb.Shipment, transfer.peer)
            shipment = verified.payload
            samples = _open(site, transaction, transfer, shipment, path)
        except TransferAuthenticationError as error:
            accepted, reason, n_rows = False, str(error), 0
        else:
            grid, voxel = region_of(site, transfer.request)
            gate = check_delivery(
                samples.values,
                table.values,
                table.positive,
                site.dictionary,
                tuple(transfer.request.features),
                grid,
                voxel,
            )
            accepted, reason, n_rows = gate.accepted, gate.reason, len(samples.tokens)
            n_again = received_before(site, transaction, samples)
            if accepted and n_again:
                accepted, reason = False, f"{n_again} of {n_rows} rows were received before"
            if accepted:
                keep_samples(site, transaction, transfer, table, samples)
        receipt = site.sign(
            pb.Receipt(
                transfer_id=transfer.id,
                ciphertext_digest=shipment.ciphertext_digest if shipment else b"\0" * 32,
                rows=n_rows if accepted else 0,
                accepted=accepted,
                reason=reason,
            ),
        )
        move(
            transaction,
            transfer,
            Event.ACCEPT if accepted else Event.REFUSE,
            Party.RECIPIENT,
            "gate",
            reason=reason,
            rows=n_rows if accepted else 0,
        )
        outbound.enqueue(transaction, "receipt", receipt, "agent")


def _open(
    site: Site,
    transaction: sa.Connection,
    transfer: Transfer,
    shipment: pb.Shipment,
    path: Path,
) -> ReceivedSamples:
    """Open a verified shipment and check it against every digest that was agreed on.

    Raises
    ------
    TransferAuthenticationError
        If anything differs; one type and one text for every cause.
    """
    refused = TransferAuthenticationError("transfer could not be authenticated")
    approval = pb.Approval.FromString(_statement(_approval(transaction, transfer)).payload)
    context = _context(
        site, transaction, transfer, approval.manifest_commitment, transfer.request.hpke_key_id
    )
    if shipment.transfer_id != transfer.id:
        raise refused
    plain = io.BytesIO()
    with path.open("rb") as file:
        open_sealed(
            file,
            plain,
            sealed=Sealed.from_shipment(shipment),
            key_pair=site.keys.hpke,
            context=context,
            limits=LIMITS,
        )
    try:
        payload = pb.TransferPayload.FromString(
            decompress(plain.getvalue(), max_bytes=LIMITS.payload_bytes)
        )
        manifest = pb.Manifest.FromString(payload.manifest)
        batch = pb.SampleBatch.FromString(payload.samples)
    except (DecodeError, MalformedError, LimitExceededError):
        raise refused from None
    n_features = len(manifest.features)
    if (
        outbound.commitment(payload) != approval.manifest_commitment
        or manifest.transfer_id != transfer.id
        or manifest.donor != transfer.peer
        or manifest.rows_digest != outbound.sha256(payload.samples)
        or not manifest.rows == len(batch.samples) == approval.rows <= transfer.request.rows
        or list(manifest.features) != list(transfer.request.features)
        or not all(
            s.positive and len(s.token) == 16 and len(s.values) == n_features for s in batch.samples
        )
        or len({s.token for s in batch.samples}) != len(batch.samples)
    ):
        raise refused
    values = np.full((len(batch.samples), len(site.dictionary.features)), np.nan)
    columns = [site.dictionary.index(name) for name in manifest.features]
    values[:, columns] = [list(sample.values) for sample in batch.samples]
    if np.isinf(values).any():
        raise refused
    return ReceivedSamples(tokens=[s.token for s in batch.samples], values=values)


def _context(
    site: Site,
    transaction: sa.Connection,
    transfer: Transfer,
    manifest_commitment: bytes,
    hpke_key_id: bytes,
) -> SealingContext:
    own = site.keys.statement.key_id
    peer = key_id(site.peer_public_key(transaction, transfer.peer))
    donor, recipient = (own, peer) if transfer.role == "donor" else (peer, own)
    return SealingContext(
        transfer_id=transfer.id,
        request_digest=outbound.sha256(transfer.signed_request.statement),
        manifest_commitment=manifest_commitment,
        donor_key_id=donor,
        recipient_key_id=recipient,
        recipient_hpke_key_id=hpke_key_id,
        dictionary_digest=bytes.fromhex(site.dictionary.digest),
    )


def _peer_hpke(site: Site, transaction: sa.Connection, transfer: Transfer) -> pb.SignedStatement:
    site.require_verified_peer(transaction, transfer.peer)
    blob = transaction.execute(
        sa.select(store.peers.c.hpke_key).where(store.peers.c.site == transfer.peer)
    ).scalar_one()
    return pb.SignedStatement.FromString(blob)


def _approval(transaction: sa.Connection, transfer: Transfer) -> pb.SignedStatement:
    blob = transaction.execute(
        sa.select(store.transfers.c.approval).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    return pb.SignedStatement.FromString(blob)


def _statement(signed: pb.SignedStatement) -> pb.Statement:
    return pb.Statement.FromString(signed.statement)
