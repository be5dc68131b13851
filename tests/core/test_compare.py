import numpy as np
import pytest

from small_tables import noise_table, ward_table
from synthedge_core import SynthEdge
from synthedge_core.analysis import Analysis
from synthedge_core.compare import BASE, compare, split
from synthedge_core.errors import UsageError, VerificationError
from synthedge_core.fill_schema import FloatArray

ANALYSIS = SynthEdge(ward_table(500), "progressed", positive="yes").analysis()


def test_every_method_is_measured_on_the_same_splits_with_both_models() -> None:
    found = compare(ANALYSIS, n_splits=2)
    methods = {result.method for result in found.results}
    assert methods == {
        "none",
        BASE,
        "SMOTE-NC",
        "ADASYN",
        "random duplicates",
        "SynthEdge (copula)",
    }
    assert len(found.results) == 12
    assert found.n_train + found.n_test == 500
    added = {r.method: r.rows_added for r in found.results}
    assert added["random duplicates"] == added["SynthEdge (copula)"] > 0
    base = [r for r in found.results if r.method == BASE]
    assert all(value == 0 for r in base for value in r.difference.values())


def test_a_method_that_has_seen_the_test_rows_is_caught() -> None:
    """Plant the published package's fault: it fills from the whole table, test rows included."""

    def leaky(train: Analysis, n_rows: int, seed: int) -> FloatArray:
        rows = ANALYSIS.values[ANALYSIS.positive]
        known = {row.tobytes() for row in train.values}
        return np.array([row for row in rows if row.tobytes() not in known][:n_rows])

    with pytest.raises(VerificationError, match="'leaky' has seen the test rows"):
        compare(ANALYSIS, n_splits=2, extra_methods={"leaky": leaky})


def test_rows_with_a_little_noise_on_test_rows_are_caught_too() -> None:
    def nearly(train: Analysis, n_rows: int, seed: int) -> FloatArray:
        rows = ANALYSIS.values[ANALYSIS.positive]
        known = {row.tobytes() for row in train.values}
        held = np.array([row for row in rows if row.tobytes() not in known])
        rng = np.random.default_rng(seed)
        return train.schema.fit(held + rng.normal(0, 0.3, held.shape))

    with pytest.raises(VerificationError, match="seen the test rows"):
        compare(ANALYSIS, n_splits=2, extra_methods={"nearly": nearly})


def test_identical_rows_stay_on_one_side_and_classes_keep_their_share() -> None:
    table = ward_table(300).drop(columns=["mrn", "note"])
    doubled = table.loc[table.index.repeat(2)]
    analysis = SynthEdge(doubled, "progressed", positive="yes").analysis()
    train, test = split(analysis, 3)
    keys = np.where(np.isnan(analysis.values), -1, analysis.values)
    sides = [{row.tobytes() for row in keys[side]} for side in (train, test)]
    assert not sides[0] & sides[1]
    assert len(test) == pytest.approx(0.3 * 600, abs=4)
    shares = [analysis.positive[side].mean() for side in (train, test)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_one_seed_gives_one_result() -> None:
    assert compare(ANALYSIS, n_splits=2, seed=4) == compare(ANALYSIS, n_splits=2, seed=4)


def test_a_column_written_after_the_outcome_is_pointed_out() -> None:
    table = ward_table(300)
    table["days to event"] = np.where(table["progressed"] == "yes", table["age"], -5.5)
    analysis = SynthEdge(table, "progressed", positive="yes").analysis()
    (note,) = compare(analysis, n_splits=2).notes
    assert "'days to event' alone predicts the label" in note


def test_noise_gains_nothing_from_any_method() -> None:
    found = compare(SynthEdge(noise_table(400, 0.2, 0), "y").analysis(), n_splits=3)
    assert all(abs(r.mean["auroc"] - 0.5) < 0.12 for r in found.results)


def test_tables_too_small_to_hold_rows_out_get_a_sentence() -> None:
    table = noise_table(40, 0.1, 0)
    table.loc[table["y"] == 1, "y"] = [1] * 5 + [0] * (int(table["y"].sum()) - 5)
    analysis = SynthEdge(table, "y").analysis()
    few = analysis.subset(np.flatnonzero(~analysis.positive | (np.cumsum(analysis.positive) <= 2)))
    with pytest.raises(UsageError, match="compare a larger table"):
        compare(few, n_splits=2)
    with pytest.raises(UsageError, match="at least 2"):
        compare(ANALYSIS, n_splits=1)
