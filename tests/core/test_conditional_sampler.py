from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalanced_patients import imbalanced_patients
from synthedge_core import ConditionalGenerator, ConditionalSampler, alter_distributions
from synthedge_core.errors import RefusedError, TableError, UsageError
from synthedge_core.marginals import largest_remainder
from synthedge_core.rebalance_mix import DroppedMinorityWarning

TABLE = imbalanced_patients()
SAMPLER = ConditionalSampler(ConditionalGenerator().fit(TABLE, discrete_columns=["died"]))


def test_lists_and_dictionaries_say_the_same() -> None:
    listed = SAMPLER.sample(90, {"sex": [("F", 0.5), ("M", 0.5)]})
    mapped = SAMPLER.sample(90, {"sex": {"F": 0.5, "M": 0.5}})
    pd.testing.assert_frame_equal(listed, mapped)
    assert listed["sex"].value_counts().to_dict() == {"F": 45, "M": 45}


def test_bins_of_a_measured_column_get_their_shares() -> None:
    rows = SAMPLER.sample(200, {"age": [("[20.0, 50.0)", 0.5), ("[50.0, 100.0)", 0.5)]})
    assert (rows["age"] < 50).sum() == 100


def test_several_marginals_are_exact_at_once() -> None:
    rows = SAMPLER.sample(
        203,
        {
            "sex": {"F": 0.6, "M": 0.4},
            "age": {"[0, 55)": 0.25, "[55, 120)": 0.75},
            "died": {0: 0.5, 1: 0.5},
        },
    )
    assert len(rows) == 203
    assert (rows["sex"] == "F").sum() == 122
    assert (rows["age"] < 55).sum() == 51
    assert (rows["died"] == 0).sum() in (101, 102)


def test_labels_given_as_text_name_numbers() -> None:
    rows = SAMPLER.sample(100, {"died": [("0", 0.3), ("1", 0.7)]})
    assert (rows["died"] == 1).sum() == 70


@pytest.mark.parametrize(
    ("marginals", "text"),
    [
        ({"sex": {"F": 0.5, "M": 0.4}}, "sum to 0.9, expected 1"),
        ({"sex": {"F": 1.5, "M": -0.5}}, "outside 0 to 1"),
        ({"age": {"[0, 50]": 0.5, "[50, 99]": 0.5}}, "overlap"),
        ({"sex": [("F", 0.5), ("F", 0.5)]}, "overlap"),
        ({"age": {55: 1.0}}, "needs bins"),
        ({"sex": [0.5, 0.5]}, "cannot be read"),
        ({}, "no marginal"),
        ({"weight": {1: 1.0}}, "no column"),
    ],
)
def test_marginals_that_make_no_sense_are_refused(marginals: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        SAMPLER.sample(50, marginals)


def test_a_bin_that_nobody_is_in_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"age in \[130, 140\).*observed is age mostly in"):
        SAMPLER.sample(50, {"age": {"[0, 130)": 0.5, "[130, 140)": 0.5}})


def test_marginals_that_contradict_the_observed_combinations_are_refused() -> None:
    with pytest.raises(RefusedError, match="cannot hold together"):
        SAMPLER.sample(50, {"sex": {"F": 0.2, "M": 0.8}, "pregnant": {"y": 0.7, "n": 0.3}})


@settings(max_examples=100)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(1, 5000))
def test_whole_numbers_keep_the_total_and_stay_within_one(weights: list[int], total: int) -> None:
    shares = np.array(weights) / sum(weights)
    whole = largest_remainder(shares, total)
    assert whole.sum() == total
    assert (np.abs(whole - shares * total) < 1 + 1e-6).all()


@settings(max_examples=15, deadline=None)
@given(p=st.floats(0.2, 0.8), q=st.floats(0.2, 0.8), n=st.integers(20, 150))
def test_any_two_marginals_are_met_to_the_row(p: float, q: float, n: int) -> None:
    rows = SAMPLER.sample(n, {"sex": {"F": p, "M": 1 - p}, "died": {1: q, 0: 1 - q}})
    assert len(rows) == n
    assert abs((rows["sex"] == "F").sum() - p * n) < 1
    assert abs((rows["died"] == 1).sum() - q * n) < 1


def test_altering_uses_observed_rows_first_and_generates_the_rest() -> None:
    out, report = alter_distributions(TABLE, 500, {"sex": {"F": 0.5, "M": 0.5}}, return_report=True)
    n_f, n_m = (int((TABLE["sex"] == s).sum()) for s in "FM")
    assert out["sex"].value_counts().to_dict() == {"F": 250, "M": 250}
    observed = out[out["_origin"] == "observed"]
    assert observed["sex"].value_counts().to_dict() == {"F": n_f, "M": min(250, n_m)}
    assert report.n_accepted == 250 - n_f
    assert report.n_dropped_minority == 0
    assert set(observed["patient_id"]) <= set(TABLE["patient_id"])


def test_minority_rows_are_never_left_out_silently() -> None:
    marginals = {"sex": {"F": 0.5, "M": 0.5}}
    with pytest.warns(DroppedMinorityWarning, match=r"sex = F, 30 of \d+ kept") as caught:
        out = alter_distributions(TABLE, 60, marginals)
    assert len(out) == 60
    needed = int(str(caught[0].message).split("; ")[-1].split(" ")[0])
    kept, report = alter_distributions(TABLE, needed, marginals, return_report=True)
    assert report.n_dropped_minority == 0
    assert (kept["_origin"].eq("observed") & kept["sex"].eq("F")).sum() == (
        TABLE["sex"].eq("F").sum()
    )


def test_the_sampler_alters_the_table_it_learned_and_others_like_it() -> None:
    for table in (TABLE, TABLE.iloc[:300]):
        out = SAMPLER.alter_distributions(table, 600, {"died": {0: 0.5, 1: 0.5}})
        assert out["died"].value_counts().to_dict() == {0: 300, 1: 300}
    with pytest.raises(TableError, match="not those the generator learned"):
        SAMPLER.alter_distributions(TABLE.drop(columns="ward"), 100, {"died": {0: 1.0}})


def test_rows_outside_every_value_are_counted() -> None:
    _, report = alter_distributions(
        TABLE, 300, {"ward": {"north": 0.5, "south": 0.5}}, return_report=True
    )
    assert report.n_outside == (TABLE["ward"] == "east").sum()


def test_rows_left_out_for_a_missing_value_are_told() -> None:
    bins = {"diastolic": {"[0, 75)": 0.5, "[75, 300)": 0.5}}
    n_missing = int(TABLE["diastolic"].isna().sum())
    with pytest.warns(DroppedMinorityWarning, match=f"{n_missing} observed rows .* no value"):
        alter_distributions(TABLE, 900, bins)


def test_column_names_in_one_text_are_refused() -> None:
    with pytest.raises(UsageError, match="give a list of names"):
        alter_distributions(TABLE, 100, {"sex": {"F": 1.0}}, discrete_columns="sex")
