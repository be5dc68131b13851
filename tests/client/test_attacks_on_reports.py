"""Attacks on gap reports. Each is shown to work on what we do not publish, so that it could fail."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from attacks import epsilon_at_least, smallest_total
from hypothesis import given, settings
from hypothesis import strategies as st

from plain_grids import PlainGrid, nested, patients_of, tables, voxels_of
from server_fixtures import DICTIONARY_TOML
from sites import patients, queued, sites, steward
from synthedge_client.attacker import POSITIVE, Group, Known, Reader
from synthedge_client.protection import Figures, ProtectedCounts, dp_scale, protect_dp
from synthedge_client.releases import preview, publish
from synthedge_client.thresholds import protect_threshold
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import DictionaryError
from synthedge_core.gap_score import voxel_statistics
from synthedge_protocols.v1 import statements_pb2 as pb

DP_TOML = DICTIONARY_TOML.replace('disclosure = "threshold"', 'disclosure = "dp"')
BP = [PlainGrid("bp", ("bp",), (4,))]


def in_voxels(positives: list[int], negatives: list[int]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([positives, negatives])
    label, voxel = (x.repeat(counts.ravel()) for x in map(np.ravel, np.indices(counts.shape)))
    return voxel[:, None], label == 0


def by_threshold(positives: list[int], negatives: list[int], k: int = 5) -> ProtectedCounts:
    return protect_threshold(BP, *in_voxels(positives, negatives), k)[0][0]


# ---- one-patient voxels


@pytest.mark.parametrize("label", [0, 1])
def test_a_voxel_of_one_patient_does_not_tell_the_patients_label(label: int) -> None:
    told = by_threshold([11, 14, 1 - label, 22], [31, 26, label, 19])

    assert told.suppressed.tolist() == [False, False, True, False]
    assert (told.positives[2], told.negatives[2]) == (0, 0)


def test_no_centroid_is_a_patients_record(tmp_path: Path) -> None:
    """A one-patient voxel's mean is that patient; what is published is the voxel's own centre."""
    one, other = (patients(name, np.full((2, 4), 1), np.full((2, 4), 0)) for name in "ab")
    other["bp"] += 3
    centroids = []
    for name, rows in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        with sites(tmp_path / name, DICTIONARY_TOML, north=rows) as (site,):
            report = preview(site).release.message
        assert all(v.suppressed for grid in report.grids for v in grid.voxels)
        centroids.append([list(v.centroid) for grid in report.grids for v in grid.voxels])

    assert centroids[0] == centroids[1]


# ---- N and the counts from exact rates


@given(st.lists(st.integers(1, 40), min_size=8, max_size=8))
@settings(max_examples=30, deadline=None)
def test_exact_rates_give_away_n_and_every_count(cells: list[int]) -> None:
    """The attack itself: against what is not published, it recovers everything up to a common factor."""
    positives, negatives = np.array(cells[:4]), np.array(cells[4:])
    exact = voxel_statistics(positives, negatives)

    found = smallest_total(exact.density, exact.positive_rate)

    factor = np.gcd.reduce(np.concatenate([positives, positives + negatives]))
    assert found is not None
    assert found.total * factor == (positives + negatives).sum()
    assert (found.positives * factor).tolist() == positives.tolist()


@given(st.lists(st.integers(0, 40), min_size=8, max_size=8))
@settings(max_examples=30, deadline=None)
def test_our_rates_give_rounded_counts_and_nothing_finer(cells: list[int]) -> None:
    told = by_threshold(cells[:4], cells[4:])
    published = voxel_statistics(told.positives, told.negatives)

    found = smallest_total(published.density, published.positive_rate)

    rounded = told.positives + told.negatives
    assert found is not None
    # The figures up to a common factor, whatever the patients behind them.
    assert np.allclose(found.counts * rounded.sum(), rounded * found.total)
    assert np.allclose(found.positives * rounded.sum(), told.positives * found.total)


def test_two_sites_with_other_counts_but_equal_figures_publish_the_same() -> None:
    one = by_threshold([11, 14, 3, 22], [31, 26, 28, 19])
    other = by_threshold([12, 13, 1, 18], [28, 27, 32, 22])

    assert one.positives.tolist() == other.positives.tolist() == [10, 15, 2, 20]
    assert one.negatives.tolist() == other.negatives.tolist() == [30, 25, 30, 20]


def test_noise_hides_the_number_of_patients() -> None:
    """Twenty reports of one table: the total that makes everything whole is another each time."""
    truth = [np.array([11, 14, 3, 22])], [np.array([31, 26, 28, 19])]
    totals = set()
    for _ in range(20):
        (told,) = protect_dp(*truth, epsilon=1.0)
        published = voxel_statistics(told.positives, told.negatives)
        found = smallest_total(published.density, published.positive_rate)
        totals.add(None if found is None else found.total)

    assert len(totals) > 5


# ---- margins of nested grids


def test_exact_margins_give_a_suppressed_voxel_away_and_ours_do_not() -> None:
    grids = nested(n_ages=2)
    counts = np.zeros((2, 3, 3), dtype=int)
    counts[:, :2, :2] = [[[12, 3], [20, 20]], [[20, 20], [20, 20]]]
    values, positive = patients_of(counts)
    voxels = voxels_of(grids, values)
    sums = [counts[:, :2, :2].sum(axis=2), counts[:, :2, :2].sum(axis=1)]
    exact = [Known(s.astype(float), s.astype(float), s.sum(axis=0).astype(float)) for s in sums]
    # All but one voxel of sex x age, as a report would say it that suppresses single voxels only.
    cells = counts[:, :2, :2].reshape(2, 4).astype(float)
    low, high = cells.copy(), cells.copy()
    low[:, 1], high[:, 1] = 0, np.inf
    exact.append(Known(low, high, np.zeros(4)))
    old_women = Group(POSITIVE, {2: 1})
    assert Reader(grids, exact, len(positive)).bounds(old_women) == (3, 3)

    protected, _ = protect_threshold(grids, voxels, positive, 5)

    assert protected[2].positives[1] == 2  # told as 0 to 4
    assert protected[2].reasons[1] == "positives told as 0 to 4"


# ---- differencing


def test_differencing_tells_nothing_of_the_one_patient_who_came() -> None:
    """The attack on figures rounded anew: one more positive turns 5 into 10, so there were 7."""
    before, after = ([7, 20, 20, 20], [20] * 4), ([8, 20, 20, 20], [20] * 4)
    assert by_threshold(*before).positives[0] == 5
    assert by_threshold(*after).positives[0] == 10

    told, figures = protect_threshold(BP, *in_voxels(*before), 5)
    told_again, _ = protect_threshold(BP, *in_voxels(*after), 5, earlier=figures)

    assert told_again[0].positives.tolist() == told[0].positives.tolist()


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
@settings(max_examples=15, deadline=None)
def test_small_steps_never_show_which_step_it_was(steps: list[int]) -> None:
    """A figure may move once k patients came since it was set, not at the step that rounds up."""
    figures: dict[str, Figures] = {}
    positives = set_at = 20
    shown = None
    for step in steps:
        positives += step
        (told,), figures = protect_threshold(
            BP, *in_voxels([positives, 30, 30, 30], [30] * 4), 5, earlier=figures
        )
        if shown is not None and told.positives[0] != shown:
            assert positives - set_at >= 5
        if figures["bp"].positives[0] == positives:
            set_at = positives
        shown = told.positives[0]


# ---- averaging


def test_rounds_repeated_give_one_report_and_nothing_to_average(tmp_path: Path) -> None:
    with sites(tmp_path, DP_TOML, north=patients("n")) as (site,):
        for i in range(5):
            preview(site)
            publish(site, steward(f"steward-{i}"))
        reports = {pb.Statement.FromString(s.statement).payload for s in queued(site)}

    assert len(reports) == 1


# ---- a dominant patient


def test_a_patient_with_many_rows_counts_once(tmp_path: Path) -> None:
    rows = patients("n")
    heavy = pd.concat([rows, *[rows.iloc[[0]]] * 300])
    with sites(tmp_path, DICTIONARY_TOML, north=rows, south=heavy) as (one, other):
        plain, many = (preview(site).release.message for site in (one, other))

    assert list(plain.grids) == list(many.grids)


@given(tables(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_patient_changes_all_counts_together_by_no_more_than_the_noise_is_made_for(
    counts: np.ndarray, data: st.DataObject
) -> None:
    grids = nested(n_ages=2)
    values, positive = patients_of(counts)
    if not len(positive):
        return
    gone = data.draw(st.integers(0, len(positive) - 1))
    stays = np.arange(len(positive)) != gone

    def flat(chosen: np.ndarray) -> np.ndarray:
        voxels = voxels_of(grids, {name: v[chosen] for name, v in values.items()})
        return np.concatenate(
            [
                np.bincount(column[(positive[chosen] == label) & (column >= 0)], minlength=9)
                for column in voxels.T
                for label in (True, False)
            ]
        )

    everybody = np.ones(len(positive), dtype=bool)
    assert np.abs(flat(everybody) - flat(stays)).sum() <= len(grids)
    assert dp_scale(len(grids), 1.0) >= len(grids)


# ---- unset thresholds, finer grids


@pytest.mark.parametrize(
    "key", ["disclosure", "epsilon", "epsilon_total", "min_count", "min_sites", "similarity"]
)
def test_a_dictionary_without_a_threshold_is_refused(key: str) -> None:
    lines = [line for line in DP_TOML.splitlines() if not line.startswith(f"{key} =")]

    with pytest.raises(DictionaryError, match=key):
        parse_dictionary("\n".join(lines))


def with_four_grids(toml: str) -> str:
    extra = "".join(f'[[grids]]\nname = "extra {i}"\nfeatures = ["sex"]\n\n' for i in range(2))
    return toml.replace("[policy]", extra + "[policy]")


def with_sixteen_voxels(toml: str) -> str:
    return toml.replace("cut_points = [80, 90, 100]", "cut_points = [75, 80, 85, 90, 95, 100, 110]")


@pytest.mark.parametrize("finer", [with_four_grids, with_sixteen_voxels])
def test_a_coordinator_cannot_ask_for_finer_grids_than_any_dictionary_has(
    finer: Callable[[str], str],
) -> None:
    with pytest.raises(DictionaryError, match="at most"):
        parse_dictionary(finer(DP_TOML))


# ---- telling two neighbouring tables apart


def distinguishing(n_runs: int, n_grids: int, epsilon: float) -> float:
    """The best guess at one patient who is in every grid; each voxel of the call is a run of its own."""
    base = 60

    def draw(is_there: bool) -> np.ndarray:
        positives = [np.full(n_runs, base + is_there) for _ in range(n_grids)]
        told = protect_dp(positives, [np.zeros(n_runs, dtype=np.int64)] * n_grids, epsilon)
        return np.column_stack([grid.positives for grid in told])

    def llr(reports: np.ndarray) -> np.ndarray:
        nearer = np.abs(reports - base) - np.abs(reports - base - 1)
        ratio: np.ndarray = nearer.sum(axis=1) / dp_scale(n_grids, epsilon)
        return ratio

    return epsilon_at_least(draw, llr)


def test_the_attack_would_see_noise_that_is_too_small() -> None:
    """Noise for one grid on a patient who is in three costs three times epsilon."""
    base, n_runs = 60, 5_000

    def draw(is_there: bool) -> np.ndarray:
        columns = [
            protect_dp([np.full(n_runs, base + is_there)], [np.zeros(n_runs, dtype=int)], 1.0)[0]
            for _ in range(3)
        ]
        return np.column_stack([told.positives for told in columns])

    def llr(reports: np.ndarray) -> np.ndarray:
        nearer: np.ndarray = (np.abs(reports - base) - np.abs(reports - base - 1)).sum(axis=1)
        return nearer

    assert epsilon_at_least(draw, llr) > 2.0


@pytest.mark.slow
@pytest.mark.parametrize(("n_grids", "epsilon"), [(1, 1.0), (3, 2.0)])
def test_no_guess_does_better_than_epsilon_allows(n_grids: int, epsilon: float) -> None:
    measured = distinguishing(40_000, n_grids, epsilon)

    # Above, it would disprove the promise; far below, the attack would be a poor one.
    assert 0.8 * epsilon < measured <= epsilon
