"""What each column of a table is: its kind, levels, range and missing values; to numbers and back.

Kinds are those of the data dictionary (continuous, integer, ordinal, categorical, binary). Columns
that describe no patient in a way a model could use (identifiers, free text, dates, constants) are
kept in the table and left out of the analysis, and the reason is shown.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.dictionary import Feature
from synthedge_core.errors import TableError

FloatArray = npt.NDArray[np.float64]
Series: TypeAlias = "pd.Series[Any]"
Kind = Literal["continuous", "integer", "ordinal", "categorical", "binary"]

# Whole numbers with at most so many different values are treated as codes (chest pain type 1-4):
# a generated 3.4, or a code that no patient has, would be an impossible patient.
MAX_ORDINAL_LEVELS = 10
MAX_TEXT_LEVELS = 30
FROM_DICTIONARY = "from the dictionary"
_MAX_DECIMALS = 6
# Share of a text column's entries that must read as a number or a date for the column to be one.
_MOSTLY = 0.95
_IDENTIFIER_NAME = re.compile(r"(^|[_\s])(id|mrn|uuid|guid|identifier|index|row|nr|no)$", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """What is known of one column.

    Attributes
    ----------
    name : str
        As in the table.
    kind : Kind or None
        None for a column that takes no part in the analysis.
    reason : str
        Why it has this kind, for people.
    levels : tuple
        Original values of an ordinal (lowest first), categorical or binary column.
    low, high : float
        Observed range, or the dictionary's plausible range, of a continuous or integer column.
    decimals : int
        Decimal places that values are written with; 0 for whole numbers.
    n_missing, n_refused : int
        Cells without a value; further cells treated as missing because they are no number, no known
        level or outside the dictionary's plausible range.
    """

    name: str
    kind: Kind | None
    reason: str
    levels: tuple[Any, ...] = ()
    low: float = float("nan")
    high: float = float("nan")
    decimals: int = 0
    n_missing: int = 0
    n_refused: int = 0

    @property
    def has_levels(self) -> bool:
        """Whether encoded values are indices into `levels`."""
        return self.kind in ("ordinal", "categorical", "binary")

    @property
    def is_stated(self) -> bool:
        """Whether the dictionary decided what it is, its range included."""
        return self.reason == FROM_DICTIONARY

    @property
    def is_numeric(self) -> bool:
        """Whether the analysis may use its values as numbers (measurements and numeric codes)."""
        if self.kind in ("continuous", "integer"):
            return True
        return self.kind in ("ordinal", "binary") and all(_is_number(v) for v in self.levels)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))


def infer_columns(
    table: pd.DataFrame,
    *,
    discrete: Collection[str] = (),
    continuous: Collection[str] = (),
    ignore: Collection[str] = (),
    features: Iterable[Feature] = (),
) -> tuple[Column, ...]:
    """Find out what every column is.

    Parameters
    ----------
    table : pandas.DataFrame
        Features only, without the label.
    discrete, continuous, ignore : collections of str
        Columns whose kind the user states: categorical; measured; not to be used.
    features : iterable of Feature
        The data dictionary's features; one whose name is a column decides its kind, levels and
        range.

    Returns
    -------
    tuple of Column, in the table's order

    Raises
    ------
    TableError
        If a stated column does not exist, or is said to be two things.
    """
    stated = {"discrete": set(discrete), "continuous": set(continuous), "ignore": set(ignore)}
    for word, names in stated.items():
        unknown = sorted(names - set(map(str, table.columns)))
        if unknown:
            raise TableError(
                f"'{unknown[0]}' is named as {word} but is no column; "
                f"the columns are {', '.join(map(str, table.columns))}"
            )
    twice = (stated["discrete"] & stated["continuous"]) | (stated["discrete"] & stated["ignore"])
    if twice:
        raise TableError(f"column '{sorted(twice)[0]}' is said to be two things; drop one option")
    by_name = {feature.name: feature for feature in features}
    columns = []
    for name in map(str, table.columns):
        series = table[name]
        n_missing = int(series.isna().sum())
        if name in stated["ignore"]:
            column = Column(name=name, kind=None, reason="left out by you", n_missing=n_missing)
        elif name in by_name:
            column = _from_feature(series, by_name[name], n_missing)
        elif name in stated["discrete"]:
            column = _coded(name, series, n_missing, "stated by you")
        else:
            column = _infer(name, series, n_missing, name in stated["continuous"])
        columns.append(column)
    return tuple(columns)


def _distinct(series: Series) -> list[Any]:
    values = [v.item() if isinstance(v, np.generic) else v for v in series.dropna().unique()]
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda v: (str(type(v)), str(v)))


def _coded(name: str, series: Series, n_missing: int, reason: str) -> Column:
    levels = tuple(_distinct(series))
    if len(levels) < 2:
        return Column(
            name=name, kind=None, reason="one value only", levels=levels, n_missing=n_missing
        )
    kind: Kind = "binary" if len(levels) == 2 else "categorical"
    return Column(name=name, kind=kind, reason=reason, levels=levels, n_missing=n_missing)


def _from_feature(series: Series, feature: Feature, n_missing: int) -> Column:
    kind: Any = feature.kind
    if feature.has_levels:
        by_code = {_code(value): value for value in _distinct(series)}
        levels = tuple(by_code.get(code, code) for code in feature.levels)
        unknown = int((~series.dropna().map(_code).isin(feature.levels)).sum())
        return Column(
            name=feature.name,
            kind=kind,
            reason=FROM_DICTIONARY,
            levels=levels,
            n_missing=n_missing,
            n_refused=unknown,
        )
    numbers = pd.to_numeric(series, errors="coerce").to_numpy(float, na_value=np.nan)
    low, high = feature.plausible or (float("-inf"), float("inf"))
    with np.errstate(invalid="ignore"):
        refused = int((~((numbers >= low) & (numbers <= high))).sum()) - n_missing
    return Column(
        name=feature.name,
        kind=kind,
        reason=FROM_DICTIONARY,
        low=low,
        high=high,
        decimals=max(0, feature.decimals or 0),
        n_missing=n_missing,
        n_refused=refused,
    )


def _code(value: Any) -> str:
    """Write a value as a dictionary code: ``1.0`` is the code ``1``."""
    if _is_number(value) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _infer(name: str, series: Series, n_missing: int, is_measured: bool) -> Column:
    n_present = len(series) - n_missing
    if n_present == 0:
        return Column(name=name, kind=None, reason="no value at all", n_missing=n_missing)
    if isinstance(series.dtype, pd.CategoricalDtype):
        levels = tuple(series.cat.categories)
        if series.cat.ordered and len(levels) > 2:
            return Column(
                name=name, kind="ordinal", reason="ordered type", levels=levels, n_missing=n_missing
            )
        return _coded(name, series, n_missing, "categorical type")
    if pd.api.types.is_bool_dtype(series.dtype):
        return _coded(name, series, n_missing, "yes or no")
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return Column(name=name, kind=None, reason="a date", n_missing=n_missing)
    if pd.api.types.is_complex_dtype(series.dtype):
        return Column(name=name, kind=None, reason="complex numbers", n_missing=n_missing)
    if pd.api.types.is_numeric_dtype(series.dtype):
        return _infer_numbers(name, series, n_missing, 0, is_measured)
    texts = series.dropna().astype(str)
    numbers = pd.to_numeric(texts, errors="coerce")
    share = float(numbers.notna().mean())
    if share >= _MOSTLY or is_measured:
        n_refused = int(numbers.isna().sum())
        return _infer_numbers(name, numbers.dropna(), n_missing, n_refused, is_measured)
    return _infer_text(name, series, texts, n_missing)


def _infer_text(name: str, series: Series, texts: Series, n_missing: int) -> Column:
    n_distinct = texts.nunique()
    if n_distinct <= MAX_TEXT_LEVELS and (n_distinct <= 2 or n_distinct <= 0.5 * len(texts)):
        return _coded(name, series.map(str, na_action="ignore"), n_missing, f"{n_distinct} words")
    looks_like_date = texts.str.match(r"^\s*\d{1,4}[-./]\d{1,2}[-./]\d{1,4}").mean()
    if looks_like_date >= _MOSTLY:
        return Column(name=name, kind=None, reason="a date", n_missing=n_missing)
    if n_distinct == len(texts):
        return Column(name=name, kind=None, reason="an identifier", n_missing=n_missing)
    reason = f"free text ({n_distinct} different entries)"
    return Column(name=name, kind=None, reason=reason, n_missing=n_missing)


def _infer_numbers(
    name: str, series: Series, n_missing: int, n_refused: int, is_measured: bool
) -> Column:
    numbers = series.to_numpy(float, na_value=np.nan)
    finite = numbers[np.isfinite(numbers)]
    n_refused += int(np.isinf(numbers).sum())
    counts: Any = {"n_missing": n_missing, "n_refused": n_refused}
    values = np.unique(finite)
    if len(values) == 0:
        return Column(name=name, kind=None, reason="no value at all", **counts)
    is_whole = bool(np.all(values == np.round(values)))
    levels = tuple(int(v) if is_whole else float(v) for v in values[: MAX_ORDINAL_LEVELS + 1])
    if len(values) == 1:
        return Column(name=name, kind=None, reason="one value only", levels=levels, **counts)
    low, high = float(values[0]), float(values[-1])
    if is_whole and len(values) == len(finite) >= 20 and not is_measured:
        steps = np.diff(finite)
        if bool(np.all(steps == 1)) or _IDENTIFIER_NAME.search(name):
            return Column(name=name, kind=None, reason="an identifier", **counts)
    if len(values) == 2 and not is_measured:
        return Column(name=name, kind="binary", reason="two values", levels=levels, **counts)
    if is_whole and len(values) <= MAX_ORDINAL_LEVELS and not is_measured:
        reason = f"{len(values)} whole numbers"
        return Column(name=name, kind="ordinal", reason=reason, levels=levels, **counts)
    kind: Kind = "integer" if is_whole else "continuous"
    return Column(
        name=name,
        kind=kind,
        reason="whole numbers" if is_whole else "measurements",
        low=low,
        high=high,
        decimals=0 if is_whole else _decimals(finite),
        **counts,
    )


def _decimals(values: FloatArray) -> int:
    sample = values[:2000]
    for places in range(_MAX_DECIMALS):
        if np.allclose(sample, np.round(sample, places), rtol=0.0, atol=1e-9):
            return places
    return _MAX_DECIMALS


def encode(table: pd.DataFrame, columns: Sequence[Column]) -> FloatArray:
    """Turn the table into numbers.

    Parameters
    ----------
    table : pandas.DataFrame of n_rows
        Holds at least the named columns.
    columns : sequence of Column
        Columns to encode; those without a kind are refused.

    Returns
    -------
    ndarray of shape (n_rows, n_columns)
        Measurements in their own unit, level indices for columns with levels, NaN where missing or
        refused (no number, unknown level, outside the dictionary's plausible range).

    Raises
    ------
    TableError
        If a column has no kind.
    """
    values = np.full((len(table), len(columns)), np.nan)
    for i, column in enumerate(columns):
        if column.kind is None:
            raise TableError(
                f"column '{column.name}' takes no part in the analysis: {column.reason}"
            )
        series = table[column.name]
        if column.has_levels:
            index = {_code(level): i_level for i_level, level in enumerate(column.levels)}
            # Spelled once per value, not per cell (150,000 rows, 6 columns: 1.0 s to 0.1 s).
            spelled = {value: _code(value) for value in series.dropna().unique()}
            level_of = {value: index[code] for value, code in spelled.items() if code in index}
            codes = series.map(level_of)
            values[:, i] = codes.to_numpy(float, na_value=np.nan)
            continue
        numbers = pd.to_numeric(series, errors="coerce").to_numpy(float, na_value=np.nan)
        with np.errstate(invalid="ignore"):
            known = (numbers >= column.low) & (numbers <= column.high)
        values[:, i] = np.where(
            known if column.is_stated else np.isfinite(numbers), numbers, np.nan
        )
    return values


def decode(values: FloatArray, columns: Sequence[Column], table: pd.DataFrame) -> dict[str, Series]:
    """Turn numbers back into columns of the table's own types.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Encoded as by `encode`.
    columns : sequence of Column
        As given to `encode`.
    table : pandas.DataFrame
        Supplies the types.

    Returns
    -------
    dict of str to pandas.Series
        One series of n_rows per column, in the table's type; where a whole-number column must hold a
        missing value it cannot hold, the type becomes pandas' nullable one.
    """
    decoded: dict[str, Series] = {}
    for i, column in enumerate(columns):
        numbers = values[:, i]
        missing = np.isnan(numbers)
        if column.has_levels:
            levels = np.array(column.levels, dtype=object)
            cells = np.full(len(numbers), None, dtype=object)
            cells[~missing] = levels[numbers[~missing].astype(int)]
            series = pd.Series(cells, dtype=object)
        else:
            series = pd.Series(np.round(numbers, column.decimals))
        decoded[column.name] = as_type(series, table[column.name].dtype)
    return decoded


def as_type(series: Series, dtype: Any) -> Series:
    """Give a series a column's type, or the nullable form of it where cells are missing."""
    if pd.api.types.is_object_dtype(dtype):
        return series.astype(object).where(series.notna(), np.nan)
    if series.isna().any() and isinstance(dtype, np.dtype):
        if dtype.kind in "iu":
            return series.astype("Int64")
        if dtype.kind == "b":
            return series.astype("boolean")
    return series.astype(dtype)


def analysis_matrix(values: FloatArray, columns: Sequence[Column]) -> tuple[FloatArray, list[str]]:
    """Turn encoded values into the columns that distances and models work on.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Encoded as by `encode`.
    columns : sequence of Column
        As given to `encode`.

    Returns
    -------
    matrix : ndarray of shape (n_rows, n_axes)
        Measurements and numeric codes as they are, one 0/1 column per level for the others (one
        column in all for a binary one); NaN where missing. Own units, not scaled.
    names : list of str
        What each axis is called: ``age``, ``ward = B``.
    """
    parts: list[FloatArray] = []
    names: list[str] = []
    for i, column in enumerate(columns):
        one = values[:, i]
        if not column.has_levels:
            parts.append(one)
            names.append(column.name)
            continue
        missing = np.isnan(one)
        index = np.where(missing, 0, one).astype(int)
        if column.is_numeric:
            numbers = np.array([float(level) for level in column.levels])
            parts.append(np.where(missing, np.nan, numbers[index]))
            names.append(column.name)
            continue
        shown = [1] if column.kind == "binary" else range(len(column.levels))
        for i_level in shown:
            parts.append(np.where(missing, np.nan, (index == i_level).astype(float)))
            names.append(f"{column.name} = {column.levels[i_level]}")
    if not parts:
        return np.empty((len(values), 0)), names
    return np.column_stack(parts), names
