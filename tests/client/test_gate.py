"""The recipient's gate: what it takes and what it refuses, in words without values."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from small_dictionary import SMALL_DICTIONARY
from synthedge_client.gate import GateResult, check_delivery, ks_distance
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.grids import NamedGrid

DICTIONARY = parse_dictionary(SMALL_DICTIONARY)  # sex, age, bp, stage
GRID = NamedGrid(DICTIONARY, DICTIONARY.grid("sex x age"))
VOXEL = GRID.flat_of((1, 2))  # male, 60 to 69
FEATURES = ("sex", "age", "bp", "stage")


def rows(seed: int, n: int = 60) -> np.ndarray:
    """Men of 60 to 69."""
    generator = np.random.default_rng(seed)
    return np.column_stack(
        [
            np.ones(n),
            generator.integers(60, 70, n),
            generator.normal(95, 12, n).round(1),
            generator.integers(0, 3, n),
        ]
    )


OWN = np.vstack([rows(1), rows(2) * [0, 1, 1, 1]])
POSITIVE = np.arange(len(OWN)) % 3 == 0


def check(samples: np.ndarray, features: tuple[str, ...] = FEATURES) -> GateResult:
    return check_delivery(samples, OWN, POSITIVE, DICTIONARY, features, GRID, VOXEL)


def test_clean_samples_are_taken_and_the_checks_named() -> None:
    result = check(rows(3, 20))

    assert result == GateResult(
        True, "schema, region and duplicates checked; 2 features compared with own rows"
    )


def test_a_handful_of_samples_is_taken_though_it_cannot_be_compared() -> None:
    assert "0 features compared" in check(rows(3, 5)).reason


def test_missing_values_are_no_reason_to_refuse() -> None:
    samples = rows(3, 20)
    samples[:, 3] = np.nan

    assert check(samples).accepted


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (2, 12.7, "'bp' lies outside its plausible range"),
        (2, 201.0, "'bp' lies outside its plausible range"),
        (3, 3.0, "'stage' holds levels the dictionary does not have"),
        (3, 0.5, "'stage' holds levels the dictionary does not have"),
        (0, 0.0, "1 of 20 rows lie outside the requested region"),
        (1, 59.0, "1 of 20 rows lie outside the requested region"),
        (1, np.nan, "1 of 20 rows lie outside the requested region"),
    ],
)
def test_one_row_that_does_not_fit_refuses_the_delivery(
    column: int, value: float, reason: str
) -> None:
    samples = rows(3, 20)
    samples[0, column] = value

    assert check(samples) == GateResult(False, reason)


def test_another_unit_within_the_plausible_range_is_refused() -> None:
    samples = rows(3, 20)
    samples[:, 2] = samples[:, 2] * 0.4

    result = check(samples)

    assert not result.accepted
    assert "'bp' differs from own rows of the region and from own positives (KS 1.00" in (
        result.reason
    )


def test_a_feature_nobody_agreed_on_is_refused() -> None:
    assert check(rows(3, 20), ("sex", "age", "bp")).reason == (
        "features arrived that were not agreed on"
    )


def test_repeated_rows_are_refused() -> None:
    samples = rows(3, 20)
    samples[15:] = samples[:5]

    assert check(samples) == GateResult(False, "5 of 20 rows are duplicates")


def test_own_rows_that_come_back_are_refused() -> None:
    samples = np.vstack([rows(3, 15), OWN[:5]])

    assert check(samples) == GateResult(False, "5 of 20 rows are duplicates")


@pytest.mark.parametrize(("n", "m"), [(8, 8), (8, 300), (61, 20)])
@pytest.mark.parametrize("decimals", [0, 9])
def test_the_distance_is_that_of_scipy(n: int, m: int, decimals: int) -> None:
    generator = np.random.default_rng(n * m)
    one = generator.normal(0, 2, n).round(decimals)
    other = generator.normal(1, 3, m).round(decimals)
    theirs = ks_2samp(one, other, method="asymp").statistic
    assert ks_distance(one, other) == pytest.approx(theirs)
    assert ks_distance(other, one) == pytest.approx(theirs)
    assert ks_distance(one, one) == 0
    assert ks_distance(one, one + 100) == 1
