"""Would filling help? A cross-validated estimate with an interval.

Cross-validation on the table alone cannot see the good that filling a real gap does: the held-out
rows have the same gap, and punish a model that predicts positives there. So the held-out rows are
judged twice: as they are, and with the gap's region repaired (its rows count as positive with the
probability that the rest of the table gives them). The estimate weighs the two by how probable it
is that the gap is real.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from synthedge_core.analysis import Analysis
from synthedge_core.columns import analysis_matrix
from synthedge_core.fill_engines import make_engine
from synthedge_core.gap_test import Region
from synthedge_core.models import MODELS, class_weights, fit_predict

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

N_FOLDS = 5
# Above this many rows the estimate is made on a random part: it takes seconds, not minutes.
MAX_ROWS = 5_000
CONFIDENCE = 0.9
# Share of tables taken to have a real gap before looking at this one; on the measured
# configurations any share from 0.1 to 0.4 gives the same signs.
PRIOR_REAL = 0.2
MIN_POSITIVES = 2 * N_FOLDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Benefit:
    """What filling is expected to do.

    Attributes
    ----------
    estimate, low, high : float
        Change of the held-out area under the ROC curve, mean over both models, and its 90 %
        interval (corrected for overlapping training folds, Nadeau & Bengio 2003).
    as_is, repaired : float
        The two estimates that were weighed.
    probability_real : float
        How probable it is that the gap is real.
    n_rows : int
        Rows it was made on.
    """

    estimate: float
    low: float
    high: float
    as_is: float
    repaired: float
    probability_real: float
    n_rows: int


def estimate_benefit(analysis: Analysis, *, n_top: int = 1, seed: int = 0) -> Benefit | None:
    """Estimate what filling the table's worst regions does to models.

    Parameters
    ----------
    analysis : Analysis
    n_top : int
        Regions to be filled.
    seed : int
        Of folds and rows.

    Returns
    -------
    Benefit or None
        None if there are fewer than 10 rows of either class: folds would hold next to nothing.
    """
    analysis = _part(analysis, seed)
    n_positive = int(analysis.positive.sum())
    if min(n_positive, len(analysis.positive) - n_positive) < MIN_POSITIVES:
        return None
    regions = analysis.gap_test.regions
    soft = _repaired_labels(analysis, regions[0]) if regions else None
    as_is, repaired = [], []
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    for train_rows, test_rows in folds.split(analysis.values, analysis.positive):
        train = analysis.subset(train_rows)
        plan = train.plan(n_top)
        if not plan:
            return None
        gaps, amounts = [gap for gap, _ in plan], [amount for _, amount in plan]
        made = train.fill(gaps, amounts, make_engine("copula"), seed).values
        held_out = analysis.positive[test_rows]
        changes = []
        for with_made in (False, True):
            probabilities = _predict(train, made if with_made else made[:0], analysis, test_rows)
            hard_auc = [float(roc_auc_score(held_out, p)) for p in probabilities]
            soft_auc = [
                hard if soft is None else _soft_auc(held_out, soft[test_rows], p)
                for hard, p in zip(hard_auc, probabilities, strict=True)
            ]
            changes.append((np.mean(hard_auc), np.mean(soft_auc)))
        as_is.append(float(changes[1][0] - changes[0][0]))
        repaired.append(float(changes[1][1] - changes[0][1]))
    probability = probability_real(analysis.gap_test.p_value)
    mixed = (1.0 - probability) * np.array(as_is) + probability * np.array(repaired)
    # Folds share training rows: the variance of the mean is too small by n_test / n_train.
    error = float(mixed.std(ddof=1)) * math.sqrt(1.0 / N_FOLDS + 1.0 / (N_FOLDS - 1))
    half = float(student.ppf(0.5 + CONFIDENCE / 2, N_FOLDS - 1)) * error
    estimate = float(mixed.mean())
    return Benefit(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        as_is=float(np.mean(as_is)),
        repaired=float(np.mean(repaired)),
        probability_real=probability,
        n_rows=len(analysis.positive),
    )


def probability_real(p_value: float) -> float:
    """Turn the gap test's p-value into the probability of a real gap.

    The bound -e p log p on the Bayes factor in favour of chance (Sellke, Bayarri & Berger 2001).
    """
    bound = -math.e * p_value * math.log(p_value) if 0 < p_value < 1 / math.e else 1.0
    odds = PRIOR_REAL / (1.0 - PRIOR_REAL) / bound
    return odds / (1.0 + odds)


def _part(analysis: Analysis, seed: int) -> Analysis:
    n = len(analysis.positive)
    if n <= MAX_ROWS:
        return analysis
    rows = np.random.default_rng([seed, 3]).permutation(n)[:MAX_ROWS]
    return analysis.subset(np.sort(rows))


def _predict(
    train: Analysis, made: FloatArray, analysis: Analysis, test_rows: IntArray
) -> list[FloatArray]:
    rows = np.vstack([train.matrix, analysis_matrix(made, train.columns)[0]])
    labels = np.concatenate([train.positive, np.ones(len(made), dtype=bool)])
    weights = class_weights(train.positive)
    test = analysis.matrix[test_rows]
    return [fit_predict(model, rows, labels, weights, test) for model in MODELS]


def _repaired_labels(analysis: Analysis, region: Region) -> FloatArray:
    """Give each row's label, in the region what the rows outside it say, never below the own."""
    members = region.candidate.members
    labels = analysis.positive.astype(float)
    outside = analysis.positive[~members]
    if outside.all() or not outside.any():
        return labels
    inside = fit_predict(
        "logistic regression",
        analysis.matrix[~members],
        outside,
        None,
        analysis.matrix[members],
    )
    labels[members] = np.maximum(labels[members], inside)
    return labels


def _soft_auc(held_out: npt.NDArray[np.bool_], soft: FloatArray, probability: FloatArray) -> float:
    """Area under the ROC curve where a row is positive with a probability."""
    labels = np.concatenate([np.ones(len(soft)), np.zeros(len(soft))])
    weights = np.concatenate([soft, 1.0 - soft])
    if weights[: len(soft)].sum() <= 0 or weights[len(soft) :].sum() <= 0:
        return float(roc_auc_score(held_out, probability))
    both = np.concatenate([probability, probability])
    return float(roc_auc_score(labels, both, sample_weight=weights))
