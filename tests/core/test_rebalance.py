import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalanced_patients import imbalanced_patients
from synthedge_core import Constraint, augment_imbalanced
from synthedge_core.errors import RefusedError, TableError, UsageError
from synthedge_core.labels import read_labels
from synthedge_core.rebalance import OverAugmentationWarning
from synthedge_core.rebalance_mix import DroppedMinorityWarning
from synthedge_core.rebalance_plan import plan_classes
from synthedge_core.rebalance_quality import ClassQuality, over_augmentation

TABLE = imbalanced_patients()
N_DIED = int(TABLE["died"].sum())
N_ALIVE = len(TABLE) - N_DIED


@pytest.fixture(autouse=True)
def _over_augmentation_is_no_failure_here() -> None:
    warnings.simplefilter("ignore", OverAugmentationWarning)


def _counts(table: pd.DataFrame, column: str = "died") -> dict[object, int]:
    return table[column].value_counts().to_dict()


def test_an_oversampling_keeps_every_row_and_reaches_the_ratio_exactly() -> None:
    out = augment_imbalanced(TABLE, "died", ratio=0.5, seed=1, measure=False)
    assert _counts(out) == {0: N_ALIVE, 1: -(-N_ALIVE // 2)}
    kept = out[out["_origin"] == "observed"].drop(columns=["_origin", "_synthetic"])
    pd.testing.assert_frame_equal(kept, TABLE, check_dtype=False)


def test_new_rows_are_marked_and_leave_the_identifier_missing() -> None:
    out = augment_imbalanced(TABLE, "died", ratio=0.5, measure=False)
    new = out[out["_synthetic"]]
    assert (new["_origin"] == "synthetic:copula").all()
    assert (out["_synthetic"] == (out["_origin"] != "observed")).all()
    assert new["patient_id"].isna().all()
    others = TABLE.columns.drop("patient_id")
    assert (out.dtypes[others] == TABLE.dtypes[others]).all()


def test_an_undersampling_only_leaves_rows_out() -> None:
    out = augment_imbalanced(TABLE, "died", "undersample", ratio=0.5)
    assert _counts(out) == {0: 2 * N_DIED, 1: N_DIED}
    assert not out["_synthetic"].any()


def test_a_hybrid_keeps_the_number_of_rows() -> None:
    out = augment_imbalanced(TABLE, "died", "hybrid", sampling_ratio=0.5, measure=False)
    counts = _counts(out)
    assert abs(len(out) - len(TABLE)) <= 1
    assert counts[1] >= counts[0] / 2 > counts[1] - 1


def test_several_classes_reach_their_own_numbers() -> None:
    out = augment_imbalanced(
        TABLE.drop(columns="died"),
        "ward",
        "hybrid",
        target_counts={"north": 100, "east": 120},
        measure=False,
    )
    n_south = int((TABLE["ward"] == "south").sum())
    assert _counts(out, "ward") == {"north": 100, "east": 120, "south": n_south}


@settings(max_examples=200)
@given(
    counts=st.lists(st.integers(5, 5000), min_size=2, max_size=5),
    strategy=st.sampled_from(["oversample", "undersample", "hybrid"]),
    ratio=st.floats(0.05, 1.0),
)
def test_a_plan_never_does_what_its_strategy_rules_out(
    counts: list[int], strategy: str, ratio: float
) -> None:
    levels = [f"class {i}" for i in range(len(counts))]
    labels = read_labels(pd.DataFrame({"y": levels * 2}), "y")
    plan = plan_classes(
        labels,
        dict(zip(levels, counts, strict=True)),
        strategy=strategy,
        ratio=ratio,
        sampling_ratio=None,
        target_counts=None,
    )
    sizes = [c.n_wanted for c in plan.classes]
    assert min(sizes) >= ratio * max(sizes) * (1 - 1e-6)
    for one in plan.classes:
        assert one.n_kept + one.n_dropped == one.n_observed
        assert one.n_kept + one.n_new == one.n_wanted
        assert not (strategy == "oversample" and one.n_dropped)
        assert not (strategy == "undersample" and one.n_new)


def test_the_report_accounts_for_every_candidate() -> None:
    _, report = augment_imbalanced(
        TABLE, "died", ratio=0.6, constraints=["age in [0,120]"], return_report=True
    )
    assert report.n_accepted == -(-6 * N_ALIVE // 10) - N_DIED
    assert report.n_generated == report.n_accepted + sum(report.rejected.values())
    assert report.quality_score is not None
    assert 0 <= report.quality_score <= 1
    assert report.observed_breaking == {"age >= 0": 0, "age <= 120": 0}
    assert report.probe is not None


def test_candidates_that_break_a_constraint_are_counted_and_none_gets_through() -> None:
    out, report = augment_imbalanced(
        TABLE,
        "died",
        ratio=0.6,
        constraints=[Constraint.range("age", high=75), "diastolic < systolic"],
        return_report=True,
    )
    new = out[out["_synthetic"]]
    assert new["age"].max() <= 75
    assert report.rejected["constraint"] > 0
    assert report.observed_breaking["age <= 75"] == int((TABLE["age"] > 75).sum())


def test_rows_below_the_quality_threshold_are_rejected() -> None:
    _, free = augment_imbalanced(TABLE, "died", ratio=0.6, return_report=True)
    _, strict = augment_imbalanced(
        TABLE, "died", ratio=0.6, quality_threshold=0.9, return_report=True
    )
    assert free.rejected["quality"] == 0
    assert strict.rejected["quality"] > 0
    assert strict.n_accepted == free.n_accepted


def test_a_number_out_of_reach_is_an_error_and_never_fewer_rows() -> None:
    codes = pd.DataFrame({"a": [0, 1] * 40, "y": ["no"] * 70 + ["yes"] * 10})
    codes["b"] = (codes.index % 3 == 0).astype(int)
    nothing_left = Constraint.custom(lambda rows: rows["a"].isna().to_numpy(), "a is missing")
    with pytest.raises(RefusedError, match=r"0 of 60 rows .* stopped as 'constraint'"):
        augment_imbalanced(codes, "y", constraints=[nothing_left])


def test_a_class_too_small_to_learn_from_is_refused() -> None:
    table = TABLE.assign(died=np.where(TABLE.index < 3, 1, 0))
    with pytest.raises(RefusedError, match="class 1 of 'died' has 3 observed rows"):
        augment_imbalanced(table, "died")


def test_a_dry_run_says_what_would_happen_and_does_nothing() -> None:
    plan = augment_imbalanced(TABLE, "died", dry_run=True)
    died = next(c for c in plan.classes if c.level == 1)
    assert (died.n_observed, died.n_new, died.n_wanted) == (N_DIED, N_ALIVE - N_DIED, N_ALIVE)
    assert f"{died.n_new / N_DIED:.1f} generated rows for each observed one" in str(plan)
    assert list(plan.to_frame()["afterwards"]) == [N_ALIVE, N_ALIVE]


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    first, again, other = (
        augment_imbalanced(TABLE, "died", ratio=0.5, seed=s, measure=False) for s in (4, 4, 5)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


def test_rows_without_a_label_stay_as_they_are() -> None:
    table = TABLE.astype({"died": "Int64"})
    table.loc[[0, 7], "died"] = pd.NA
    out = augment_imbalanced(table, "died", ratio=0.5, measure=False)
    assert out["died"].isna().sum() == 2
    assert list(out["patient_id"].iloc[[0, 7]]) == list(table["patient_id"].iloc[[0, 7]])


def test_no_new_row_is_the_copy_of_a_patient() -> None:
    out = augment_imbalanced(TABLE, "died", ratio=1.0, measure=False)
    columns = ["sex", "pregnant", "age", "systolic", "diastolic", "ward", "died"]
    real = set(map(tuple, TABLE[columns].astype(str).to_numpy()))
    new = map(tuple, out.loc[out["_synthetic"], columns].astype(str).to_numpy())
    assert not real & set(new)


def test_classes_and_other_columns_reach_their_shares_together() -> None:
    marginals = {"sex": [("F", 0.5), ("M", 0.5)]}
    for strategy in ("oversample", "undersample", "hybrid"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DroppedMinorityWarning)
            out = augment_imbalanced(
                TABLE, "died", strategy, ratio=0.5, explicit_marginals=marginals, measure=False
            )
        sexes, classes = _counts(out, "sex"), _counts(out)
        assert abs(sexes["F"] - sexes["M"]) <= 1
        assert classes[1] == pytest.approx(classes[0] / 2, abs=2)
        n_observed = int((out["_origin"] == "observed").sum())
        assert (n_observed == len(TABLE)) == (strategy == "oversample")
        assert out["_synthetic"].any() == (strategy != "undersample")


def test_a_hybrid_that_leaves_out_minority_rows_says_so() -> None:
    marginals = {"ward": {"north": 0.1, "south": 0.1, "east": 0.8}}
    with pytest.warns(DroppedMinorityWarning, match=r"more frequent are left out .* kept\)"):
        augment_imbalanced(
            TABLE,
            "died",
            "hybrid",
            target_counts={0: 60, 1: 60},
            explicit_marginals=marginals,
            measure=False,
        )


def test_warnings_name_what_was_measured() -> None:
    bad = ClassQuality(
        margins=0.5, correlations=0.5, indistinguishable=0.2, forest_auc=0.9, n_compared=50
    )
    text = over_augmentation("1", 50, 100, bad)
    assert text is not None
    assert "2.0 generated rows for each of 50" in text
    assert "AUC of 0.90" in text
    assert over_augmentation("1", 50, 40, bad) is None
    assert "too few to measure" in (over_augmentation("1", 5, 43, None) or "")
    assert "20.0 generated rows" in (over_augmentation("1", 50, 1000, None) or "")


def test_filling_a_class_far_beyond_its_rows_warns() -> None:
    few = TABLE[(TABLE["died"] == 0) | (TABLE.groupby("died").cumcount() < 12)]
    with pytest.warns(OverAugmentationWarning, match="generated rows for each of 12 observed"):
        augment_imbalanced(few, "died")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"strategy": "smote"}, "no strategy 'smote'"),
        ({"ratio": 1.5}, "the ratio is 1.5"),
        ({"ratio": 0.5, "sampling_ratio": 0.6}, "the same thing"),
        ({"ratio": 0.5, "target_counts": {1: 100}}, "contradict"),
        ({"target_counts": {1: 3}}, "leaves nothing out"),
        ({"target_counts": {2: 3}}, "class 2"),
        ({"strategy": "undersample", "target_counts": {1: 300}}, "generates nothing"),
        ({"engine": "magic"}, "no fill engine 'magic'"),
        ({"quality_threshold": 2}, "quality threshold is 2"),
        ({"seed": -1}, "the seed is -1"),
        ({"constraints": [3]}, "expected text"),
        ({"explicit_marginals": {"died": {0: 1.0}}}, "a marginal and a strategy"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        augment_imbalanced(TABLE, "died", **arguments)


def test_a_table_rebalanced_before_is_refused() -> None:
    once = augment_imbalanced(TABLE, "died", "undersample")
    with pytest.raises(TableError, match="rebalanced or filled before"):
        augment_imbalanced(once, "died", ratio=0.5)
