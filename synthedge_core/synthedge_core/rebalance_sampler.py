"""`CopulaOverSampler`: the generator as an imbalanced-learn sampler, for pipelines and searches.

Example
-------
>>> from imblearn.pipeline import make_pipeline
>>> from synthedge_core import CopulaOverSampler
>>> model = make_pipeline(CopulaOverSampler(random_state=0), RandomForestClassifier())
>>> cross_val_score(model, X, y, scoring="roc_auc")
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from imblearn.over_sampling.base import BaseOverSampler
from imblearn.utils import check_target_type
from scipy import sparse
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from synthedge_core.columns import Column
from synthedge_core.errors import UsageError
from synthedge_core.rebalance_rows import RowDrawer
from synthedge_core.rebalance_table import PreparedTable

# A measurement keeps so many significant digits: codes and counts come out whole, and nothing finer
# than a float32 is lost.
_SIGNIFICANT = 9


class CopulaOverSampler(BaseOverSampler):  # type: ignore[misc]
    """Over-sample with a mixed-type Gaussian copula per class.

    Takes missing values, and text columns in object arrays and tables. New rows stay inside a fitted
    pipeline's training fold, so copies of single rows are not stopped here as `augment_imbalanced`
    stops them: do not publish what it gives.

    Parameters
    ----------
    sampling_strategy : float, str, dict or callable
        As everywhere in imbalanced-learn; rows per class are exact.
    categorical_features : "auto" or sequence of int, str or bool, optional
        Columns that hold codes, besides those of text, category or boolean type. None and ``"auto"``:
        only those.
    random_state : int, RandomState or None

    Attributes
    ----------
    sampling_strategy_ : dict
        Rows generated per class.
    categorical_features_ : ndarray of int
        Positions of the columns treated as codes.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseOverSampler._parameter_constraints,
        "categorical_features": ["array-like", str, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        categorical_features: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.categorical_features = categorical_features
        self.random_state = random_state

    def _check_X_y(self, X: Any, y: Any) -> tuple[Any, Any, bool]:
        y, is_one_vs_all = check_target_type(y, indicate_one_vs_all=True)
        kinds = _stated_kinds(X)
        X, y = validate_data(
            self,
            X=X,
            y=y,
            reset=True,
            dtype=None,
            accept_sparse=["csr", "csc"],
            ensure_all_finite="allow-nan",
        )
        self._is_text = kinds
        return X, y, is_one_vs_all

    def _fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        random = check_random_state(self.random_state)
        rows = X.toarray() if sparse.issparse(X) else np.asarray(X)
        self.categorical_features_ = self._categorical(rows.shape[1])
        table = pd.DataFrame({str(i): rows[:, i] for i in range(rows.shape[1])})
        columns = tuple(
            _column(str(i), table[str(i)], i in self.categorical_features_)
            for i in range(rows.shape[1])
        )
        values = np.column_stack([_encoded(table[c.name], c) for c in columns])
        used = [i for i, c in enumerate(columns) if c.kind is not None]
        analysed = tuple(columns[i] for i in used)
        prepared = PreparedTable.of_values(table, columns, analysed, values[:, used])
        new_rows, new_labels = [], []
        for level, n_new in self.sampling_strategy_.items():
            if n_new == 0:
                continue
            drawer = RowDrawer(prepared, is_gated=False)
            drawn = drawer.draw(n_new, seed=int(random.randint(2**31 - 1)), among=y == level)
            new_rows.append(_decoded(drawn.values, columns, used, rows))
            new_labels.append(np.full(n_new, level, dtype=y.dtype))
        stacked = np.concatenate([rows, *new_rows]).astype(rows.dtype, copy=False)
        labels = np.concatenate([y, *new_labels])
        if sparse.issparse(X):
            return type(X)(stacked), labels
        return stacked, labels

    def _categorical(self, n_features: int) -> npt.NDArray[np.intp]:
        given = self.categorical_features
        if given is None or (isinstance(given, str) and given == "auto"):
            return np.flatnonzero(self._is_text)
        if isinstance(given, str):
            raise UsageError(f"categorical_features is '{given}'; expected 'auto' or a list")
        wanted: Sequence[Any] = list(given)
        if wanted and all(isinstance(w, (bool, np.bool_)) for w in wanted):
            wanted = np.flatnonzero(wanted).tolist()
        names = list(getattr(self, "feature_names_in_", []))
        found = []
        for one in wanted:
            if isinstance(one, Integral) and -n_features <= int(one) < n_features:
                found.append(int(one) % n_features)
            elif one in names:
                found.append(names.index(one))
            else:
                raise UsageError(f"categorical_features names '{one}', which is no column")
        return np.array(sorted({*found, *np.flatnonzero(self._is_text)}), dtype=np.intp)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True
        return tags


def _stated_kinds(given: Any) -> list[bool]:
    """Say of each column whether it holds text, categories or truth values."""
    if isinstance(given, pd.DataFrame):
        return [
            isinstance(d, pd.CategoricalDtype)
            or pd.api.types.is_bool_dtype(d)
            or not pd.api.types.is_numeric_dtype(d)
            for d in given.dtypes
        ]
    if sparse.issparse(given):
        return [False] * given.shape[1]
    array = np.asarray(given)
    if array.ndim != 2:
        return []
    if array.dtype != object:
        return [array.dtype.kind in "bUS"] * array.shape[1]
    return [any(isinstance(v, (str, bool)) for v in array[:, i]) for i in range(array.shape[1])]


def _column(name: str, series: "pd.Series[Any]", is_categorical: bool) -> Column:
    if is_categorical:
        present = series.dropna().unique().tolist()
        levels = tuple(sorted(present, key=lambda v: (str(type(v)), v)))
        return Column(
            name=name, kind="categorical" if levels else None, reason="stated", levels=levels
        )
    numbers = series.to_numpy(float, na_value=np.nan)
    finite = numbers[np.isfinite(numbers)]
    if len(finite) == 0:
        return Column(name=name, kind=None, reason="no value at all")
    low, high = float(finite.min()), float(finite.max())
    largest = max(abs(low), abs(high))
    decimals = 0
    if not np.all(finite == np.round(finite)):
        magnitude = math.floor(math.log10(largest)) if largest > 0 else 0
        decimals = int(np.clip(_SIGNIFICANT - magnitude, 0, 300))
    kind: Any = "continuous" if decimals else "integer"
    return Column(name=name, kind=kind, reason="numbers", low=low, high=high, decimals=decimals)


def _encoded(series: "pd.Series[Any]", column: Column) -> npt.NDArray[np.float64]:
    if column.has_levels:
        index = {level: i for i, level in enumerate(column.levels)}
        return series.map(index).to_numpy(float, na_value=np.nan)
    return np.asarray(series.to_numpy(float, na_value=np.nan))


def _decoded(
    values: npt.NDArray[np.float64],
    columns: Sequence[Column],
    used: Sequence[int],
    rows: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Give the array's own cells; a column without any value stays without."""
    new = np.full(
        (len(values), len(columns)), np.nan, dtype=rows.dtype if rows.dtype == object else float
    )
    if rows.dtype.kind in "US":
        new = np.empty((len(values), len(columns)), dtype=object)
    for j, i in enumerate(used):
        column = columns[i]
        if not column.has_levels:
            new[:, i] = values[:, j]
            continue
        levels = np.array([*column.levels, np.nan], dtype=object)
        codes = np.where(np.isnan(values[:, j]), len(column.levels), values[:, j]).astype(int)
        new[:, i] = levels[codes]
    return new
