"""The voxel scan: the published package's answers, missing values, blocks."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scan_cases import scan_cases
from synthedge_core.errors import GridError
from synthedge_core.scan import Block, BoolArray, FloatArray, adaptive_bins, scan, scan_blocks

GOLDEN = json.loads((Path(__file__).parent / "golden" / "scan.json").read_text(encoding="utf-8"))
CASES = {name: (values, labels, options) for name, values, labels, options in scan_cases()}


@pytest.mark.parametrize("name", CASES)
def test_voxels_order_and_scores_are_those_of_the_published_package(name: str) -> None:
    values, labels, options = CASES[name]
    expected = GOLDEN[name]
    found = scan(values, labels == 1, **options)
    voxels = [[v.label, v.n_observed, v.n_positive, v.gap_score] for v in found.voxels]
    assert found.n_bins == expected["n_bins"]
    assert voxels == expected["voxels"]
    assert len(found.top) == expected["n_top"]
    np.testing.assert_allclose(
        [v.centroid_pca for v in found.top], expected["centroids_pca"], atol=1e-8
    )
    sums = [v.centroid.sum() for v in found.top]
    np.testing.assert_allclose(sums, expected["centroid_sums"], atol=1e-8)


def table(n_rows: int, n_features: int) -> tuple[FloatArray, BoolArray]:
    rng = np.random.default_rng(0)
    values = rng.normal(100, 3, size=(n_rows, n_features))
    return values, rng.random(n_rows) < 0.3


def test_blocks_from_disk_give_the_scan_of_the_whole_table() -> None:
    values, positive = table(20_000, 5)
    values[::7, 2] = np.nan

    def blocks() -> list[Block]:
        parts = np.array_split(np.arange(20_000), 9)
        return [(values[rows].T, positive[rows]) for rows in parts]

    whole, parts = scan(values, positive), scan_blocks(blocks)
    assert [v.label for v in whole.voxels] == [v.label for v in parts.voxels]
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_allclose(whole.sums, parts.sums, atol=1e-6)
    assert parts.codes is None


def test_missing_values_take_no_part_in_means_scales_and_axes() -> None:
    values, positive = table(3_000, 4)
    values[::3, 1] = np.nan
    found = scan(values, positive)
    np.testing.assert_allclose(found.means, np.nanmean(values, axis=0))
    np.testing.assert_allclose(found.scales, np.nanstd(values, axis=0))
    filled = np.where(np.isnan(values), np.nanmean(values, axis=0), values)
    np.testing.assert_allclose(found.project(values), found.project(filled), atol=1e-9)


def test_a_large_mean_costs_no_digits() -> None:
    values, positive = table(2_000, 3)
    near, far = scan(values - 100, positive), scan(values + 1e7, positive)
    assert [v.label for v in near.voxels] == [v.label for v in far.voxels]


def test_a_constant_or_empty_column_changes_nothing() -> None:
    values, positive = table(800, 3)
    extra = np.column_stack([values, np.full(800, 0.1), np.full(800, np.nan)])
    plain, more = scan(values, positive), scan(extra, positive)
    assert [v.label for v in plain.voxels] == [v.label for v in more.voxels]


@given(st.integers(1, 4), st.integers(2, 60), st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_voxel_and_scores_lie_in_0_1(
    n_features: int, n_rows: int, n_bins: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, size=(n_rows, n_features)).astype(float)
    positive = rng.random(n_rows) < 0.5
    found = scan(values, positive, n_bins=n_bins)
    assert found.counts.sum() == n_rows
    assert found.positives.sum() == positive.sum()
    np.testing.assert_array_equal(found.assign(values), found.codes)
    assert all(0.0 <= v.gap_score <= 1.0 for v in found.voxels)
    scores = [v.gap_score for v in found.voxels]
    assert scores == sorted(scores, reverse=True)


def test_neighbours_share_a_face() -> None:
    values, positive = table(500, 3)
    found = scan(values, positive, n_bins=3)
    middle, corner = 1 * 9 + 1 * 3 + 1, 0
    assert len(found.neighbours(middle)) == 7
    assert sorted(found.neighbours(corner)) == [0, 1, 3, 9]


@pytest.mark.parametrize(
    ("n_rows", "bins"), [(50, 3), (319, 3), (320, 4), (625, 5), (1_080, 6), (10**6, 6)]
)
def test_bins_adapt_to_the_number_of_rows(n_rows: int, bins: int) -> None:
    assert adaptive_bins(n_rows) == bins


def test_what_does_not_fit_is_refused() -> None:
    values, positive = table(50, 2)
    with pytest.raises(GridError, match="one label per row"):
        scan(values, positive[:-1])
    with pytest.raises(GridError, match="n_bins is 1"):
        scan(values, positive, n_bins=1)
    with pytest.raises(GridError, match="top_k is 0"):
        scan(values, positive, top_k=0)
    with pytest.raises(GridError, match="no feature"):
        scan(values[:, :0], positive)
    with pytest.raises(GridError, match="infinite"):
        scan(np.where(values > values.mean(), np.inf, values), positive)
    with pytest.raises(GridError, match="no row"):
        scan_blocks(lambda: [])
