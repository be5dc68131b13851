"""What rebalancing must be compared with: copies, random filling, SMOTE-NC, ADASYN.

SMOTE-NC and ADASYN are imbalanced-learn's; like every neighbour method they take no missing values, so
these are filled first (median, most frequent code), which is part of what is being compared.
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.conditions import condition_on
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.labels import read_labels
from synthedge_core.rebalance_plan import RebalancePlan, plan_classes
from synthedge_core.rebalance_table import PreparedTable, checked_table, column_names, stack

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def rebalance_by_baseline(
    df: pd.DataFrame,
    target_column: str,
    baseline: str,
    *,
    ratio: float | None = None,
    target_counts: Mapping[Any, int] | None = None,
    discrete_columns: Collection[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Oversample a table with a method that is only there to be compared with.

    Parameters
    ----------
    df : pandas.DataFrame
    target_column : str
    baseline : str
        ``"random-duplication"``: copies of observed rows of the class. ``"random-filling"``: every
        cell drawn on its own, from the column's range or levels in the whole table: noise, shown
        because some tools fill so. ``"smote-nc"`` and ``"adasyn"``: imbalanced-learn's; ADASYN
        decides its number of rows by itself, within a few of the number asked for, and treats codes
        as measurements, rounded afterwards.
    ratio, target_counts
        As for `rebalance_plan.plan_classes`, strategy ``"oversample"``.
    discrete_columns : collection of str, optional
    seed : int

    Returns
    -------
    pandas.DataFrame
        Observed rows in order, then the new ones, marked as by `augment_imbalanced`.

    Raises
    ------
    TableError, UsageError
        As for `augment_imbalanced`.
    RefusedError
        If a class is too small for the method, or ADASYN finds no hard example.
    """
    if baseline not in BASELINES:
        raise UsageError(f"there is no baseline '{baseline}'; choose one of {', '.join(BASELINES)}")
    table = checked_table(df)
    labels = read_labels(table, target_column)
    label_of = table.loc[labels.is_labelled, target_column]
    plan = plan_classes(
        labels,
        {level: int((label_of == level).sum()) for level in labels.levels},
        strategy="oversample",
        ratio=ratio,
        sampling_ratio=None,
        target_counts=target_counts,
    )
    prepared = PreparedTable.of(
        table, discrete_columns={*column_names(discrete_columns), target_column}
    )
    class_of = np.full(len(table), -1)
    i_target = prepared.index_of(target_column)
    codes = []
    for i, one in enumerate(plan.classes):
        condition = condition_on(target_column, one.level, prepared)
        class_of[condition.holds(prepared.values)] = i
        codes.append((condition.allowed or (0,))[0])
    features = [i for i in range(len(prepared.analysed)) if i != i_target]
    new, new_class = BASELINES[baseline](prepared, features, class_of, plan, seed)
    rows = np.full((len(new), len(prepared.analysed)), np.nan)
    rows[:, features] = new
    rows[:, i_target] = np.array(codes)[new_class]
    return stack([prepared.observed(), prepared.to_frame(rows, f"synthetic:{baseline}")])


def _random_duplication(
    prepared: PreparedTable,
    features: list[int],
    class_of: IntArray,
    plan: RebalancePlan,
    seed: int,
) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(seed)
    rows = [
        rng.choice(np.flatnonzero(class_of == i), one.n_new) for i, one in enumerate(plan.classes)
    ]
    return prepared.values[np.concatenate(rows)][:, features], _repeated(plan)


def _random_filling(
    prepared: PreparedTable,
    features: list[int],
    class_of: IntArray,
    plan: RebalancePlan,
    seed: int,
) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(seed)
    n_new = sum(one.n_new for one in plan.classes)
    cells = np.empty((n_new, len(features)))
    for j, i in enumerate(features):
        column = prepared.analysed[i]
        if column.has_levels:
            cells[:, j] = rng.integers(len(column.levels), size=n_new)
        else:
            cells[:, j] = np.round(rng.uniform(column.low, column.high, n_new), column.decimals)
    return cells, _repeated(plan)


def _repeated(plan: RebalancePlan) -> IntArray:
    return np.repeat(np.arange(len(plan.classes)), [one.n_new for one in plan.classes])


def _smote_nc(
    prepared: PreparedTable,
    features: list[int],
    class_of: IntArray,
    plan: RebalancePlan,
    seed: int,
) -> tuple[FloatArray, IntArray]:
    from imblearn.over_sampling import SMOTE, SMOTEN, SMOTENC

    is_coded = [prepared.analysed[i].has_levels for i in features]
    settings: dict[str, Any] = {"sampling_strategy": _wanted(plan), "random_state": seed}
    if all(is_coded):
        sampler = SMOTEN(**settings)
    elif any(is_coded):
        sampler = SMOTENC(categorical_features=np.flatnonzero(is_coded).tolist(), **settings)
    else:
        sampler = SMOTE(**settings)
    return _from_imblearn(sampler, prepared, features, class_of)


def _adasyn(
    prepared: PreparedTable,
    features: list[int],
    class_of: IntArray,
    plan: RebalancePlan,
    seed: int,
) -> tuple[FloatArray, IntArray]:
    from imblearn.over_sampling import ADASYN

    sampler = ADASYN(sampling_strategy=_wanted(plan), random_state=seed)
    return _from_imblearn(sampler, prepared, features, class_of)


def _wanted(plan: RebalancePlan) -> dict[int, int]:
    return {i: one.n_wanted for i, one in enumerate(plan.classes) if one.n_new}


def _from_imblearn(
    sampler: Any, prepared: PreparedTable, features: list[int], class_of: IntArray
) -> tuple[FloatArray, IntArray]:
    known = class_of >= 0
    rows = prepared.values[known][:, features]
    for j, i in enumerate(features):
        missing = np.isnan(rows[:, j])
        if missing.any():
            rows[missing, j] = _usual(rows[~missing, j], prepared.analysed[i].has_levels)
    try:
        with warnings.catch_warnings():
            # Its deprecations are between it and scikit-learn.
            warnings.simplefilter("ignore", FutureWarning)
            new, classes = sampler.fit_resample(rows, class_of[known])
    except (ValueError, RuntimeError) as error:
        raise RefusedError(f"imbalanced-learn cannot do it: {error}") from None
    new, classes = np.asarray(new, float)[len(rows) :], np.asarray(classes)[len(rows) :]
    for j, i in enumerate(features):
        column = prepared.analysed[i]
        new[:, j] = np.round(new[:, j], 0 if column.has_levels else column.decimals)
    return new, classes


def _usual(values: FloatArray, has_levels: bool) -> float:
    if not has_levels:
        return float(np.median(values))
    levels, counts = np.unique(values, return_counts=True)
    return float(levels[counts.argmax()])


_Baseline = Callable[
    [PreparedTable, list[int], IntArray, RebalancePlan, int], tuple[FloatArray, IntArray]
]
BASELINES: dict[str, _Baseline] = {
    "random-duplication": _random_duplication,
    "random-filling": _random_filling,
    "smote-nc": _smote_nc,
    "adasyn": _adasyn,
}
