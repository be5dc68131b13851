import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from small_dictionary import SMALL_DICTIONARY
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import FrameMismatchError, GridError
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import GridStatistics
from synthedge_core.matching import SiteGaps, masked_cosine, rank_donors, seed_matches

DICTIONARY = parse_dictionary(SMALL_DICTIONARY)
BP, SEX_AGE, _ = (NamedGrid(DICTIONARY, spec) for spec in DICTIONARY.grids)


def _published(
    positives: list[int], negatives: list[int], known: list[bool] | None = None
) -> GridStatistics:
    s = voxel_statistics(np.array(positives), np.array(negatives))
    return GridStatistics(
        density=s.density,
        positive_rate=s.positive_rate,
        grid_positive_rate=s.grid_positive_rate,
        known=np.array(known or [True] * len(positives)),
    )


def _hospitals() -> dict[str, GridStatistics]:
    return {
        "north": _published([20, 20, 20, 4], [20, 20, 20, 30]),
        "east": _published([10, 20, 24, 46], [20, 20, 20, 20]),
        "south": _published([20, 20, 20, 40], [20, 20, 20, 20]),
        "west": _published([30, 30, 40, 2], [20, 20, 20, 20]),
    }


def test_donors_are_ranked_same_voxel_first_then_by_share() -> None:
    matches = [m for m in rank_donors(BP, "north", _hospitals(), similarity=0.7) if m.voxel == 3]
    assert [(m.donor, m.donor_voxel, m.rank) for m in matches] == [
        ("east", 3, 1),
        ("south", 3, 2),
        ("west", 2, 3),
    ]
    assert matches[0].similarity == pytest.approx(1)
    assert 0.7 <= matches[2].similarity < 1


def test_the_reason_is_in_words_from_published_values() -> None:
    match = next(m for m in rank_donors(BP, "north", _hospitals(), similarity=0.7) if m.voxel == 3)
    # north 4/64, the others' mean (0.46 + 0.40 + 2/102) / 3 = 0.29: a fifth; east 0.46 * 4 voxels.
    assert match.reason == (
        "bp at least 100 mm[Hg]: north has about a fifth of the expected share of positive cases; "
        "east is rich there (1.8 times its even share); similarity 1.00"
    )


def test_a_neighbouring_voxel_is_named_in_the_reason() -> None:
    matches = rank_donors(BP, "north", _hospitals(), similarity=0.7)
    reason = next(m.reason for m in matches if m.voxel == 3 and m.donor == "west")
    assert "west is rich beside it, in bp 90 to <100 mm[Hg]" in reason


def test_a_neighbour_that_is_not_similar_enough_is_no_donor() -> None:
    strict = rank_donors(BP, "north", _hospitals(), similarity=0.999)
    assert [m.donor for m in strict if m.voxel == 3] == ["east", "south"]


def test_a_hole_with_a_low_gap_score_still_finds_its_rich_donor() -> None:
    reports = _hospitals()
    reports["north"] = _published([20, 20, 20, 0], [20, 20, 20, 60])
    # Many negatives and no positive: the seed's score of the hole is 0, below every donor's.
    hole_score = voxel_statistics(np.array([20, 20, 20, 0]), np.array([20, 20, 20, 60])).gap_score
    assert hole_score[3] == 0
    matches = [m for m in rank_donors(BP, "north", reports, similarity=0.7) if m.voxel == 3]
    assert matches[0].donor == "east"
    assert "north has none of the expected share" in matches[0].reason


def test_no_donor_is_poorer_than_the_recipient() -> None:
    for recipient, report in _hospitals().items():
        own = report.positive_share
        for match in rank_donors(BP, recipient, _hospitals(), similarity=0.7):
            donor_share = _hospitals()[match.donor].positive_share[match.donor_voxel]
            assert donor_share > own[match.voxel]
            assert match.donor != recipient


def test_levels_of_a_category_are_never_neighbours() -> None:
    rng = np.random.default_rng(5)
    reports = {
        site: _published(rng.integers(0, 30, 8).tolist(), rng.integers(5, 30, 8).tolist())
        for site in ("a", "b", "c", "d")
    }
    matches = rank_donors(SEX_AGE, "a", reports, similarity=0.1)
    assert matches
    assert all(m.voxel // 4 == m.donor_voxel // 4 for m in matches)


def test_what_was_suppressed_is_neither_gap_nor_donor() -> None:
    reports = _hospitals()
    reports["east"] = _published([10, 20, 24, 46], [20] * 4, known=[True, True, True, False])
    donors = [m for m in rank_donors(BP, "north", reports, similarity=0.7) if m.voxel == 3]
    assert ("east", 3) not in {(m.donor, m.donor_voxel) for m in donors}
    reports["north"] = _published([20, 20, 20, 4], [20] * 4, known=[True, True, True, False])
    assert all(m.voxel != 3 for m in rank_donors(BP, "north", reports, similarity=0.7))


def test_too_few_sites_or_features_give_no_match() -> None:
    reports = _hospitals()
    two = {site: reports[site] for site in ("north", "east")}
    assert rank_donors(BP, "north", two, similarity=0.7) == []
    assert rank_donors(BP, "north", reports, similarity=0.7, min_others=4) == []
    assert rank_donors(BP, "north", reports, similarity=0.7, min_shared_features=2) == []


def test_reports_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GridError, match="'unknown' has no report"):
        rank_donors(BP, "unknown", _hospitals(), similarity=0.7)
    with pytest.raises(GridError, match="site 'north' reported 4 voxels"):
        rank_donors(SEX_AGE, "north", _hospitals(), similarity=0.7)


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


def _gaps(site: str, centroids: list[list[float]], mask: str, scores: list[float]) -> SiteGaps:
    return SiteGaps(
        site=site,
        centroids=np.array(centroids),
        mask=np.array([c == "x" for c in mask]),
        gap_scores=np.array(scores),
    )


def test_the_seed_rule_matches_gap_against_gap() -> None:
    recipient = _gaps("a", [[1, 1, 1, 0], [-1, 0, 0, 2]], "xxxx", [0.8, 0.2])
    donor = _gaps("b", [[1, 1, 0.9, 5], [-1, -1, -1, 0]], "xxx.", [0.5, 0.1])
    (match,) = seed_matches(recipient, [donor])
    assert (match.gap, match.donor, match.donor_gap) == (0, "b", 0)
    assert match.similarity > 0.99


def test_the_seed_rule_needs_three_shared_features() -> None:
    recipient = _gaps("a", [[1, 1, 1, 0]], "xxx.", [0.8])
    donor = _gaps("b", [[1, 1, 1, 1]], ".xxx", [0.5])
    assert seed_matches(recipient, [donor]) == []
    assert len(seed_matches(recipient, [donor], min_shared_features=2)) == 1
