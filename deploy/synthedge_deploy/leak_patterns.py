"""What a patient's row looks like in a file that should not hold it.

Rules
-----
* A pattern is long enough not to occur by chance: `MIN_DIGITS` significant digits in a run of
  values, 8 bytes in any binary form. Fewer ("63, 1") occur in every log and would prove nothing.
* A run lies within one row (neighbouring columns) or, for columnar files, within one column.
"""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np

from synthedge_core.errors import TableError
from synthedge_deploy.samples import FloatArray

Kind = Literal["value", "run", "id"]

MIN_BYTES: Final = 8
# Significant digits that single out one number as a float64, one number as text, and a run.
DISTINCTIVE_DIGITS: Final = 4
DISTINCTIVE_TEXT_DIGITS: Final = 6
MIN_DIGITS: Final = 6
MAX_RUN: Final = 6
# Down a column the values are alike (ages, codes): ask for more digits from fewer of them.
MIN_DIGITS_DOWN: Final = 8
MAX_RUN_DOWN: Final = 4


@dataclass(frozen=True, kw_only=True)
class PatientTable:
    """Rows whose traces are searched for, in one of the forms the sites keep or send them.

    Attributes
    ----------
    site : str
        Whose patients.
    patient_ids : sequence of str
        One per row, at least 8 bytes each as UTF-8.
    values : ndarray of shape (n_rows, n_columns)
        Numbers in the order of the table's columns; NaN where there is none.
    """

    site: str
    patient_ids: Sequence[str]
    values: FloatArray


@dataclass(frozen=True)
class Trace:
    """What a pattern stands for: a place in a table, never the value."""

    site: str
    kind: Kind
    row: int
    column: int


@dataclass(frozen=True)
class Patterns:
    """All patterns of some tables.

    Attributes
    ----------
    binary : dict
        Bytes to (encoding, trace); every key has at least `MIN_BYTES` bytes.
    runs : dict
        The first two numbers of a run to the runs that begin so, with their traces.
    numbers : dict
        Single numbers that are distinctive even as text.
    """

    binary: dict[bytes, tuple[str, Trace]]
    runs: dict[tuple[float, float], list[tuple[tuple[float, ...], Trace]]]
    numbers: dict[float, Trace]


def build_patterns(tables: Sequence[PatientTable]) -> Patterns:
    """Make the patterns of every row of every table.

    Raises
    ------
    TableError
        If an id is too short to be searched for, or ids and rows differ in number.
    """
    patterns = Patterns(binary={}, runs={}, numbers={})
    for table in tables:
        if len(table.patient_ids) != len(table.values):
            raise TableError(
                f"table of site '{table.site}' has {len(table.values)} rows and "
                f"{len(table.patient_ids)} patient ids, expected as many ids as rows"
            )
        for row, patient in enumerate(table.patient_ids):
            _add_id(patterns, patient, Trace(table.site, "id", row, -1))
        for row, column in zip(*np.nonzero(~np.isnan(table.values)), strict=True):
            _add_number(
                patterns,
                float(table.values[row, column]),
                Trace(table.site, "value", int(row), int(column)),
            )
        for row, line in enumerate(table.values):
            for column, run in _runs(line, MAX_RUN, lambda r: _digits(r) >= MIN_DIGITS):
                _add_run(patterns, run, Trace(table.site, "run", row, column))
            for column, run in _runs(line, len(line), _is_telling_record):
                trace = Trace(table.site, "run", row, column)
                patterns.binary.setdefault(_sqlite_record(run), ("SQLite record", trace))
        for column, line in enumerate(table.values.T):
            for row, run in _runs(line, MAX_RUN_DOWN, lambda r: _digits(r) >= MIN_DIGITS_DOWN):
                _add_run(patterns, run, Trace(table.site, "run", row, column))
    return patterns


@lru_cache(maxsize=100_000)
def significant_digits(value: float) -> int:
    """Count the digits of a number without leading and trailing zeros; 0 for zero."""
    text = np.format_float_positional(abs(value), trim="-")
    return len(text.replace(".", "").strip("0"))


def _runs(
    line: FloatArray, max_length: int, is_telling: Callable[[tuple[float, ...]], bool]
) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield the shortest telling run from every start; a missing value ends a run."""
    numbers = [float(value) for value in line]
    for start, first in enumerate(numbers):
        # A run that starts with zero is all zero bytes at first, and the next start finds it.
        if first == 0:
            continue
        for end in range(start + 1, min(start + max_length, len(numbers)) + 1):
            if math.isnan(numbers[end - 1]):
                break
            run = tuple(numbers[start:end])
            if end - start >= 2 and is_telling(run):
                yield start, run
                break


def _digits(run: tuple[float, ...]) -> int:
    return sum(significant_digits(value) for value in run)


def _add_id(patterns: Patterns, patient: str, trace: Trace) -> None:
    if len(patient.encode()) < MIN_BYTES:
        raise TableError(
            f"row {trace.row + 1} of site '{trace.site}' has a patient id below {MIN_BYTES} bytes, "
            "too short to be told from chance; search with longer ids"
        )
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        patterns.binary.setdefault(patient.encode(encoding), (encoding, trace))


def _add_number(patterns: Patterns, value: float, trace: Trace) -> None:
    digits = significant_digits(value)
    if digits >= DISTINCTIVE_DIGITS:
        patterns.binary.setdefault(struct.pack("<d", value), ("float64 LE", trace))
        patterns.binary.setdefault(struct.pack(">d", value), ("float64 BE", trace))
    if digits >= DISTINCTIVE_TEXT_DIGITS:
        patterns.numbers.setdefault(value, trace)


def _add_run(patterns: Patterns, run: tuple[float, ...], trace: Trace) -> None:
    patterns.runs.setdefault((run[0], run[1]), []).append((run, trace))
    for encoding, form in (
        ("float64 LE", "<d"),  # also packed doubles of protobuf, .npy and Parquet pages
        ("float64 BE", ">d"),
        ("float32 LE", "<f"),
        ("float32 BE", ">f"),
    ):
        packed = b"".join(struct.pack(form, value) for value in run)
        patterns.binary.setdefault(packed, (encoding, trace))


def _is_telling_record(run: tuple[float, ...]) -> bool:
    return _digits(run) >= MIN_DIGITS and len(_sqlite_record(run)) >= MIN_BYTES


def _sqlite_record(run: tuple[float, ...]) -> bytes:
    return b"".join(_sqlite_body(value) for value in run)


def _sqlite_body(value: float) -> bytes:
    """Encode a number as the body of an SQLite record does (file format, section 2.1).

    Whole numbers are stored as the shortest of 0, 1, 2, 3, 4, 6 or 8 bytes, even in a REAL column.
    """
    if not value.is_integer() or abs(value) >= 2**47:
        return struct.pack(">d", value)
    whole = int(value)
    if whole in (0, 1):
        return b""
    length = next(n for n in (1, 2, 3, 4, 6) if -(1 << (8 * n - 1)) <= whole < 1 << (8 * n - 1))
    return whole.to_bytes(length, "big", signed=True)
