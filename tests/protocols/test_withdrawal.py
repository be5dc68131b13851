"""The withdrawal's own table, and the sealed notes that carry what is withdrawn."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.errors import (
    LifecycleError,
    LimitExceededError,
    TransferAuthenticationError,
)
from synthedge_protocols.keys import HpkeKeyPair
from synthedge_protocols.lifecycle import Party
from synthedge_protocols.sealed_notes import (
    NoteContext,
    note_bytes,
    open_note,
    rows_of_note,
    seal_note,
)
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_protocols.withdrawal import (
    NOTICE_TRANSITIONS,
    NoticeEvent,
    NoticeState,
    advance_notice,
    is_overdue,
)

KEYS = HpkeKeyPair.generate()
CONTEXT = NoteContext(
    kind="withdrawal-notice",
    subject=b"n" * 16,
    transfer_id=b"t" * 32,
    sender_key_id=b"s" * 32,
    receiver_key_id=b"r" * 32,
)


def test_a_notice_ends_only_with_the_recipients_receipt() -> None:
    into_purged = {
        (t.source, t.event, t.actor)
        for t in NOTICE_TRANSITIONS
        if t.target is NoticeState.PURGED and t.source is not NoticeState.PURGED
    }
    assert into_purged == {(NoticeState.NOTIFIED, NoticeEvent.PURGE, Party.RECIPIENT)}
    for actor in (Party.DONOR, Party.COORDINATOR):
        with pytest.raises(LifecycleError, match="cannot take 'purge'"):
            advance_notice(NoticeState.NOTIFIED, NoticeEvent.PURGE, actor)


def test_a_repeated_notice_changes_nothing() -> None:
    for state in NoticeState:
        assert advance_notice(state, NoticeEvent.NOTIFY, Party.DONOR) is state
    with pytest.raises(LifecycleError, match="not on record"):
        advance_notice(None, NoticeEvent.PURGE, Party.RECIPIENT)


@given(hours=st.floats(0.1, 1e4), waited_ms=st.integers(0, 2**45))
def test_overdue_never_becomes_success(hours: float, waited_ms: int) -> None:
    overdue = is_overdue(NoticeState.NOTIFIED, 0, waited_ms, hours)
    assert overdue == (waited_ms > hours * 3_600_000)
    assert is_overdue(NoticeState.NOTIFIED, 0, waited_ms + 1, hours) >= overdue
    assert not is_overdue(NoticeState.PURGED, 0, waited_ms, hours)


def test_a_notes_length_says_nothing_about_how_many_rows_it_names() -> None:
    agreed = note_bytes(20, 13)

    def sealed(n_rows: int) -> pb.SealedNote:
        rows = [
            pb.WithdrawnRow(token=bytes(16), action="correct", values=[-1e300] * 13)
            for _ in range(n_rows)
        ]
        body = pb.WithdrawalBody(rows=rows, reason="x" * 2000).SerializeToString()
        return seal_note(body, KEYS.public_key, CONTEXT, padded_bytes=agreed)

    assert len({len(sealed(n).sealed) for n in (1, 2, 20)}) == 1
    with pytest.raises(LimitExceededError, match="does not fit"):
        sealed(60)


@given(n_rows=st.integers(1, 100_000), n_features=st.integers(1, 512))
def test_as_many_rows_as_promised_fit_into_a_note(n_rows: int, n_features: int) -> None:
    n_fitting = min(n_rows, rows_of_note(n_rows, n_features))
    assert n_fitting >= 1
    row = pb.WithdrawnRow(token=b"t" * 16, action="correct", values=[1.0] * n_features)
    one = pb.WithdrawalBody(rows=[row], reason="x" * 2000).ByteSize()
    body_bytes = one + (n_fitting - 1) * pb.WithdrawalBody(rows=[row]).ByteSize()
    assert body_bytes + 4 <= note_bytes(n_rows, n_features) <= 512 * 1024


@given(content=st.binary(max_size=3000))
def test_a_note_opens_to_what_was_sealed(content: bytes) -> None:
    assert open_note(seal_note(content, KEYS.public_key, CONTEXT), KEYS, CONTEXT) == content


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "withdrawal-receipt"},
        {"subject": b"m" * 16},
        {"transfer_id": b"u" * 32},
        {"sender_key_id": b"r" * 32},
        {"receiver_key_id": b"s" * 32},
    ],
)
def test_a_note_opens_in_no_other_context(other: dict[str, object]) -> None:
    note = seal_note(b"content", KEYS.public_key, CONTEXT)
    with pytest.raises(TransferAuthenticationError, match="could not be authenticated"):
        open_note(note, KEYS, replace(CONTEXT, **other))  # type: ignore[arg-type]


@given(position=st.integers(0, 8 * 100_000))
def test_a_changed_note_is_refused(position: int) -> None:
    note = seal_note(b"content", KEYS.public_key, CONTEXT)
    bit = position % (8 * len(note.sealed))
    changed = bytearray(note.sealed)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TransferAuthenticationError):
        open_note(pb.SealedNote(hpke_key_id=note.hpke_key_id, sealed=bytes(changed)), KEYS, CONTEXT)


def test_a_note_to_another_key_or_cut_short_is_refused() -> None:
    note = seal_note(b"content", KEYS.public_key, CONTEXT)
    for refused in (
        pb.SealedNote(hpke_key_id=b"k" * 32, sealed=note.sealed),
        pb.SealedNote(hpke_key_id=note.hpke_key_id, sealed=note.sealed[:100]),
        pb.SealedNote(hpke_key_id=note.hpke_key_id),
    ):
        with pytest.raises(TransferAuthenticationError):
            open_note(refused, KEYS, CONTEXT)
