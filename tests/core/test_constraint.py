from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from imbalanced_patients import imbalanced_patients
from synthedge_core import ConditionalGenerator, Constraint
from synthedge_core.errors import UsageError
from synthedge_core.rebalance_table import PreparedTable

TABLE = imbalanced_patients(200)


def _keeps(constraint: Constraint | str) -> npt.NDArray[np.bool_]:
    prepared = PreparedTable.of(TABLE, constraints=[constraint])
    kept = np.ones(len(TABLE), dtype=bool)
    for rule in prepared.rules:
        kept &= rule.holds(prepared.values)
    return kept


def test_every_kind_says_of_real_rows_what_pandas_says() -> None:
    age, low, high = TABLE["age"], TABLE["diastolic"], TABLE["systolic"]
    assert (_keeps(Constraint.positive("age")) == (age > 0)).all()
    assert (_keeps(Constraint.range("age", 40, 60)) == age.between(40, 60)).all()
    assert (_keeps(Constraint.range("age", high=60)) == (age <= 60)).all()
    assert (
        _keeps(Constraint.inequality("systolic", "diastolic")) == ((high <= low) | low.isna())
    ).all()
    assert _keeps(Constraint.fixed_combinations(["sex", "pregnant"])).all()
    assert (_keeps(Constraint.custom(lambda t: (t["age"] > 50).to_numpy())) == (age > 50)).all()


@pytest.mark.parametrize(
    ("text", "low_in", "high_in"),
    [
        ("age in [40,60]", True, True),
        ("age in (40, 60)", False, False),
        ("age in [40,60)", True, False),
    ],
)
def test_intervals_are_read_with_their_ends(text: str, low_in: bool, high_in: bool) -> None:
    age = TABLE["age"]
    above = age >= 40 if low_in else age > 40
    below = age <= 60 if high_in else age < 60
    assert (_keeps(text) == (above & below)).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Constraint.range("age"), "has no end"),
        (lambda: Constraint.range("age", 60, 40), "is empty"),
        (lambda: Constraint.fixed_combinations(["sex"]), "at least two"),
        (lambda: Constraint.parse("age in [old,60]"), "cannot be read"),
        (lambda: Constraint.parse("age in [60,40]"), "leaves nothing"),
        (lambda: _keeps("weight > 3"), "no analysed column"),
        (lambda: _keeps("ward > 3"), "holds words"),
        (lambda: _keeps(Constraint.custom(lambda t: True, "odd one")), "one boolean for each"),
    ],
)
def test_rules_that_cannot_be_checked_are_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make()


def test_a_generator_refuses_a_rule_that_does_not_fit_when_it_learns() -> None:
    with pytest.raises(UsageError, match="no analysed column"):
        ConditionalGenerator(constraints=[Constraint.positive("weight")]).fit(TABLE)
