"""Scan a Parquet file that does not fit into memory, by row groups.

Row groups are decoded one ahead in a second thread: decoding and the scan's products both leave the
interpreter's lock, so a pass takes little longer than decoding alone.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthedge_core.errors import TableError
from synthedge_core.scan import BLOCK_ROWS, Block, Scan, scan_blocks

# A table of more cells than this (1 GB as float64) is not read whole.
LARGE_CELLS = 125_000_000


def is_large(path: Path) -> bool:
    """Say whether a Parquet file should be scanned by row groups.

    Raises
    ------
    TableError
        If it cannot be read.
    """
    metadata = _open(path).metadata
    return bool(metadata.num_rows * metadata.num_columns > LARGE_CELLS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetScan:
    """A scan and what it left out.

    Attributes
    ----------
    scan : Scan
    columns : tuple of str
        Columns scanned: numbers and yes-or-no.
    left_out : tuple of str
        Columns that hold words, dates or nothing that can be scanned by row groups.
    positive : object
        The label value that counts as positive.
    n_unlabelled : int
        Rows without a label, left out.
    """

    scan: Scan
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    positive: Any
    n_unlabelled: int


def scan_parquet(
    path: Path,
    target: str,
    *,
    positive: str | None = None,
    ignore: tuple[str, ...] = (),
    n_bins: int | None = None,
    top_k: int = 10,
) -> ParquetScan:
    """Scan a Parquet file in three passes over its row groups.

    Parameters
    ----------
    path : Path
    target : str
        The label column; two values, or `positive` names one.
    positive : str, optional
        The label value that counts as positive; default as for a table in memory.
    ignore : tuple of str
        Columns to leave out.
    n_bins, top_k
        As for `synthedge_core.scan.scan`.

    Returns
    -------
    ParquetScan

    Raises
    ------
    TableError
        If the file, the label or its values do not serve.
    GridError
        If a setting is out of range.
    """
    file = _open(path)
    schema = file.schema_arrow
    if target not in schema.names:
        raise TableError(
            f"'{path.name}' has no column '{target}'; its columns are {', '.join(schema.names)}"
        )
    usable = tuple(
        field.name
        for field in schema
        if field.name not in {target, *ignore}
        and (
            pa.types.is_integer(field.type)
            or pa.types.is_floating(field.type)
            or pa.types.is_boolean(field.type)
        )
    )
    if not usable:
        raise TableError(f"'{path.name}' has no column of numbers to scan")
    level, n_unlabelled = _positive_level(path, target, positive)

    def blocks() -> Iterator[Block]:
        return _blocks(path, usable, target, level)

    return ParquetScan(
        scan=scan_blocks(blocks, n_bins=n_bins, top_k=top_k),
        columns=usable,
        left_out=tuple(n for n in schema.names if n not in usable and n != target),
        positive=level,
        n_unlabelled=n_unlabelled,
    )


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        raise TableError(f"'{path.name}' is not a readable Parquet file; export it again") from None


def _row_groups(path: Path, columns: list[str]) -> Iterator[Any]:
    """Give the row groups as tables, the next one being decoded meanwhile."""
    file = _open(path)
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = None
        for i in range(file.num_row_groups):
            current = ahead
            ahead = pool.submit(file.read_row_group, i, columns=columns, use_threads=False)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()


def _positive_level(path: Path, target: str, positive: str | None) -> tuple[Any, int]:
    """Read the label column alone and choose the positive value."""
    counts: dict[Any, int] = {}
    n_unlabelled = 0
    for table in _row_groups(path, [target]):
        for entry in table.column(0).value_counts().to_pylist():
            if entry["values"] is None or entry["values"] != entry["values"]:
                n_unlabelled += entry["counts"]
            else:
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    if len(counts) < 2:
        raise TableError(
            f"the label '{target}' has {len(counts)} value in all rows; two classes are needed"
        )
    if positive is not None:
        for level in counts:
            if str(level) == positive or (isinstance(level, float) and f"{level:g}" == positive):
                return level, n_unlabelled
        raise TableError(f"the label '{target}' never has the value given as positive")
    if len(counts) > 2:
        raise TableError(
            f"the label '{target}' has {len(counts)} values; say with --positive which one counts"
        )
    low, high = sorted(counts)
    if (low, high) == (0, 1):
        return high, n_unlabelled
    return (low if counts[low] < counts[high] else high), n_unlabelled


def _blocks(path: Path, columns: tuple[str, ...], target: str, level: Any) -> Iterator[Block]:
    for table in _row_groups(path, [*columns, target]):
        label = table.column(target)
        positive = np.asarray(pc.fill_null(pc.equal(label, level), False))
        values = [_numbers(table.column(name)) for name in columns]
        known = None
        if label.null_count or pa.types.is_floating(label.type):
            known = np.asarray(pc.invert(pc.is_null(label, nan_is_null=True)))
        for start in range(0, table.num_rows, BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            block = np.array([column[start:stop] for column in values])
            if known is None:
                yield block, positive[start:stop]
            else:
                rows = known[start:stop]
                yield block[:, rows], positive[start:stop][rows]


def _numbers(column: Any) -> npt.NDArray[np.float64]:
    """Give a column as float64 with NaN for missing; without a copy where that is possible."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    numbers = column.to_numpy()
    return np.asarray(numbers, dtype=np.float64)
