import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_core.errors import GridError
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.holes import (
    CONFIRMED_Z,
    GridStatistics,
    find_holes,
    hole_profile,
    leave_one_out_profiles,
    population_holes,
    rank_holes,
)


def _published(
    positives: list[int], negatives: list[int], known: list[bool] | None = None
) -> GridStatistics:
    statistics = voxel_statistics(np.array(positives), np.array(negatives))
    return GridStatistics(
        density=statistics.density,
        positive_rate=statistics.positive_rate,
        grid_positive_rate=statistics.grid_positive_rate,
        known=np.array(known or [True] * len(positives)),
    )


RICH = _published([10, 10, 20], [40, 40, 20])
ALSO_RICH = _published([5, 10, 25], [45, 40, 15])
OTHERS = [RICH, ALSO_RICH]


def test_the_positive_share_is_recovered_from_what_is_published() -> None:
    assert RICH.positive_share == pytest.approx([0.25, 0.25, 0.5])
    assert RICH.patient_share == pytest.approx([50 / 140, 50 / 140, 40 / 140])
    assert RICH.relative_odds == pytest.approx([0.25 / 0.4, 0.25 / 0.4, 1.0 / 0.4])


def test_the_profile_is_the_mean_of_the_others_with_its_squared_standard_error() -> None:
    profile = hole_profile(OTHERS)
    assert profile.f == pytest.approx([3 / 16, 1 / 4, 9 / 16])
    # Two sites: variance (a - b)^2 / 2, over 2 sites.
    assert profile.v_f == pytest.approx([(1 / 8) ** 2 / 4, 0, (1 / 8) ** 2 / 4])
    assert profile.known.all()
    assert profile.n_sites == 2


@pytest.mark.parametrize(
    ("own_negatives", "expected", "variance", "status"),
    [
        # E1 = 40 * 9/16 = 22.5 is below E2 = 20 * 10/3 * 40/100 = 26.7. The others' scatter there is
        # (1/8)^2 / 4, less than the grid's, ((1/256) / (3/16) + (1/256) / (9/16)) / 2 of the share.
        (20, 22.5, 40**2 * 9 / 16 / 72, "confirmed"),
        # E2 = 5 * 10/3 * 40/85; relative odds 5/8 and 5/18 in the first voxel, 5/2 and 25/6 here, so
        # that the squared scatter is (25/72)^2 / 4 of (65/144)^2 there, and (5/3)^2 / 4 of (10/3)^2.
        (
            5,
            2000 / 255,
            (200 / 85) ** 2 * (10 / 3) ** 2 * ((25 / 72) ** 2 / 4 / (65 / 144) ** 2 + 1 / 16) / 2,
            "suspected",
        ),
    ],
)
def test_z_equals_a_hand_calculation(
    own_negatives: int, expected: float, variance: float, status: str
) -> None:
    positives, negatives = np.array([20, 20, 0]), np.array([40, 40, own_negatives])
    (hole,) = find_holes(hole_profile(OTHERS), positives, negatives)
    assert (hole.voxel, hole.observed, hole.status) == (2, 0, status)
    assert hole.expected == pytest.approx(expected)
    assert hole.z == pytest.approx(expected / np.sqrt(expected + 0.5 + variance))


def test_two_sites_that_agree_by_chance_are_not_taken_for_certain() -> None:
    # Alike in the last voxel only: their agreement there says little of how sites scatter.
    scattered = [_published([10, 30, 20], [40, 20, 20]), _published([30, 10, 20], [20, 40, 20])]
    assert hole_profile(scattered).v_f[2] == 0
    holes = find_holes(hole_profile(scattered), np.array([25, 25, 10]), np.array([30, 30, 40]))
    alone = 16.67 - 10
    assert holes[0].voxel == 2
    assert holes[0].z < alone / np.sqrt(16.67 + 0.5)


def test_a_site_like_the_others_has_no_confirmed_hole() -> None:
    holes = find_holes(hole_profile(OTHERS), np.array([8, 10, 22]), np.array([42, 40, 18]))
    assert all(hole.status == "suspected" for hole in holes)


def test_few_patients_of_a_kind_are_no_hole_but_a_population_hole() -> None:
    positives, negatives = np.array([20, 20, 0]), np.array([40, 40, 0])
    assert find_holes(hole_profile(OTHERS), positives, negatives) == []
    (hole,) = population_holes(hole_profile(OTHERS), positives, negatives)
    assert (hole.kind, hole.voxel, hole.observed) == ("population", 2, 0)
    assert hole.status == "confirmed"
    assert hole.expected == pytest.approx(120 * 40 / 140)


def test_a_kind_of_patient_that_is_merely_rarer_is_no_population_hole() -> None:
    profile = hole_profile(OTHERS)
    assert population_holes(profile, np.array([20, 20, 5]), np.array([80, 80, 10])) == []


def test_a_voxel_that_too_few_others_reported_is_unknown() -> None:
    hidden = _published([10, 10, 20], [40, 40, 20], known=[True, True, False])
    profile = hole_profile([RICH, hidden])
    assert profile.known.tolist() == [True, True, False]
    found = find_holes(profile, np.array([20, 20, 0]), np.array([40, 40, 20]))
    assert all(hole.voxel != 2 for hole in found)
    assert hole_profile([RICH, hidden, ALSO_RICH]).known.all()


def test_a_site_without_positives_says_nothing_about_where_they_are() -> None:
    profile = hole_profile([*OTHERS, _published([0, 0, 0], [50, 50, 40])])
    assert profile.f == pytest.approx(hole_profile(OTHERS).f)


def test_an_empty_voxel_is_not_read_as_a_voxel_of_negatives() -> None:
    empty = _published([10, 10, 0], [40, 40, 0])
    assert np.isnan(empty.relative_odds[2])
    assert hole_profile([*OTHERS, empty]).o[2] == pytest.approx(hole_profile(OTHERS).o[2])


@pytest.mark.parametrize(("positives", "negatives"), [([0, 0, 0], [9, 9, 9]), ([9, 9, 9], [0] * 3)])
def test_a_site_with_one_label_only_has_no_holes(
    positives: list[int], negatives: list[int]
) -> None:
    assert find_holes(hole_profile(OTHERS), np.array(positives), np.array(negatives)) == []


def test_suspected_holes_are_the_first_three_of_all_grids_together() -> None:
    flat = _published([10] * 8, [10] * 8)
    profile = hole_profile([flat, flat])
    slightly_short = find_holes(profile, np.array([8, 8, 8, 8, 12, 12, 12, 12]), np.array([10] * 8))
    assert [hole.status for hole in slightly_short] == ["suspected"] * 3
    ranked = rank_holes({"a": slightly_short, "b": slightly_short})
    assert [(grid, hole.voxel) for grid, hole in ranked] == [("a", 0), ("a", 1), ("a", 2)]


def test_confirmed_holes_are_kept_however_many_there_are() -> None:
    flat = _published([20] * 8, [20] * 8)
    holes = find_holes(hole_profile([flat, flat]), np.array([0] * 5 + [50] * 3), np.array([20] * 8))
    assert [hole.status for hole in holes] == ["confirmed"] * 5
    assert len(rank_holes({"a": holes, "b": holes})) == 10


COUNTS = st.lists(st.integers(0, 60), min_size=4, max_size=4)


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=3, max_size=5))
def test_whatever_sites_publish_profile_and_holes_stay_finite(
    sites: list[tuple[list[int], list[int]]],
) -> None:
    (positives, negatives), *others = sites
    profile = hole_profile([_published(*site) for site in others])
    for numbers in (profile.f, profile.v_f, profile.o, profile.v_o, profile.share):
        assert np.all(np.isfinite(numbers))
        assert np.all(numbers >= 0)
    holes = find_holes(profile, np.array(positives), np.array(negatives))
    assert [hole.z for hole in holes] == sorted((hole.z for hole in holes), reverse=True)
    for hole in holes:
        assert hole.observed < hole.expected
        assert hole.expected >= 2
        assert (hole.status == "confirmed") == (hole.z >= CONFIRMED_Z)


def test_one_other_site_is_never_enough() -> None:
    assert not hole_profile([RICH]).known.any()
    with pytest.raises(GridError, match="at least 2 other sites, not 1"):
        hole_profile(OTHERS, min_others=1)


def test_reports_of_different_grids_are_not_averaged() -> None:
    with pytest.raises(GridError, match="expected one or more reports of the same grid"):
        hole_profile([RICH, _published([1, 2], [3, 4])])
    with pytest.raises(GridError, match="expected one or more reports"):
        hole_profile([])
    with pytest.raises(GridError, match="against a profile of 3 voxels"):
        find_holes(hole_profile(OTHERS), np.array([1, 2]), np.array([3, 4]))


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=2, max_size=5), st.integers(2, 3))
def test_leaving_one_out_equals_averaging_the_others(
    sites: list[tuple[list[int], list[int]]], min_others: int
) -> None:
    reports = {str(i): _published(*site) for i, site in enumerate(sites)}
    for site, profile in leave_one_out_profiles(reports, min_others).items():
        others = [report for other, report in reports.items() if other != site]
        alone = hole_profile(others, min_others)
        assert profile.n_sites == alone.n_sites == len(others)
        for name in ("f", "v_f", "o", "v_o", "known", "share", "v_share", "patients_known"):
            assert getattr(profile, name) == pytest.approx(getattr(alone, name), abs=1e-9)


def test_a_site_without_positives_still_tells_of_its_patients() -> None:
    profile = hole_profile([RICH, _published([0, 0, 0], [50, 50, 40])])
    assert not profile.known.any()
    assert profile.patients_known.all()


def test_nobody_has_no_profile() -> None:
    assert leave_one_out_profiles({"north": RICH}) == {}
