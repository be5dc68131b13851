"""Signed tree heads: written one way, signed by their log, countersigned by witnesses."""

import pytest

from synthedge_protocols.checkpoints import Checkpoint, SignedCheckpoint
from synthedge_protocols.errors import MalformedError, VerificationError
from synthedge_protocols.keys import StatementKey

KEY = StatementKey.from_seed(bytes(range(32)))
WITNESS = StatementKey.from_seed(bytes(range(1, 33)))
HEAD = Checkpoint("heart/coordinator", 7, bytes(range(32)))


def read(note: str) -> Checkpoint:
    return SignedCheckpoint.parse(note).verify(KEY.public_bytes, "heart/coordinator")


def test_a_head_reads_as_c2sp_writes_it() -> None:
    lines = HEAD.sign(KEY).note.split("\n")
    assert lines[:4] == [
        "heart/coordinator",
        "7",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "",
    ]
    assert lines[4].startswith("— heart/coordinator ")
    assert lines[5:] == [""]


def test_a_head_verifies_after_a_round_trip_and_names_its_witness() -> None:
    signed = SignedCheckpoint.parse(
        HEAD.sign(KEY).cosign(WITNESS, "heart/site/a", 1_700_000_000).note
    )
    assert signed.verify(KEY.public_bytes, "heart/coordinator") == HEAD
    assert signed.verify_cosignature(WITNESS.public_bytes, "heart/site/a") == 1_700_000_000


def test_every_changed_character_of_a_note_is_found() -> None:
    note = HEAD.sign(KEY).note
    for i, character in enumerate(note):
        for other in {"A", "B", "=", "\n", chr(ord(character) ^ 1)} - {character}:
            with pytest.raises((MalformedError, VerificationError)):
                read(note[:i] + other + note[i + 1 :])


def test_a_head_of_another_log_or_key_is_refused() -> None:
    signed = HEAD.sign(KEY)
    with pytest.raises(VerificationError, match="not of the log"):
        signed.verify(KEY.public_bytes, "heart/site/a")
    with pytest.raises(VerificationError, match="no signature"):
        signed.verify(WITNESS.public_bytes, "heart/coordinator")
    with pytest.raises(VerificationError, match="no signature"):
        signed.verify_cosignature(WITNESS.public_bytes, "heart/site/a")
    # A signature is no countersignature, though made by the same key.
    with pytest.raises(VerificationError, match="no signature"):
        signed.verify_cosignature(KEY.public_bytes, "heart/coordinator")


def test_a_size_beyond_what_a_database_counts_is_no_note() -> None:
    for size, is_one in ((2**63 - 1, True), (2**63, False), (10**3_000, False)):
        note = Checkpoint("heart", size, bytes(32)).sign(KEY).note
        if is_one:
            assert SignedCheckpoint.parse(note).checkpoint.size == size
        else:
            with pytest.raises(MalformedError, match="no signed checkpoint"):
                SignedCheckpoint.parse(note)


@pytest.mark.parametrize(
    "note", ["", "a\n1\n\n\n", "heart\n01\nAA==\n\n— a b\n", "heart\n1\nAA==\n\n— a b\n"]
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(MalformedError, match="no signed checkpoint"):
        SignedCheckpoint.parse(note)
