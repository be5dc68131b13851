"""The label column: which rows are positive, for two classes or for each of several."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.errors import TableError

BoolArray = npt.NDArray[np.bool_]

MAX_CLASSES = 20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelClass:
    """One class against the rest.

    Attributes
    ----------
    levels : tuple
        The label values that count as positive together; usually one.
    positive : ndarray of bool, shape (n_labelled,)
        Which labelled rows have one of them.
    """

    levels: tuple[Any, ...]
    positive: BoolArray

    @property
    def name(self) -> str:
        """The class for people: ``1`` or ``1, 2``."""
        return ", ".join(str(level) for level in self.levels)

    @property
    def n_positive(self) -> int:
        """Rows of the class."""
        return int(self.positive.sum())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labels:
    """The label column of a table.

    Attributes
    ----------
    column : str
    levels : tuple
        Every label value that occurs, sorted.
    is_labelled : ndarray of bool, shape (n_rows,)
        Rows with a label; the others take no part in the analysis.
    classes : tuple of LabelClass
        The classes looked at, rarest first: one for two levels, else every level but the most
        frequent.
    """

    column: str
    levels: tuple[Any, ...]
    is_labelled: BoolArray
    classes: tuple[LabelClass, ...]

    @property
    def n_unlabelled(self) -> int:
        """Rows without a label."""
        return int((~self.is_labelled).sum())


def read_labels(table: pd.DataFrame, column: str, positive: Any = None) -> Labels:
    """Find the classes of a table.

    Parameters
    ----------
    table : pandas.DataFrame
    column : str
        The label column.
    positive : object or sequence of objects, optional
        The label value, or the values, that count as positive, as themselves or as text. Default: for labels 0/1 or
        false/true the larger one, for two other labels the rarer one (the larger if equally rare),
        for several labels each but the most frequent in turn.

    Returns
    -------
    Labels

    Raises
    ------
    TableError
        If there is no such column, no row has a label, there is only one class, the label looks like
        a measurement, or `positive` does not occur.
    """
    if column not in table.columns:
        raise TableError(
            f"the table has no column '{column}'; its columns are "
            f"{', '.join(map(str, table.columns))}; name the label's with --target"
        )
    series = table[column]
    is_labelled = series.notna().to_numpy(bool)
    levels = [v.item() if isinstance(v, np.generic) else v for v in series[is_labelled].unique()]
    try:
        levels.sort()
    except TypeError:
        levels.sort(key=lambda v: (str(type(v)), str(v)))
    if not levels:
        raise TableError(f"the label '{column}' is missing in every row; nothing can be analysed")
    if len(levels) == 1:
        raise TableError(
            f"the label '{column}' has one value in all {int(is_labelled.sum())} rows; "
            "a gap is a lack of one class against another, so two classes are needed"
        )
    if len(levels) > MAX_CLASSES and positive is None:
        raise TableError(
            f"the label '{column}' has {len(levels)} different values, expected at most "
            f"{MAX_CLASSES}; it looks like a measurement: make classes of it, or say which value is "
            "positive"
        )
    labels = series[is_labelled]
    if positive is not None:
        given = list(positive) if isinstance(positive, (list, tuple, set)) else [positive]
        chosen = tuple(dict.fromkeys(_matching(levels, one, column) for one in given))
        if len(chosen) == len(levels):
            raise TableError(
                f"every value of the label '{column}' is named as positive; leave one out"
            )
        wanted = [chosen]
    elif len(levels) == 2:
        wanted = [(_default_positive(levels, labels),)]
    else:
        counts = labels.value_counts()
        # Ties in the table's own order of levels, so that the answer does not depend on row order.
        by_size = sorted(levels, key=lambda level: int(counts[level]))
        wanted = [(level,) for level in by_size[:-1]]
    classes = tuple(
        LabelClass(levels=group, positive=labels.isin(group).to_numpy(bool)) for group in wanted
    )
    return Labels(column=column, levels=tuple(levels), is_labelled=is_labelled, classes=classes)


def _default_positive(levels: list[Any], labels: "pd.Series[Any]") -> Any:
    low, high = levels
    if (low, high) == (0, 1):  # also False, True and 0.0, 1.0
        return high
    return low if int((labels == low).sum()) < int((labels == high).sum()) else high


def _matching(levels: list[Any], positive: Any, column: str) -> Any:
    for level in levels:
        if level == positive or str(level) == str(positive):
            return level
    for level in levels:  # "1" also names 1.0
        if isinstance(level, float) and level.is_integer() and str(int(level)) == str(positive):
            return level
    shown = ", ".join(str(level) for level in levels[:MAX_CLASSES])
    raise TableError(f"the label '{column}' never has the value given as positive; it has {shown}")
