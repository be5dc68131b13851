import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_dictionary import SMALL_DICTIONARY
from small_tables import ward_table
from synthedge_core import SynthEdge
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import GridError, UsageError
from synthedge_core.fill_constraints import parse_constraints
from synthedge_core.fill_copula import copula_rows
from synthedge_core.fill_engines import ENGINES, make_engine
from synthedge_core.fill_gates import (
    MIN_SHARED_BY,
    RealRows,
    copied_patient_gate,
    discriminator_gate,
    duplicate_gate,
    rules_gate,
)
from synthedge_core.fill_schema import FloatArray, RowSchema

DICTIONARY = parse_dictionary(SMALL_DICTIONARY)
SCHEMA = RowSchema.of_features(DICTIONARY.features)
ENGINE = SynthEdge(ward_table(600), "progressed", positive="yes")
ANALYSIS = ENGINE.analysis()
TABLE = ANALYSIS.fill_table


def near_rows(n_rows: int, seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    columns = [
        rng.integers(0, f.n_levels, n_rows).astype(float)
        if f.has_levels
        else np.quantile(f.plausible or (0, 1), rng.uniform(0.2, 0.8, n_rows))
        for f in DICTIONARY.features
    ]
    rows = SCHEMA.fit(np.column_stack(columns))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows


@given(st.integers(2, 40), st.integers(0, 50), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_copula_rows_respect_the_dictionary_and_stay_among_the_near_rows(
    n_near: int, n_rows: int, seed: int
) -> None:
    near = near_rows(n_near, seed)
    rows = copula_rows(near, n_rows, SCHEMA, seed=seed)
    assert rows.shape == (n_rows, SCHEMA.n_columns)
    assert SCHEMA.holds(rows).all()
    patterns = {tuple(row) for row in np.isnan(near)}
    assert {tuple(row) for row in np.isnan(rows)} <= patterns
    for i in range(SCHEMA.n_columns):
        drawn, given_ = rows[~np.isnan(rows[:, i]), i], near[~np.isnan(near[:, i]), i]
        if len(drawn):
            assert drawn.min() >= given_.min()
            assert drawn.max() <= given_.max()
    assert copula_rows(near, n_rows, SCHEMA, seed=seed).tobytes() == rows.tobytes()


def test_the_copula_keeps_how_columns_go_together() -> None:
    names = [c.name for c in ENGINE.analysed]
    pair = [names.index("systolic"), names.index("diastolic")]
    rows = copula_rows(ENGINE.values, 3_000, ANALYSIS.schema, seed=1)
    real, drawn = (
        float(np.asarray(np.corrcoef(part[:, pair].T))[0, 1]) for part in (ENGINE.values, rows)
    )
    assert drawn == pytest.approx(real, abs=0.08)
    sex = names.index("sex")
    assert rows[:, sex].mean() == pytest.approx(ENGINE.values[:, sex].mean(), abs=0.04)


def test_a_copula_of_too_few_or_ill_shaped_rows_is_refused() -> None:
    with pytest.raises(GridError, match="1 near rows"):
        copula_rows(near_rows(1, 0), 5, SCHEMA, seed=0)
    with pytest.raises(GridError, match="expected"):
        copula_rows(near_rows(5, 0)[:, :1], 5, SCHEMA, seed=0)


def test_rules_that_cannot_be_kept_give_fewer_rows_never_wrong_ones() -> None:
    rules = parse_constraints(["age > 84"], ENGINE.analysed, ENGINE.values)
    rows = copula_rows(ENGINE.values, 50, ANALYSIS.schema, constraints=rules, seed=0)
    assert len(rows) == 0


def test_rules_speak_of_values_and_let_missing_ones_pass() -> None:
    rules = parse_constraints(
        ["2 <= stage <= 3", "positive: glucose", "fixed: sex, smoker"],
        ENGINE.analysed,
        ENGINE.values[:1],
    )
    kept = np.logical_and.reduce([rule.holds(ENGINE.values) for rule in rules])
    table = ward_table(600)
    same = (table.sex == table.sex[0]) & (table.smoker == table.smoker[0])
    np.testing.assert_array_equal(kept, table.stage.between(2, 3) & same)


def test_a_copied_patient_is_stopped_even_with_a_rounding_error() -> None:
    real = RealRows.of(TABLE)
    copies = ENGINE.values[:40].copy()
    assert not copied_patient_gate(copies, TABLE, real).any()
    copies[:, [c.name for c in ENGINE.analysed].index("systolic")] += 0.1
    assert not copied_patient_gate(copies, TABLE, real).any()
    fresh = copula_rows(ENGINE.values, 40, ANALYSIS.schema, seed=0)
    assert copied_patient_gate(fresh, TABLE, real).mean() > 0.9


def test_a_combination_that_many_patients_share_is_nobody_s_copy() -> None:
    table = ward_table(600)[["sex", "smoker", "progressed"]]
    engine = SynthEdge(table, "progressed", positive="yes")
    fill_table = engine.analysis().fill_table
    real = RealRows.of(fill_table)
    assert min(real.counts.values()) >= MIN_SHARED_BY
    assert copied_patient_gate(engine.values, fill_table, real).all()
    assert duplicate_gate(engine.values, set(), real).all()


def test_the_second_copy_of_a_generated_row_is_stopped() -> None:
    rows = copula_rows(ENGINE.values, 10, ANALYSIS.schema, seed=0)
    twice = np.vstack([rows, rows])
    good = duplicate_gate(twice, set(), RealRows.of(TABLE))
    assert good.tolist() == [True] * 10 + [False] * 10


def test_the_rules_gate_sees_levels_ranges_and_decimals() -> None:
    rows = np.repeat(ENGINE.values[:1], 5, axis=0)
    names = [c.name for c in ENGINE.analysed]
    rows[1, names.index("sex")] = 0.5
    rows[2, names.index("stage")] = 4
    rows[3, names.index("age")] = 400
    rows[4, names.index("systolic")] += 0.01
    assert rules_gate(rows, TABLE).tolist() == [True, False, False, False, False]


def test_rows_that_a_classifier_knows_at_once_are_stopped_and_likely_ones_pass() -> None:
    near = ENGINE.values[TABLE.positive]
    likely = copula_rows(near, 60, ANALYSIS.schema, seed=0)
    odd = likely.copy()
    odd[:, [c.name for c in ENGINE.analysed].index("systolic")] = 400.0
    assert discriminator_gate(likely, near, TABLE).mean() > 0.9
    assert discriminator_gate(odd, near, TABLE).mean() < 0.1
    assert discriminator_gate(odd[:5], near, TABLE).all()  # too few to judge


def test_every_engine_has_a_name_and_no_other_does() -> None:
    for name in ENGINES[:1] + ENGINES[2:]:
        assert make_engine(name).name == name
    with pytest.raises(UsageError, match="choose one of copula, ctgan"):
        make_engine("vae")
