"""Sealed notes between this site and the other side of a transfer."""

import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.site import Site
from synthedge_client.transfers import Transfer
from synthedge_protocols.errors import IdentityError, TransferAuthenticationError
from synthedge_protocols.keys import HpkePublicKey
from synthedge_protocols.rotation import site_key_id
from synthedge_protocols.sealed_notes import NoteContext, open_note, seal_note
from synthedge_protocols.v1 import statements_pb2 as pb


def peer_hpke(site: Site, connection: sa.Connection, peer: str) -> HpkePublicKey:
    """The key to seal to a peer with; its signature was verified when it was stored.

    Raises
    ------
    UsageError, RefusedError
        If the peer is not known, or nobody compared its fingerprint.
    """
    site.require_verified_peer(connection, peer)
    blob = connection.execute(
        sa.select(store.peers.c.hpke_key).where(store.peers.c.site == peer)
    ).scalar_one()
    statement = pb.Statement.FromString(pb.SignedStatement.FromString(blob).statement)
    return HpkePublicKey(pb.HpkeKey.FromString(statement.payload).public_key)


def seal_to_peer(
    site: Site,
    connection: sa.Connection,
    transfer: Transfer,
    content: bytes,
    *,
    kind: str,
    subject: bytes,
    padded_bytes: int = 0,
) -> pb.SealedNote:
    """Seal a note to the other side of a transfer.

    Parameters
    ----------
    kind : str
        Statement type that will carry it.
    subject : bytes
        The notice's id, or the transfer's.
    padded_bytes : int
        As `seal_note`.

    Raises
    ------
    UsageError, RefusedError
        As `peer_hpke`.
    LimitExceededError
        If it does not fit.
    """
    recipient = peer_hpke(site, connection, transfer.peer)
    context = _context(transfer, kind, subject, transfer.role)
    return seal_note(content, recipient, context, padded_bytes=padded_bytes)


def open_from_peer(
    site: Site,
    transfer: Transfer,
    note: pb.SealedNote,
    *,
    kind: str,
    subject: bytes,
) -> bytes:
    """Open a note of the other side, whose statement was verified.

    Raises
    ------
    TransferAuthenticationError
        If it does not open.
    """
    sender = "recipient" if transfer.role == "donor" else "donor"
    try:
        key_pair = site.keys.hpke_key(note.hpke_key_id)
    except IdentityError:
        raise TransferAuthenticationError("the sealed note could not be authenticated") from None
    return open_note(note, key_pair, _context(transfer, kind, subject, sender))


def has_key_of(site: Site, note: pb.SealedNote) -> bool:
    """Whether the key that a note was sealed to is still here."""
    try:
        site.keys.hpke_key(note.hpke_key_id)
    except IdentityError:
        return False
    return True


def _context(transfer: Transfer, kind: str, subject: bytes, sender: str) -> NoteContext:
    """A transfer finishes under the keys it was requested with, and so do the notes about it."""
    donor, recipient = transfer.request.donor_key_id, site_key_id(transfer.signed_request)
    from_donor = sender == "donor"
    return NoteContext(
        kind=kind,
        subject=subject,
        transfer_id=transfer.id,
        sender_key_id=donor if from_donor else recipient,
        receiver_key_id=recipient if from_donor else donor,
    )
