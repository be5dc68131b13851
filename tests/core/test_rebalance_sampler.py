from typing import Any

import numpy as np
import pandas as pd
import pytest
from imblearn.pipeline import make_pipeline
from imblearn.utils.estimator_checks import parametrize_with_checks
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import (
    parametrize_with_checks as parametrize_with_sklearn_checks,
)

from synthedge_core import CopulaOverSampler


def _listed(mark: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Both libraries hand pytest a generator, which it is about to refuse."""
    names, values = mark.args
    return pytest.mark.parametrize(names, list(values), **mark.kwargs)


@_listed(parametrize_with_checks([CopulaOverSampler(random_state=0)]))
def test_it_keeps_the_conventions_of_imbalanced_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@_listed(parametrize_with_sklearn_checks([CopulaOverSampler(random_state=0)]))
def test_it_keeps_the_conventions_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def _patients(n: int = 200) -> tuple[pd.DataFrame, "pd.Series[int]"]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.integers(30, 80, n),
            "bp": rng.normal(90, 10, n),
            "sex": rng.choice(["F", "M"], n),
        }
    )
    table.loc[::9, "bp"] = np.nan
    died = pd.Series((rng.random(n) < 0.2).astype(int), name="died")
    return table, died


def test_it_works_inside_a_pipeline_under_cross_validation() -> None:
    table, died = _patients()
    model = make_pipeline(
        CopulaOverSampler(random_state=0), RandomForestClassifier(20, random_state=0)
    )
    scores = cross_val_score(model, table[["age", "bp"]].fillna(0), died, cv=3, error_score="raise")
    assert len(scores) == 3


def test_text_and_missing_values_come_out_in_their_own_types() -> None:
    table, died = _patients()
    rows, labels = CopulaOverSampler(random_state=0).fit_resample(table, died)
    assert labels.value_counts().nunique() == 1
    assert (rows.dtypes == table.dtypes).all()
    assert set(rows["sex"]) == {"F", "M"}
    assert rows["bp"].iloc[len(table) :].isna().any()
    pd.testing.assert_frame_equal(rows.iloc[: len(table)], table)


def test_the_same_state_gives_the_same_rows() -> None:
    table, died = _patients()
    first, second = (
        CopulaOverSampler(random_state=3).fit_resample(table, died)[0] for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("given", [[0], ["age"], [True, False, False]])
def test_codes_can_be_named_by_position_name_or_mask(given: Any) -> None:
    table, died = _patients()
    sampler = CopulaOverSampler(categorical_features=given, random_state=0)
    rows, _ = sampler.fit_resample(table, died)
    assert 0 in sampler.categorical_features_
    assert set(rows["age"]) <= set(table["age"])
