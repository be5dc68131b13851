"""An exported audit log verifies on its own, and shows every change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.checkpoints import Checkpoint
from synthedge_protocols.errors import MalformedError, ProtocolError, VerificationError
from synthedge_protocols.event_log import Entry
from synthedge_protocols.keys import StatementKey
from synthedge_protocols.log_export import export_lines, verify_export
from synthedge_protocols.merkle import EMPTY_FRONTIER

KEY = StatementKey.from_seed(bytes(range(32)))
ENTRIES = [
    Entry(n, 0, f'{{"id":{n},"what":"event {n}"}}'.encode(), bytes([n]) * 32) for n in range(1, 7)
]


def exported(entries: list[Entry] = ENTRIES, hidden: tuple[int, ...] = ()) -> list[bytes]:
    frontier = EMPTY_FRONTIER
    for entry in entries:
        frontier, _ = frontier.append(entry.leaf)
    signed = Checkpoint("heart/site/a", frontier.size, frontier.root).sign(KEY)
    shown = [(entry, entry.number not in hidden) for entry in entries]
    return [line.encode() for line in export_lines(shown, signed, KEY.public_bytes)]


def test_an_exported_log_verifies_and_tells_whose_it_is() -> None:
    verified = verify_export(exported())
    assert verified.head.origin == "heart/site/a"
    assert verified.head.size == 6
    assert verified.fingerprint == KEY.fingerprint
    assert [entry["what"] for entry in verified.entries] == [f"event {n}" for n in range(1, 7)]


def test_entries_that_are_not_shown_still_count() -> None:
    verified = verify_export(exported(hidden=(2, 5)))
    assert verified.n_shown == 4
    assert b"event 2" not in b"".join(exported(hidden=(2, 5)))


def test_every_changed_byte_is_found() -> None:
    data = b"".join(exported(hidden=(4,)))
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises(ProtocolError):
            verify_export(changed.splitlines(keepends=True))


@given(st.binary(max_size=3), st.data())
def test_nothing_can_be_put_in_or_taken_out(inserted: bytes, draw: st.DataObject) -> None:
    data = b"".join(exported())
    at = draw.draw(st.integers(0, len(data)))
    removed = draw.draw(st.integers(0, 3))
    changed = data[:at] + inserted + data[at + removed :]
    if changed != data:
        with pytest.raises(ProtocolError):
            verify_export(changed.splitlines(keepends=True))


def test_what_is_nested_too_deeply_to_be_read_is_no_entry() -> None:
    deep = b"[" * 200_000
    forged = [*ENTRIES[:2], Entry(3, 0, deep, bytes(32)), *ENTRIES[3:]]
    for lines in ([exported()[0], deep], exported(forged)):
        with pytest.raises(VerificationError, match=r"entry [13] was changed"):
            verify_export(lines)
    with pytest.raises(MalformedError, match="does not begin as"):
        verify_export([deep])


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_changed_entry_is_named(number: int) -> None:
    lines = exported()
    lines[number] = lines[number].replace(b"event", b"EVENT")
    with pytest.raises(VerificationError, match=f"entry {number} was changed"):
        verify_export(lines)


def test_a_changed_entry_with_a_commitment_to_match_breaks_the_root() -> None:
    forged = [*ENTRIES[:2], Entry(3, 0, b'{"id":3,"what":"nothing"}', bytes(32)), *ENTRIES[3:]]
    lines = [*exported(forged)[:-1], exported()[-1]]
    with pytest.raises(VerificationError, match="not the signed ones"):
        verify_export(lines)


def test_a_cut_file_and_a_file_of_something_else_are_told_apart() -> None:
    with pytest.raises(VerificationError, match="cut off"):
        verify_export(exported()[:-1])
    with pytest.raises(VerificationError, match="holds 5 entries; signed were 6"):
        verify_export([*exported()[:6], exported()[-1]])
    with pytest.raises(MalformedError, match="does not begin as"):
        verify_export([b"a,b\n", b"1,2\n"])
