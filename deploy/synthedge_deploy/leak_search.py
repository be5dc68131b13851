"""Search files for traces of given patients, to show that a process never held a value.

Found: patient ids as UTF-8 and UTF-16; numbers with at least 4 significant digits as float64; runs
of numbers as text (CSV, TSV, JSON, XML, Python), float64, float32 and SQLite records; all of them
also inside base64, hex, escaped bytes, gzip, zlib and zstd, up to three deep. Not found: single
numbers of few digits, which no search can tell from chance; numbers rounded or transformed
otherwise than in the tables given (give each form as a table of its own); anything encrypted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from synthedge_core.errors import TableError
from synthedge_deploy.leak_decoding import MAX_DEPTH, decodings
from synthedge_deploy.leak_patterns import (
    MIN_BYTES,
    Kind,
    PatientTable,
    Patterns,
    Trace,
    build_patterns,
)

_NUMBER: Final = re.compile(
    rb"(?<![\w.])-?(?:\d{1,17}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,3})?(?!\w)"
)
# Between two numbers of a run: keys with their sign, tags, then nothing but separators. A bare
# colon is none, or every clock time would be a run.
_KEYS: Final = re.compile(rb"[A-Za-z_][\w.\- ]*[\"'\\]*\s*[:=(]|</?[A-Za-z][^<>]*>")
_SEPARATORS: Final = re.compile(rb"[\s,;|\"'()\[\]{}\\]*")
_MAX_BETWEEN: Final = 100
_WIDE_TEXT: Final = re.compile(rb"(?:\d\x00){2}|(?:\x00\d){2}")

_TABLE_BITS: Final = 22
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads all bits
_BLOCK: Final = 1 << 17


@dataclass(frozen=True)
class Finding:
    """One trace of a patient in one file; never the value.

    Attributes
    ----------
    file : str
        Path below the searched folder.
    encoding : str
        Outermost first, e.g. ``base64 > zstd > float64 LE``.
    site, kind, row
        Whose patient, what of it (an id, a value, a run) and which row of that site's table.
    """

    file: str
    encoding: str
    site: str
    kind: Kind
    row: int


@dataclass(frozen=True)
class LeakReport:
    """What a search looked at and what it found.

    Attributes
    ----------
    n_files, n_bytes : int
        Searched.
    n_patterns : int
        Byte patterns and runs searched for.
    findings : tuple of Finding
    """

    n_files: int
    n_bytes: int
    n_patterns: int
    findings: tuple[Finding, ...]

    @property
    def n_patient_values(self) -> int:
        """How many ids, values and runs were found, counted once per file and encoding."""
        return len(self.findings)


class LeakSearch:
    """Searches bytes for the rows of some tables.

    Parameters
    ----------
    tables : sequence of PatientTable

    Raises
    ------
    TableError
        If there is nothing to search for, or a table is not usable (see `build_patterns`).
    """

    def __init__(self, tables: Sequence[PatientTable]) -> None:
        self._patterns: Patterns = build_patterns(tables)
        if not self._patterns.binary:
            raise TableError("no patient rows to search for; give at least one table with rows")
        self._by_prefix: dict[int, list[bytes]] = {}
        for pattern in self._patterns.binary:
            prefix = int.from_bytes(pattern[:MIN_BYTES], "little")
            self._by_prefix.setdefault(prefix, []).append(pattern)
        self._prefixes = np.array(sorted(self._by_prefix), dtype=np.uint64)
        self._may_match = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        self._may_match[_hashed(self._prefixes)] = True
        self.n_patterns = len(self._patterns.binary) + sum(map(len, self._patterns.runs.values()))

    def in_bytes(self, name: str, data: bytes) -> list[Finding]:
        """Search some bytes.

        Parameters
        ----------
        name : str
            What to call them in the findings.
        data : bytes

        Returns
        -------
        list of Finding
            Each trace once per encoding.
        """
        found = dict.fromkeys(self._traces(data, "", MAX_DEPTH))
        return [Finding(name, way, t.site, t.kind, t.row) for way, t in found]

    def in_folder(self, folder: Path) -> LeakReport:
        """Search every file below a folder.

        Raises
        ------
        TableError
            If there is no file: such a search could not fail.
        """
        findings: list[Finding] = []
        n_files = n_bytes = 0
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue  # a database's journal that was there a moment ago
            n_files += 1
            n_bytes += len(data)
            findings += self.in_bytes(str(path.relative_to(folder)), data)
        if not n_files:
            raise TableError(
                f"no file below {folder}; name the folder whose files are to be searched"
            )
        return LeakReport(n_files, n_bytes, self.n_patterns, tuple(findings))

    def _traces(self, data: bytes, way: str, depth: int) -> Iterator[tuple[str, Trace]]:
        for pattern in self._binary_hits(data):
            encoding, trace = self._patterns.binary[pattern]
            yield way + encoding, trace
        for trace in self._text_hits(data):
            yield way + "text", trace
        if _WIDE_TEXT.search(data):
            for trace in self._text_hits(data.replace(b"\0", b"")):
                yield way + "UTF-16 text", trace
        if depth:
            for encoding, content in decodings(data):
                yield from self._traces(content, f"{way}{encoding} > ", depth - 1)

    def _binary_hits(self, data: bytes) -> Iterator[bytes]:
        for shift in range(min(MIN_BYTES, len(data) - MIN_BYTES + 1)):
            words = np.frombuffer(data, "<u8", count=(len(data) - shift) // MIN_BYTES, offset=shift)
            for start in range(0, len(words), _BLOCK):
                block = words[start : start + _BLOCK]
                likely = np.flatnonzero(self._may_match[_hashed(block)])
                # np.isin would build a table of all prefixes for every block: half of a search's time.
                nearest = np.searchsorted(self._prefixes, block[likely])
                nearest[nearest == len(self._prefixes)] = 0
                likely = likely[self._prefixes[nearest] == block[likely]]
                for i in likely:
                    position = shift + (start + int(i)) * MIN_BYTES
                    for pattern in self._by_prefix[int(block[i])]:
                        if data.startswith(pattern, position):
                            yield pattern

    def _text_hits(self, data: bytes) -> Iterator[Trace]:
        runs, numbers = self._patterns.runs, self._patterns.numbers
        spans = [match.span() for match in _NUMBER.finditer(data)]
        values = [float(data[start:end]) for start, end in spans]
        for i, value in enumerate(values):
            if value in numbers:
                yield numbers[value]
            for run, trace in runs.get(
                (value, values[i + 1]) if i + 1 < len(values) else (0, 0), ()
            ):
                end = i + len(run)
                if tuple(values[i:end]) == run and all(
                    _is_separator(data[a[1] : b[0]])
                    for a, b in zip(spans[i : end - 1], spans[i + 1 : end], strict=True)
                ):
                    yield trace


def search(folder: Path, tables: Sequence[PatientTable]) -> LeakReport:
    """Search every file below a folder for the rows of some tables.

    Parameters
    ----------
    folder : Path
    tables : sequence of PatientTable

    Returns
    -------
    LeakReport

    Raises
    ------
    TableError
        If there is no file, nothing to search for, or a table is not usable.
    """
    return LeakSearch(tables).in_folder(folder)


def _hashed(
    words: "np.ndarray[tuple[int], np.dtype[np.uint64]]",
) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return (words * _MULTIPLIER) >> np.uint64(64 - _TABLE_BITS)


def _is_separator(between: bytes) -> bool:
    if not 0 < len(between) <= _MAX_BETWEEN:
        return False
    return _SEPARATORS.fullmatch(_KEYS.sub(b"", between)) is not None
