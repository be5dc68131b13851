"""Protected counts: what a site's true voxel counts become before anything is computed from them.

Rules
-----
* Everything in a gap report is a function of the counts returned here, of nothing else.
* ``dp``: one patient adds one to one voxel of each grid (positive or negative), so adding or removing a
  patient changes the vector of all counts by at most ``n_grids`` in L1. Discrete Laplace noise of scale
  ``n_grids / epsilon`` on every voxel, empty ones too, gives epsilon-differential privacy
  (Ghosh, Roughgarden and Sundararajan 2009); OpenDP draws it from its secure generator. Replacing one patient
  by another changes up to twice as much and is protected by twice epsilon.
* ``threshold``: see `thresholds`. It is not differentially private.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthedge_core.errors import DisclosureRefusedError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Figures:
    """What the figures of one grid rest on: true counts of the release that set them. They never leave.

    Attributes
    ----------
    positives, negatives : ndarray of shape (n_voxels,)
    suppressed : ndarray of bool, shape (n_voxels,)
    """

    positives: IntArray
    negatives: IntArray
    suppressed: BoolArray


@dataclass(frozen=True)
class ProtectedCounts:
    """Counts of one grid that may be looked at from outside.

    Attributes
    ----------
    positives, negatives : ndarray of shape (n_voxels,)
        Protected counts, non-negative; 0 where suppressed.
    suppressed : ndarray of bool, shape (n_voxels,)
        True where nothing may be said.
    reasons : tuple of n_voxels str
        Why a voxel is told as it is; for the site's own eyes.
    """

    positives: FloatArray
    negatives: FloatArray
    suppressed: NDArray[np.bool_]
    reasons: tuple[str, ...]


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


def guarantees(n_grids: int, epsilon: float) -> dict[str, float]:
    """What OpenDP's own map says a release is worth, per kind of neighbouring tables.

    Returns
    -------
    dict
        ``add_or_remove``: epsilon when one patient more or fewer is in the table; ``replace``: when one
        patient is exchanged for another, or has another label.

    Raises
    ------
    DisclosureRefusedError
        If epsilon is unusable or there is no grid.
    """
    measurement = _laplace(dp_scale(n_grids, epsilon))
    return {
        "add_or_remove": float(measurement.map(n_grids)),
        "replace": float(measurement.map(2 * n_grids)),
    }


def _laplace(scale: float) -> Any:
    # Not its prelude, which imports scikit-learn and SciPy's statistics: half of what a preview takes.
    from opendp.domains import atom_domain, vector_domain
    from opendp.measurements import make_laplace
    from opendp.metrics import l1_distance
    from opendp.mod import enable_features

    enable_features("contrib")
    return make_laplace(vector_domain(atom_domain(T="i64")), l1_distance(T="i64"), scale=scale)


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
    scale = dp_scale(len(positives), epsilon)
    measurement = _laplace(scale)
    # OpenDP accounts for the rounding of the scale itself: allow that last digit and nothing more.
    if measurement.map(len(positives)) > epsilon * (1 + 1e-9):
        raise DisclosureRefusedError(
            f"the noise of scale {scale} does not bound epsilon at {epsilon}; nothing was released"
        )
    sizes = [len(counts) for counts in positives]
    flat = np.concatenate([*positives, *negatives]).astype(np.int64)
    noisy = np.maximum(np.asarray(measurement([int(n) for n in flat]), dtype=np.float64), 0.0)
    reason = f"noise of scale {scale:g} on each count"
    parts = np.split(noisy, np.cumsum([*sizes, *sizes])[:-1])
    return [
        ProtectedCounts(p, n, np.zeros(len(p), dtype=np.bool_), (reason,) * len(p))
        for p, n in zip(parts[: len(sizes)], parts[len(sizes) :], strict=True)
    ]
