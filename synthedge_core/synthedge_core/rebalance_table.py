"""A table made ready for drawing rows: its columns, numbers, rules, and the way back to a table."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.columns import Column, analysis_matrix, as_type, decode, encode, infer_columns
from synthedge_core.constraint import Constraint, Rule
from synthedge_core.errors import TableError, UsageError
from synthedge_core.fill_schema import RowSchema

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ORIGIN_COLUMN = "_origin"
SYNTHETIC_COLUMN = "_synthetic"
OBSERVED = "observed"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedTable:
    """Observed rows as a row generator needs them.

    Attributes
    ----------
    table : pandas.DataFrame
        The rows under a 0..n-1 index, column names as text.
    columns : tuple of Column
        What every column is, in the table's order.
    analysed : tuple of Column
        Those that take part.
    values : ndarray of shape (n_rows, n_analysed)
        The rows encoded as by `columns.encode`.
    rules : tuple of Rule
        The user's constraints.
    centre, scale : ndarray of shape (n_axes,)
        Mean and standard deviation of the analysis matrix, for distances.
    """

    table: pd.DataFrame
    columns: tuple[Column, ...]
    analysed: tuple[Column, ...]
    values: FloatArray
    rules: tuple[Rule, ...]
    centre: FloatArray
    scale: FloatArray

    @staticmethod
    def of(
        df: pd.DataFrame,
        *,
        discrete_columns: Collection[str] | None = None,
        continuous_columns: Collection[str] = (),
        constraints: Sequence[Constraint | str] = (),
    ) -> "PreparedTable":
        """Look at a table.

        Raises
        ------
        TableError
            If a column name occurs twice, the table was already filled, is empty, or has no column
            that can be analysed.
        UsageError
            If a constraint cannot be read or does not fit the columns.
        """
        table = checked_table(df)
        columns = infer_columns(
            table,
            discrete=column_names(discrete_columns),
            continuous=column_names(continuous_columns),
        )
        analysed = tuple(c for c in columns if c.kind is not None)
        if not analysed or len(table) == 0:
            reasons = "; ".join(f"{c.name}: {c.reason}" for c in columns[:5])
            raise TableError(
                f"the table of {len(table)} rows has no column to learn from ({reasons}); "
                "name kinds with discrete_columns"
            )
        values = encode(table, analysed)
        rules = tuple(
            rule
            for constraint in constraints
            for rule in Constraint.of(constraint).rules(analysed, values, table)
        )
        return PreparedTable.of_values(table, columns, analysed, values, rules)

    @staticmethod
    def of_values(
        table: pd.DataFrame,
        columns: tuple[Column, ...],
        analysed: tuple[Column, ...],
        values: FloatArray,
        rules: tuple[Rule, ...] = (),
    ) -> "PreparedTable":
        """Put together what is known, and take the scales from the values."""
        matrix = analysis_matrix(values, analysed)[0]
        missing = np.isnan(matrix)
        counts = np.maximum((~missing).sum(axis=0), 1)
        centre = np.where(missing, 0.0, matrix).sum(axis=0) / counts
        spread = np.sqrt(np.where(missing, 0.0, (matrix - centre) ** 2).sum(axis=0) / counts)
        return PreparedTable(
            table=table,
            columns=columns,
            analysed=analysed,
            values=values,
            rules=rules,
            centre=centre,
            scale=np.where(spread > 0, spread, 1.0),
        )

    @property
    def schema(self) -> RowSchema:
        """What a generated row must respect."""
        return RowSchema.of_columns(self.analysed)

    def index_of(self, name: str) -> int | None:
        """Give the position of an analysed column, None if it is none."""
        return next((i for i, c in enumerate(self.analysed) if c.name == name), None)

    def points(self, rows: FloatArray) -> FloatArray:
        """Bring encoded rows into standard deviations; a missing value lies at the mean."""
        matrix = analysis_matrix(rows, self.analysed)[0]
        return np.nan_to_num((matrix - self.centre) / self.scale, nan=0.0)

    def observed(self, rows: npt.NDArray[np.intp] | None = None) -> pd.DataFrame:
        """Give observed rows with their marks; all of them, or those at the given positions."""
        part = self.table if rows is None else self.table.iloc[rows]
        return marked(part, OBSERVED)

    def to_frame(self, rows: FloatArray, origin: str) -> pd.DataFrame:
        """Turn encoded rows into a marked table with every column of the original.

        A column that takes no part (an identifier, free text, a date) is missing; a constant is
        kept.
        """
        decoded = decode(rows, self.analysed, self.table)
        constants = {c.name: c.levels[0] for c in self.columns if c.kind is None and c.levels}
        new = {}
        for name in self.table.columns:
            if name in decoded:
                new[name] = decoded[name]
            else:
                cells = pd.Series([constants.get(name)] * len(rows), dtype=object)
                new[name] = as_type(cells, self.table[name].dtype)
        return marked(pd.DataFrame(new, columns=list(self.table.columns)), origin)


def column_names(names: Collection[str] | None) -> list[str]:
    """Give names as a list.

    Raises
    ------
    UsageError
        If they are one text, whose letters would be taken for columns.
    """
    if isinstance(names, str):
        raise UsageError(f"discrete columns are given as the text '{names}'; give a list of names")
    return [str(name) for name in names or ()]


def checked_table(df: pd.DataFrame) -> pd.DataFrame:
    """Give the table a plain index and text column names.

    Raises
    ------
    TableError
        If a name occurs twice, or the table holds the marks of an earlier call.
    """
    table = df.reset_index(drop=True)
    table.columns = [str(name) for name in table.columns]
    if table.columns.has_duplicates:
        name = table.columns[table.columns.duplicated()][0]
        raise TableError(f"the column name '{name}' occurs more than once; rename one")
    for name in (ORIGIN_COLUMN, SYNTHETIC_COLUMN):
        if name in table.columns:
            raise TableError(
                f"the table has a column '{name}', which marks generated rows: it was rebalanced or "
                "filled before; take its observed rows and drop that column"
            )
    return table


def marked(table: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Add the two marks: where the rows come from, and whether they were generated."""
    marks: dict[str, Any] = {ORIGIN_COLUMN: origin, SYNTHETIC_COLUMN: origin != OBSERVED}
    return table.assign(**marks)


def stack(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put tables of the same columns below each other under a plain index.

    Where generated rows lack a value that a column's type cannot lack, the column takes the
    nullable type.
    """
    filled = [part for part in parts if len(part)]
    if len(filled) == 1:
        return filled[0].reset_index(drop=True)
    if not filled:
        return parts[0].reset_index(drop=True)
    columns: dict[str, Any] = {}
    for name in filled[0].columns:
        series = [part[name] for part in filled]
        odd = [s.dtype for s in series if s.dtype != series[0].dtype]
        if odd:
            nullable = next(
                (d for d in odd if isinstance(d, pd.api.extensions.ExtensionDtype)), None
            )
            series = [s.astype(nullable or object) for s in series]
        columns[name] = pd.concat(series, ignore_index=True)
    return pd.DataFrame(columns)
