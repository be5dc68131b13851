"""The gap score of a voxel and what a report says of a whole grid.

The score is the published synthedge definition, kept exactly for comparability:
``0.5 * sparsity + 0.3 * label_entropy + 0.2 * positive_rate``.
"""

from dataclasses import dataclass

import numpy as np

from synthedge_core.errors import GridError
from synthedge_core.frame import FloatArray
from synthedge_core.grids import IntArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VoxelStatistics:
    """What a gap report says of a grid; every number is a function of the counts it was given.

    Attributes
    ----------
    density : ndarray of shape (n_voxels,)
        Observed over expected samples; expected is an even spread over all voxels. 0 upwards.
    positive_rate : ndarray of shape (n_voxels,)
        Share of positive samples in the voxel, in [0, 1]; 0 in an empty voxel.
    gap_score, sparsity, label_entropy : ndarray of shape (n_voxels,)
        In [0, 1]; the entropy is in bits.
    grid_positive_rate : float
        Share of positive samples in the whole grid, in [0, 1].
    """

    density: FloatArray
    positive_rate: FloatArray
    gap_score: FloatArray
    sparsity: FloatArray
    label_entropy: FloatArray
    grid_positive_rate: float


def gap_scores(counts: IntArray, positives: IntArray, expected: float) -> FloatArray:
    """Score how badly each voxel lacks samples.

    Parameters
    ----------
    counts : ndarray of shape (n_voxels,)
        Samples per voxel, at least 1: an empty voxel has no centroid to report.
    positives : ndarray of shape (n_voxels,)
        Minority samples per voxel, ``0 <= positives <= counts``.
    expected : float
        Samples per voxel if the data were spread evenly, above 0. Unit: samples.

    Returns
    -------
    ndarray of shape (n_voxels,)
        Dimensionless, in [0, 1]; larger is worse.

    Raises
    ------
    GridError
        If the shapes differ or a count is out of range.

    Notes
    -----
    ``0.5 * sparsity + 0.3 * entropy + 0.2 * positive_rate`` with
    ``sparsity = max(0, 1 - counts / expected)``; entropy in bits (Shannon 1948, eq. 4).
    """
    if counts.shape != positives.shape or counts.ndim != 1:
        raise GridError(
            f"counts of shape {counts.shape} and positives of shape {positives.shape}; "
            "expected one number per voxel in both"
        )
    if np.any(counts < 1) or np.any(positives < 0) or np.any(positives > counts):
        raise GridError("counts must be at least 1 and positives between 0 and the count")
    if not expected > 0:
        raise GridError(f"expected samples per voxel must be above 0, not {expected}")
    rate = positives / counts
    return _score(_sparsity(counts / expected), _entropy(rate), rate)


def voxel_statistics(
    positives: FloatArray | IntArray, negatives: FloatArray | IntArray
) -> VoxelStatistics:
    """Describe a grid by its (protected) counts.

    Parameters
    ----------
    positives, negatives : ndarray of shape (n_voxels,)
        Counts per voxel, at least 0; noisy ones are clipped at 0 beforehand and need not be whole.

    Returns
    -------
    VoxelStatistics
        All zeros if every count is 0: such a grid says nothing, and nothing about it is scored.

    Raises
    ------
    GridError
        If the shapes differ, or a count is negative or not finite.
    """
    if positives.shape != negatives.shape or positives.ndim != 1 or not positives.size:
        raise GridError(
            f"positives of shape {positives.shape} and negatives of shape {negatives.shape}; "
            "expected one number per voxel in both"
        )
    counts = np.asarray(positives + negatives, dtype=np.float64)
    if not np.all(np.isfinite(counts)) or np.any(positives < 0) or np.any(negatives < 0):
        raise GridError("protected counts must be finite and at least 0; clip the noise first")
    total = float(counts.sum())
    if total <= 0:
        zeros = np.zeros(counts.shape)
        return VoxelStatistics(
            density=zeros,
            positive_rate=zeros,
            gap_score=zeros,
            sparsity=zeros,
            label_entropy=zeros,
            grid_positive_rate=0.0,
        )
    density = counts / (total / counts.size)
    rate = np.divide(positives, counts, out=np.zeros(counts.shape), where=counts > 0)
    sparsity, entropy = _sparsity(density), _entropy(rate)
    return VoxelStatistics(
        density=density,
        positive_rate=rate,
        gap_score=_score(sparsity, entropy, rate),
        sparsity=sparsity,
        label_entropy=entropy,
        grid_positive_rate=float(positives.sum() / total),
    )


def _sparsity(density: FloatArray) -> FloatArray:
    return np.maximum(0.0, 1.0 - density)


def _entropy(rate: FloatArray) -> FloatArray:
    """Entropy in bits of a positive rate; 0 at 0 and 1, where the limit of x log x is 0."""
    inside = (rate > 0) & (rate < 1)
    p = np.where(inside, rate, 0.5)
    return np.where(inside, -(p * np.log2(p) + (1 - p) * np.log2(1 - p)), 0.0)


def _score(sparsity: FloatArray, entropy: FloatArray, rate: FloatArray) -> FloatArray:
    return 0.5 * sparsity + 0.3 * entropy + 0.2 * rate
