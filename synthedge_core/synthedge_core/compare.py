"""Compare ways to treat an imbalanced table, honestly.

The split comes first; every method sees training rows only; all models get the same class weights,
taken from the real training rows; many splits; every difference is paired within its split. Rows
that are alike in every column stay on one side of the split. A check looks for held-out rows among
the generated ones and refuses the result if it finds them.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from synthedge_core.analysis import Analysis
from synthedge_core.columns import analysis_matrix
from synthedge_core.errors import UsageError, VerificationError
from synthedge_core.fill_engines import make_engine
from synthedge_core.models import MODELS, ModelName, Scores, class_weights, fit_predict, score

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
# Makes extra positive rows, encoded, from training rows, a number and a seed.
Method = Callable[[Analysis, int, int], FloatArray]

TEST_SHARE = 0.3
BASE = "class weights"
MEASURES = ("auprc", "auroc", "brier", "recall_at_fpr", "recall_at_half")
# A leak is called when generated rows are nearest to held-out rows this much less probably than by
# chance: many comparisons are made, and a false alarm throws a result away.
_LEAK_P = 1e-6
_SUSPICIOUS_AUC = 0.995
_NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResult:
    """One method with one model.

    Attributes
    ----------
    method : str
    model : ModelName
    rows_added : float
        Mean over the splits.
    mean, spread : mapping of str to float
        Mean and standard deviation of every measure over the splits.
    difference, difference_spread : mapping of str to float
        Mean and standard deviation of the paired difference to ``class weights``.
    share_better : mapping of str to float
        Share of the splits in which it does better than ``class weights``.
    """

    method: str
    model: ModelName
    rows_added: float
    mean: Mapping[str, float]
    spread: Mapping[str, float]
    difference: Mapping[str, float]
    difference_spread: Mapping[str, float]
    share_better: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All methods and models over the same splits.

    Attributes
    ----------
    n_splits, n_train, n_test : int
        Splits, and the rows on either side of the first.
    results : tuple of MethodResult
    notes : tuple of str
        What a reader must know, in plain words.
    """

    n_splits: int
    n_train: int
    n_test: int
    results: tuple[MethodResult, ...]
    notes: tuple[str, ...]


def compare(
    analysis: Analysis,
    *,
    n_splits: int = 10,
    seed: int = 0,
    n_top: int = 3,
    engine: str = "copula",
    extra_methods: Mapping[str, Method] | None = None,
    report_progress: Callable[[float], None] = lambda share: None,
) -> Comparison:
    """Measure what each method does to models on rows that no method saw.

    Parameters
    ----------
    analysis : Analysis
        The whole table; it is split here.
    n_splits : int
        Random splits in training and test rows (30 %), at least 2.
    seed : int
        Of the splits and methods.
    n_top, engine
        Gaps filled, and with what, by our method.
    extra_methods : mapping of str to Method, optional
        Further methods to measure.
    report_progress : callable
        Called with the share of the work done.

    Returns
    -------
    Comparison

    Raises
    ------
    UsageError
        If fewer than 2 splits are asked for, or a side of a split would lack a class.
    VerificationError
        If a method's rows hold held-out rows.
    """
    if n_splits < 2:
        raise UsageError(f"{n_splits} split; a spread needs at least 2")
    ours = _ours(n_top, engine)
    methods: dict[str, Method] = {
        "none": _nothing,
        BASE: _nothing,
        "SMOTE-NC": _smote,
        "ADASYN": _adasyn,
        "random duplicates": _duplicates,
        f"SynthEdge ({engine})": ours,
        **(extra_methods or {}),
    }
    scores: dict[tuple[str, ModelName], list[Scores]] = {}
    added: dict[str, list[int]] = {name: [] for name in methods}
    sizes = (0, 0)
    for i_split in range(n_splits):
        train_rows, test_rows = split(analysis, seed + i_split)
        train, test = analysis.subset(train_rows), analysis.matrix[test_rows]
        held_out = analysis.positive[test_rows]
        sizes = sizes if i_split else (len(train_rows), len(test_rows))
        own_rows = ours(train, 0, seed + i_split)
        for name, method in methods.items():
            made = own_rows if method is ours else method(train, len(own_rows), seed + i_split)
            if method is not _duplicates:
                check_leak(name, made, train, analysis.values[test_rows[held_out]])
            added[name].append(len(made))
            weights = None if name == "none" else class_weights(train.positive)
            rows = np.vstack([train.matrix, analysis_matrix(made, train.columns)[0]])
            labels = np.concatenate([train.positive, np.ones(len(made), dtype=bool)])
            for model in MODELS:
                probability = fit_predict(model, rows, labels, weights, test)
                scores.setdefault((name, model), []).append(score(held_out, probability))
        report_progress((i_split + 1) / n_splits)
    return Comparison(
        n_splits=n_splits,
        n_train=sizes[0],
        n_test=sizes[1],
        results=tuple(
            _summary(name, model, added[name], scores[name, model], scores[BASE, model])
            for name in methods
            for model in MODELS
        ),
        notes=_notes(analysis),
    )


def split(analysis: Analysis, seed: int) -> tuple[IntArray, IntArray]:
    """Split rows in training and test rows, 70 to 30 in each class.

    Rows alike in every column (a patient entered twice) stay together; training rows that are alike
    do no harm, one on each side would.

    Raises
    ------
    UsageError
        If a side would lack a class.
    """
    rng = np.random.default_rng([seed, 1])
    keys = np.where(np.isnan(analysis.values), -np.inf, analysis.values)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.ravel()
    is_test = np.zeros(len(keys), dtype=bool)
    label_of_group = np.zeros(int(group.max()) + 1, dtype=bool)
    np.logical_or.at(label_of_group, group, analysis.positive)
    for label in (False, True):
        groups = np.flatnonzero(label_of_group == label)
        chosen = rng.permutation(groups)[: round(TEST_SHARE * len(groups))]
        is_test |= np.isin(group, chosen)
    for side in (is_test, ~is_test):
        n_positive = int(analysis.positive[side].sum())
        if n_positive < 2 or n_positive > int(side.sum()) - 2:
            raise UsageError(
                f"the table has {int(analysis.positive.sum())} positive rows of {len(keys)}: too "
                "few of one class to hold some out; compare a larger table"
            )
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def check_leak(name: str, made: FloatArray, train: Analysis, held_out: FloatArray) -> None:
    """Refuse a method whose rows know the held-out rows.

    A generated row that knows training rows only is nearest to a held-out positive at most as often
    as held-out positives are among all positives.

    Parameters
    ----------
    name : str
        The method's name.
    made : ndarray of shape (n_made, n_columns)
        Its rows, encoded.
    train : Analysis
        The training rows.
    held_out : ndarray of shape (n_held_out, n_columns)
        Encoded positive test rows.

    Raises
    ------
    VerificationError
        If they are nearest to held-out rows far more often than that.
    """
    if len(made) == 0:
        return
    own = train.points(train.values[train.positive])
    other = train.points(held_out)
    made_points = train.points(made)
    own_distance, _ = cKDTree(own).query(made_points)
    other_distance, _ = cKDTree(other).query(made_points)
    n_nearer = int((other_distance < own_distance).sum())
    chance = len(other) / (len(own) + len(other))
    if binomtest(n_nearer, len(made), chance, alternative="greater").pvalue < _LEAK_P:
        raise VerificationError(
            f"the method '{name}' has seen the test rows: {n_nearer} of its {len(made)} rows are "
            f"nearer to a held-out row than to any training row, expected at most "
            f"{chance:.0%}; its scores would be worthless, so none are given"
        )


def _nothing(train: Analysis, n_rows: int, seed: int) -> FloatArray:
    return np.empty((0, train.values.shape[1]))


def _ours(n_top: int, engine: str) -> Method:
    def fill(train: Analysis, n_rows: int, seed: int) -> FloatArray:
        plan = train.plan(n_top)
        gaps, amounts = [gap for gap, _ in plan], [amount for _, amount in plan]
        return train.fill(gaps, amounts, make_engine(engine), seed).values

    return fill


def _duplicates(train: Analysis, n_rows: int, seed: int) -> FloatArray:
    """Copy random positives, as many as our method made: what its rows must beat."""
    rng = np.random.default_rng([seed, 2])
    rows = train.values[train.positive]
    return np.asarray(rows[rng.integers(len(rows), size=n_rows)])


def _smote(train: Analysis, n_rows: int, seed: int) -> FloatArray:
    """SMOTE, or SMOTE-NC where columns hold codes, until the classes are equal."""
    from imblearn.over_sampling import SMOTE, SMOTEN, SMOTENC

    coded = np.array([column.has_levels for column in train.columns])
    settings = {"k_neighbors": _k(train), "random_state": seed}
    if coded.all():
        return _resample(train, SMOTEN(**settings))
    if coded.any():
        return _resample(train, SMOTENC(np.flatnonzero(coded).tolist(), **settings))
    return _resample(train, SMOTE(**settings))


def _adasyn(train: Analysis, n_rows: int, seed: int) -> FloatArray:
    from imblearn.over_sampling import ADASYN

    try:
        return _resample(train, ADASYN(n_neighbors=_k(train), random_state=seed))
    except (ValueError, RuntimeError) as error:
        # It refuses when the classes are nearly equal, or no positive has a negative neighbour.
        if "No samples" in str(error) or "neigbours" in str(error):
            return _nothing(train, 0, 0)
        raise


def _k(train: Analysis) -> int:
    return max(1, min(_NEIGHBOURS, int(train.positive.sum()) - 1))


def _resample(train: Analysis, sampler: Any) -> FloatArray:
    """Run one of imbalanced-learn's samplers, which take no missing values: medians stand in."""
    filled = train.values.copy()
    for i, column in enumerate(train.columns):
        values = filled[:, i]
        present = values[~np.isnan(values)]
        middle = float(np.median(present)) if len(present) else 0.0
        values[np.isnan(values)] = round(middle) if column.has_levels else middle
    if train.positive.sum() * 2 >= len(filled):
        return _nothing(train, 0, 0)  # the positives are the majority: nothing to balance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows, _ = sampler.fit_resample(filled, train.positive.astype(int))
    return train.schema.fit(np.asarray(rows[len(filled) :], dtype=float))


def _summary(
    name: str,
    model: ModelName,
    added: Sequence[int],
    own: Sequence[Scores],
    base: Sequence[Scores],
) -> MethodResult:
    mean, spread, difference, difference_spread, better = {}, {}, {}, {}, {}
    for measure in MEASURES:
        values = np.array([getattr(one, measure) for one in own])
        paired = values - np.array([getattr(one, measure) for one in base])
        mean[measure], spread[measure] = float(values.mean()), float(values.std(ddof=1))
        difference[measure] = float(paired.mean())
        difference_spread[measure] = float(paired.std(ddof=1))
        sign = -1.0 if measure == "brier" else 1.0
        better[measure] = float((sign * paired > 0).mean())
    return MethodResult(
        method=name,
        model=model,
        rows_added=float(np.mean(added)),
        mean=mean,
        spread=spread,
        difference=difference,
        difference_spread=difference_spread,
        share_better=better,
    )


def _notes(analysis: Analysis) -> tuple[str, ...]:
    """Say what would make a comparison mean less than it seems."""
    notes = []
    matrix, names = analysis_matrix(analysis.values, analysis.columns)
    for i, name in enumerate(names):
        known = ~np.isnan(matrix[:, i])
        labels = analysis.positive[known]
        if 0 < labels.sum() < len(labels):
            auc = float(roc_auc_score(labels, matrix[known, i]))
            if max(auc, 1 - auc) >= _SUSPICIOUS_AUC:
                notes.append(
                    f"column '{name}' alone predicts the label almost perfectly; "
                    "is it written after the outcome? leave it out with --ignore"
                )
    return tuple(notes)
