"""The guard of test sets: only observed rows may judge a model."""

import pandas as pd

from synthedge_core.errors import RefusedError, TableError
from synthedge_core.rebalance_table import OBSERVED, ORIGIN_COLUMN, SYNTHETIC_COLUMN


def require_observed(test: pd.DataFrame, observed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Refuse a test set that holds rows nobody observed.

    Parameters
    ----------
    test : pandas.DataFrame
        A row is taken as generated or received if its ``_origin`` is not ``observed`` or its
        ``_synthetic`` is true; a missing mark says nothing.
    observed : pandas.DataFrame, optional
        The table as it was collected. With it every test row must occur in it, as often as it is
        tested, so that rows whose marks were dropped are found too.

    Returns
    -------
    pandas.DataFrame
        The test set without its marks.

    Raises
    ------
    RefusedError
        If a row was not observed.
    TableError
        If `observed` lacks a column of the test set.
    """
    is_other = pd.Series(False, index=test.index)
    if ORIGIN_COLUMN in test.columns:
        is_other |= test[ORIGIN_COLUMN].notna() & (test[ORIGIN_COLUMN] != OBSERVED)
    if SYNTHETIC_COLUMN in test.columns:
        is_other |= test[SYNTHETIC_COLUMN].fillna(False).astype(bool)
    _refuse(int(is_other.sum()), len(test), "are marked as not observed")
    plain = test.drop(columns=[ORIGIN_COLUMN, SYNTHETIC_COLUMN], errors="ignore")
    if observed is not None:
        absent = [str(name) for name in plain.columns if name not in observed.columns]
        if absent:
            raise TableError(f"the observed table has no column '{absent[0]}' of the test set")
        found = _keys(observed[list(plain.columns)]).value_counts()
        asked = _keys(plain).value_counts()
        missing = (asked - found.reindex(asked.index).fillna(0)).clip(lower=0)
        _refuse(int(missing.sum()), len(test), "do not occur in the observed table")
    return plain


def _keys(table: pd.DataFrame) -> "pd.Series[int]":
    """Hash rows; numbers of different types but one value (1 and 1.0) are equal."""
    alike = {}
    for name in table.columns:
        series = table[name]
        is_number = pd.api.types.is_numeric_dtype(series.dtype)
        alike[name] = series.astype(float) if is_number else series.astype("string")
    return pd.util.hash_pandas_object(pd.DataFrame(alike), index=False)


def _refuse(n: int, n_rows: int, what: str) -> None:
    if n:
        raise RefusedError(
            f"{n} of {n_rows} rows of the test set {what}; a model must be judged on observed rows "
            "alone: split the table first, and rebalance the training part only"
        )
