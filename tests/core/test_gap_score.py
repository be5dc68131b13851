import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from synthedge_core.errors import GridError
from synthedge_core.gap_score import gap_scores, voxel_statistics

COUNTS = arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 500))


def test_scores_equal_a_hand_calculation() -> None:
    # 4 of 8 expected, half positive: 0.5*0.5 + 0.3*1 + 0.2*0.5; 16 of 8, none: 0.
    scores = gap_scores(np.array([4, 16]), np.array([2, 0]), expected=8.0)
    assert scores == pytest.approx([0.65, 0.0])


def test_statistics_equal_a_hand_calculation() -> None:
    statistics = voxel_statistics(np.array([2, 0, 0, 6]), np.array([2, 8, 0, 6]))
    # 24 samples over 4 voxels: 6 expected in each.
    assert statistics.density == pytest.approx([2 / 3, 4 / 3, 0, 2])
    assert statistics.positive_rate == pytest.approx([0.5, 0, 0, 0.5])
    assert statistics.sparsity == pytest.approx([1 / 3, 0, 1, 0])
    assert statistics.label_entropy == pytest.approx([1, 0, 0, 1])
    assert statistics.gap_score == pytest.approx([1 / 6 + 0.4, 0, 0.5, 0.4])
    assert statistics.grid_positive_rate == pytest.approx(1 / 3)


@given(COUNTS, COUNTS)
def test_statistics_are_finite_and_in_range(a: np.ndarray, b: np.ndarray) -> None:
    n = min(len(a), len(b))
    s = voxel_statistics(a[:n], b[:n])
    for shares in (s.positive_rate, s.gap_score, s.sparsity, s.label_entropy):
        assert np.all((shares >= 0) & (shares <= 1))
    assert np.all(np.isfinite(s.density))
    assert np.all(s.density >= 0)
    assert 0 <= s.grid_positive_rate <= 1


@given(COUNTS)
def test_statistics_and_scores_agree_on_occupied_voxels(counts: np.ndarray) -> None:
    counts = counts + 1
    positives = counts // 2
    s = voxel_statistics(positives, counts - positives)
    assert s.gap_score == pytest.approx(gap_scores(counts, positives, float(counts.mean())))


@given(COUNTS, st.integers(2, 9))
def test_statistics_do_not_show_the_size_of_a_site(positives: np.ndarray, factor: int) -> None:
    negatives = positives[::-1].copy()
    one = voxel_statistics(positives, negatives)
    many = voxel_statistics(positives * factor, negatives * factor)
    assert many.density == pytest.approx(one.density)
    assert many.gap_score == pytest.approx(one.gap_score)


def test_a_grid_without_samples_says_nothing() -> None:
    s = voxel_statistics(np.zeros(3), np.zeros(3))
    for numbers in (s.density, s.positive_rate, s.gap_score, s.sparsity, s.label_entropy):
        assert numbers.tolist() == [0, 0, 0]
    assert s.grid_positive_rate == 0


@pytest.mark.parametrize(
    ("counts", "positives", "expected"),
    [([0], [0], 1.0), ([2], [3], 1.0), ([2], [-1], 1.0), ([2, 2], [1], 1.0), ([2], [1], 0.0)],
)
def test_impossible_counts_are_not_scored(
    counts: list[int], positives: list[int], expected: float
) -> None:
    with pytest.raises(GridError):
        gap_scores(np.array(counts), np.array(positives), expected)


@pytest.mark.parametrize(
    ("positives", "negatives"), [([-1.0], [2.0]), ([np.nan], [1.0]), ([1.0], [1.0, 2.0]), ([], [])]
)
def test_noise_must_be_clipped_before_it_is_described(
    positives: list[float], negatives: list[float]
) -> None:
    with pytest.raises(GridError):
        voxel_statistics(np.array(positives), np.array(negatives))
