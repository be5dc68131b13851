"""The local voxel scan: where a table's own space holds too few samples.

The table is standardised, projected on its first three principal components, and cut into
``n_bins ** 3`` voxels of equal width. Voxels, order and scores are those of the published
synthedge 0.2.0 on complete numeric data; missing values count as missing and take no part in
means, scales and axes (in a projection they sit at the column's mean).

Everything is a pass over blocks of rows, so that a table in memory and one that is read from disk
by row groups take the same code.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from synthedge_core.errors import GridError
from synthedge_core.gap_score import gap_scores

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
# One block: values of shape (n_features, n_block_rows), own units, NaN missing; positive labels.
Block = tuple[FloatArray, BoolArray]

N_AXES = 3
MAX_BINS = 32
# Rows per block: 8,192 rows of 20 float64 values stay in a core's level-2 cache (measured best of
# 2,048 to 65,536).
BLOCK_ROWS = 8_192
# The published package widens the outermost edges by this much, so that no row lies on them.
_EDGE_MARGIN = 0.01
# A column whose spread is below this share of its mean is constant up to rounding.
_CONSTANT = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Voxel:
    """One scored voxel.

    Attributes
    ----------
    index : tuple of three ints
        Bin along each principal component, from 0.
    flat : int
        ``(i * n_bins + j) * n_bins + k``.
    n_observed, n_positive : int
        Samples and positive samples in it, each at least 1.
    expected : float
        Samples per voxel under an even spread.
    sparsity, entropy, gap_score : float
        In [0, 1]; the score is rounded to 4 places as in the published package.
    centroid : ndarray of shape (n_features,)
        Mean of its samples in the standardised frame of this table. Never leaves a site.
    centroid_pca : ndarray of shape (3,)
        The same on the principal components.
    """

    index: tuple[int, int, int]
    flat: int
    n_observed: int
    n_positive: int
    expected: float
    sparsity: float
    entropy: float
    gap_score: float
    centroid: FloatArray
    centroid_pca: FloatArray

    @property
    def label(self) -> str:
        """The voxel's index as the published package writes it: ``(i,j,k)``."""
        return "({},{},{})".format(*self.index)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """The result of a scan: the frame it found, the grid, and what lies in it.

    Attributes
    ----------
    n_rows, n_bins, top_k : int
        Rows scanned, voxels per axis, voxels in `top`.
    means, scales : ndarray of shape (n_features,)
        The table's own standardisation; the scale of a constant column is 1.
    axes : ndarray of shape (3, n_features)
        Principal components in the standardised frame; rows of zeros where there are fewer.
    explained : ndarray of shape (3,)
        Share of the standardised variance on each axis.
    edges : ndarray of shape (3, n_bins + 1)
        Voxel edges along each axis.
    counts, positives : ndarray of shape (n_bins ** 3,)
        Samples and positive samples in every voxel, empty ones too.
    sums : ndarray of shape (n_bins ** 3, n_features)
        Sums of the standardised samples per voxel.
    codes : ndarray of shape (n_rows,) or None
        The flat voxel of every row; None for a table that was not held in memory.
    """

    n_rows: int
    n_bins: int
    top_k: int
    means: FloatArray
    scales: FloatArray
    axes: FloatArray
    explained: FloatArray
    edges: FloatArray
    counts: IntArray
    positives: IntArray
    sums: FloatArray
    codes: IntArray | None = field(repr=False)

    @property
    def expected(self) -> float:
        """Samples per voxel if they were spread evenly."""
        return float(self.n_rows / self.n_bins**3)

    @cached_property
    def voxels(self) -> tuple[Voxel, ...]:
        """Every voxel with a positive sample, worst gap first (ties in grid order)."""
        flat = np.flatnonzero(self.positives > 0)
        counts, positives = self.counts[flat], self.positives[flat]
        scores = [round(s, 4) for s in gap_scores(counts, positives, self.expected).tolist()]
        sparsity = np.maximum(0.0, 1.0 - counts / self.expected)
        rate = positives / counts
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = -(rate * np.log2(rate) + (1 - rate) * np.log2(1 - rate))
        entropy = np.where(rate < 1, bits, 0.0)
        centroids = self.sums[flat] / counts[:, None]
        projected = centroids @ self.axes.T
        order = sorted(range(len(flat)), key=lambda i: -scores[i])
        return tuple(
            Voxel(
                index=self.index_of(int(flat[i])),
                flat=int(flat[i]),
                n_observed=int(counts[i]),
                n_positive=int(positives[i]),
                expected=self.expected,
                sparsity=float(sparsity[i]),
                entropy=float(entropy[i]),
                gap_score=scores[i],
                centroid=centroids[i],
                centroid_pca=projected[i],
            )
            for i in order
        )

    @property
    def top(self) -> tuple[Voxel, ...]:
        """The `top_k` worst gaps."""
        return self.voxels[: self.top_k]

    def index_of(self, flat: int) -> tuple[int, int, int]:
        """Give the bins (i, j, k) of a flat voxel number."""
        rest, k = divmod(flat, self.n_bins)
        i, j = divmod(rest, self.n_bins)
        return i, j, k

    def standardise(self, matrix: FloatArray) -> FloatArray:
        """Bring rows of shape (n, n_features) in own units into this frame; missing values to 0."""
        z = (matrix - self.means) / self.scales
        return np.where(np.isnan(z), 0.0, z)

    def project(self, matrix: FloatArray) -> FloatArray:
        """Give the principal components, shape (n, 3), of rows in own units."""
        # The very products of the scan itself: a row on an edge must fall on the same side.
        weights = self.axes / self.scales
        return _project(matrix.T, weights, weights @ self.means, self.means).T

    def assign(self, matrix: FloatArray) -> IntArray:
        """Give the flat voxel of rows in own units; -1 outside the grid."""
        projected = self.project(matrix).T
        inside = (projected >= self.edges[:, :1]) & (projected < self.edges[:, -1:])
        return np.where(inside.all(axis=0), _codes(projected, self.edges), -1)

    def neighbours(self, flat: int) -> IntArray:
        """Give the voxel itself and those that share a face with it."""
        index = self.index_of(flat)
        found = [flat]
        for axis in range(N_AXES):
            step = self.n_bins ** (N_AXES - 1 - axis)
            if index[axis] > 0:
                found.append(flat - step)
            if index[axis] < self.n_bins - 1:
                found.append(flat + step)
        return np.array(found, dtype=np.int64)


def adaptive_bins(n_rows: int) -> int:
    """Choose voxels per axis, 3 to 6, so that an even spread gives each at least 5 rows.

    As in the published package: 1,080 rows for 6, 625 for 5, 320 for 4, else 3.
    """
    return next((b for b in (6, 5, 4) if n_rows / b**3 >= 5), 3)


def scan(
    matrix: FloatArray, positive: BoolArray, *, n_bins: int | None = None, top_k: int = 10
) -> Scan:
    """Scan a table in memory.

    Parameters
    ----------
    matrix : ndarray of shape (n_rows, n_features)
        Own units (or standardised: that changes nothing); NaN is missing.
    positive : ndarray of bool, shape (n_rows,)
        Which rows carry the positive label.
    n_bins : int, optional
        Voxels per axis, 2 to 32; default `adaptive_bins`.
    top_k : int
        Voxels in `Scan.top`, at least 1.

    Returns
    -------
    Scan

    Raises
    ------
    GridError
        If the shapes do not fit, there is no row or feature, a value is infinite, or a setting is
        out of range.
    """
    if matrix.ndim != 2 or positive.shape != (len(matrix),):
        raise GridError(
            f"a matrix of shape {matrix.shape} and labels of shape {positive.shape}; "
            "expected one label per row"
        )
    positive = np.ascontiguousarray(positive, dtype=bool)

    def blocks() -> Iterator[Block]:
        for start in range(0, len(matrix), BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            yield matrix[start:stop].T, positive[start:stop]

    return _run(blocks, n_bins, top_k, keep=True)


def scan_blocks(
    blocks: Callable[[], Iterable[Block]], *, n_bins: int | None = None, top_k: int = 10
) -> Scan:
    """Scan a table that does not fit into memory, in three passes.

    Parameters
    ----------
    blocks : callable
        Starts a pass: gives pairs of values of shape (n_features, n_block_rows), own units, NaN
        missing, and labels of shape (n_block_rows,). The same rows in every pass.
    n_bins, top_k
        As for `scan`.

    Returns
    -------
    Scan
        Without `codes`.

    Raises
    ------
    GridError
        As for `scan`.
    """
    # The products of a block are small; the second core is better used for decoding the next one.
    with threadpool_limits(limits=1):
        return _run(blocks, n_bins, top_k, keep=False)


def _run(
    blocks: Callable[[], Iterable[Block]], n_bins: int | None, top_k: int, *, keep: bool
) -> Scan:
    if n_bins is not None and not 2 <= n_bins <= MAX_BINS:
        raise GridError(f"n_bins is {n_bins}; expected 2 to {MAX_BINS} voxels per axis")
    if top_k < 1:
        raise GridError(f"top_k is {top_k}; expected at least 1")
    moments = _Moments()
    for values, _ in blocks():
        moments.add(values)
    means, scales, correlation = moments.finish()
    axes, explained = _principal_axes(correlation, moments.n_rows)
    n_bins = adaptive_bins(moments.n_rows) if n_bins is None else n_bins
    # Standardising and projecting in one product: axes . (x - means) / scales.
    weights = axes / scales
    offset = weights @ means
    projections: list[FloatArray] = []
    low, high = np.full(N_AXES, np.inf), np.full(N_AXES, -np.inf)
    for values, _ in blocks():
        projected = _project(values, weights, offset, means)
        np.minimum(low, projected.min(axis=1), out=low)
        np.maximum(high, projected.max(axis=1), out=high)
        if keep:
            projections.append(projected)
    edges = np.array(
        [
            np.linspace(a - _EDGE_MARGIN, b + _EDGE_MARGIN, n_bins + 1)
            for a, b in zip(low, high, strict=True)
        ]
    )
    tally = _Tally(n_bins**N_AXES, len(means))
    codes: list[IntArray] = []
    for i_block, (values, positive) in enumerate(blocks()):
        projected = projections[i_block] if keep else _project(values, weights, offset, means)
        block_codes = _codes(projected, edges)
        tally.add(block_codes, values, positive, means)
        if keep:
            codes.append(block_codes)
    return Scan(
        n_rows=moments.n_rows,
        n_bins=n_bins,
        top_k=top_k,
        means=means,
        scales=scales,
        axes=axes,
        explained=explained,
        edges=edges,
        counts=tally.counts,
        positives=tally.positives,
        sums=(tally.sums - tally.counts[:, None] * means) / scales,
        codes=np.concatenate(codes) if keep else None,
    )


class _Moments:
    """Means, scales and correlations of the columns, in one pass.

    Sums are taken about a shift near the mean (the first block's), since the textbook formula loses
    every digit when the mean is large against the spread. Missing values leave every sum they would
    be part of; products of two columns then need their own counts, which complete blocks do not.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._shift: FloatArray | None = None

    def add(self, values: FloatArray) -> None:
        n_features, n_block = values.shape
        if n_block == 0:
            return
        shift = self._start(values) if self._shift is None else self._shift
        if n_features != len(shift):
            raise GridError(f"a block of {n_features} features after one of {len(shift)}")
        shifted = values - shift[:, None]
        sums = shifted.sum(axis=1)
        self.n_rows += n_block
        if np.isfinite(sums).all():
            self._sums += sums
            self._products += shifted @ shifted.T
            self._n_complete += n_block
            self._complete_sums += sums
            return
        if np.isinf(values).any():
            raise GridError("the table holds infinite values; treat them as missing")
        present = (~np.isnan(values)).astype(float)
        shifted = np.where(np.isnan(shifted), 0.0, shifted)
        self._sums += shifted.sum(axis=1)
        self._products += shifted @ shifted.T
        self._pair_counts += present @ present.T
        self._pair_sums += shifted @ present.T
        self._counts += present.sum(axis=1)

    def _start(self, values: FloatArray) -> FloatArray:
        n_features = len(values)
        if n_features == 0:
            raise GridError("the table has no feature that can be scanned")
        present = ~np.isnan(values)
        total = np.where(present, values, 0.0).sum(axis=1)
        shift: FloatArray = total / np.maximum(present.sum(axis=1), 1)
        self._shift = shift
        if not np.isfinite(shift).all():
            raise GridError("the table holds infinite values; treat them as missing")
        self._sums = np.zeros(n_features)
        self._products = np.zeros((n_features, n_features))
        self._n_complete = 0
        self._complete_sums = np.zeros(n_features)
        self._counts = np.zeros(n_features)
        self._pair_counts = np.zeros((n_features, n_features))
        self._pair_sums = np.zeros((n_features, n_features))
        return shift

    def finish(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Give means, scales and the correlation matrix with missing values at the mean."""
        if self._shift is None:
            raise GridError("the table has no row")
        counts = np.maximum(self._counts + self._n_complete, 1.0)
        delta = self._sums / counts
        means = self._shift + delta
        # Sum over rows with both present of (a_i - d_i)(a_j - d_j), expanded.
        pair_counts = self._pair_counts + self._n_complete
        pair_sums = self._pair_sums + self._complete_sums[:, None]
        scatter = (
            self._products
            - pair_sums * delta[None, :]
            - (pair_sums * delta[None, :]).T
            + pair_counts * np.outer(delta, delta)
        )
        spread = np.sqrt(np.maximum(np.diag(scatter), 0.0) / counts)
        is_constant = spread <= _CONSTANT * np.maximum(np.abs(means), 1e-300)
        scales = np.where(is_constant, 1.0, spread)
        correlation = scatter / np.outer(scales, scales) / self.n_rows
        correlation[is_constant] = 0.0
        correlation[:, is_constant] = 0.0
        return means, scales, correlation


def _principal_axes(correlation: FloatArray, n_rows: int) -> tuple[FloatArray, FloatArray]:
    values, vectors = np.linalg.eigh(correlation)
    n_axes = min(N_AXES, len(values), n_rows)
    axes = np.zeros((N_AXES, len(values)))
    axes[:n_axes] = vectors[:, ::-1].T[:n_axes]
    # An axis' sign is free; scikit-learn, hence the published package, makes the largest loading
    # positive.
    largest = np.abs(axes).argmax(axis=1)
    signs = np.sign(axes[np.arange(N_AXES), largest])
    axes *= np.where(signs == 0, 1.0, signs)[:, None]
    explained = np.zeros(N_AXES)
    total = float(values.sum())
    if total > 0:
        explained[:n_axes] = np.maximum(values[::-1][:n_axes], 0.0) / total
    return axes, explained


def _project(
    values: FloatArray, weights: FloatArray, offset: FloatArray, means: FloatArray
) -> FloatArray:
    projected = weights @ values
    projected -= offset[:, None]
    if np.isnan(projected).any():
        # A missing value sits at its column's mean, where it moves the row along no axis.
        projected = weights @ np.where(np.isnan(values), means[:, None], values) - offset[:, None]
    return np.asarray(projected)


def _codes(projected: FloatArray, edges: FloatArray) -> IntArray:
    """Give the flat voxel of every column of `projected`, shape (3, n); edges must enclose it.

    Counting the inner edges at or below a value is its bin, several times faster than a search.
    """
    n_bins = edges.shape[1] - 1
    codes = np.zeros(projected.shape[1], dtype=np.int64)
    for axis in range(N_AXES):
        bins = np.zeros(projected.shape[1], dtype=np.int8)
        for edge in edges[axis, 1:-1]:
            bins += projected[axis] >= edge
        codes *= n_bins
        codes += bins
    return codes


class _Tally:
    """Counts, positive counts and sums of values per voxel."""

    def __init__(self, n_voxels: int, n_features: int) -> None:
        self.counts = np.zeros(n_voxels, dtype=np.int64)
        self.positives = np.zeros(n_voxels, dtype=np.int64)
        self.sums = np.zeros((n_voxels, n_features))

    def add(
        self, codes: IntArray, values: FloatArray, positive: BoolArray, means: FloatArray
    ) -> None:
        n_voxels = len(self.counts)
        self.counts += np.bincount(codes, minlength=n_voxels)
        self.positives += np.bincount(codes[positive], minlength=n_voxels)
        n = len(codes)
        one_hot = csr_array((np.ones(n), codes, np.arange(n + 1)), shape=(n, n_voxels))
        sums = one_hot.T @ np.ascontiguousarray(values.T)
        if np.isnan(sums).any():
            sums = one_hot.T @ np.where(np.isnan(values), means[:, None], values).T
        self.sums += sums
