"""Measures are what they say, rivals are treated alike, and the known figures come out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from synthedge_deploy.cohorts import Cohort
from synthedge_deploy.comparison import (
    BEFORE,
    DUPLICATES,
    POOLED,
    RANDOM_POSITIVES,
    TRANSFER,
    TRANSFER_AND_FILL,
    compare,
    mean_and_spread,
    training_sets,
)
from synthedge_deploy.diabetes import diabetes_cohort
from synthedge_deploy.evaluate import MODELS, recall_at_false_positive_rate
from synthedge_deploy.samples import Samples, join
from synthedge_deploy.simulate import simulate

SCORES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1).map(lambda x: round(x, 1)))


def oracle_rows(cohort: Cohort, seed: int, n_rows: int = 20) -> Samples:
    """Consented positives of the true subgroup: what a perfect diagnosis would fetch."""
    givable = join(
        [
            h.samples.rows(
                h.samples.positive
                & h.has_consent
                & cohort.subgroup.contains(h.samples.values, cohort.dictionary)
            )
            for h in cohort.donors
        ]
    )
    return givable.rows(np.random.default_rng(seed).choice(len(givable), n_rows, replace=False))


def test_recall_is_read_at_the_wanted_false_positive_rate() -> None:
    negatives = np.array([0.9, 0.5, 0.4, 0.3, 0.2])

    # One of five negatives lies above 0.5: positives above it are found without another.
    assert recall_at_false_positive_rate(np.array([0.95, 0.6, 0.1]), negatives) == pytest.approx(
        2 / 3
    )


def test_between_two_thresholds_a_coin_decides() -> None:
    # Everything ties: the classifier that calls one in five positive finds one in five.
    assert recall_at_false_positive_rate(np.ones(7), np.ones(11)) == pytest.approx(0.2)


@given(SCORES, SCORES)
def test_recall_depends_on_the_order_of_scores_alone(
    positives: np.ndarray, negatives: np.ndarray
) -> None:
    recall = recall_at_false_positive_rate(positives, negatives)

    assert 0 <= recall <= 1
    assert recall_at_false_positive_rate(3 * positives + 1, 3 * negatives + 1) == pytest.approx(
        recall
    )


@given(SCORES, SCORES, st.floats(0, 1), st.floats(0, 1))
def test_recall_never_falls_as_more_false_positives_are_allowed(
    positives: np.ndarray, negatives: np.ndarray, one: float, other: float
) -> None:
    low, high = sorted([one, other])

    assert recall_at_false_positive_rate(positives, negatives, low) <= (
        recall_at_false_positive_rate(positives, negatives, high) + 1e-12
    )


def test_rivals_add_as_many_rows_as_the_transfer() -> None:
    cohort = diabetes_cohort(0)
    received = oracle_rows(cohort, 0)
    sets = training_sets(cohort, received, received, seed=0)
    n_own = len(cohort.recipient.samples)

    assert len(sets[BEFORE]) == n_own
    for name in (DUPLICATES, RANDOM_POSITIVES, TRANSFER):
        assert len(sets[name]) == n_own + 20
        assert sets[name].positive[n_own:].all()
    assert len(sets[TRANSFER_AND_FILL]) == n_own + 40
    assert len(sets[POOLED]) == 442 - len(cohort.held_out) - len(cohort.carved)


def test_twenty_rows_of_the_right_region_recover_most_of_what_pooling_gives() -> None:
    runs = []
    for seed in range(10):
        cohort = diabetes_cohort(seed)
        runs.append(compare(cohort, oracle_rows(cohort, seed), None, seed))

    for model in MODELS:
        before, duplicates, random_rows, transfer, pooled = (
            mean_and_spread(runs, name, model, "subgroup_recall")[0]
            for name in (BEFORE, DUPLICATES, RANDOM_POSITIVES, TRANSFER, POOLED)
        )
        assert transfer - before > 0.3
        assert (transfer - before) / (pooled - before) > 0.7
        assert abs(duplicates - before) < 0.1
        assert random_rows < transfer


def test_the_blind_path_finds_the_carved_region_and_moves_consented_rows() -> None:
    cohort = diabetes_cohort(7)
    # Threshold mode: the noise of dp comes from the operating system, and a test must not toss coins.
    text = cohort.dictionary_text.replace('disclosure = "dp"', 'disclosure = "threshold"')

    run = simulate(replace(cohort, dictionary_text=text), 7)

    assert run.region == "bp at least 100 mm[Hg]"
    assert sum(run.transfers.values()) == 20
    assert cohort.carved_site not in run.transfers
    assert list(run.comparison) == [
        BEFORE,
        DUPLICATES,
        RANDOM_POSITIVES,
        TRANSFER,
        TRANSFER_AND_FILL,
        POOLED,
    ]
    for model in MODELS:
        gain = (
            run.comparison[TRANSFER][model].subgroup_recall
            - run.comparison[BEFORE][model].subgroup_recall
        )
        assert gain > 0


def test_spread_of_one_run_is_zero() -> None:
    run = simulate(diabetes_cohort(0), 0).comparison

    assert mean_and_spread([run], POOLED, MODELS[0], "auprc") == (
        run[POOLED][MODELS[0]].auprc,
        0.0,
    )
