"""Attacks on gap reports: what a reader tries who has the reports of a site and nothing else of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from synthedge_client.attacker import Known
from synthedge_client.protection import ProtectedCounts

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Recovered:
    """What the smallest total that makes everything whole says.

    Attributes
    ----------
    total : int
        Patients in the grid.
    counts, positives : ndarray of shape (n_voxels,)
    """

    total: int
    counts: IntArray
    positives: IntArray


def smallest_total(
    density: FloatArray, positive_rate: FloatArray, most: int = 5_000
) -> Recovered | None:
    """Look for the fewest patients with which every density and rate is that of whole patients.

    Parameters
    ----------
    density, positive_rate : ndarray of shape (n_voxels,)
        As published; 0 where suppressed.
    most : int
        Totals above this are not tried.

    Returns
    -------
    Recovered or None
        None if no total fits.
    """
    for total in range(1, most + 1):
        counts = density * total / len(density)
        positives = counts * positive_rate
        if _is_whole(counts) and _is_whole(positives):
            return Recovered(
                total, np.rint(counts).astype(np.int64), np.rint(positives).astype(np.int64)
            )
    return None


def _is_whole(values: FloatArray) -> bool:
    return bool(np.abs(values - np.rint(values)).max() < 1e-6)


def knowledge(protected: Sequence[ProtectedCounts], k: int) -> list[Known]:
    """What each published figure says of its count, by the rules of docs/disclosure.md alone.

    Parameters
    ----------
    protected : sequence of ProtectedCounts
        Of one release in threshold mode.
    k : int
        Its minimum count.
    """
    known = []
    for told in protected:
        n_voxels = len(told.suppressed)
        low, high = np.zeros((2, n_voxels)), np.full((2, n_voxels), np.inf)
        least = np.zeros(n_voxels)
        for i in np.flatnonzero(~told.suppressed):
            figures = (told.positives[i], told.negatives[i])
            if figures == (0, 0):
                high[:, i] = 0
                continue
            least[i] = k
            for label, figure in enumerate(figures):
                if figure == (k - 1) / 2:
                    high[label, i] = k - 1
                    continue
                first = 5 * -(-k // 5)
                near = range(max(k, int(figure) - 7), int(figure) + 8)
                fits = [n for n in near if max(5 * round(n / 5), first) == figure]
                low[label, i], high[label, i] = min(fits), max(fits)
        known.append(Known(low, high, least))
    return known


def epsilon_at_least(
    draw: Callable[[bool], FloatArray],
    llr: Callable[[FloatArray], FloatArray],
    confidence: float = 0.99,
) -> float:
    """A lower bound on epsilon from telling two neighbouring tables apart.

    Parameters
    ----------
    draw : callable
        Reports of many runs, shape (n_runs, ...); with the one patient or without.
    llr : callable
        Log likelihood ratio of each run, shape (n_runs,): with the patient over without.
    confidence : float
        Of the bound; both error rates are Clopper-Pearson bounds at half the error each.

    Returns
    -------
    float
        ``max(0, ln(P(guess | with) / P(guess | without)))`` at the guess that did best on other runs: under
        epsilon-differential privacy no guess has a larger ratio (Kairouz, Oh and Viswanath 2015).
    """
    trial_with, trial_without = llr(draw(True)), llr(draw(False))
    cuts = np.unique(np.round(np.concatenate([trial_with, trial_without]), 9))
    cuts = cuts[np.linspace(0, len(cuts) - 1, min(40, len(cuts))).astype(int)]
    best = max(cuts, key=lambda cut: _ratio(trial_with, trial_without, cut, confidence))
    return max(0.0, _ratio(llr(draw(True)), llr(draw(False)), best, confidence))


def _ratio(with_it: FloatArray, without: FloatArray, cut: float, confidence: float) -> float:
    slack = 1e-9  # equal sums of floats
    hits, misses = int((with_it >= cut - slack).sum()), int((without >= cut - slack).sum())
    low = binomtest(hits, len(with_it)).proportion_ci(confidence, method="exact").low
    high = binomtest(misses, len(without)).proportion_ci(confidence, method="exact").high
    return float(np.log(max(low, 1e-12) / high))
