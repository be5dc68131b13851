"""Protected counts: what a site's true voxel counts become before anything is computed from them.

Rules
-----
* Everything in a gap report is a function of the counts returned here, of nothing else.
* ``dp``: one patient adds one to one voxel of each grid (positive or negative), so adding or removing a
  patient changes the vector of all counts by at most ``n_grids`` in L1. Discrete Laplace noise of scale
  ``n_grids / epsilon`` on every voxel, empty ones too, gives epsilon-differential privacy
  (Ghosh, Roughgarden and Sundararajan 2009); OpenDP draws it from its secure generator.
* ``threshold``: counts rounded to multiples of 5; voxels with too few patients suppressed; a class with
  fewer than k patients is told only as the band 0..k-1. It is not differentially private.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthedge_core.errors import DisclosureRefusedError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

ROUNDING = 5


@dataclass(frozen=True)
class ProtectedCounts:
    """Counts of one grid that may be looked at from outside.

    Attributes
    ----------
    positives, negatives : ndarray of shape (n_voxels,)
        Protected counts, non-negative; 0 where suppressed.
    suppressed : ndarray of bool, shape (n_voxels,)
        True where nothing may be said.
    """

    positives: FloatArray
    negatives: FloatArray
    suppressed: NDArray[np.bool_]


def dp_scale(n_grids: int, epsilon: float) -> float:
    """Scale of the noise in patients: the L1 sensitivity over epsilon.

    Raises
    ------
    DisclosureRefusedError
        If epsilon is not a positive finite number or there is no grid.
    """
    if not (np.isfinite(epsilon) and epsilon > 0):
        raise DisclosureRefusedError(
            f"epsilon is {epsilon}, expected a positive number; set it in the dictionary's [policy]"
        )
    if n_grids < 1:
        raise DisclosureRefusedError("no grid to report on; add [[grids]] to the dictionary")
    return n_grids / epsilon


def protect_dp(
    positives: Sequence[IntArray], negatives: Sequence[IntArray], epsilon: float
) -> list[ProtectedCounts]:
    """Add discrete Laplace noise to every count of every grid, then clip at zero.

    Parameters
    ----------
    positives, negatives : sequence of n_grids arrays of shape (n_voxels,)
        True counts, one row counted per patient.
    epsilon : float
        Privacy loss of the whole release under add/remove-one-patient neighbours.

    Raises
    ------
    DisclosureRefusedError
        If epsilon is unusable, or OpenDP's own map does not confirm it.
    """
    import opendp.prelude as dp

    scale = dp_scale(len(positives), epsilon)
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64")
    measurement = dp.m.make_laplace(*space, scale=scale)
    # OpenDP accounts for the rounding of the scale itself: allow that last digit and nothing more.
    if measurement.map(len(positives)) > epsilon * (1 + 1e-9):  # type: ignore[no-untyped-call]
        raise DisclosureRefusedError(
            f"the noise of scale {scale} does not bound epsilon at {epsilon}; nothing was released"
        )
    sizes = [len(counts) for counts in positives]
    flat = np.concatenate([*positives, *negatives]).astype(np.int64)
    noisy = np.maximum(np.asarray(measurement([int(n) for n in flat]), dtype=np.float64), 0.0)
    parts = np.split(noisy, np.cumsum([*sizes, *sizes])[:-1])
    return [
        ProtectedCounts(p, n, np.zeros(len(p), dtype=np.bool_))
        for p, n in zip(parts[: len(sizes)], parts[len(sizes) :], strict=True)
    ]


def protect_threshold(
    positives: Sequence[IntArray], negatives: Sequence[IntArray], min_count: int
) -> list[ProtectedCounts]:
    """Round, suppress small voxels and tell small classes only as a band.

    Parameters
    ----------
    positives, negatives : sequence of n_grids arrays of shape (n_voxels,)
        True counts, one row counted per patient.
    min_count : int
        k, at least 2: a voxel with 1..k-1 patients is suppressed; a class with 0..k-1 patients in a published
        voxel is published as the middle of that band, so a homogeneous voxel looks like a nearly homogeneous one.

    Raises
    ------
    DisclosureRefusedError
        If k is below 2.

    Notes
    -----
    When one voxel of a grid is suppressed alone, the next smallest is suppressed too: else the grid's total,
    which its other grids tell within rounding, would give it away (complementary suppression).
    """
    if min_count < 2:
        raise DisclosureRefusedError(
            f"min_count is {min_count}, expected at least 2; set it in the dictionary's [policy]"
        )
    return [
        _threshold_one(p.astype(np.int64), n.astype(np.int64), min_count)
        for p, n in zip(positives, negatives, strict=True)
    ]


def _threshold_one(positives: IntArray, negatives: IntArray, k: int) -> ProtectedCounts:
    total = positives + negatives
    suppressed = (total > 0) & (total < k)
    if suppressed.sum() == 1 and (~suppressed & (total > 0)).any():
        candidates = np.where(suppressed | (total == 0), np.iinfo(np.int64).max, total)
        suppressed[int(candidates.argmin())] = True

    def rounded(counts: IntArray) -> FloatArray:
        to_five = ROUNDING * np.round(counts / ROUNDING)
        banded = np.where(counts < k, (k - 1) / 2, to_five)
        return np.where(suppressed | (total == 0), 0.0, banded).astype(np.float64)

    return ProtectedCounts(rounded(positives), rounded(negatives), suppressed)
