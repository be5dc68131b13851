import pytest

from small_tables import ward_table
from synthedge_core import SynthEdge
from synthedge_core.errors import TableError, UsageError
from synthedge_core.quality import quality_of

TABLE = ward_table(1_200)
ENGINE = SynthEdge(TABLE, "progressed")
ROWS = ENGINE.values


def test_rows_of_the_same_kind_look_the_same() -> None:
    report = quality_of(ROWS[:600], ROWS[600:], ROWS, ENGINE.analysed, "other rows")
    assert report.kl is not None
    assert report.discriminator_auc is not None
    assert report.coverage is not None
    assert report.kl < 0.05
    assert abs(report.discriminator_auc - 0.5) < 0.1
    assert report.coverage > 0.8
    assert report.n_drifted == 0


def test_shifted_rows_are_seen_by_every_measure() -> None:
    shifted = ROWS[:600].copy()
    names = [column.name for column in ENGINE.analysed]
    shifted[:, names.index("systolic")] += 40
    shifted[:, names.index("sex")] = 1
    report = quality_of(shifted, ROWS[600:], ROWS, ENGINE.analysed, "other rows")
    assert report.kl is not None
    assert report.discriminator_auc is not None
    assert report.kl > 0.1
    assert report.discriminator_auc > 0.9
    assert {d.column for d in report.drift[:2]} == {"systolic", "sex"}
    assert report.n_drifted == 2


def test_copied_patients_are_at_distance_zero() -> None:
    report = quality_of(ROWS[:100], ROWS[600:], ROWS, ENGINE.analysed, "other rows")
    assert report.closest_record == 0.0
    assert report.closest_record_real is not None
    assert report.closest_record_real > 0


def test_too_few_rows_give_no_figure_instead_of_a_wrong_one() -> None:
    report = quality_of(ROWS[:3], ROWS[600:], ROWS, ENGINE.analysed, "other rows")
    assert (report.kl, report.discriminator_auc, report.coverage) == (None, None, None)
    with pytest.raises(UsageError):
        quality_of(ROWS[:0], ROWS, ROWS, ENGINE.analysed, "other rows")


def test_the_facade_compares_with_held_out_rows_of_the_gap() -> None:
    engine = SynthEdge(ward_table(1_200, has_gap=True), "progressed", positive="yes")
    engine.fill(40, n_top=1)
    other = ward_table(4_000, seed=5)
    held = other[(other.sex == "M") & other.smoker & (other.progressed == "yes")]
    report = engine.quality_report(held)
    assert report["total_added"] == report["n_generated"]
    assert report["n_compared"] == len(held)
    assert report["compared_with"] == "held-out real rows of the gap"
    assert "seen before" in engine.quality_report()["compared_with"]
    with pytest.raises(TableError, match="lack the column 'age'"):
        engine.quality_report(held.drop(columns="age"))


def test_the_copula_looks_more_like_patients_than_the_published_fallback() -> None:
    engine = SynthEdge(ward_table(1_200, has_gap=True), "progressed", positive="yes")
    scores = {}
    for name in ("copula", "gaussian"):
        engine.fill(60, n_top=2, engine=name, target="voxels")
        scores[name] = engine.quality_report()["kl"]
    assert scores["copula"] < scores["gaussian"]
