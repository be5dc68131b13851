"""How many samples a site asks for, and when it asks for none."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_dictionary import SMALL_DICTIONARY
from synthedge_client.dose import evidence, recommend, recommended_rows, rows_of_each
from synthedge_client.selection import choose, giveable
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import Hole, Kind

DICTIONARY = parse_dictionary(SMALL_DICTIONARY)  # sex, age, bp, stage
GRID = NamedGrid(DICTIONARY, DICTIONARY.grid("sex x age"))
VOXEL = GRID.flat_of((1, 2))  # male, 60 to 69


def hole(voxel: int, expected: float, observed: int, kind: Kind = "positives") -> tuple[str, Hole]:
    z = (expected - observed) / np.sqrt(expected + 0.5)
    return "sex x age", Hole(
        kind=kind, voxel=voxel, expected=expected, observed=observed, z=z, status="suspected"
    )


@pytest.mark.parametrize(
    ("expected", "observed", "positives", "rows"),
    [(6.0, 0, 60, 14), (16.0, 0, 32, 20), (4.0, 2, 100, 5), (10.0, 4, 40, 16)],
)
def test_twice_as_many_rows_are_asked_for_as_are_missing(
    expected: float, observed: int, positives: int, rows: int
) -> None:
    assert recommended_rows(expected, observed, positives, least=5, most=20) == rows


@given(st.floats(0, 1e4), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 20))
def test_never_more_rows_are_asked_for_than_are_left(
    expected: float, observed: int, positives: int, most: int
) -> None:
    assert 0 <= recommended_rows(expected, observed, positives, least=5, most=most) <= most


def test_a_region_without_a_positive_is_more_evident_than_one_with_half_of_them() -> None:
    (_, none), (_, half) = hole(0, 5.0, 0), hole(1, 14.0, 6)

    assert none.z == pytest.approx(half.z, abs=0.05)
    assert evidence(none) > evidence(half) + 0.5


def test_an_uncertain_profile_takes_evidence_away() -> None:
    sure = hole(0, 8.0, 0)[1]

    assert evidence(replace(sure, z=sure.z / 2)) < evidence(sure)


def test_what_is_not_evident_is_asked_for_only_when_told_so() -> None:
    ranked = [hole(4, 10.0, 5)]

    assert recommend(ranked, 60, [], least=5, most=20) is None
    asked = recommend(ranked, 60, [], least=5, most=20, suspected=True)
    assert asked is not None
    assert (asked.hole.voxel, asked.rows) == (4, 12)


def test_positives_are_not_asked_for_where_no_patients_are() -> None:
    assert recommend([hole(4, 9.0, 0, "population")], 60, [], least=5, most=20) is None


def test_a_region_is_asked_for_once() -> None:
    ranked = [hole(4, 9.0, 0), hole(1, 7.0, 0)]

    asked = recommend(ranked, 60, {("sex x age", 4)}, least=5, most=20)

    assert asked is not None
    assert asked.hole.voxel == 1
    assert recommend(ranked, 60, {("sex x age", 4), ("sex x age", 1)}, least=5, most=20) is None


def test_nothing_is_asked_for_when_no_row_is_left() -> None:
    assert recommend([hole(4, 9.0, 0)], 60, [], least=5, most=0) is None


@pytest.mark.parametrize(
    ("rows", "n_donors", "asked"), [(20, 3, 7), (12, 3, 5), (7, 2, 5), (2, 1, 2)]
)
def test_an_equal_part_is_asked_of_each_donor_but_never_a_handful(
    rows: int, n_donors: int, asked: int
) -> None:
    assert rows_of_each(rows, n_donors, least=5) == asked


def test_only_positive_rows_of_the_region_that_may_leave_are_given() -> None:
    # male, 60-69 but for the second; the third is negative, the fourth may not leave.
    values = np.array([[1, 64, 90, 0], [1, 71, 90, 0], [1, 64, 90, 0], [1, 64, 90, 0]], dtype=float)
    positive, may_leave = np.array([1, 1, 0, 1], bool), np.array([1, 1, 1, 0], bool)

    rows = giveable(values, positive, may_leave, DICTIONARY, GRID, VOXEL)

    assert rows.tolist() == [0]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 99))
def test_rows_are_picked_once_each_and_no_more_than_wanted(
    n_rows: int, n_wanted: int, seed: int
) -> None:
    chosen = choose(np.arange(n_rows), n_wanted, np.random.default_rng(seed))

    assert len(set(chosen.tolist())) == len(chosen) == min(n_rows, n_wanted)
