"""Is there a gap at all? Missing positives per region, against tables of the same size without one.

The published severity has no notion of chance: a table of pure noise has empty corners too. Here a
smooth model (logistic regression on every column) says how many positives each region should have.
The region that lacks most is compared with what lacks most in tables drawn from that model: same
rows, same columns, same class balance, no gap. So the verdict holds for the search over all regions.

The regions looked at are those of `regions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array
from scipy.special import expit
from threadpoolctl import threadpool_limits

from synthedge_core.regions import Candidate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Chance of calling a gap where there is none; the promise to users is at most 5 in 100. In small
# tables the draws are less exact (measured: 3.5 % at a nominal 2 % and 100 rows).
ALPHA = 0.02
ALPHA_SMALL = 0.01
_SMALL_ROWS = 300
_N_DRAWS = 400
# A region that should have fewer positives than this lacks nothing that could be told from chance.
MIN_EXPECTED = 3.0
# Ridge on standardised columns: keeps the fit finite when a column separates the classes.
_RIDGE = 1.0
_MAX_NEWTON = 25
_BLOCK_DRAWS = 50


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Region:
    """A region that lacks positives.

    Attributes
    ----------
    candidate : Candidate
        Its name, rows and rule.
    n_rows, n_positive : int
        Rows and positive rows in it.
    expected : float
        Positive rows that the smooth model expects.
    deviation : float
        Standard deviation of what is lacking.
    z : float
        Lacking positives over `deviation`.
    p_value : float
        How often the worst region of a table without gaps is at least as bad.
    """

    candidate: Candidate
    n_rows: int
    n_positive: int
    expected: float
    deviation: float
    z: float
    p_value: float

    @property
    def name(self) -> str:
        """The region in words."""
        return self.candidate.name

    @property
    def n_lacking(self) -> float:
        """Positive rows that are missing, at least 0."""
        return max(0.0, self.expected - self.n_positive)

    @property
    def share_lacking(self) -> float:
        """Share of the expected positives that is missing beyond one standard deviation."""
        return max(0.0, (self.n_lacking - self.deviation) / self.expected)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GapTest:
    """What the test found.

    Attributes
    ----------
    regions : tuple of Region
        The worst regions, worst first, at most 10; the first decides.
    n_regions : int
        Regions that could be tested.
    alpha : float
        The p-value at or below which there is a gap.
    """

    regions: tuple[Region, ...]
    n_regions: int
    alpha: float

    @property
    def p_value(self) -> float:
        """Chance of seeing so bad a region without a gap; 1 when nothing could be tested."""
        return self.regions[0].p_value if self.regions else 1.0

    @property
    def has_gap(self) -> bool:
        """Whether the worst region is worse than chance explains."""
        return self.p_value <= self.alpha


def find_missing_positives(
    matrix: FloatArray,
    positive: BoolArray,
    candidates: Sequence[Candidate],
    *,
    seed: int = 0,
    n_draws: int = _N_DRAWS,
) -> GapTest:
    """Look for regions with fewer positives than the rest of the table explains.

    Parameters
    ----------
    matrix : ndarray of shape (n_rows, n_features)
        Analysis matrix in own units; NaN is missing.
    positive : ndarray of bool, shape (n_rows,)
    candidates : sequence of Candidate
        The regions looked at.
    seed : int
        Of the draws.
    n_draws : int
        Tables drawn without a gap.

    Returns
    -------
    GapTest

    Notes
    -----
    Score test for adding a region's indicator to the regression: with weights W = p(1-p), design X
    and penalty L, the residuals after the fit are (I - W X (X'WX + L)^-1 X')(y - p) to first order
    (Cox & Hinkley 1974, section 9.3). Drawn tables are refitted by the same single step.
    """
    alpha = ALPHA if len(positive) >= _SMALL_ROWS else ALPHA_SMALL
    design = _design(matrix)
    beta, fitted = _fit(design, positive)
    weight = fitted * (1.0 - fitted)
    information = (design * weight[:, None]).T @ design + _penalty(design)
    inverse = np.linalg.inv(information)
    tested, cells = _testable(candidates, fitted)
    if not tested:
        return GapTest(regions=(), n_regions=0, alpha=alpha)
    cross = cells.T @ (design * weight[:, None])
    variance = cells.T @ weight - np.einsum("ij,jk,ik->i", cross, inverse, cross)
    deviation = np.sqrt(np.maximum(variance, 0.0) + 0.5)
    expected = np.asarray(cells.T @ fitted)
    observed = np.asarray(cells.T @ positive.astype(float))
    z = (expected - observed) / deviation
    null = _Null(design, _shrunk(design, beta, positive), cells, deviation)
    # The products are small: on busy cores two threads wait for each other longer than they work.
    with threadpool_limits(limits=1):
        worst = null.maxima(seed, n_draws)
    order = np.argsort(-z, kind="stable")[:10]
    found = tuple(
        Region(
            candidate=tested[i],
            n_rows=int(tested[i].members.sum()),
            n_positive=int(observed[i]),
            expected=float(expected[i]),
            deviation=float(deviation[i]),
            z=float(z[i]),
            p_value=float((1 + (worst >= z[i]).sum()) / (1 + n_draws)),
        )
        for i in order
    )
    return GapTest(regions=found, n_regions=len(tested), alpha=alpha)


class _Null:
    """The smooth model without a gap, from which tables are drawn."""

    def __init__(
        self, design: FloatArray, beta: FloatArray, cells: csc_array, deviation: FloatArray
    ) -> None:
        self._design = design
        self._fitted = np.asarray(expit(design @ beta))
        weighted = design * (self._fitted * (1.0 - self._fitted))[:, None]
        self._inverse = np.linalg.inv(weighted.T @ design + _penalty(design))
        self._cross = np.asarray(cells.T @ weighted)
        # Counts of drawn positives, below 2**24, are exact in single precision: half the memory to go through.
        self._cells = cells.T.tocsr().astype(np.float32)
        self._expected = np.asarray(cells.T @ self._fitted)[:, None]
        self._deviation = deviation[:, None]
        self._pull = np.asarray(_penalty(design) @ beta)[:, None]

    def maxima(self, seed: int, n_draws: int) -> FloatArray:
        """Give the worst region's z in each of `n_draws` tables."""
        rng = np.random.default_rng(seed)
        fitted = self._fitted[:, None]
        maxima = []
        for start in range(0, n_draws, _BLOCK_DRAWS):
            n = min(_BLOCK_DRAWS, n_draws - start)
            drawn = rng.random((len(fitted), n)) < fitted
            step = self._inverse @ (self._design.T @ (drawn - fitted) - self._pull)
            lacking = self._cross @ step - (self._cells @ drawn.astype(np.float32) - self._expected)
            maxima.append((lacking / self._deviation).max(axis=0))
        return np.concatenate(maxima)


def _shrunk(design: FloatArray, beta: FloatArray, positive: BoolArray) -> FloatArray:
    """Shrink a fit by what it owes to chance.

    A model fitted to few rows is too sure of itself, and tables drawn from it vary too little.
    The heuristic shrinkage factor is (chi2 - df) / chi2, chi2 being the gain in twice the
    log-likelihood over the constant model (van Houwelingen & Le Cessie 1990, Stat. Med. 9:1303).
    """
    rate = float(positive.mean())
    linear = design @ beta
    log_likelihood = float(np.sum(positive * linear - np.logaddexp(0.0, linear)))
    constant = len(positive) * (rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    gain = 2.0 * (log_likelihood - constant)
    df = design.shape[1] - 1
    factor = max(0.0, (gain - df) / gain) if gain > 0 else 0.0
    shrunk = beta * factor
    slope = design[:, 1:] @ shrunk[1:]
    # The constant is refitted so that as many positives are expected as there are.
    constant_term = np.log(rate / (1 - rate))
    for _ in range(_MAX_NEWTON):
        fitted = expit(constant_term + slope)
        change = (positive.sum() - fitted.sum()) / max(1e-9, float((fitted * (1 - fitted)).sum()))
        constant_term += float(np.clip(change, -5.0, 5.0))
        if abs(change) < 1e-9:
            break
    shrunk[0] = constant_term
    return np.asarray(shrunk)


def _design(matrix: FloatArray) -> FloatArray:
    """Standardise, put missing values at the mean, and add missing-value columns and a constant."""
    missing = np.isnan(matrix)
    counts = np.maximum((~missing).sum(axis=0), 1)
    filled = np.where(missing, 0.0, matrix)
    means = filled.sum(axis=0) / counts
    centred = np.where(missing, 0.0, matrix - means)
    spread = np.sqrt((centred**2).sum(axis=0) / counts)
    scaled = centred / np.where(spread > 0, spread, 1.0)
    patterns = np.unique(missing[:, missing.any(axis=0)].astype(float), axis=1)
    if patterns.shape[1]:
        patterns = (patterns - patterns.mean(axis=0)) / np.maximum(patterns.std(axis=0), 1e-9)
    return np.column_stack([np.ones(len(matrix)), scaled, patterns])


def _penalty(design: FloatArray) -> FloatArray:
    penalty = np.full(design.shape[1], _RIDGE)
    penalty[0] = 1e-6
    return np.diag(penalty)


def _fit(design: FloatArray, positive: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Fit the ridge-penalised logistic regression by Newton's method."""
    rate = float(np.clip(positive.mean(), 1e-6, 1 - 1e-6))
    beta = np.zeros(design.shape[1])
    beta[0] = np.log(rate / (1 - rate))
    penalty = _penalty(design)
    for _ in range(_MAX_NEWTON):
        fitted = expit(design @ beta)
        gradient = design.T @ (positive - fitted) - penalty @ beta
        weight = fitted * (1.0 - fitted)
        step = np.linalg.solve((design * weight[:, None]).T @ design + penalty, gradient)
        # Newton overshoots where the classes separate; a bounded step always gets there.
        step *= min(1.0, 5.0 / max(1e-12, float(np.abs(step).max())))
        beta += step
        if np.abs(step).max() < 1e-8:
            break
    return beta, np.asarray(expit(design @ beta))


def _testable(
    candidates: Sequence[Candidate], fitted: FloatArray
) -> tuple[list[Candidate], csc_array]:
    """Keep regions that should have enough positives, each set of rows once."""
    kept, indices, starts = [], [], [0]
    seen: set[bytes] = set()
    for candidate in candidates:
        inside = np.flatnonzero(candidate.members)
        if fitted[inside].sum() < MIN_EXPECTED or len(inside) == len(fitted):
            continue
        key = inside.tobytes()
        if key in seen:
            continue
        seen.add(key)
        kept.append(candidate)
        indices.append(inside)
        starts.append(starts[-1] + len(inside))
    flat = np.concatenate(indices) if indices else np.empty(0, dtype=np.int64)
    cells = csc_array((np.ones(len(flat)), flat, starts), shape=(len(fitted), len(kept)))
    return kept, cells
