"""The most similar points: against loops over pairs, with and without masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from synthedge_core import similarity
from synthedge_core.errors import FrameMismatchError
from synthedge_core.similarity import Points, masked_cosine, nearest_in_less_need

VECTORS = arrays(np.float64, (3, 5), elements=st.floats(-10, 10).map(lambda x: round(x, 3)))
MASK = arrays(np.bool_, 5)


@given(VECTORS, MASK, VECTORS, MASK)
def test_masked_cosine_equals_a_loop_over_pairs(
    a: np.ndarray, mask_a: np.ndarray, b: np.ndarray, mask_b: np.ndarray
) -> None:
    found = masked_cosine(a, mask_a, b, mask_b)
    shared = mask_a & mask_b
    for i in range(3):
        for j in range(3):
            x, y = a[i, shared], b[j, shared]
            norms = np.linalg.norm(x) * np.linalg.norm(y)
            assert found[i, j] == pytest.approx(x @ y / norms if norms else 0.0, abs=1e-12)


@given(VECTORS, VECTORS, st.floats(0.01, 100))
def test_similarity_ignores_length(a: np.ndarray, b: np.ndarray, factor: float) -> None:
    everything = np.ones(5, dtype=bool)
    one = masked_cosine(a, everything, b, everything)
    assert masked_cosine(a * factor, everything, b, everything) == pytest.approx(one, abs=1e-9)
    assert np.all(np.abs(one) <= 1)


def test_masks_may_differ_from_row_to_row_and_hide_missing_coordinates() -> None:
    a = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]])
    mask = np.array([[True, True, False], [True, True, True]])
    found = masked_cosine(a, mask, a, mask)
    assert found == pytest.approx(np.ones((2, 2)))


def test_centroids_of_different_frames_are_not_compared() -> None:
    three, two = np.ones((1, 3)), np.ones((1, 2))
    with pytest.raises(FrameMismatchError, match="expected one frame"):
        masked_cosine(three, np.ones(3, dtype=bool), two, np.ones(2, dtype=bool))
    with pytest.raises(FrameMismatchError, match="expected one frame"):
        nearest_in_less_need(_points(3, 2), _points(3, 4), least=0.5, n_best=1)


def _points(n: int, n_columns: int, n_masks: int = 1, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    masks = (
        np.ones((1, n_columns), bool) if n_masks == 1 else rng.random((n_masks, n_columns)) < 0.7
    )
    mask_of = rng.integers(0, n_masks, n)
    return Points(
        vectors=np.where(masks[mask_of], rng.normal(size=(n, n_columns)), 0.0).astype(np.float32),
        masks=masks,
        mask_of=mask_of,
        need=np.sort(rng.random(n)),
        owner=rng.integers(0, 9, n),
    )


@pytest.mark.parametrize("n_masks", [1, 4])
@pytest.mark.parametrize("n_queries", [3, 120])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_search_in_blocks_equals_a_sort_of_all_pairs(
    n_masks: int, n_queries: int, seed: int
) -> None:
    candidates = _points(200, 6, n_masks, seed)
    queries = candidates.take(np.random.default_rng(seed).permutation(200)[:n_queries])
    with pytest.MonkeyPatch.context() as patch:
        # Small blocks, so that there are several.
        patch.setattr(similarity, "_QUERIES", 16)
        patch.setattr(similarity, "_CANDIDATES", 32)
        found = nearest_in_less_need(
            queries, candidates, least=0.3, n_best=4, may_match=lambda q, c: (q + c) % 3 > 0
        )
    cosine = masked_cosine(
        queries.vectors.astype(np.float64),
        queries.masks[queries.mask_of],
        candidates.vectors.astype(np.float64),
        candidates.masks[candidates.mask_of],
    )
    for i in range(len(queries)):
        may = [
            j
            for j in range(200)
            if cosine[i, j] >= 0.3
            and candidates.need[j] < queries.need[i]
            and candidates.owner[j] != queries.owner[i]
            and (i + j) % 3 > 0
        ]
        expected = sorted((cosine[i, j] for j in may), reverse=True)[:4]
        kept = found.position[i] >= 0
        assert found.similarity[i, kept] == pytest.approx(expected, abs=1e-5)
        assert set(found.position[i, kept]) <= set(may)
        assert cosine[i, found.position[i, kept]] == pytest.approx(expected, abs=1e-5)


def test_of_equally_similar_ones_the_richest_are_kept() -> None:
    n = 20_000
    candidates = Points(
        vectors=np.ones((n, 3), dtype=np.float32),
        masks=np.ones((1, 3), dtype=bool),
        mask_of=np.zeros(n, dtype=int),
        need=np.arange(n) / n,
        owner=np.arange(n) % 5,
    )
    query = candidates.take(np.array([n - 1]))
    found = nearest_in_less_need(query, candidates, least=0.7, n_best=4)
    # Position 4 is the query's own site.
    assert found.position.tolist() == [[0, 1, 2, 3]]


def test_candidates_out_of_order_are_an_error() -> None:
    points = _points(5, 3)
    with pytest.raises(ValueError, match="rising need"):
        nearest_in_less_need(points, points.take(np.arange(5)[::-1]), least=0.5, n_best=1)


def test_nobody_is_similar_to_the_origin_or_to_what_shares_nothing() -> None:
    points = Points(
        vectors=np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float32),
        masks=np.array([[True, False, False], [False, True, False]]),
        mask_of=np.array([0, 1, 0]),
        need=np.array([0.0, 0.0, 0.0]),
        owner=np.array([1, 2, 3]),
    )
    needy = Points(
        vectors=points.vectors,
        masks=points.masks,
        mask_of=points.mask_of,
        need=np.ones(3),
        owner=np.array([7, 8, 9]),
    )
    found = nearest_in_less_need(needy, points, least=0.1, n_best=2)
    assert found.position.tolist() == [[0, -1], [1, -1], [-1, -1]]
