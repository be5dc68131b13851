from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalanced_patients import imbalanced_patients
from synthedge_core import ConditionalGenerator, Constraint
from synthedge_core.errors import RefusedError, UsageError

TABLE = imbalanced_patients()
GENERATOR = ConditionalGenerator().fit(TABLE, discrete_columns=["died"])


def test_several_conditions_hold_at_once_for_exactly_the_rows_asked_for() -> None:
    rows = GENERATOR.generate(75, {"sex": "F", "age": ("between", 50, 65), "died": 0}, seed=2)
    assert len(rows) == 75
    assert set(rows["sex"]) == {"F"}
    assert rows["age"].between(50, 65).all()
    assert (rows["died"] == 0).all()
    assert rows["_synthetic"].all()


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ((">", 60), lambda v: v > 60),
        (("<=", 45), lambda v: v <= 45),
        ("[40.0, 50.0)", lambda v: (v >= 40) & (v < 50)),
        ((40, 50), lambda v: (v >= 40) & (v <= 50)),
        (pd.Interval(40, 50, closed="left"), lambda v: (v >= 40) & (v < 50)),
        (55, lambda v: v == 55),
    ],
)
def test_every_way_to_write_a_range_holds(condition: Any, holds: Callable[[Any], Any]) -> None:
    rows = GENERATOR.generate(30, {"age": condition})
    assert len(rows) == 30
    assert holds(rows["age"]).all()


@pytest.mark.parametrize(
    "condition", [["north", "east"], ("in", ["north", "east"]), ("not_in", ["south"])]
)
def test_every_way_to_write_a_choice_holds(condition: Any) -> None:
    assert set(GENERATOR.generate(60, {"ward": condition})["ward"]) == {"north", "east"}


@settings(max_examples=25, deadline=None)
@given(low=st.integers(25, 80), width=st.integers(0, 40), n=st.integers(1, 60))
def test_a_range_inside_the_data_always_gives_the_exact_number(
    low: int, width: int, n: int
) -> None:
    try:
        rows = GENERATOR.generate(n, {"age": ("between", low, low + width)})
    except RefusedError as refused:
        assert "nearest possible" in str(refused) or "stopped as" in str(refused)  # noqa: PT017
        return
    assert len(rows) == n
    assert rows["age"].between(low, low + width).all()


def test_a_combination_that_no_patient_has_is_refused_with_the_nearest_possible() -> None:
    with pytest.raises(RefusedError) as refused:
        GENERATOR.generate(10, {"sex": "M", "pregnant": "y"})
    assert "sex = M and pregnant = y" in str(refused.value)
    assert "the nearest possible is sex = M and pregnant = n" in str(refused.value)


def test_a_range_beyond_the_data_is_refused_with_the_nearest_possible() -> None:
    with pytest.raises(RefusedError, match=r"age > 150.*nearest possible is age >= \d\d "):
        GENERATOR.generate(10, {"age": (">", 150)})


def test_a_level_that_never_occurs_is_refused_with_the_nearest() -> None:
    with pytest.raises(RefusedError, match="the nearest possible is ward = north"):
        GENERATOR.generate(10, {"ward": "norht"})


def test_the_nearest_possible_condition_can_be_met() -> None:
    with pytest.raises(RefusedError) as refused:
        GENERATOR.generate(10, {"age": ("between", 120, 130)})
    low, high = (
        str(refused.value).split("the nearest possible is age in [")[1].split("]")[0].split(",")
    )
    assert len(GENERATOR.generate(10, {"age": (float(low), float(high))})) == 10


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        ({"weight": 3}, "'weight', which is no column"),
        ({"patient_id": 3}, "takes no part"),
        ({"ward": (">", 3)}, "holds words"),
        ({"age": (">", "old")}, "no number"),
        ({"age": ("between", 60, 50)}, "leaves nothing"),
        ({"age": [50, 60]}, "give a range"),
        ({"age": ("about", 60)}, "cannot be read"),
        ({"age": 55.5}, "decimal places"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(conditions: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        GENERATOR.generate(5, conditions)


def test_constraints_hold_and_what_they_stop_is_counted() -> None:
    generator = ConditionalGenerator(
        constraints=[
            Constraint.inequality("diastolic", "systolic", strict=True),
            Constraint.fixed_combinations(["sex", "pregnant"]),
            Constraint.custom(lambda rows: (rows["age"] % 2 == 0).to_numpy(), "even age"),
        ]
    ).fit(TABLE)
    rows = generator.generate(80)
    assert (rows["age"] % 2 == 0).all()
    assert not ((rows["sex"] == "M") & (rows["pregnant"] == "y")).any()
    drawn = generator.last_drawn
    assert drawn.rejected["constraint"] > 0
    assert drawn.n_generated == 80 + sum(drawn.rejected.values())


def test_the_same_seed_gives_the_same_rows_in_any_order_of_calls() -> None:
    first = GENERATOR.generate(20, {"sex": "F"}, seed=7)
    GENERATOR.generate(20, {"sex": "M"}, seed=8)
    pd.testing.assert_frame_equal(first, GENERATOR.generate(20, {"sex": "F"}, seed=7))


def test_other_methods_meet_the_same_conditions() -> None:
    complete = TABLE.dropna()
    for method in ("gaussian", "smote-nc"):
        rows = ConditionalGenerator(method).fit(complete).generate(25, {"sex": "F"})
        assert len(rows) == 25
        assert set(rows["sex"]) == {"F"}
        assert set(rows["_origin"]) == {f"synthetic:{method}"}


@pytest.mark.slow
def test_ctgan_meets_conditions_too() -> None:
    pytest.importorskip("ctgan")
    generator = ConditionalGenerator("ctgan", method_settings={"steps": 30})
    rows = generator.fit(TABLE, ["died"]).generate(40, {"sex": "F", "age": (">", 50)})
    assert len(rows) == 40
    assert (rows["age"] > 50).all()


def test_generating_before_learning_is_refused() -> None:
    with pytest.raises(UsageError, match="call fit"):
        ConditionalGenerator().generate(5)


def test_generated_rows_follow_the_dependence_of_the_observed_ones() -> None:
    rows = GENERATOR.generate(400)
    real = TABLE["age"].corr(TABLE["systolic"])
    assert abs(rows["age"].corr(rows["systolic"]) - real) < 0.15
    assert np.isclose(rows["diastolic"].isna().mean(), TABLE["diastolic"].isna().mean(), atol=0.05)
