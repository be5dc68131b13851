"""Short sealed messages from one site to another: a notice of withdrawal, a report of what was purged.

HPKE in one shot, padded first: how many rows a notice names is a fact about patients, so its length
must follow from what the coordinator knows anyway. HPKE's base mode does not say who sealed; the
statement that carries the note is signed by its sender and verified before the note is opened.
"""

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag

from synthedge_protocols.errors import LimitExceededError, TransferAuthenticationError
from synthedge_protocols.framing import join_fields
from synthedge_protocols.keys import HPKE_SUITE, HpkeKeyPair, HpkePublicKey
from synthedge_protocols.v1 import statements_pb2 as pb

__all__ = [
    "NoteContext",
    "note_bytes",
    "open_note",
    "rows_of_note",
    "seal_note",
    "sealed_note_bytes",
]

_PURPOSE = b"synthedge/v1/note"
_LENGTH_BYTES = 4
# ML-KEM-768 and X25519 encapsulation (1,120 bytes) and the AES-GCM tag.
_OVERHEAD_BYTES = 1_136
_SMALLEST_BYTES = 4_096
# Less than a signed statement may have, so that the statement around it fits too.
_LARGEST_BYTES = 512 * 1024
# Token, action, lengths and tags of one row, and room for the reason.
_ROW_BYTES, _REASON_BYTES = 64, 2_048


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteContext:
    """What a note belongs to; opening it in any other context fails.

    Attributes
    ----------
    kind : str
        Statement type that carries it.
    subject : bytes
        The notice's id, or the transfer's where there is no notice.
    transfer_id : bytes
        SHA-256 of the serialised request, 32 bytes.
    sender_key_id, receiver_key_id : bytes
        SHA-256 of both sites' raw statement keys.
    """

    kind: str
    subject: bytes
    transfer_id: bytes
    sender_key_id: bytes
    receiver_key_id: bytes

    def info(self, hpke_key_id: bytes) -> bytes:
        """Return the HPKE `info`: purpose with version, then every field behind its length."""
        return join_fields(
            [
                _PURPOSE,
                self.kind.encode(),
                self.subject,
                self.transfer_id,
                self.sender_key_id,
                self.receiver_key_id,
                hpke_key_id,
            ]
        )


def note_bytes(n_rows: int, n_features: int) -> int:
    """Return how long a note about a transfer is before sealing, however many rows it names.

    Parameters
    ----------
    n_rows : int
        Rows the request asked for: at least as many as ever left.
    n_features : int
        Features of the request.

    Returns
    -------
    int
        Bytes, a power of two from 4 KiB to 512 KiB; see `rows_of_note` for what fits.
    """
    content = _LENGTH_BYTES + _REASON_BYTES + n_rows * _row_bytes(n_features)
    return min(_power_of_two(content), _LARGEST_BYTES)


def rows_of_note(n_rows: int, n_features: int) -> int:
    """Return how many rows one note of that transfer holds; more take several notes."""
    room = note_bytes(n_rows, n_features) - _LENGTH_BYTES - _REASON_BYTES
    return room // _row_bytes(n_features)


def sealed_note_bytes(n_rows: int, n_features: int) -> int:
    """Return how long a note of `note_bytes` is once it is sealed."""
    return note_bytes(n_rows, n_features) + _OVERHEAD_BYTES


def seal_note(
    content: bytes, recipient: HpkePublicKey, context: NoteContext, *, padded_bytes: int = 0
) -> pb.SealedNote:
    """Seal a short message to a site.

    Parameters
    ----------
    content : bytes
        What only the recipient may read.
    recipient : HpkePublicKey
        Whom it is sealed to.
    context : NoteContext
        What it belongs to.
    padded_bytes : int
        Length before sealing, from `note_bytes`; 0 for the next power of two.

    Raises
    ------
    LimitExceededError
        If the content does not fit.
    """
    framed = len(content).to_bytes(_LENGTH_BYTES, "big") + content
    size = padded_bytes or _power_of_two(len(framed))
    if len(framed) > size or size > _LARGEST_BYTES:
        limit = min(size, _LARGEST_BYTES)
        raise LimitExceededError(f"a note of {len(content)} bytes does not fit into {limit} bytes")
    sealed = HPKE_SUITE.encrypt(
        framed.ljust(size, b"\0"), recipient.handle, info=context.info(recipient.key_id)
    )
    return pb.SealedNote(hpke_key_id=recipient.key_id, sealed=sealed)


def open_note(note: pb.SealedNote, key_pair: HpkeKeyPair, context: NoteContext) -> bytes:
    """Open a note whose statement was verified.

    Raises
    ------
    TransferAuthenticationError
        If it was sealed to another key or context, or changed; why is not said.
    """
    refused = TransferAuthenticationError("the sealed note could not be authenticated")
    if note.hpke_key_id != key_pair.key_id or len(note.sealed) < _OVERHEAD_BYTES:
        raise refused
    try:
        framed = HPKE_SUITE.decrypt(
            note.sealed, key_pair.handle, info=context.info(key_pair.key_id)
        )
    except InvalidTag:
        raise refused from None
    end = _LENGTH_BYTES + int.from_bytes(framed[:_LENGTH_BYTES], "big")
    if end > len(framed) or any(framed[end:]):
        raise refused
    return framed[_LENGTH_BYTES:end]


def _row_bytes(n_features: int) -> int:
    return _ROW_BYTES + 8 * n_features


def _power_of_two(content_bytes: int) -> int:
    return max(_SMALLEST_BYTES, 1 << (content_bytes - 1).bit_length())
