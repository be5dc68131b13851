import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_dictionary import SMALL_DICTIONARY
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import FrameMismatchError, GridError
from synthedge_core.grids import NamedGrid, count

DICTIONARY = parse_dictionary(SMALL_DICTIONARY)
BP, SEX_AGE, STAGE = (NamedGrid(DICTIONARY, spec) for spec in DICTIONARY.grids)


def _rows(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def test_a_value_on_a_cut_point_belongs_to_the_voxel_above() -> None:
    rows = _rows((0, 50, 79.9, 0), (0, 50, 80, 0), (0, 50, 99.9, 0), (0, 50, 100, 0))
    assert BP.assign(rows).tolist() == [0, 1, 2, 3]


def test_a_sample_with_a_missing_feature_is_in_no_voxel() -> None:
    rows = _rows((0, np.nan, 94, 0), (np.nan, 50, 94, 0), (1, 65, np.nan, 0))
    assert SEX_AGE.assign(rows).tolist() == [-1, -1, 6]


def test_voxels_read_like_words() -> None:
    assert [SEX_AGE.label(i) for i in range(SEX_AGE.n_voxels)] == [
        "female, below 40",
        "female, 40-59",
        "female, 60-69",
        "female, at least 70",
        "male, below 40",
        "male, 40-59",
        "male, 60-69",
        "male, at least 70",
    ]
    assert [BP.label(i) for i in range(4)] == [
        "bp below 80 mm[Hg]",
        "bp 80 to <90 mm[Hg]",
        "bp 90 to <100 mm[Hg]",
        "bp at least 100 mm[Hg]",
    ]
    assert [STAGE.label(i) for i in range(3)] == ["stage I", "stage II", "stage III"]


@pytest.mark.parametrize(
    ("cut_points", "label"),
    [("[2, 3]", "vessels 2"), ("[-5, -1]", "vessels -5 to -2"), ("[0, 3]", "vessels 0-2")],
)
def test_integer_ranges_are_closed_and_readable(cut_points: str, label: str) -> None:
    text = SMALL_DICTIONARY.replace(
        "[[grids]]",
        '[[features]]\nname = "vessels"\nkind = "integer"\nplausible = [-9, 9]\ncenter = 0\n'
        f'scale = 1\ncut_points = {cut_points}\nprivacy = "measurement"\n\n[[grids]]',
        1,
    ).replace('features = ["stage"]', 'features = ["vessels"]')
    dictionary = parse_dictionary(text)
    assert NamedGrid(dictionary, dictionary.grids[2]).label(1) == label


def test_centroids_are_the_middle_of_each_voxel_in_the_frame() -> None:
    # Ends reach one neighbouring width (10) beyond the edge: 75, 85, 95, 105 mmHg.
    centers = [float(BP.centroid(i)[0]) * 14 + 94 for i in range(4)]
    assert centers == pytest.approx([75, 85, 95, 105])


def test_an_end_voxel_reaches_no_further_than_the_plausible_range() -> None:
    narrow = parse_dictionary(SMALL_DICTIONARY.replace("[30, 200]", "[76, 102]"))
    grid = NamedGrid(narrow, narrow.grids[0])
    assert grid.centroid(0)[0] * 14 + 94 == pytest.approx(78)
    assert grid.centroid(3)[0] * 14 + 94 == pytest.approx(101)


def test_an_axis_with_one_cut_point_has_its_centres_one_scale_from_it() -> None:
    single = parse_dictionary(SMALL_DICTIONARY.replace("[80, 90, 100]", "[94]"))
    grid = NamedGrid(single, single.grids[0])
    assert [grid.centroid(0)[0], grid.centroid(1)[0]] == pytest.approx([-1, 1])


def test_a_full_centroid_adds_the_reference_and_an_intercept() -> None:
    assert SEX_AGE.full_centroid(5).tolist() == [0, 1, 0, 0, 0, 1]
    assert BP.full_centroid(2)[[0, 1, 2, 4, 5]].tolist() == [0.5, 0.5, 0, 0, 1]


def test_neighbours_are_face_adjacent_along_ordered_axes_only() -> None:
    assert SEX_AGE.neighbours(0) == (1,)
    assert SEX_AGE.neighbours(5) == (4, 6)
    assert STAGE.neighbours(1) == (0, 2)


@pytest.mark.parametrize("grid", [BP, SEX_AGE, STAGE])
def test_index_and_flat_undo_each_other(grid: NamedGrid) -> None:
    indices = list(itertools.product(*(range(n) for n in grid.shape)))
    assert [grid.index_of(grid.flat_of(index)) for index in indices] == indices
    assert [grid.flat_of(index) for index in indices] == list(range(grid.n_voxels))


@pytest.mark.parametrize("grid", [BP, SEX_AGE, STAGE])
def test_being_neighbours_is_mutual(grid: NamedGrid) -> None:
    for a in range(grid.n_voxels):
        assert all(a in grid.neighbours(b) for b in grid.neighbours(a))


@given(st.floats(31, 199), st.integers(19, 109), st.integers(0, 1), st.integers(0, 2))
def test_every_complete_sample_is_in_the_voxel_its_label_names(
    bp: float, age: int, sex: int, stage: int
) -> None:
    rows = _rows((sex, age, bp, stage))
    low, high = [(0, 80), (80, 90), (90, 100), (100, 999)][int(BP.assign(rows)[0])]
    assert low <= bp < high
    assert SEX_AGE.label(int(SEX_AGE.assign(rows)[0])).startswith(("female", "male")[sex])
    assert STAGE.assign(rows).tolist() == [stage]


def test_counts_keep_every_sample_once() -> None:
    rng = np.random.default_rng(1)
    rows = np.column_stack(
        [
            rng.integers(0, 2, 300),
            rng.integers(20, 90, 300),
            rng.normal(94, 14, 300),
            rng.integers(0, 3, 300),
        ]
    ).astype(np.float64)
    rows[:30, 1] = np.nan
    positive = rng.random(300) < 0.3
    counts = count(SEX_AGE, rows, positive)
    assert counts.n_missing == 30
    assert counts.positives.sum() == positive[30:].sum()
    assert (counts.positives + counts.negatives).sum() == 270
    assert counts.positives.shape == counts.negatives.shape == (8,)


def test_an_empty_table_counts_nothing() -> None:
    counts = count(BP, np.empty((0, 4)), np.empty(0, dtype=bool))
    assert counts.positives.tolist() == [0, 0, 0, 0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(GridError, match=r"has voxels 0 to 3, not 4"):
        BP.label(4)
    with pytest.raises(GridError, match=r"no voxel \(2, 0\)"):
        SEX_AGE.flat_of((2, 0))
    with pytest.raises(GridError, match="2 samples but labels of shape"):
        count(BP, np.zeros((2, 4)), np.zeros(3, dtype=bool))
    with pytest.raises(GridError, match="lacks its features"):
        BP.assign(np.zeros((2, 1)))
    with pytest.raises(FrameMismatchError, match="feature 'sex'"):
        SEX_AGE.assign(_rows((7, 50, 94, 0)))
