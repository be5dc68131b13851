"""What the transfer is compared with in the mission benchmark: one function per rival, measured alike.

Every rival but the first trains with both classes weighing the same.
"""

from dataclasses import asdict
from typing import Final

import numpy as np
from federated import federated_scores
from numpy.typing import NDArray

from synthedge_deploy.cohorts import Cohort
from synthedge_deploy.evaluate import MODELS, fit_predict, measure
from synthedge_deploy.samples import Samples, join

NOTHING: Final = "nothing"
LOCAL: Final = "class weights"
SMOTE: Final = "SMOTE"
ADASYN: Final = "ADASYN"
DUPLICATES: Final = "random duplicates"
RANDOM: Final = "random donor rows"
ORACLE: Final = "rows of the true subgroup"
FEDERATED: Final = "federated averaging"
POOLED: Final = "pooled"
RIVALS: Final = (
    NOTHING,
    LOCAL,
    SMOTE,
    ADASYN,
    DUPLICATES,
    RANDOM,
    ORACLE,
    FEDERATED,
    POOLED,
)
N_ROWS: Final = 20
MIN_KL_ROWS: Final = 5

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
# Measures by model; the federated model is a logistic regression and has one entry.
Measured = dict[str, dict[str, float]]


def measured(cohort: Cohort, training: Samples, **how: object) -> Measured:
    """Train both models on what the recipient has, and measure them on its held-out rows."""
    lacks = np.isnan(cohort.recipient.samples.values).all(axis=0)
    usable = Samples(np.where(lacks, np.nan, training.values), training.positive)
    members = cohort.subgroup.contains(cohort.held_out.values, cohort.dictionary)
    held_out = cohort.held_out
    kl = gap_kl(
        held_out.values[members & held_out.positive],
        usable.values[usable.positive & cohort.subgroup.contains(usable.values, cohort.dictionary)],
    )
    return {
        model: asdict(
            measure(
                fit_predict(model, usable, held_out.values, cohort.dictionary, **how),  # type: ignore[arg-type]
                held_out,
                members,
            )
        )
        | {"gap_kl": kl}
        for model in MODELS
    }


def gap_kl(real: FloatArray, training: FloatArray) -> float | None:
    """How far the subgroup's training positives are from its held-out ones, column by column.

    Parameters
    ----------
    real, training : ndarray of shape (n_rows, n_features)
        Positives of the subgroup, NaN = missing.

    Returns
    -------
    float or None
        Mean Kullback-Leibler divergence of the real rows' histogram from the training rows' one, in bits, over at most
        5 bins at the real rows' quantiles, half a row added to each bin; None with fewer than 5 rows on a side.
    """
    divergences = []
    for theirs, ours in zip(real.T, training.T, strict=True):
        p, q = theirs[~np.isnan(theirs)], ours[~np.isnan(ours)]
        if min(len(p), len(q)) < MIN_KL_ROWS:
            continue
        edges = np.unique(np.quantile(p, [0.2, 0.4, 0.6, 0.8]))
        shares = []
        for values in (p, q):
            counts = 0.5 + np.bincount(
                np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1
            )
            shares.append(counts / counts.sum())
        divergences.append(float(np.sum(shares[0] * np.log2(shares[0] / shares[1]))))
    return float(np.mean(divergences)) if divergences else None


def measure_rival(cohort: Cohort, rival: str, seed: int) -> Measured:
    """Measure one rival of `RIVALS` on one cohort."""
    own = cohort.recipient.samples
    generator = np.random.default_rng([seed, 100])
    if rival == FEDERATED:
        members = cohort.subgroup.contains(cohort.held_out.values, cohort.dictionary)
        scores = federated_scores(cohort, cohort.held_out.values)
        return {MODELS[0]: asdict(measure(scores, cohort.held_out, members))}
    if rival == NOTHING:
        return measured(cohort, own, weights=None)
    if rival == LOCAL:
        return measured(cohort, own)
    if rival in (SMOTE, ADASYN):
        return measured(cohort, own, resample=lambda x, y: _oversampled(rival, x, y, seed))
    if rival == POOLED:
        return measured(cohort, join([h.samples for h in cohort.hospitals]))
    if rival == DUPLICATES:
        positives = np.flatnonzero(own.positive)
        return measured(cohort, join([own, own.rows(generator.choice(positives, N_ROWS))]))
    givable = join([h.samples.rows(h.samples.positive & h.has_consent) for h in cohort.donors])
    rows = np.arange(len(givable))
    if rival == ORACLE:
        rows = np.flatnonzero(cohort.subgroup.contains(givable.values, cohort.dictionary))
    chosen = generator.permutation(rows)[:N_ROWS]
    return measured(cohort, join([own, givable.rows(chosen)]))


def _oversampled(
    rival: str, design: FloatArray, positive: BoolArray, seed: int
) -> tuple[FloatArray, BoolArray]:
    """Oversample the rarer class up to the other; nothing where the method finds no row to make."""
    from imblearn import over_sampling

    rarer = int(min(positive.sum(), (~positive).sum()))
    n_near = min(5, rarer - 1)
    if n_near < 1:
        return design, positive
    sampler = (
        over_sampling.SMOTE(k_neighbors=n_near, random_state=seed)
        if rival == SMOTE
        else over_sampling.ADASYN(n_neighbors=n_near, random_state=seed)
    )
    try:
        made, labels = sampler.fit_resample(design, positive.astype(int))
    except (ValueError, RuntimeError):
        # ADASYN: "No samples will be generated with the provided ratio settings", or no neighbours of the other class.
        return design, positive
    return made, labels.astype(bool)
