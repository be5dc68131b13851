"""The recipient's agent fetches sealed bytes, opens, checks and stores them, and signs for them.

Rules
-----
* Each step is written down before the next begins; every step may be repeated after a crash.
* The donor's signature over the shipment is verified before anything is opened.
* What cannot be opened, or the gate refuses, is deleted; the receipt says so.
"""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from google.protobuf.message import DecodeError

from synthedge_client import outbound, store
from synthedge_client.accepting import settle
from synthedge_client.connection import Connection
from synthedge_client.deciding import Decider, GateItself, RequestItself
from synthedge_client.duplicates import find_duplicates
from synthedge_client.gate import MAX_DUPLICATE_SHARE, GateResult, check_delivery
from synthedge_client.inbound import verify_from_peer
from synthedge_client.received import (
    ReceivedSamples,
    keep_samples,
    received_before,
    received_values,
)
from synthedge_client.sealed_files import incoming_file, open_private
from synthedge_client.site import Site
from synthedge_client.site_table import SiteTable, load_site_table
from synthedge_client.transfers import (
    Transfer,
    move,
    note_passed_gate,
    region_of,
    sealing_context,
)
from synthedge_client.withdrawn import refuse_withdrawn
from synthedge_protocols.compression import decompress
from synthedge_protocols.errors import (
    LimitExceededError,
    MalformedError,
    ProtocolError,
    TransferAuthenticationError,
)
from synthedge_protocols.lifecycle import Event, Party, State
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import Sealed, open_sealed
from synthedge_protocols.v1 import statements_pb2 as pb

LIMITS = Limits()
_TOKEN_BYTES = 16
# What a delivery may have beside its rows (names of features, mostly), and each row beside its values.
_ROOM_BYTES, _ROW_BYTES, _VALUE_BYTES = 1_048_576, 128, 16


def fetch(site: Site, connection: Connection, transfer: Transfer) -> bool:
    """Download, release the key, open, check and store one transfer; True when it is settled.

    Raises
    ------
    ProtocolError
        If the coordinator does not hand it over now.
    TableError
        If this site's own table or mapping cannot take it; it waits until that is mended.
    """
    path = incoming_file(site, transfer)
    was_begun = path.exists() and path.stat().st_size > 0
    limits = _limits(transfer)
    _download(connection, transfer, path, limits)
    # Asked for again after a crash, the key is the same.
    signed = connection.release_key(site.sign(pb.ReleaseRequest(transfer_id=transfer.id)))
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
    if was_begun and not _opens(site, transfer, signed, path):
        # What an earlier run left may have been torn by a power cut: nobody's fault, once more from the start.
        path.unlink()
        _download(connection, transfer, path, limits)
    _take_in(site, transfer, signed, path)
    path.unlink(missing_ok=True)
    return True


def _limits(transfer: Transfer) -> Limits:
    """How much the rows that were asked for can have, generously: a delivery is opened in memory."""
    request = transfer.request
    row_bytes = _ROW_BYTES + _VALUE_BYTES * len(request.features)
    n_bytes = min(LIMITS.payload_bytes, _ROOM_BYTES + request.rows * row_bytes)
    # Padding adds an eighth, sealing next to nothing.
    return replace(LIMITS, payload_bytes=n_bytes, ciphertext_bytes=2 * n_bytes)


def _download(connection: Connection, transfer: Transfer, path: Path, limits: Limits) -> None:
    with open_private(path, "ab") as file:
        for chunk in connection.download(transfer.id, file.tell()):
            if chunk.offset != file.tell():
                raise TransferAuthenticationError("transfer could not be authenticated")
            if chunk.offset + len(chunk.data) > limits.ciphertext_bytes:
                break  # no delivery of this request: opening it refuses it
            file.write(chunk.data)
        file.flush()
        os.fsync(file.fileno())


def _opens(site: Site, transfer: Transfer, signed: pb.SignedStatement, path: Path) -> bool:
    with site.store.read() as transaction:
        try:
            verified = verify_from_peer(site, transaction, signed, pb.Shipment, transfer.peer)
            _open(site, transaction, transfer, verified.payload, path)
        except ProtocolError:
            return False
    return True


def _take_in(site: Site, transfer: Transfer, signed: pb.SignedStatement, path: Path) -> None:
    table = load_site_table(site.settings, site.dictionary)
    with site.store.write() as transaction:
        refuse_withdrawn(transaction, transfer)
        shipment: pb.Shipment | None = None
        n_rows = 0
        try:
            verified = verify_from_peer(site, transaction, signed, pb.Shipment, transfer.peer)
            shipment = verified.payload
            samples = _open(site, transaction, transfer, shipment, path)
        except ProtocolError:
            # Of a forged shipment as of a damaged one nothing more is said.
            gate = GateResult(False, "transfer could not be authenticated")
        else:
            gate, samples = _check(site, transaction, transfer, table, samples)
            if gate.accepted:
                keep_samples(site, transaction, transfer, table, samples)
                n_rows = len(samples.tokens)
        decider: Decider = GateItself()
        if gate.accepted:
            note_passed_gate(transaction, transfer, gate.reason, n_rows)
            if not transfer.request.accept_if_gate_passes:
                return
            decider = RequestItself()
        settle(
            site,
            transaction,
            transfer,
            decider,
            accepted=gate.accepted,
            reason=gate.reason,
            rows=n_rows,
            ciphertext_digest=shipment.ciphertext_digest if shipment else bytes(32),
        )


def _check(
    site: Site,
    transaction: sa.Connection,
    transfer: Transfer,
    table: SiteTable,
    samples: ReceivedSamples,
) -> tuple[GateResult, ReceivedSamples]:
    """Decide on a delivery; what is to be kept of it if it is taken."""
    n_again = received_before(site, transaction, samples)
    if n_again:
        reason = f"{n_again} of {len(samples.tokens)} rows or tokens were received before"
        return GateResult(False, reason), samples
    before = received_values(site, transaction, table)
    measured = set(transfer.request.features) - set(samples.coarsened)
    duplicates = find_duplicates(
        samples.values, np.vstack([table.values, before]), site.dictionary, measured
    )
    if duplicates.any.mean() > MAX_DUPLICATE_SHARE:
        return GateResult(False, duplicates.in_words()), samples
    samples = samples.only(~duplicates.any)
    grid, voxel = region_of(site, transfer.request)
    result = check_delivery(
        samples.values,
        table.values,
        table.positive,
        site.dictionary,
        tuple(transfer.request.features),
        grid,
        voxel,
    )
    notes = [result.reason]
    if duplicates.any.any():
        notes.append(f"{duplicates.in_words()} and were left out")
    if samples.coarsened:
        names = ", ".join(samples.coarsened)
        notes.append(f"{names} came as centres of the dictionary's intervals")
    return replace(result, reason="; ".join(notes)), samples


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
    approval = _approval(transaction, transfer)
    if approval is None or shipment.transfer_id != transfer.id:
        raise refused
    context = sealing_context(site, transaction, transfer, approval.manifest_commitment)
    plain, limits = io.BytesIO(), _limits(transfer)
    with path.open("rb") as file:
        open_sealed(
            file,
            plain,
            sealed=Sealed.from_shipment(shipment),
            key_pair=site.keys.hpke_key(transfer.request.hpke_key_id),
            context=context,
            limits=limits,
        )
    try:
        payload = pb.TransferPayload.FromString(
            decompress(plain.getvalue(), max_bytes=limits.payload_bytes)
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
        or manifest.dictionary_digest.hex() != site.dictionary.digest
        or manifest.rows_digest != outbound.sha256(payload.samples)
        or not 1 <= manifest.rows == len(batch.samples) == approval.rows <= transfer.request.rows
        or list(manifest.features) != list(transfer.request.features)
        or not set(manifest.coarsened) <= set(manifest.features)
        or not all(
            s.positive and len(s.token) == _TOKEN_BYTES and len(s.values) == n_features
            for s in batch.samples
        )
        or len({s.token for s in batch.samples}) != len(batch.samples)
    ):
        raise refused
    values = np.full((len(batch.samples), len(site.dictionary.features)), np.nan)
    columns = [site.dictionary.index(name) for name in manifest.features]
    values[:, columns] = [list(sample.values) for sample in batch.samples]
    if np.isinf(values).any():
        raise refused
    return ReceivedSamples(
        tokens=[s.token for s in batch.samples], values=values, coarsened=tuple(manifest.coarsened)
    )


def _approval(transaction: sa.Connection, transfer: Transfer) -> pb.Approval | None:
    """What the donor's steward signed; it was verified when it arrived."""
    blob = transaction.execute(
        sa.select(store.transfers.c.approval).where(store.transfers.c.transfer_id == transfer.id)
    ).scalar_one()
    if blob is None:
        return None
    statement = pb.Statement.FromString(pb.SignedStatement.FromString(blob).statement)
    return pb.Approval.FromString(statement.payload)
