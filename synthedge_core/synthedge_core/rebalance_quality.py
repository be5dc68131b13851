"""How good generated rows of a class are, and whether adding them harms: both measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from synthedge_core.columns import Column
from synthedge_core.fill_copula import copula_rows
from synthedge_core.fill_schema import RowSchema
from synthedge_core.quality import quality_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Rows compared per side: enough for a random forest to see a difference, soon done.
_MOST_COMPARED = 500
_MOST_PROBED = 2_000
_FOLDS = 5
# A forest that tells generated from observed rows so well, in a class that is mostly generated, has
# found the generator's handwriting; so will the model trained on it.
MAX_FOREST_AUC = 0.75
# More generated than observed rows, and so many times more that no measurement can excuse it.
MANY_PER_OBSERVED = 1.0
TOO_MANY_PER_OBSERVED = 10.0
_MIN_HARM = 0.005


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassQuality:
    """How generated rows of a class compare with its observed rows; each figure in [0, 1], 1 is best.

    Attributes
    ----------
    margins : float or None
        1 minus the mean distance of the columns' distributions (Kolmogorov-Smirnov, Cramer's V).
    correlations : float or None
        1 minus the mean absolute difference of the columns' correlations.
    indistinguishable : float or None
        ``2 * (1 - AUC)`` of a random forest that tells generated from observed rows out of fold, at
        most 1.
    forest_auc : float or None
        That AUC; 0.5 is not at all.
    n_compared : int
        Rows compared on the smaller side.
    """

    margins: float | None
    correlations: float | None
    indistinguishable: float | None
    forest_auc: float | None
    n_compared: int

    @property
    def score(self) -> float | None:
        """Mean of what could be measured; None with fewer than 5 rows on a side."""
        known = [
            x for x in (self.margins, self.correlations, self.indistinguishable) if x is not None
        ]
        return float(np.mean(known)) if known else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What the rebalancing does to a boosted model, on held-out observed rows.

    Attributes
    ----------
    auc_before, auc_after : float
        Mean ROC-AUC over 5 folds, trained on the observed rows of the other folds, and on those
        rebalanced the same way; for several classes the mean over classes, each against the rest.
    standard_error : float
        Of the difference, corrected for overlapping training sets (Nadeau and Bengio 2003).
    """

    auc_before: float
    auc_after: float
    standard_error: float

    @property
    def is_harmful(self) -> bool:
        """Whether the loss is more than two standard errors, and more than 0.005."""
        loss = self.auc_before - self.auc_after
        return loss > max(_MIN_HARM, 2 * self.standard_error)


def class_quality(
    generated: FloatArray, observed: FloatArray, columns: Sequence[Column], seed: int
) -> ClassQuality:
    """Compare generated with observed encoded rows of one class, at most 500 of each."""
    rng = np.random.default_rng(seed)
    made, real = (_some(rows, _MOST_COMPARED, rng) for rows in (generated, observed))
    found = quality_of(made, real, real, columns, "observed rows of the class")
    auc = found.discriminator_auc_forest
    difference = found.correlation_difference
    return ClassQuality(
        margins=1 - float(np.mean([min(1.0, d.statistic) for d in found.drift]))
        if found.drift
        else None,
        correlations=None if difference is None else max(0.0, 1 - difference),
        indistinguishable=None if auc is None else float(min(1.0, 2 * (1 - auc))),
        forest_auc=auc,
        n_compared=min(len(made), len(real)),
    )


def _some(rows: FloatArray, most: int, rng: np.random.Generator) -> FloatArray:
    return rows if len(rows) <= most else rows[rng.choice(len(rows), most, replace=False)]


def over_augmentation(
    level: object, n_observed: int, n_new: int, quality: ClassQuality | None
) -> str | None:
    """Say why a class has too many generated rows; None if it has not.

    Reasons are measured ones: the rows generated per observed row, and how well a random forest tells
    the two apart. Where too few observed rows allow no such measurement, that is a reason too.
    """
    per_observed = n_new / n_observed
    auc = None if quality is None else quality.forest_auc
    is_seen = (auc is None or auc > MAX_FOREST_AUC) and per_observed > MANY_PER_OBSERVED
    if not is_seen and per_observed <= TOO_MANY_PER_OBSERVED:
        return None
    text = (
        f"class {level}: {per_observed:.1f} generated rows for each of {n_observed} observed ones"
    )
    if auc is None:
        text += ", too few to measure how the two differ"
    else:
        text += f", and a random forest tells them apart with an AUC of {auc:.2f} (0.5: not at all)"
    return (
        f"{text}; a model will learn the generator rather than the patients: "
        f"ask for at most {n_observed} generated rows, or weight the class instead"
    )


def probe_rebalancing(
    features: FloatArray,
    classes: IntArray,
    growth: Mapping[int, float],
    schema: RowSchema,
    seed: int,
) -> Probe | None:
    """Measure on held-out observed rows what a model gains or loses.

    Parameters
    ----------
    features : ndarray of shape (n_rows, n_features)
        Encoded observed rows without the label; at most 2,000 of them are used.
    classes : ndarray of int of shape (n_rows,)
        Their classes, 0..n-1.
    growth : mapping of class to float
        Rows afterwards per observed row; below 1 rows are left out.
    schema : RowSchema
        Of the features.
    seed : int

    Returns
    -------
    Probe or None
        None if a class has fewer than 10 rows: two a fold tell nothing.
    """
    from sklearn.model_selection import StratifiedKFold, train_test_split

    if len(classes) > _MOST_PROBED:
        features, _, classes, _ = train_test_split(
            features, classes, train_size=_MOST_PROBED, stratify=classes, random_state=seed
        )
    if np.bincount(classes).min() < 2 * _FOLDS:
        return None
    before: list[float] = []
    after: list[float] = []
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    for i_fold, (train, test) in enumerate(folds.split(features, classes)):
        rng = np.random.default_rng([seed, i_fold])
        rebalanced = [
            _grown(features[train], classes[train], c, g, schema, rng) for c, g in growth.items()
        ]
        x = np.concatenate([rows for rows, _ in rebalanced])
        y = np.concatenate([labels for _, labels in rebalanced])
        for scores, (rows, labels) in (
            (before, (features[train], classes[train])),
            (after, (x, y)),
        ):
            model = boosted_model(rows, labels)
            scores.append(mean_auc(classes[test], model(features[test])))
    differences = np.array(after) - np.array(before)
    n_test = len(classes) / _FOLDS
    spread = differences.var(ddof=1) * (1 / _FOLDS + n_test / (len(classes) - n_test))
    return Probe(
        auc_before=float(np.mean(before)),
        auc_after=float(np.mean(after)),
        standard_error=float(np.sqrt(spread)),
    )


def _grown(
    features: FloatArray,
    classes: IntArray,
    wanted_class: int,
    growth: float,
    schema: RowSchema,
    rng: np.random.Generator,
) -> tuple[FloatArray, IntArray]:
    rows = features[classes == wanted_class]
    n_wanted = max(2, round(growth * len(rows)))
    if n_wanted <= len(rows):
        rows = rows[rng.choice(len(rows), n_wanted, replace=False)]
    else:
        n_new = n_wanted - len(rows)
        rows = np.vstack([rows, copula_rows(rows, n_new, schema, seed=int(rng.integers(2**31)))])
    return rows, np.full(len(rows), wanted_class)


def boosted_model(
    rows: FloatArray, labels: npt.NDArray[Any], *, is_balanced: bool = False
) -> Callable[[FloatArray], FloatArray]:
    """Train a small boosted classifier; give its class probabilities as a function.

    On one thread: beside other work its threads wait for each other (measured: up to 30 times
    slower).
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    model = HistGradientBoostingClassifier(
        max_iter=50,
        max_depth=3,
        early_stopping=False,
        class_weight="balanced" if is_balanced else None,
        random_state=0,
    )
    with threadpool_limits(1):
        model.fit(rows, labels)

    def probabilities(given: FloatArray) -> FloatArray:
        with threadpool_limits(1):
            return np.asarray(model.predict_proba(given))

    return probabilities


def mean_auc(classes: IntArray, scores: FloatArray) -> float:
    """ROC-AUC: of the second class for two, else the mean over classes against the rest.

    Parameters
    ----------
    classes : ndarray of int of shape (n_rows,)
        Each of 0..n-1 occurs.
    scores : ndarray of shape (n_rows, n_classes)
        Larger means likelier.
    """
    from sklearn.metrics import roc_auc_score

    if scores.shape[1] == 2:
        return float(roc_auc_score(classes == 1, scores[:, 1] - scores[:, 0]))
    found = [roc_auc_score(classes == c, scores[:, c]) for c in range(scores.shape[1])]
    return float(np.mean(found))
