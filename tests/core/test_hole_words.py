"""Holes in words: what was expected, by which of the two rules, and how sure it is."""

import numpy as np
import pytest

from synthedge_core.errors import GridError
from synthedge_core.hole_words import explain_hole
from synthedge_core.holes import Hole, VoxelProfile, find_holes, population_holes


def _profile(f: list[float], o: list[float], share: list[float]) -> VoxelProfile:
    n, zeros, known = len(f), np.zeros(len(f)), np.ones(len(f), dtype=bool)
    return VoxelProfile(
        f=np.array(f),
        v_f=zeros,
        o=np.array(o),
        v_o=zeros,
        known=known,
        share=np.array(share),
        v_share=zeros,
        patients_known=known,
        n_sites=n,
    )


PROFILE = _profile([0.2, 0.3, 0.5], [1.0, 1.0, 2.5], [0.3, 0.3, 0.4])


def test_a_hole_found_by_the_share_of_positives_says_so() -> None:
    positives, negatives = np.array([20, 20, 0]), np.array([20, 20, 40])
    (hole,) = find_holes(PROFILE, positives, negatives)
    assert explain_hole(hole, PROFILE, positives, negatives) == (
        "the other sites have 50 % of their positive cases here; of this site's 40 that would be "
        "20.0, and it has none; confirmed, the shortfall is 4.4 standard errors"
    )


def test_a_hole_found_by_the_odds_names_the_negatives_beside_it() -> None:
    positives, negatives = np.array([20, 20, 1]), np.array([20, 20, 4])
    (hole,) = find_holes(PROFILE, positives, negatives)
    # 4 negatives, odds 2.5, 41 positives to 44 negatives: 9.3.
    assert explain_hole(hole, PROFILE, positives, negatives) == (
        "at the other sites the odds of a positive case are 2.5 times those of all their patients; "
        "beside this site's 4 negative cases here that would be 9.3 positive ones, and it has 1; "
        "confirmed, the shortfall is 2.7 standard errors"
    )


def test_a_population_hole_speaks_of_patients() -> None:
    positives, negatives = np.array([20, 20, 0]), np.array([20, 20, 0])
    (hole,) = population_holes(PROFILE, positives, negatives)
    assert explain_hole(hole, PROFILE, positives, negatives).startswith(
        "the other sites have 40 % of their patients here; of this site's 80 that would be 32.0, "
        "and it has none; confirmed"
    )


def test_what_may_be_chance_is_called_that() -> None:
    positives, negatives = np.array([20, 20, 28]), np.array([20, 20, 40])
    hole = find_holes(PROFILE, positives, negatives)[0]
    assert "only suspected" in explain_hole(hole, PROFILE, positives, negatives)


def test_a_voxel_of_another_grid_is_refused() -> None:
    hole = Hole(kind="positives", voxel=3, expected=5, observed=0, z=2, status="confirmed")
    with pytest.raises(GridError, match="has no voxel 3"):
        explain_hole(hole, PROFILE, np.zeros(3, int), np.zeros(3, int))
