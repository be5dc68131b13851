import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_dictionary import SMALL_DICTIONARY
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import GridError, UsageError
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import GridStatistics, hole_profile
from synthedge_core.match_strategies import SiteReport
from synthedge_core.matching import STRATEGIES, Matcher, StrategyName, rank_donors

DICTIONARY = parse_dictionary(SMALL_DICTIONARY)
GRIDS = [NamedGrid(DICTIONARY, spec) for spec in DICTIONARY.grids]
BP, SEX_AGE, _ = GRIDS


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


def test_what_a_donor_suppressed_is_no_offer_and_a_recipients_hidden_voxel_is_offered_to() -> None:
    reports = _hospitals()
    reports["east"] = _published([10, 20, 24, 46], [20] * 4, known=[True, True, True, False])
    donors = [m for m in rank_donors(BP, "north", reports, similarity=0.7) if m.voxel == 3]
    assert ("east", 3) not in {(m.donor, m.donor_voxel) for m in donors}
    reports["north"] = _published([20, 20, 20, 4], [20] * 4, known=[True, True, True, False])
    offers = [m for m in rank_donors(BP, "north", reports, similarity=0.7) if m.voxel == 3]
    assert [(m.donor, m.donor_voxel, m.rank) for m in offers][:2] == [
        ("south", 3, 1),
        ("west", 3, 2),
    ]
    assert "north did not publish how many positive cases it has" in offers[0].reason


def test_too_few_sites_or_features_give_no_match() -> None:
    reports = _hospitals()
    two = {site: reports[site] for site in ("north", "east")}
    assert rank_donors(BP, "north", two, similarity=0.7) == []
    assert rank_donors(BP, "north", reports, similarity=0.7, min_others=4) == []
    assert rank_donors(BP, "north", reports, similarity=0.7, min_shared_features=2) == []


def test_reports_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GridError, match="'unknown' has no report"):
        rank_donors(BP, "unknown", _hospitals(), similarity=0.7)
    with pytest.raises(GridError, match="a site reported 4 voxels"):
        rank_donors(SEX_AGE, "north", _hospitals(), similarity=0.7)


def _random_report(rng: np.random.Generator, features: tuple[str, ...]) -> SiteReport:
    grids = {}
    for grid in GRIDS:
        if set(grid.features) <= set(features):
            grids[grid.name] = _published(
                rng.integers(0, 30, grid.n_voxels).tolist(),
                rng.integers(0, 30, grid.n_voxels).tolist(),
                (rng.random(grid.n_voxels) < 0.8).tolist(),
            )
    return SiteReport(features=features, grids=grids)


def _by_hand(
    grid: NamedGrid, recipient: str, reports: dict[str, GridStatistics], similarity: float
) -> list[tuple[int, str, int]]:
    """The rule of `share`, pair by pair: (voxel, donor, donor voxel), best first."""
    donors = {site: report for site, report in reports.items() if site != recipient}
    profile, published = hole_profile(list(donors.values())), reports[recipient]
    own = np.where(published.known, published.positive_share, 0.0)
    at = np.stack([grid.full_centroid(i) for i in range(grid.n_voxels)])
    unit = at / np.linalg.norm(at, axis=1, keepdims=True)
    found: list[tuple[int, str, int]] = []
    for voxel in np.flatnonzero(profile.known & (own < profile.f)):
        ranked: list[tuple[bool, float, float, str, int]] = []
        for site, report in donors.items():
            share = report.positive_share
            pairs = [
                (i != voxel, -round(float(unit[voxel] @ unit[i]), 5), -float(share[i]), site, i)
                for i in (int(voxel), *grid.neighbours(int(voxel)))
                if share[i] > own[voxel] and unit[voxel] @ unit[i] >= similarity
            ]
            ranked += sorted(pairs)[:1]
        found += [(int(voxel), site, i) for *_, site, i in sorted(ranked)]
    return found


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.7, 0.95]))
@settings(max_examples=25, deadline=None)
def test_all_grids_at_once_equal_the_rule_pair_by_pair(seed: int, similarity: float) -> None:
    rng = np.random.default_rng(seed)
    reports = {
        site: _random_report(rng, ("sex", "age", "bp", "stage") if site != "d" else ("bp", "sex"))
        for site in "abcde"
    }
    matcher = Matcher(GRIDS, similarity=similarity)
    matcher.update(reports)
    for site, report in reports.items():
        found = matcher.matches(site)
        for grid in GRIDS:
            published = {s: r.grids[grid.name] for s, r in reports.items() if grid.name in r.grids}
            expected = []
            if grid.name in report.grids and len(published) > 2:
                expected = _by_hand(grid, site, published, similarity)
            assert [
                (m.voxel, m.donor, m.donor_voxel) for m in found if m.grid == grid.name
            ] == expected


@pytest.mark.parametrize("strategy", ["share", "seed"])
@pytest.mark.parametrize("n_donors", [1, 10])
@pytest.mark.parametrize("seed", range(3))
def test_report_by_report_gives_what_all_at_once_gives(
    strategy: StrategyName, n_donors: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    features: tuple[tuple[str, ...], ...] = (("sex", "age", "bp", "stage"), ("sex", "age", "bp"))
    options: dict[str, Any] = {"similarity": 0.7, "strategy": strategy, "n_donors": n_donors}
    step_by_step = Matcher(GRIDS, **options)
    reports: dict[str, SiteReport] = {}
    for step in range(30):
        site = f"s{rng.integers(9)}"
        if step > 12 and rng.random() < 0.3:
            reports.pop(site, None)
        else:
            reports[site] = _random_report(rng, features[rng.integers(2)])
        step_by_step.update(reports)
        at_once = Matcher(GRIDS, **options)
        at_once.update(reports)
        for name in reports:
            assert step_by_step.matches(name) == at_once.matches(name)


def test_a_site_that_is_gone_is_no_donor_any_more() -> None:
    reports = {
        site: SiteReport(features=("bp",), grids={"bp": r}) for site, r in _hospitals().items()
    }
    matcher = Matcher([BP], similarity=0.7)
    matcher.update(reports)
    assert "east" in {m.donor for m in matcher.matches("north")}
    del reports["east"]
    matcher.update(reports)
    assert "east" not in {m.donor for m in matcher.matches("north")}
    with pytest.raises(GridError, match="'east' has no report"):
        matcher.matches("east")


def test_at_most_so_many_donors_are_named_the_richest_first() -> None:
    reports = {
        f"s{i:02}": SiteReport(
            features=("bp",), grids={"bp": _published([20, 20, 20, i], [20] * 4)}
        )
        for i in range(30)
    }
    matcher = Matcher([BP], similarity=0.7)
    matcher.update(reports)
    matches = [m for m in matcher.matches("s00") if m.voxel == 3]
    assert [(m.donor, m.rank) for m in matches] == [(f"s{29 - i}", i + 1) for i in range(10)]


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(UsageError, match="take one of share, seed"):
        Matcher(GRIDS, similarity=0.7, strategy="best")  # type: ignore[arg-type]
    with pytest.raises(GridError, match="no grid to match"):
        Matcher([], similarity=0.7)


def _sharing(n: int) -> dict[str, SiteReport]:
    """Two sites worse off in every voxel of blood pressure; the third shares n features with them."""
    names = ("bp", "sex", "age", "stage")
    poor, rich = _published([1, 0, 0, 0], [40, 1, 1, 1]), _published([9, 9, 9, 9], [9, 9, 9, 9])
    return {
        "poor": SiteReport(features=names, grids={"bp": poor}),
        "rich": SiteReport(features=names[:n], grids={"bp": rich}),
        "poor too": SiteReport(features=("bp",), grids={"bp": poor}),
    }


def test_the_seed_rule_matches_gap_against_gap_of_a_lower_score() -> None:
    matcher = Matcher([BP], similarity=0.99, strategy="seed")
    matcher.update(_sharing(3))
    matches = matcher.matches("poor")
    assert matches
    assert all(m.donor == "rich" and m.similarity >= 0.7 for m in matches)
    scores = {site: r.grids["bp"].gap_score for site, r in _sharing(3).items()}
    assert all(scores["rich"][m.donor_voxel] < scores["poor"][m.voxel] for m in matches)
    assert re.match(
        r"bp .*: poor's gap scores 0\.\d+; rich's gap in bp .* scores lower \(0\.\d+\); "
        r"similarity \d\.\d+",
        matches[0].reason,
    )


def test_the_seed_rule_needs_three_shared_features() -> None:
    matcher = Matcher([BP], similarity=0.99, strategy="seed")
    matcher.update(_sharing(2))
    assert matcher.matches("poor") == []


def test_the_seed_rule_misses_the_hole_that_ours_finds() -> None:
    reports = _hospitals()
    # Many negatives and no positive: the seed's score of the hole is 0, so that no donor's is lower.
    reports["north"] = _published([20, 20, 20, 0], [20, 20, 20, 60])
    published = {
        site: SiteReport(features=("bp", "sex", "age"), grids={"bp": r})
        for site, r in reports.items()
    }
    at_the_hole = {}
    for strategy in STRATEGIES:
        matcher = Matcher([BP], similarity=0.7, strategy=strategy)
        matcher.update(published)
        at_the_hole[strategy] = [m for m in matcher.matches("north") if m.voxel == 3]
    assert at_the_hole["seed"] == []
    assert at_the_hole["share"][0].donor == "east"
