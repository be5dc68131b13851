"""The most similar points of one frame: masked cosine over blocks, exact, up to a million points.

A point here is a reported voxel's centroid. Points carry a `need`, so that a search can be told "similar, but
less in need than I am": the one comparison that all matching strategies share.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from synthedge_core.errors import FrameMismatchError
from synthedge_core.frame import BoolArray, FloatArray
from synthedge_core.grids import IntArray

Float32Array = npt.NDArray[np.float32]

# One block of similarities stays in the second-level cache of a core; larger and smaller ones are slower.
_QUERIES: Final = 256
_CANDIDATES: Final = 4096
# A few queries against many candidates: wide blocks, so that each candidate is read once and little else is done.
_MAX_WIDTH: Final = 65_536
# Twice the largest rounding of a float32 cosine over some hundred coordinates.
ROUNDING: Final = np.float32(4e-6)

# Raise the thresholds once there are so many new candidates per query.
_HITS_A_QUERY: Final = 8
# Rows of a block, candidates, similarities.
_Hits = tuple[IntArray, IntArray, Float32Array]

# (positions of queries, positions of candidates) to which of the pairs may match.
PairFilter = Callable[[IntArray, IntArray], BoolArray]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points:
    """Centroids of one frame, each with its owner and how much it is in need.

    Attributes
    ----------
    vectors : ndarray of float32, shape (n, n_columns)
        0 where hidden by the point's mask.
    masks : ndarray of bool, shape (n_masks, n_columns)
        Patterns of columns that owners have.
    mask_of : ndarray of int, shape (n,)
        Row of `masks` for each point.
    need : ndarray of float, shape (n,)
        Whatever the strategy compares; lower is richer. Any unit.
    owner : ndarray of int, shape (n,)
        Whose point it is; nobody is matched with himself.
    """

    vectors: Float32Array
    masks: BoolArray
    mask_of: IntArray
    need: FloatArray
    owner: IntArray

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, positions: IntArray) -> "Points":
        """Return some of the points, in another order."""
        return Points(
            vectors=self.vectors[positions],
            masks=self.masks,
            mask_of=self.mask_of[positions],
            need=self.need[positions],
            owner=self.owner[positions],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Nearest:
    """The best candidates of every query, the most similar first.

    Attributes
    ----------
    position : ndarray of int, shape (n_queries, n_best)
        Into the candidates; -1 where there are fewer.
    similarity : ndarray of float32, shape (n_queries, n_best)
        Cosine; minus infinity where there are fewer.
    """

    position: IntArray
    similarity: Float32Array


def masked_cosine(
    centroids_a: FloatArray, mask_a: BoolArray, centroids_b: FloatArray, mask_b: BoolArray
) -> FloatArray:
    """Cosine similarity of all pairs over the features both sides have, in double precision.

    Parameters
    ----------
    centroids_a, centroids_b : ndarray of shape (n_a, n_features) and (n_b, n_features)
        In one frame; entries outside the masks are ignored, NaN included.
    mask_a, mask_b : ndarray of bool of shape (n_features,), or one row per centroid

    Returns
    -------
    ndarray of shape (n_a, n_b)
        In [-1, 1]; 0 where nothing is shared, or a shared part is the origin.

    Raises
    ------
    FrameMismatchError
        If the numbers of features differ.

    Notes
    -----
    ``<a, b> / (|a restricted to b's features| |b restricted to a's|)``: with entries outside the
    masks set to 0, numerator and both norms are matrix products, so that no loop over pairs of
    sites is needed.
    """
    masks_a, masks_b = np.atleast_2d(mask_a), np.atleast_2d(mask_b)
    _check_one_frame(centroids_a, centroids_b, masks_a, masks_b)
    a = np.where(masks_a, centroids_a, 0.0)
    b = np.where(masks_b, centroids_b, 0.0)
    squared_norms = ((a * a) @ masks_b.T.astype(np.float64)) * (
        masks_a.astype(np.float64) @ (b * b).T
    )
    dots = a @ b.T
    norms = np.sqrt(squared_norms)
    cosine = np.divide(dots, norms, out=np.zeros(dots.shape), where=norms > 0)
    clipped: FloatArray = np.clip(cosine, -1.0, 1.0)
    return clipped


def nearest_in_less_need(
    queries: Points,
    candidates: Points,
    *,
    least: FloatArray | float,
    n_best: int,
    may_match: PairFilter | None = None,
) -> Nearest:
    """Find each query's most similar candidates of other owners that are less in need than it.

    Parameters
    ----------
    queries : Points
    candidates : Points
        In order of rising need: among equally similar ones the earlier, richer one is kept.
    least : float or ndarray of shape (n_queries,)
        Least cosine, above 0.
    n_best : int
        How many to keep per query, at least 1.
    may_match : callable, optional
        Decides on pairs that are similar enough; called with arrays of positions, from several threads.

    Returns
    -------
    Nearest
        Similarities within `ROUNDING` of each other count as equal.

    Raises
    ------
    FrameMismatchError
        If queries and candidates have different numbers of columns.
    ValueError
        If the candidates are not in order of rising need.

    Notes
    -----
    Blocks of the similarity matrix are made by matrix products and compared with each query's running
    threshold, the similarity of the worst candidate it would still keep; only what exceeds it is looked at
    one by one. Masked: numerator and norms per (point, pattern of columns) are products, too. A query stops
    at the need that equals its own, and a block of queries when no similarity could be better.
    """
    _check_one_frame(queries.vectors, candidates.vectors, queries.masks, candidates.masks)
    if np.any(np.diff(candidates.need) < 0):
        raise ValueError("candidates must be in order of rising need")
    search = _Search(queries, candidates, np.broadcast_to(least, len(queries)), n_best, may_match)
    tasks = search.tasks()
    # NumPy selects on one core; two blocks at once keep all cores busy, each with its own product.
    with _one_thread_a_product(), ThreadPoolExecutor(_n_cores()) as pool:
        found = list(pool.map(search.block, *zip(*tasks, strict=True))) if tasks else []
    return search.merge(tasks, found)


def best_of_both(
    position: IntArray,
    similarity: Float32Array,
    more_position: IntArray,
    more_similarity: Float32Array,
) -> Nearest:
    """Join what two searches of the same queries found among the same candidates.

    Parameters
    ----------
    position, similarity : ndarray of shape (n_queries, n_best)
        As in `Nearest`.
    more_position, more_similarity : ndarray of shape (n_queries, n_more)
        Other candidates than the first.

    Returns
    -------
    Nearest
        Of shape (n_queries, n_best).
    """
    n_rows, n_best = position.shape
    best = _Best(n_rows, n_best, np.zeros(n_rows))
    both = np.concatenate([position, more_position], axis=1)
    row, slot = np.nonzero(both >= 0)
    similarities = np.concatenate([similarity, more_similarity], axis=1)
    best.add(row, both[row, slot], similarities[row, slot])
    return Nearest(position=best.position, similarity=best.similarity)


class _Search:
    """One search: what all of its blocks share."""

    def __init__(
        self,
        queries: Points,
        candidates: Points,
        least: FloatArray,
        n_best: int,
        may_match: PairFilter | None,
    ) -> None:
        # Queries of one pattern side by side: each block then has few patterns to take norms for.
        self.order = np.argsort(queries.mask_of, kind="stable")
        self.queries, self.candidates = queries.take(self.order), candidates
        self.least, self.n_best, self.may_match = least[self.order], n_best, may_match
        self.n_eligible = np.searchsorted(candidates.need, self.queries.need, side="left")
        # Points of one pattern: their own lengths are all the norms there are.
        self.is_plain = len(queries.masks) == 1 and np.array_equal(queries.masks, candidates.masks)
        if self.is_plain:
            self.unit_queries = _to_unit_length(queries.vectors)
            self.unit_candidates = _to_unit_length(candidates.vectors)

    def tasks(self) -> list[tuple[int, int, int]]:
        """(first query, first and last candidate) of every piece of work, candidates in order."""
        n_cores, starts = _n_cores(), range(0, len(self.queries), _QUERIES)
        # A single block of queries would leave the other cores idle: share its candidates among them.
        n_parts = -(-n_cores // len(starts)) if 0 < len(starts) < n_cores else 1
        edges = np.linspace(0, len(self.candidates), n_parts + 1).astype(int)
        return [
            (start, int(edges[i]), int(edges[i + 1])) for start in starts for i in range(n_parts)
        ]

    def block(self, start: int, first: int, last: int) -> tuple[IntArray, Float32Array]:
        """Search some queries in a range of candidates."""
        rows = slice(start, min(start + _QUERIES, len(self.queries)))
        n_rows = rows.stop - rows.start
        best = _Best(n_rows, self.n_best, self.least[rows])
        stop = min(last, int(self.n_eligible[rows].max()))
        width = min(_MAX_WIDTH, _CANDIDATES * max(1, _QUERIES // n_rows))
        # One allocation for all blocks: fresh memory for each costs more than the product.
        space = np.empty(n_rows * width, dtype=np.float32)
        similar_enough = np.empty(n_rows * width, dtype=np.bool_)
        norms = None if self.is_plain else self._norms(rows)
        hits: list[_Hits] = []
        n_hits = 0
        for left in range(first, stop, width):
            columns = slice(left, min(left + width, stop))
            n_columns = columns.stop - columns.start
            cosine = space[: n_rows * n_columns].reshape(n_rows, n_columns)
            self._cosine(rows, columns, norms, cosine)
            hit = similar_enough[: n_rows * n_columns]
            np.greater(cosine, best.threshold, out=hit.reshape(cosine.shape))
            flat = _where(hit)
            if not len(flat):
                continue
            row, column = np.divmod(flat, n_columns)
            hits.append((row, column + left, cosine.reshape(-1)[flat]))
            n_hits += len(flat)
            # A handful per block is not worth the work of raising the thresholds.
            if n_hits > _HITS_A_QUERY * n_rows:
                self._keep(best, rows.start, hits)
                hits, n_hits = [], 0
                if best.is_full_of_equals:
                    break
        if hits:
            self._keep(best, rows.start, hits)
        return best.position, best.similarity

    def _keep(self, best: "_Best", start: int, hits: list[_Hits]) -> None:
        row, i_candidate, similarity = (np.concatenate(part) for part in zip(*hits, strict=True))
        i_query = row + start
        allowed = (i_candidate < self.n_eligible[i_query]) & (
            self.queries.owner[i_query] != self.candidates.owner[i_candidate]
        )
        if self.may_match is not None:
            allowed &= self.may_match(self.order[i_query], i_candidate)
        best.add(row[allowed], i_candidate[allowed], similarity[allowed])

    def _norms(self, rows: slice) -> Float32Array:
        """1 / |query restricted to the columns of a pattern|, shape (n_rows, n_masks)."""
        queries = self.queries.vectors[rows]
        return _inverse_root((queries * queries) @ self.candidates.masks.T.astype(np.float32))

    def _cosine(
        self, rows: slice, columns: slice, norms: Float32Array | None, out: Float32Array
    ) -> None:
        """Write the similarities of one block."""
        if norms is None:
            np.matmul(self.unit_queries[rows], self.unit_candidates[columns].T, out=out)
            return
        candidates = self.candidates.vectors[columns]
        np.matmul(self.queries.vectors[rows], candidates.T, out=out)
        # |candidate restricted to the query's columns|, one row per pattern among these queries.
        patterns, of_row = np.unique(self.queries.mask_of[rows], return_inverse=True)
        shown = self.queries.masks[patterns].astype(np.float32)
        out *= _inverse_root(shown @ (candidates * candidates).T)[of_row]
        out *= np.take(norms, self.candidates.mask_of[columns], axis=1)

    def merge(
        self, tasks: list[tuple[int, int, int]], found: list[tuple[IntArray, Float32Array]]
    ) -> Nearest:
        """Join what the blocks found; parts of one block's candidates come in order."""
        best = _Best(len(self.queries), self.n_best, self.least)
        for (start, _, _), (position, similarity) in zip(tasks, found, strict=True):
            row, slot = np.nonzero(position >= 0)
            best.add(row + start, position[row, slot], similarity[row, slot])
        back = np.argsort(self.order, kind="stable")
        return Nearest(position=best.position[back], similarity=best.similarity[back])


class _Best:
    """The best candidates so far of some queries; rules: most similar first, then the earlier."""

    def __init__(self, n_rows: int, n_best: int, least: FloatArray) -> None:
        self.position: IntArray = np.full((n_rows, n_best), -1, dtype=np.int64)
        self.similarity: Float32Array = np.full((n_rows, n_best), -np.inf, dtype=np.float32)
        # What a further candidate must exceed.
        self.threshold: Float32Array = (least.astype(np.float32) - ROUNDING)[:, np.newaxis]

    @property
    def is_full_of_equals(self) -> bool:
        """Whether no cosine can exceed any threshold."""
        return bool((self.threshold >= 1.0).all())

    def add(self, row: IntArray, position: IntArray, similarity: Float32Array) -> None:
        """Take candidates in, later ones than those before."""
        if not len(row):
            return
        n_best = self.position.shape[1]
        # Equal within rounding is equal: then the order in which they come decides.
        steps = np.round(similarity / ROUNDING)
        order = np.lexsort((position, -steps, row))
        row, position, similarity = row[order], position[order], similarity[order]
        affected, first, n_of = np.unique(row, return_index=True, return_counts=True)
        place = np.arange(len(row)) - np.repeat(first, n_of)
        kept = place < n_best
        slot = np.repeat(np.arange(len(affected)), n_of)[kept], place[kept] + n_best
        both_position = np.full((len(affected), 2 * n_best), -1, dtype=np.int64)
        both_similarity = np.full((len(affected), 2 * n_best), -np.inf, dtype=np.float32)
        both_position[:, :n_best] = self.position[affected]
        both_similarity[:, :n_best] = self.similarity[affected]
        both_position[slot], both_similarity[slot] = position[kept], similarity[kept]
        # Stable: of equals, the earlier stays before the later.
        ranked = np.argsort(-np.round(both_similarity / ROUNDING), axis=1, kind="stable")[
            :, :n_best
        ]
        self.position[affected] = np.take_along_axis(both_position, ranked, axis=1)
        self.similarity[affected] = np.take_along_axis(both_similarity, ranked, axis=1)
        worst = self.similarity[affected, -1]
        self.threshold[affected, 0] = np.maximum(self.threshold[affected, 0], worst + ROUNDING)


def _where(hit: BoolArray) -> IntArray:
    """`numpy.flatnonzero` of something nearly all False, eight at a time."""
    n_whole = len(hit) // 8 * 8
    eights = np.flatnonzero(hit[:n_whole].view(np.uint64) != 0)
    i_eight, place = np.nonzero(hit[:n_whole].reshape(-1, 8)[eights])
    return np.concatenate([eights[i_eight] * 8 + place, np.flatnonzero(hit[n_whole:]) + n_whole])


def _to_unit_length(vectors: Float32Array) -> Float32Array:
    squares: Float32Array = np.einsum("ij,ij->i", vectors, vectors)
    return vectors * _inverse_root(squares)[:, np.newaxis]


def _inverse_root(squares: Float32Array) -> Float32Array:
    """1 / sqrt; 0 for 0: what shares nothing, or lies at the origin, is similar to nothing."""
    root = np.sqrt(squares)
    return np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)


def _check_one_frame(*arrays: npt.NDArray[Any]) -> None:
    n_columns = {array.shape[1] for array in arrays}
    if len(n_columns) != 1:
        raise FrameMismatchError(
            f"centroids and masks with {sorted(n_columns)} coordinates cannot be compared; "
            "expected one frame"
        )


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread_a_product() -> AbstractContextManager[Any]:
    """Keep the matrix library from sharing one block's product among cores that have blocks of their own."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # only speed depends on it
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits
