"""Received rows that are a patient the site already has: found when alike, not when merely of a kind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_data import clinical_data_dir
from synthedge_client.duplicates import Duplicates, find_duplicates, least_score, linkage_scores
from synthedge_client.outbound import coarsen
from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_deploy import uci
from synthedge_deploy.uci import uci_hospitals

HEART = parse_dictionary(public_dictionary(uci.DICTIONARY))


def people(n: int, seed: int) -> np.ndarray:
    """Made-up patients with every feature of the heart dictionary."""
    rng = np.random.default_rng(seed)
    columns = []
    for feature in HEART.features:
        if feature.has_levels:
            columns.append(rng.integers(0, feature.n_levels, n).astype(float))
        else:
            low, high = feature.plausible or (0.0, 1.0)
            column = rng.normal(feature.center or 0.0, feature.scale or 1.0, n)
            columns.append(np.clip(column, low, high))
    return coarsen(np.column_stack(columns), HEART)


def measured_again(rows: np.ndarray, error: float, seed: int) -> np.ndarray:
    """The same patients another day: an error in shares of each scale, 3 % of levels coded otherwise."""
    rng = np.random.default_rng(seed)
    again = rows.copy()
    for i, feature in enumerate(HEART.features):
        if feature.has_levels:
            recoded = rng.random(len(rows)) < 0.03
            again[recoded, i] = rng.integers(0, feature.n_levels, int(recoded.sum()))
        else:
            again[:, i] += rng.normal(0, error * (feature.scale or 1.0), len(rows))
    return coarsen(again, HEART)


OWN = people(300, 1)


def find(samples: np.ndarray, own: np.ndarray = OWN, dictionary: Dictionary = HEART) -> Duplicates:
    return find_duplicates(samples, own, dictionary, dictionary.feature_names)


def test_own_patients_that_come_back_are_found_exactly() -> None:
    found = find(OWN[:20])
    assert found.exact.all()
    assert not found.near.any()
    assert found.in_words() == (
        "20 of 20 rows are patients this site already has (20 the same, 0 nearly the same)"
    )


def test_own_patients_measured_again_are_found_and_strangers_are_not() -> None:
    assert find(measured_again(OWN[:100], 0.05, 2)).near.mean() > 0.8
    assert not find(people(300, 3)).any.any()


def test_a_row_that_comes_twice_in_a_delivery_is_found_once() -> None:
    stranger = people(1, 4)
    assert find(np.vstack([stranger, stranger])).exact.tolist() == [False, True]


def test_few_features_in_common_are_no_proof() -> None:
    samples = OWN[:1].copy()
    samples[:, 2:] = np.nan
    assert not find(samples).any.any()


def test_features_that_were_not_asked_for_or_not_measured_are_not_compared() -> None:
    samples = OWN[:5].copy()
    samples[:, HEART.index("chol")] += 500
    names = [name for name in HEART.feature_names if name != "chol"]
    assert find_duplicates(samples, OWN, HEART, names).exact.all()


def test_what_was_rounded_before_it_left_is_recognised() -> None:
    own = OWN.copy()
    own[:, HEART.index("thalach")] += 0.3
    assert find(OWN[:10], own).exact.all()


def test_a_site_without_rows_has_no_duplicates() -> None:
    assert not find(OWN[:3], OWN[:0]).any.any()


def test_more_own_rows_ask_for_more_agreement() -> None:
    assert least_score(300) == pytest.approx(np.log2(300) + 3)
    assert least_score(3000) > least_score(300)


@given(st.integers(0, 2**31), st.integers(0, len(HEART.features) - 1))
@settings(max_examples=20, deadline=None)
def test_a_missing_feature_says_nothing_for_or_against(seed: int, i: int) -> None:
    sample = people(1, seed)[0]
    sample[i] = np.nan
    own = OWN.copy()
    own[:, i] = np.nan
    filled = people(1, seed)[0]
    assert linkage_scores(sample, OWN, HEART) == pytest.approx(linkage_scores(filled, own, HEART))


def test_clean_deliveries_between_real_hospitals_hold_next_to_no_duplicates() -> None:
    hospitals = uci_hospitals(clinical_data_dir(), 0)
    rng, n_rows, n_found = np.random.default_rng(0), 0, 0
    for recipient in hospitals:
        for donor in hospitals:
            if donor is not recipient:
                chosen = rng.permutation(np.flatnonzero(donor.samples.positive))[:20]
                rows = coarsen(donor.samples.values[chosen], HEART)
                n_found += int(find(rows, recipient.samples.values).any.sum())
                n_rows += len(rows)
    assert n_rows == 240
    assert n_found <= 2
