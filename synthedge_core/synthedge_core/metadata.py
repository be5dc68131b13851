"""What every column of a table was taken for, shown before anything is learned from it.

Example
-------
>>> from synthedge_core import MetaExtractor
>>> print(MetaExtractor.extract(table, discrete_columns=["ward"]))
"""

from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from synthedge_core.columns import Column, infer_columns
from synthedge_core.rebalance_table import checked_table


@dataclass(frozen=True, slots=True)
class TableMetadata:
    """The columns of a table.

    Attributes
    ----------
    columns : tuple of Column
    n_rows : int
    """

    columns: tuple[Column, ...]
    n_rows: int

    def to_frame(self) -> pd.DataFrame:
        """Give one row per column: name, kind, why, levels, missing and refused cells."""
        return pd.DataFrame(
            [
                {
                    "column": c.name,
                    "kind": c.kind or "not used",
                    "why": c.reason,
                    "levels": len(c.levels) if c.has_levels else 0,
                    "missing": c.n_missing,
                    "refused": c.n_refused,
                }
                for c in self.columns
            ]
        )

    def __str__(self) -> str:
        return f"{self.n_rows} rows\n{self.to_frame().to_string(index=False)}"


class MetaExtractor:
    """Finds out what the columns of a table are."""

    @staticmethod
    def extract(
        df: pd.DataFrame,
        *,
        discrete_columns: Collection[str] = (),
        continuous_columns: Collection[str] = (),
    ) -> TableMetadata:
        """Look at a table.

        Parameters
        ----------
        df : pandas.DataFrame
        discrete_columns, continuous_columns : collections of str
            Columns that hold codes, and measurements; the others are inferred.

        Raises
        ------
        TableError
            If a named column does not exist, or a column name occurs twice.
        """
        table = checked_table(df)
        columns = infer_columns(table, discrete=discrete_columns, continuous=continuous_columns)
        return TableMetadata(columns, len(table))
