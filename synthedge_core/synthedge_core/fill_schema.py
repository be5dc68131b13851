"""What a generated row must look like: kinds, level sets, ranges, decimal places."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synthedge_core.columns import Column
from synthedge_core.dictionary import Feature

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowSchema:
    """The columns of an encoded table, as far as a generated value must respect them.

    Encoded: a column with levels holds the level's index, a measured one its value in its own unit,
    NaN is missing.

    Attributes
    ----------
    names : tuple of str
        One name per column.
    n_levels : tuple of int
        Number of levels; 0 for a measured column.
    is_ordered : tuple of bool
        Whether larger means more: measured and ordinal columns (and binary, trivially).
    low, high : ndarray of shape (n_columns,)
        Closed range of a measured column in its own unit; ignored for levels.
    decimals : tuple of int
        Decimal places of a measured column.
    """

    names: tuple[str, ...]
    n_levels: tuple[int, ...]
    is_ordered: tuple[bool, ...]
    low: FloatArray
    high: FloatArray
    decimals: tuple[int, ...]

    @staticmethod
    def of_columns(columns: Sequence[Column]) -> "RowSchema":
        """Take it from the inferred columns of a table."""
        return RowSchema(
            names=tuple(c.name for c in columns),
            n_levels=tuple(len(c.levels) if c.has_levels else 0 for c in columns),
            is_ordered=tuple(c.kind != "categorical" for c in columns),
            low=np.array([c.low for c in columns], dtype=float),
            high=np.array([c.high for c in columns], dtype=float),
            decimals=tuple(c.decimals for c in columns),
        )

    @staticmethod
    def of_features(features: Sequence[Feature]) -> "RowSchema":
        """Take it from the data dictionary (canonical table, dictionary units)."""
        ranges = [f.plausible or (-np.inf, np.inf) for f in features]
        return RowSchema(
            names=tuple(f.name for f in features),
            n_levels=tuple(f.n_levels for f in features),
            is_ordered=tuple(f.kind != "categorical" for f in features),
            low=np.array([low for low, _ in ranges], dtype=float),
            high=np.array([high for _, high in ranges], dtype=float),
            decimals=tuple(f.decimals or 0 for f in features),
        )

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return len(self.names)

    def fit(self, rows: FloatArray) -> FloatArray:
        """Round rows of shape (n, n_columns) to what can be written, and clip them to the ranges.

        Level indices become the nearest valid one, measurements the nearest value of their decimal
        places inside the range.
        """
        fitted = rows.copy()
        for i, n_levels in enumerate(self.n_levels):
            if n_levels:
                fitted[:, i] = np.clip(np.round(rows[:, i]), 0, n_levels - 1)
                continue
            unit = 10.0 ** -self.decimals[i]
            # Ends of the range are rounded inwards, or rounding could leave it.
            low = np.ceil(np.round(self.low[i] / unit, 6)) * unit
            high = np.floor(np.round(self.high[i] / unit, 6)) * unit
            fitted[:, i] = np.round(np.clip(rows[:, i], low, max(low, high)), self.decimals[i])
        return fitted

    def holds(self, rows: FloatArray) -> BoolArray:
        """Say which rows of shape (n, n_columns) respect every kind, level set and range."""
        good = np.ones(len(rows), dtype=bool)
        for i, n_levels in enumerate(self.n_levels):
            column = rows[:, i]
            missing = np.isnan(column)
            if n_levels:
                fine = (column == np.round(column)) & (column >= 0) & (column < n_levels)
            else:
                written = np.round(column, self.decimals[i])
                fine = (np.abs(column - written) <= 1e-9 * np.maximum(1.0, np.abs(column))) & (
                    (column >= self.low[i] - 1e-9) & (column <= self.high[i] + 1e-9)
                )
            good &= missing | fine
        return good
