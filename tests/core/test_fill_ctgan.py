import numpy as np
import pytest

from small_tables import ward_table
from synthedge_core import SynthEdge
from synthedge_core.errors import RefusedError

pytest.importorskip("ctgan", reason="the extra 'ctgan' is not installed")

RULES = ("diastolic < systolic", "40 <= age <= 80")


def rows_drawn(*, is_fast: bool, steps: int = 8) -> bytes:
    from synthedge_core import fill_ctgan

    analysis = SynthEdge(ward_table(400), "progressed", positive="yes").analysis()
    engine = fill_ctgan.CtganEngine(steps=steps)
    before, fill_ctgan.FastCtgan.is_fast = fill_ctgan.FastCtgan.is_fast, is_fast
    try:
        engine.fit(analysis.fill_table, 3)
    finally:
        fill_ctgan.FastCtgan.is_fast = before
    return engine.draw(analysis.plan(1)[0][0], 50, 5).tobytes()


def test_the_detached_critic_step_gives_the_very_same_samples() -> None:
    assert rows_drawn(is_fast=True) == rows_drawn(is_fast=False)


def test_too_few_positives_are_refused_with_the_engine_that_can() -> None:
    engine = SynthEdge(ward_table(90), "progressed", positive="yes")
    with pytest.raises(RefusedError, match="use the engine copula"):
        engine.fill(5, engine="ctgan", engine_settings={"steps": 2})


def test_a_cached_model_gives_the_rows_of_the_trained_one() -> None:
    cache: dict[str, bytes] = {}
    reports: list[float] = []
    tables = []
    for _ in range(2):
        engine = SynthEdge(ward_table(400), "progressed", positive="yes", constraints=RULES)
        tables.append(
            engine.fill(
                10,
                engine="ctgan",
                seed=2,
                engine_settings={"steps": 10, "cache": cache},
                report_progress=reports.append,
            )
        )
    assert len(cache) == 1
    assert reports == sorted(reports)  # trained once
    assert reports[-1] == 1.0
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_a_trained_model_fills_the_gap_and_breaks_no_rule() -> None:
    table = ward_table(800)
    engine = SynthEdge(table, "progressed", positive="yes", constraints=RULES)
    filled = engine.fill(20, n_top=1, engine="ctgan", engine_settings={"steps": 300})
    new = filled[filled["_origin"] == "synthetic:ctgan"]
    assert len(new) == 20
    assert (new["diastolic"] < new["systolic"]).all()
    assert new["age"].between(40, 80).all()
    assert set(new["stage"]) <= {1, 2, 3, 4}
    assert np.isin(new["sex"], ["F", "M"]).all()
