"""Threshold mode: what is rounded, what is suppressed, and that nothing gives a small group away."""

import itertools

import numpy as np
import pytest
from attacks import knowledge
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plain_grids import PlainGrid, nested, patients_of, tables, voxels_of
from synthedge_client.attacker import NEGATIVE, POSITIVE, Group, Known, Reader
from synthedge_client.protection import Figures, ProtectedCounts
from synthedge_client.thresholds import protect_threshold
from synthedge_core.errors import DisclosureRefusedError

ONE = [PlainGrid("bp", ("bp",), (4,))]


def protect_one(
    positives: list[int],
    negatives: list[int],
    k: int = 5,
    earlier: dict[str, Figures] | None = None,
) -> tuple[ProtectedCounts, dict[str, Figures]]:
    counts = np.array([positives, negatives])
    label, voxel = (x.repeat(counts.ravel()) for x in map(np.ravel, np.indices(counts.shape)))
    grid = [PlainGrid("bp", ("bp",), (len(positives),))]
    protected, figures = protect_threshold(grid, voxel[:, None], label == 0, k, earlier)
    return protected[0], figures


def test_published_counts_are_multiples_of_five_or_the_band() -> None:
    told, _ = protect_one([7, 13, 4, 0], [22, 0, 30, 0])

    assert told.positives.tolist() == [5, 15, 2, 0]
    assert told.negatives.tolist() == [20, 2, 30, 0]
    assert not told.suppressed.any()
    assert told.reasons == (
        "",
        "negatives told as 0 to 4",
        "positives told as 0 to 4",
        "no patient",
    )


def test_a_k_between_multiples_of_five_tells_no_count_alone() -> None:
    """With k 7 the counts 5 and 6 are small; 7 must not be the only one told as 5."""
    told = [protect_one([n, 40], [40, 40], k=7)[0].positives[0] for n in range(14)]

    assert told == [3] * 7 + [10] * 6 + [15]


@given(st.integers(2, 8), st.data())
@settings(deadline=None, max_examples=60)
def test_a_voxel_with_few_patients_says_nothing(k: int, data: st.DataObject) -> None:
    some = st.lists(st.integers(0, 20), min_size=4, max_size=4)
    positives, negatives = data.draw(some), data.draw(some)

    told, _ = protect_one(positives, negatives, k)

    total = np.array(positives) + negatives
    few = (total > 0) & (total < k)
    assert told.suppressed[few].all()
    assert (told.positives[told.suppressed] == 0).all()
    assert (told.negatives[told.suppressed] == 0).all()
    assert all(told.reasons[i] == f"fewer than {k} patients" for i in np.flatnonzero(few))


@given(st.integers(2, 8), st.data())
@settings(deadline=None, max_examples=40)
def test_small_classes_of_a_published_voxel_cannot_be_told_apart(
    k: int, data: st.DataObject
) -> None:
    one, other = data.draw(st.integers(0, k - 1)), data.draw(st.integers(0, k - 1))

    # So many patients in all either way: their number may be known.
    first, _ = protect_one([one, 30, 40, 40], [50, 60, 40, 40 + k - one], k)
    second, _ = protect_one([other, 30, 40, 40], [50, 60, 40, 40 + k - other], k)

    if first.negatives[3] != second.negatives[3]:
        return  # the patient who makes up for it moved a figure of its own
    assert np.array_equal(first.positives, second.positives)
    assert np.array_equal(first.suppressed, second.suppressed)


def test_two_small_classes_are_no_two_bands() -> None:
    """Two bands of at most 4 with at least 5 patients in all would say that neither is 0."""
    told, _ = protect_one([2, 20], [3, 20])

    assert told.suppressed.tolist() == [True, False]
    assert told.reasons[0] == "fewer than 5 positive and fewer than 5 negative patients"


def test_a_minimum_count_below_two_is_refused() -> None:
    with pytest.raises(DisclosureRefusedError, match="min_count is 1"):
        protect_one([1], [1], k=1)


def all_tables_that_fit(reader: Reader, grids: list[PlainGrid], largest: int) -> list[np.ndarray]:
    """By trying them all: tables of one label over sex x age whose sums lie within what is known."""
    n_ages = grids[1].shape[0]
    found = []
    for flat in itertools.product(range(largest + 1), repeat=2 * n_ages):
        counts = np.array(flat).reshape(2, n_ages)
        sums = [counts.sum(axis=1), counts.sum(axis=0), counts.ravel()]
        known = reader.known
        if all(
            (k.low[POSITIVE] <= s).all() and (s <= k.high[POSITIVE]).all()
            for k, s in zip(known, sums, strict=True)
        ):
            found.append(counts)
    return found


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 1))
@settings(deadline=None, max_examples=15)
def test_the_readers_bounds_are_those_of_trying_every_table(cells: list[int], slack: int) -> None:
    grids = nested(n_ages=2)
    truth = np.array(cells).reshape(2, 2)
    sums = [truth.sum(axis=1), truth.sum(axis=0), np.array([-1, -1, -1, -1])]
    known = []
    for grid, s in zip(grids, sums, strict=True):
        hidden = grid.name == "sex x age"
        low = np.zeros((2, grid.n_voxels))
        high = np.zeros((2, grid.n_voxels))
        low[POSITIVE] = 0 if hidden else np.maximum(s - slack, 0)
        high[POSITIVE] = 6 if hidden else s + slack
        known.append(Known(low, high, np.zeros(grid.n_voxels)))
    # No negatives and, for the brute force's sake, nobody with a missing value.
    reader = Reader(grids, known, int(truth.sum()))
    fitting = [t for t in all_tables_that_fit(reader, grids, 6) if t.sum() == int(truth.sum())]
    for voxel in range(4):
        group = Group(POSITIVE, {2: voxel})
        counts = {int(t.ravel()[voxel]) for t in fitting}
        least, most = reader.bounds(group)
        assert least <= min(counts)
        assert most >= max(counts)
        if slack == 0:
            assert (least, most) == (min(counts), max(counts))
            assert [reader.is_possible(group, n) for n in range(7)] == [
                n in counts for n in range(7)
            ]


def small_groups(
    grids: list[PlainGrid], voxels: np.ndarray, positive: np.ndarray, k: int
) -> list[Group]:
    """Classes below k of voxels with patients, and of patients with a missing value."""
    found = []
    for g, grid in enumerate(grids):
        for voxel in range(-1, grid.n_voxels):
            inside = voxels[:, g] == voxel
            for label, of_label in ((POSITIVE, positive), (NEGATIVE, ~positive)):
                if inside.any() and (inside & of_label).sum() < k:
                    found.append(Group(label, {g: voxel}))
    return found


@given(tables(), st.sampled_from([3, 5]))
@settings(deadline=None, max_examples=8)
@example(np.array([[[5, 1, 0], [20, 20, 0], [0, 0, 0]], [[20, 0, 0], [20, 20, 0], [0, 0, 0]]]), 5)
@example(np.array([[[0, 3, 0], [6, 3, 0], [0, 0, 1]], [[9, 9, 0], [9, 9, 0], [0, 0, 0]]]), 5)
def test_margins_of_nested_grids_leave_every_small_count_possible(
    counts: np.ndarray, k: int
) -> None:
    grids = nested(n_ages=2)
    values, positive = patients_of(counts)
    if not len(positive):
        return
    voxels = voxels_of(grids, values)

    protected, _ = protect_threshold(grids, voxels, positive, k)

    reader = Reader(grids, knowledge(protected, k), len(positive))
    for group in small_groups(grids, voxels, positive, k):
        low, high = reader.bounds(group)
        assert low == 0
        assert high >= min(k - 1, len(positive))


def test_a_margin_that_gives_a_small_group_away_costs_a_voxel() -> None:
    """Women: 6 positives, told as 5. Young women: 5 of them, told as 5. So 0 to 2 are old."""
    grids = nested(n_ages=2)
    counts = np.zeros((2, 3, 3), dtype=int)
    counts[0] = [[5, 1, 0], [20, 20, 0], [0, 0, 0]]
    counts[1] = [[20, 20, 0], [20, 20, 0], [0, 0, 0]]
    values, positive = patients_of(counts)

    protected, _ = protect_threshold(grids, voxels_of(grids, values), positive, 5)

    whys = [why for told in protected for why in told.reasons if why.startswith("would tell")]
    assert whys == ["would tell how few positives in 'sex x age 1' are"]
    assert sum(told.suppressed.sum() for told in protected) == 1


def test_patients_without_a_value_are_no_difference_of_two_grids() -> None:
    """One patient has no age. N minus the sum over ages must not tell the label."""
    grids = [PlainGrid("sex", ("sex",), (2,)), PlainGrid("age", ("age",), (2,))]
    for label in (0, 1):
        counts = np.zeros((2, 3, 3), dtype=int)
        counts[:, :2, :2] = 10
        counts[label, 0, 2] = 1
        values, positive = patients_of(counts)

        protected, _ = protect_threshold(grids, voxels_of(grids, values), positive, 5)

        reader = Reader(grids, knowledge(protected, 5), len(positive))
        for which in (POSITIVE, NEGATIVE):
            assert reader.bounds(Group(which, {1: -1}))[0] == 0
            assert reader.bounds(Group(which, {1: -1}))[1] >= 4


def test_a_figure_stays_until_k_patients_moved() -> None:
    first, figures = protect_one([7, 20, 20], [20, 20, 20])
    one_more, _ = protect_one([8, 20, 20], [20, 20, 20], earlier=figures)
    four_more, then = protect_one([9, 22, 20], [20, 22, 20], earlier=figures)
    five_more, _ = protect_one([9, 20, 20], [23, 20, 20], earlier=then)

    # Alone, 8 would be told as 10: together with the first figure, that is 7 and 8 exactly.
    assert protect_one([8, 20, 20], [20, 20, 20])[0].positives[0] == 10
    assert one_more.positives.tolist() == four_more.positives.tolist() == first.positives.tolist()
    assert one_more.reasons[0] == "as before: fewer than 5 patients changed"
    assert five_more.positives[0] == 10


@given(tables(largest=15), st.data())
@settings(deadline=None, max_examples=6)
def test_two_releases_that_differ_by_few_patients_are_alike(
    counts: np.ndarray, data: st.DataObject
) -> None:
    k = 5
    grids = nested(n_ages=2)
    values, positive = patients_of(counts)
    if len(positive) < k:
        return
    first, figures = protect_threshold(grids, voxels_of(grids, values), positive, k)
    stays = np.ones(len(positive), dtype=bool)
    for _ in range(data.draw(st.integers(1, k - 1))):
        stays[data.draw(st.integers(0, len(positive) - 1))] = False
    fewer = {name: column[stays] for name, column in values.items()}

    second, _ = protect_threshold(
        grids, voxels_of(grids, fewer), positive[stays], k, earlier=figures
    )

    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.positives, b.positives)
        assert np.array_equal(a.negatives, b.negatives)
        assert np.array_equal(a.suppressed, b.suppressed)
