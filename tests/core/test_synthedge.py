import hashlib

import numpy as np
import pandas as pd
import pytest

from clinical_data import clinical_data_dir
from small_dictionary import SMALL_DICTIONARY
from small_tables import ward_table
from synthedge_core import SynthEdge
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import RefusedError, TableError, UsageError

TABLE = ward_table()
RULES = ("diastolic < systolic", "40 <= age <= 80", "positive: glucose", "fixed: sex, ward")


def digest(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


@pytest.mark.parametrize("engine", ["copula", "gaussian", "smote-nc"])
def test_original_rows_come_back_unchanged_and_new_ones_are_marked(engine: str) -> None:
    filled = SynthEdge(TABLE, "progressed").fill(30, engine=engine, seed=4)
    old, new = filled[filled["_origin"] == "observed"], filled[filled["_origin"] != "observed"]
    pd.testing.assert_frame_equal(old[list(TABLE.columns)], TABLE, check_dtype=False)
    unchanged = [name for name in TABLE.columns if name != "mrn"]
    assert filled[unchanged].dtypes.equals(TABLE[unchanged].dtypes)
    assert filled["mrn"].dtype == "Int64"  # a whole number that may be missing stays whole
    assert len(new) > 0
    assert set(new["_origin"]) == {f"synthetic:{engine}"}
    assert set(new["progressed"]) == {"yes"}
    assert (new["_voxel"] != "").all()
    assert new[["mrn", "note"]].isna().all().all()
    assert (new["unit"] == 3).all()


@pytest.mark.parametrize("engine", ["copula", "gaussian", "smote-nc"])
@pytest.mark.parametrize("target", ["regions", "voxels"])
def test_no_generated_row_breaks_a_rule(engine: str, target: str) -> None:
    synthedge = SynthEdge(TABLE, "progressed", constraints=RULES)
    filled = synthedge.fill(60, engine=engine, target=target, seed=1)  # type: ignore[arg-type]
    new = filled[filled["_origin"] != "observed"]
    assert len(new) > 0
    assert (new["diastolic"] < new["systolic"]).all()
    assert new["age"].between(40, 80).all()
    assert set(new["stage"]) <= {1, 2, 3, 4}
    assert set(new["ward"]) <= {"A", "B", "C"}
    assert (new["systolic"].between(TABLE["systolic"].min(), TABLE["systolic"].max())).all()
    assert (new["systolic"] == new["systolic"].round(1)).all()
    pairs = set(zip(TABLE["sex"], TABLE["ward"], strict=True))
    assert set(zip(new["sex"], new["ward"], strict=True)) <= pairs


def test_no_new_row_is_a_patient_or_another_new_row() -> None:
    filled = SynthEdge(TABLE, "progressed").fill(60, seed=2)
    analysed = ["age", "systolic", "diastolic", "glucose", "sex", "smoker", "ward", "stage"]
    assert not filled.loc[filled["_origin"] != "observed", analysed].duplicated().any()
    both = filled[analysed].duplicated(keep=False) & (filled["_origin"] != "observed")
    assert not both.any()


@pytest.mark.parametrize("engine", ["copula", "gaussian", "smote-nc"])
def test_one_seed_gives_the_same_bytes_and_another_does_not(engine: str) -> None:
    first = digest(SynthEdge(TABLE, "progressed").fill(20, engine=engine, seed=3))
    assert digest(SynthEdge(TABLE, "progressed").fill(20, engine=engine, seed=3)) == first
    assert digest(SynthEdge(TABLE, "progressed").fill(20, engine=engine, seed=5)) != first


def test_the_report_accounts_for_every_candidate() -> None:
    synthedge = SynthEdge(TABLE, "progressed")
    filled = synthedge.fill(25, n_top=2, seed=1)
    assert sum(r.requested for r in synthedge.fill_report) == 25
    for report in synthedge.fill_report:
        assert report.generated == report.accepted + sum(report.rejected.values())
    accepted = sum(r.accepted for r in synthedge.fill_report)
    assert accepted == int((filled["_origin"] != "observed").sum())


def test_what_cannot_be_had_is_said() -> None:
    synthedge = SynthEdge(TABLE, "progressed", constraints=("age > 200",))
    filled = synthedge.fill(10, n_top=1, seed=1)
    (report,) = synthedge.fill_report
    assert len(filled) == len(TABLE)
    assert report.accepted == 0
    assert "0 of 10 rows" in report.note
    with pytest.raises(UsageError, match="no row was generated"):
        synthedge.quality_report()


def test_nonsense_is_refused() -> None:
    synthedge = SynthEdge(TABLE, "progressed")
    for arguments in ({"n": 0}, {"n_top": 0}, {"seed": -1}, {"engine": "gan"}, {"target": "all"}):
        with pytest.raises(UsageError):
            synthedge.fill(**arguments)
    with pytest.raises(UsageError, match="call fill"):
        synthedge.quality_report()
    for rule in ("age", "age <", "nothing > 1", "sex > 1", "fixed: nothing"):
        with pytest.raises(UsageError, match="rule"):
            SynthEdge(TABLE, "progressed", constraints=(rule,))


def test_the_table_given_is_never_changed() -> None:
    before = TABLE.copy()
    SynthEdge(TABLE, "progressed").fill(5)
    pd.testing.assert_frame_equal(TABLE, before)


@pytest.mark.parametrize("labels", [(1, 2), (0, 1), (False, True), ("no", "yes"), (0.0, 1.0)])
def test_every_way_to_write_two_labels_finds_the_same_gaps(labels: tuple[object, object]) -> None:
    plain = SynthEdge(TABLE, "progressed", positive="yes").gap_map
    other = TABLE.assign(progressed=TABLE["progressed"].map(dict(zip(["no", "yes"], labels))))  # noqa: B905
    synthedge = SynthEdge(other, "progressed", positive=labels[1])
    pd.testing.assert_frame_equal(synthedge.gap_map, plain)
    assert set(synthedge.fill(5).iloc[len(TABLE) :]["progressed"]) == {labels[1]}


def test_several_classes_are_each_looked_at_against_the_rest() -> None:
    rng = np.random.default_rng(1)
    table = TABLE.assign(progressed=rng.choice(["a", "b", "c"], len(TABLE), p=[0.2, 0.3, 0.5]))
    synthedge = SynthEdge(table, "progressed")
    assert [c.name for c in synthedge.classes] == ["a", "b"]
    assert set(synthedge.analyze(with_benefit=False)["classes"]) == {"a", "b"}
    filled = synthedge.fill(20, target="voxels")
    assert set(filled.iloc[len(table) :]["progressed"]) == {"a", "b"}
    joined = SynthEdge(table, "progressed", positive=["a", "b"])
    assert joined.classes[0].n_positive == int(table["progressed"].isin(["a", "b"]).sum())


def test_rows_without_a_label_stay_and_are_not_analysed() -> None:
    table = TABLE.copy()
    table.loc[::10, "progressed"] = None
    synthedge = SynthEdge(table, "progressed")
    assert synthedge.labels.n_unlabelled == 40
    assert len(synthedge.values) == 360
    filled = synthedge.fill(5)
    assert filled["progressed"].isna().sum() == 40


def test_an_unusual_index_and_repeated_rows_are_no_problem() -> None:
    table = pd.concat([TABLE, TABLE.iloc[:50]]).set_index(pd.Index(["x"] * 450))
    synthedge = SynthEdge(table, "progressed", ignore_cols=["mrn"])
    assert synthedge.n_duplicated == 50
    assert len(synthedge.fill(5).index) == len(set(synthedge.fill(5).index))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.head(10), "10 labelled rows"),
        (TABLE[TABLE["progressed"] == "no"], "one value"),
        (TABLE.assign(progressed=None), "missing in every row"),
        (TABLE.assign(progressed=np.arange(400) / 7), "looks like a measurement"),
        (TABLE.drop(columns="progressed"), "no column 'progressed'"),
        (TABLE[["note", "progressed"]], "no column can be analysed"),
        (TABLE.assign(_origin="observed"), "filled before"),
        (TABLE.assign(progressed=np.where(np.arange(400) < 3, "yes", "no")), "3 positive rows"),
    ],
)
def test_a_table_that_cannot_be_judged_gets_a_sentence(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(TableError, match=message):
        SynthEdge(table, "progressed")


def test_a_positive_label_that_never_occurs_is_refused() -> None:
    with pytest.raises(TableError, match="never has the value"):
        SynthEdge(TABLE, "progressed", positive="maybe")


def test_the_dictionary_names_the_grids() -> None:
    dictionary = parse_dictionary(SMALL_DICTIONARY)
    rng = np.random.default_rng(0)
    names = [feature.name for feature in dictionary.features]
    table = pd.DataFrame(
        {
            f.name: rng.choice(list(f.levels), 200) if f.has_levels else rng.integers(60, 90, 200)
            for f in dictionary.features
        }
    ).assign(progressed=rng.integers(0, 2, 200))
    synthedge = SynthEdge(table, "progressed", dictionary=dictionary)
    assert [c.name for c in synthedge.analysed] == names
    grids = synthedge.named_grids
    assert [g["grid"] for g in grids] == [spec.name for spec in dictionary.grids]
    for grid in grids:
        assert sum(voxel["observed"] for voxel in grid["voxels"]) == 200
        scores = [voxel["gap_score"] for voxel in grid["voxels"]]
        assert scores == sorted(scores, reverse=True)


def test_too_few_near_rows_are_refused_with_advice() -> None:
    from synthedge_core.fill_engines import Gap, make_engine

    analysis = SynthEdge(TABLE, "progressed").analysis()
    gap = analysis.plan(1)[0][0]
    alone = Gap(name="x", near=gap.near[:1], inside=gap.near[:1], is_in_region=gap.is_in_region)
    engine = make_engine("copula")
    engine.fit(analysis.fill_table, 0)
    with pytest.raises(RefusedError, match="collect or request real rows"):
        engine.draw(alone, 5, 0)


@pytest.mark.parametrize("name", ["cleveland", "hungarian", "switzerland", "va"])
def test_real_hospital_files_are_analysed_and_filled_as_they_are(name: str) -> None:
    table = pd.read_csv(clinical_data_dir() / f"uci_heart_{name}.csv")
    for positive in (None, [1, 2, 3, 4] if table["num"].max() > 1 else None):
        synthedge = SynthEdge(table, "num", positive=positive)
        result = synthedge.analyze(with_benefit=False)
        assert result["severity"] in {"NONE", "MILD", "MODERATE", "SEVERE"}
        filled = synthedge.fill(20, target="voxels")
        assert filled["num"].iloc[: len(table)].tolist() == table["num"].tolist()
        missing = {c.name: c.n_missing for c in synthedge.columns}
        assert missing["thal"] == int(table["thal"].isna().sum())


ODD_TABLES = {
    "nullable types": TABLE.convert_dtypes(),
    "Arrow types": TABLE.convert_dtypes(dtype_backend="pyarrow"),
    "one binary column": TABLE[["sex", "progressed"]],
    "codes only": TABLE[["ward", "sex", "smoker", "stage", "progressed"]],
    "an empty column": TABLE.assign(x=np.nan, y=None),
    "infinite values": TABLE.assign(x=np.where(np.arange(400) % 9 == 0, np.inf, np.arange(400))),
    "several index levels": TABLE.set_index(["mrn", "age"]),
    "a column named by a number": TABLE.rename(columns={"age": 5}),
    "lists in cells": TABLE.assign(x=pd.Series([[1]] * 400, dtype="object")),
    "complex numbers": TABLE.assign(x=np.arange(400) * 1j),
    "a column that is the label": TABLE.assign(x=(TABLE["progressed"] == "yes").astype(int)),
    "very large numbers": TABLE.assign(x=2**60 + np.arange(400) ** 3),
}


@pytest.mark.parametrize("name", ODD_TABLES)
def test_odd_tables_are_analysed_and_filled_all_the_same(name: str) -> None:
    table = ODD_TABLES[name]
    synthedge = SynthEdge(table, "progressed", positive="yes")
    assert synthedge.analyze(with_benefit=False)["top_voxels"]
    filled = synthedge.fill(6, n_top=2, target="voxels")
    assert len(filled) == 406
    assert set(filled["_origin"]) == {"observed", "synthetic:copula"}
