"""An audit log as one file that anybody can verify, without keys, network or the database it came from.

JSON Lines: a header, one line for every entry, the signed tree head. An entry that is not shown is there as its leaf
alone, a salted commitment: the tree can be recomputed, the entry cannot be guessed. There is one way to write every
line, so that a changed byte has nowhere to hide.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from synthedge_protocols.checkpoints import Checkpoint, SignedCheckpoint
from synthedge_protocols.errors import MalformedError, VerificationError
from synthedge_protocols.event_log import Entry, leaf_of
from synthedge_protocols.keys import fingerprint
from synthedge_protocols.merkle import EMPTY_FRONTIER

__all__ = ["FORMAT", "VerifiedLog", "export_lines", "verify_export"]

FORMAT: Final = "synthedge-audit-log/1"
_MAX_LINE: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """What a verified file is.

    Attributes
    ----------
    head : Checkpoint
        As the log's owner signed it.
    fingerprint : str
        Of the key that signed; compare it with the one the owner reads out: the file cannot vouch for it.
    n_shown : int
        Entries whose text is in the file; the others are there as commitments.
    entries : list of dict
        The shown ones.
    """

    head: Checkpoint
    fingerprint: str
    n_shown: int
    entries: list[dict[str, Any]]


def export_lines(
    entries: Iterable[tuple[Entry, bool]], signed: SignedCheckpoint, public_key: bytes
) -> Iterator[str]:
    """Write a log.

    Parameters
    ----------
    entries : iterable of (Entry, bool)
        All entries of the head, in order, and whether each is shown.
    signed : SignedCheckpoint
    public_key : bytes
        The raw Ed25519 key that signed it.

    Yields
    ------
    str
        A line with its line feed.
    """
    yield _line({"format": FORMAT, "public_key": public_key.hex()})
    for entry, is_shown in entries:
        line = {"leaf": entry.leaf.hex()}
        if is_shown:
            line |= {"data": entry.data.decode("ascii"), "salt": entry.salt.hex()}
        yield _line(line)
    yield _line({"checkpoint": signed.note})


def verify_export(lines: Iterable[bytes]) -> VerifiedLog:
    """Verify a file that `export_lines` wrote.

    Parameters
    ----------
    lines : iterable of bytes
        Each with its line feed, as a file opened in binary mode gives them.

    Raises
    ------
    VerificationError
        If anything in it was changed; the message names the first wrong entry where one is.
    MalformedError
        If the file is no exported audit log.
    """
    reader = iter(lines)
    header = _parse(next(reader, b""))
    if header is None or set(header) != {"format", "public_key"} or header["format"] != FORMAT:
        raise MalformedError(f"the file does not begin as an exported audit log ({FORMAT}) does")
    try:
        public_key = bytes.fromhex(header["public_key"])
    except (TypeError, ValueError):
        raise VerificationError("the header's public key was changed") from None
    frontier = EMPTY_FRONTIER
    shown: list[dict[str, Any]] = []
    signed: SignedCheckpoint | None = None
    for raw in reader:
        if signed is not None:
            raise VerificationError("something follows the signed tree head")
        line = _parse(raw)
        if line is not None and set(line) == {"checkpoint"}:
            signed = _signed(line["checkpoint"])
            continue
        number = frontier.size + 1
        leaf, entry = _entry(line, number)
        frontier, _ = frontier.append(leaf)
        if entry is not None:
            shown.append(entry)
    if signed is None:
        raise VerificationError("the file ends without a signed tree head: it was cut off")
    head = signed.verify(public_key, signed.checkpoint.origin)
    if head.size != frontier.size:
        raise VerificationError(
            f"the file holds {frontier.size} entries; signed were {head.size}: "
            "entries were removed or put in"
        )
    if head.root != frontier.root:
        raise VerificationError(
            "an entry and its commitment were changed together, or entries changed places: "
            "the entries are not the signed ones"
        )
    return VerifiedLog(head, fingerprint(public_key), len(shown), shown)


def _entry(line: dict[str, Any] | None, number: int) -> tuple[bytes, dict[str, Any] | None]:
    wrong = VerificationError(f"entry {number} was changed")
    if line is None or not all(isinstance(value, str) for value in line.values()):
        raise wrong
    try:
        leaf = bytes.fromhex(line["leaf"])
        if set(line) == {"leaf"}:
            return leaf, None
        if set(line) != {"leaf", "data", "salt"}:
            raise wrong
        data = line["data"].encode("ascii")
        if leaf_of(data, bytes.fromhex(line["salt"])) != leaf:
            raise wrong
        entry = json.loads(data)
    except (KeyError, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(entry, dict) or entry.get("id") != number:
        raise wrong
    return leaf, entry


def _signed(note: Any) -> SignedCheckpoint:
    try:
        return SignedCheckpoint.parse(note if isinstance(note, str) else "")
    except MalformedError:
        raise VerificationError("the signed tree head was changed") from None


def _parse(raw: bytes) -> dict[str, Any] | None:
    """Decode a line; None for one that is not written the one way."""
    if len(raw) > _MAX_LINE:
        return None
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and _line(line).encode() == raw else None


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"
