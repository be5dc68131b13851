"""Turn tables into numbers for a model: learned from the training rows only.

Example
-------
>>> from synthedge_core import Preprocessor
>>> preprocessor = Preprocessor("died").fit(train)
>>> model.fit(*preprocessor.transform(train))
>>> model.score(*preprocessor.transform(test))
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.columns import Column, encode, infer_columns
from synthedge_core.errors import TableError, UsageError
from synthedge_core.labels import read_labels
from synthedge_core.observed_rows import require_observed
from synthedge_core.rebalance_table import ORIGIN_COLUMN, SYNTHETIC_COLUMN, column_names

FloatArray = npt.NDArray[np.float64]


class Preprocessor:
    """Measurements standardised, codes as one 0/1 column per level, missing values filled in.

    Everything (kinds, levels, means, medians, spreads) is learned in `fit` and from nothing else. A
    level that the training rows do not have becomes a column of its own, ``<column> = other``, which
    is 0 in training; how many cells that were stands in `unseen_`.

    Parameters
    ----------
    target_column : str
    discrete_columns : collection of str, optional
        Columns that hold codes; the others are inferred.
    """

    def __init__(self, target_column: str, *, discrete_columns: Collection[str] = ()) -> None:
        self.target_column = target_column
        self.discrete_columns = tuple(column_names(discrete_columns))
        self.columns_: tuple[Column, ...] | None = None
        self.unseen_: dict[str, int] = {}

    def fit(self, train: pd.DataFrame) -> "Preprocessor":
        """Learn from the training rows; marks of generated rows are ignored. Returns itself.

        Raises
        ------
        TableError
            If the label cannot be used or no column can be.
        """
        table = self._plain(train)
        labels = read_labels(table, self.target_column)
        self.classes_ = labels.levels
        features = table.drop(columns=self.target_column)
        found = infer_columns(features, discrete=self.discrete_columns)
        self.columns_ = tuple(c for c in found if c.kind is not None)
        if not self.columns_:
            raise TableError("no column of the training rows can be used; name codes as discrete")
        values = encode(features, self.columns_)
        counts = np.maximum((~np.isnan(values)).sum(axis=0), 1)
        self._mean = np.nansum(values, axis=0) / counts
        spread = np.sqrt(np.nansum((values - self._mean) ** 2, axis=0) / counts)
        self._scale = np.where(spread > 0, spread, 1.0)
        self._median = np.array([np.nanmedian(v) for v in values.T])
        self._has_missing = [bool(np.isnan(v).any()) for v in values.T]
        return self

    def transform(self, table: pd.DataFrame) -> tuple[pd.DataFrame, "pd.Series[int]"]:
        """Turn rows into features and labels.

        Parameters
        ----------
        table : pandas.DataFrame
            Training or other rows.

        Returns
        -------
        features : pandas.DataFrame of n_labelled rows
            Numbers without a missing value, the same columns for every table. A measurement is in
            standard deviations from the training mean; missing, it is the training median.
        labels : pandas.Series of int
            0..n_classes-1, in the order of ``classes_``; rows without a label are left out.

        Raises
        ------
        UsageError
            If nothing was learned yet.
        TableError
            If a column is absent, or a label occurs that the training rows do not have.
        """
        if self.columns_ is None:
            raise UsageError("nothing was learned yet; call fit(train) first")
        plain = self._plain(table)
        needed = [c.name for c in self.columns_] + [self.target_column]
        absent = [name for name in needed if name not in plain.columns]
        if absent:
            raise TableError(f"the table has no column '{absent[0]}', which the training rows have")
        plain = plain[plain[self.target_column].notna()]
        values = encode(plain, self.columns_)
        parts: dict[str, npt.NDArray[Any]] = {}
        self.unseen_ = {}
        for i, column in enumerate(self.columns_):
            one = values[:, i]
            missing = np.isnan(one)
            if not column.has_levels:
                filled = np.where(missing, self._median[i], one)
                parts[column.name] = (filled - self._mean[i]) / self._scale[i]
                if self._has_missing[i]:
                    parts[f"{column.name} missing"] = missing.astype(float)
                continue
            for i_level, level in enumerate(column.levels):
                parts[f"{column.name} = {level}"] = (one == i_level).astype(float)
            has_value = plain[column.name].notna().to_numpy(bool)
            is_unseen = np.asarray(missing & has_value)
            parts[f"{column.name} = other"] = is_unseen.astype(float)
            if is_unseen.any():
                self.unseen_[column.name] = int(is_unseen.sum())
        codes = plain[self.target_column].map({v: i for i, v in enumerate(self.classes_)})
        if codes.isna().any():
            raise TableError(
                f"the label '{self.target_column}' has a value in {int(codes.isna().sum())} rows that "
                "the training rows do not have; a model cannot predict it"
            )
        return pd.DataFrame(parts, index=plain.index), codes.astype(int)

    def _plain(self, table: pd.DataFrame) -> pd.DataFrame:
        plain = table.drop(columns=[ORIGIN_COLUMN, SYNTHETIC_COLUMN], errors="ignore")
        plain.columns = [str(name) for name in plain.columns]
        return plain


def preprocess(
    train: pd.DataFrame,
    test: pd.DataFrame,
    target_column: str,
    *,
    discrete_columns: Collection[str] = (),
) -> tuple[pd.DataFrame, "pd.Series[int]", pd.DataFrame, "pd.Series[int]"]:
    """Prepare a training and a test set in one call.

    Parameters
    ----------
    train : pandas.DataFrame
        May hold generated rows.
    test : pandas.DataFrame
        Observed rows only.
    target_column : str
    discrete_columns : collection of str

    Returns
    -------
    tuple
        Features and labels of the training rows, then of the test rows, see `Preprocessor`.

    Raises
    ------
    RefusedError
        If the test set holds rows that were not observed.
    TableError
        As for `Preprocessor`.
    """
    preprocessor = Preprocessor(target_column, discrete_columns=discrete_columns).fit(train)
    return (
        *preprocessor.transform(train),
        *preprocessor.transform(require_observed(test)),
    )
