"""Candidate regions of a table: the voxels of its PCA grid and cells over one or two named columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from synthedge_core.columns import Column, analysis_matrix
from synthedge_core.scan import Scan

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_MAX_CELL_LEVELS = 6
_MAX_PAIRED_COLUMNS = 16
_QUARTERS_FROM_ROWS = 1_500


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """A region that could lack positives.

    Attributes
    ----------
    name : str
        In words: ``sex = 1, age 58 to < 64``.
    members : ndarray of bool, shape (n_rows,)
        The table's rows in it.
    contains : callable
        Says of other encoded rows which lie in it.
    """

    name: str
    members: BoolArray
    contains: Callable[[FloatArray], BoolArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """``low <= value < high`` in one column; one level index where ``high = low + 1``."""

    name: str
    i_column: int
    low: float
    high: float

    def contains(self, rows: FloatArray) -> BoolArray:
        with np.errstate(invalid="ignore"):
            column = rows[:, self.i_column]
            return np.asarray((column >= self.low) & (column < self.high))


def voxel_candidates(scan: Scan, columns: Sequence[Column]) -> list[Candidate]:
    """Make a candidate of every voxel of the PCA grid that holds a row."""
    codes = np.asarray(scan.codes)
    return [_voxel(scan, codes, int(flat), columns) for flat in np.flatnonzero(scan.counts)]


def _voxel(
    scan: Scan, codes: npt.NDArray[np.int64], flat: int, columns: Sequence[Column]
) -> Candidate:
    def contains(rows: FloatArray) -> BoolArray:
        return np.asarray(scan.assign(analysis_matrix(rows, columns)[0]) == flat)

    name = "voxel ({},{},{})".format(*scan.index_of(flat))
    return Candidate(name=name, members=codes == flat, contains=contains)


def named_candidates(
    values: FloatArray,
    columns: Sequence[Column],
    cut_points: Mapping[str, Sequence[float]] | None = None,
) -> list[Candidate]:
    """Make the cells of every column alone and of every pair of columns.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Encoded rows.
    columns : sequence of Column
    cut_points : mapping of str to sequences of float, optional
        The dictionary's cut points, per column; the others are cut in thirds, from 1,500 rows on in
        quarters. At most 16 columns are paired: the first ones of the table.

    Returns
    -------
    list of Candidate
    """
    bands = [
        _bands(i, values[:, i], column, (cut_points or {}).get(column.name))
        for i, column in enumerate(columns)
    ]
    members = {band: band.contains(values) for group in bands for band in group}
    found = [_cell((band,), members[band]) for group in bands for band in group]
    for first, second in combinations(bands[:_MAX_PAIRED_COLUMNS], 2):
        found += [_cell((a, b), members[a] & members[b]) for a in first for b in second]
    return found


def _cell(bands: tuple[_Band, ...], members: BoolArray) -> Candidate:
    def contains(rows: FloatArray) -> BoolArray:
        return np.asarray(np.logical_and.reduce([band.contains(rows) for band in bands]))

    return Candidate(name=", ".join(b.name for b in bands), members=members, contains=contains)


def _bands(
    i_column: int, values: FloatArray, column: Column, cut_points: Sequence[float] | None
) -> list[_Band]:
    present = values[~np.isnan(values)]
    if column.has_levels and (not column.is_numeric or len(column.levels) <= _MAX_CELL_LEVELS):
        codes, counts = np.unique(present, return_counts=True)
        frequent = sorted(codes[np.argsort(-counts, kind="stable")][:_MAX_CELL_LEVELS])
        return [
            _Band(
                name=f"{column.name} = {column.levels[int(code)]}",
                i_column=i_column,
                low=float(code),
                high=float(code) + 1.0,
            )
            for code in frequent
        ]
    if cut_points is not None:
        edges = sorted(float(edge) for edge in cut_points)
    elif len(present):
        parts = 4 if len(values) >= _QUARTERS_FROM_ROWS else 3
        quantiles = np.quantile(present, np.arange(1, parts) / parts, method="inverted_cdf")
        edges = sorted({float(edge) for edge in quantiles})
    else:
        return []
    ends = [-np.inf, *edges, np.inf]
    return [
        _Band(name=_band_name(column, low, high), i_column=i_column, low=low, high=high)
        for low, high in pairwise(ends)
    ]


def _band_name(column: Column, low: float, high: float) -> str:
    if np.isinf(low):
        return f"{column.name} any" if np.isinf(high) else f"{column.name} < {_shown(high, column)}"
    if np.isinf(high):
        return f"{column.name} >= {_shown(low, column)}"
    return f"{column.name} {_shown(low, column)} to < {_shown(high, column)}"


def _shown(edge: float, column: Column) -> str:
    if column.has_levels:
        return str(column.levels[int(edge)])
    return f"{edge:.{column.decimals}f}"
