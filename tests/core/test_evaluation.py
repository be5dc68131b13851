from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from imbalanced_patients import imbalanced_patients
from synthedge_core import (
    augment_imbalanced,
    compare_correlations,
    evaluate,
    rebalance_by_baseline,
    show_distributions,
)
from synthedge_core.errors import RefusedError, TableError, UsageError

TABLE = imbalanced_patients()
N_ALIVE = int((TABLE["died"] == 0).sum())


def test_original_synthetic_and_altered_rows_are_compared_with_intervals() -> None:
    found = evaluate(TABLE, "died", n_seeds=2).to_frame().set_index(["trained_on", "model"])
    assert set(found.index.get_level_values("trained_on")) == {"original", "synthetic", "altered"}
    assert set(found.index.get_level_values("model")) == {"ridge", "forest", "boosting"}
    assert found["ratio"].iloc[:3].tolist() == [1, 1, 1]
    assert bool(np.all(found["ratio_low"] <= found["ratio"]))
    assert (found["ratio"] <= found["ratio_high"]).all()
    assert found["roc_auc"].iloc[0] > 0.7


def test_noise_in_every_cell_is_seen_as_harm() -> None:
    def filled(train: pd.DataFrame, seed: int) -> pd.DataFrame:
        table = rebalance_by_baseline(train, "died", "random-filling", seed=seed)
        return table

    found = evaluate(TABLE, "died", {"noise": filled}, models=["ridge"], n_seeds=4).to_frame()
    assert found["ratio"].iloc[1] < 0.97


def test_a_finished_table_needs_test_rows_it_was_not_made_from() -> None:
    altered = augment_imbalanced(TABLE.iloc[:300], "died", "undersample")
    with pytest.raises(UsageError, match="give test="):
        evaluate(TABLE, "died", {"altered": altered})
    found = evaluate(
        TABLE.iloc[:300], "died", {"altered": altered}, test=TABLE.iloc[300:], models=["ridge"]
    )
    assert len(found.scores) == 2


def test_generated_rows_cannot_judge() -> None:
    table = augment_imbalanced(TABLE, "died", target_counts={1: 100}, measure=False)
    with pytest.raises(RefusedError, match="not observed"):
        evaluate(table, "died")


@pytest.mark.parametrize("arguments", [{"models": ["magic"]}, {"n_seeds": 0}])
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        evaluate(TABLE, "died", **arguments)


@pytest.mark.parametrize("baseline", ["random-duplication", "random-filling", "smote-nc"])
def test_baselines_reach_the_same_numbers(baseline: str) -> None:
    out = rebalance_by_baseline(TABLE, "died", baseline, ratio=0.5, seed=1)
    assert out["died"].value_counts().to_dict() == {0: N_ALIVE, 1: -(-N_ALIVE // 2)}
    assert set(out.loc[out["_synthetic"], "_origin"]) == {f"synthetic:{baseline}"}
    assert set(out["ward"].dropna()) <= {"north", "south", "east"}


def test_adasyn_comes_near_the_number_asked_for() -> None:
    out = rebalance_by_baseline(TABLE, "died", "adasyn")
    assert (out["died"] == 1).sum() == pytest.approx(N_ALIVE, rel=0.05)


def test_duplicates_are_copies_and_fillings_are_not() -> None:
    columns = ["sex", "age", "systolic", "ward"]
    real = set(map(tuple, TABLE.loc[TABLE["died"] == 1, columns].to_numpy()))
    shares = {}
    for baseline in ("random-duplication", "random-filling"):
        out = rebalance_by_baseline(TABLE, "died", baseline)
        new = list(map(tuple, out.loc[out["_synthetic"], columns].to_numpy()))
        shares[baseline] = np.mean([row in real for row in new])
    assert shares["random-duplication"] == 1
    assert shares["random-filling"] < 0.05


def test_figures_show_every_column_of_both_tables() -> None:
    out = rebalance_by_baseline(TABLE, "died", "random-filling")
    new = out[out["_synthetic"]]
    distributions = show_distributions(TABLE, new, columns=["age", "ward", "diastolic"])
    assert isinstance(distributions, Figure)
    titles = [axes.get_title(loc="left") for axes in distributions.axes if axes.get_visible()]
    assert titles == ["age", "ward", "diastolic"]
    correlations = compare_correlations(TABLE, new)
    assert [a.get_title(loc="left") for a in correlations.axes[:2]] == ["observed", "generated"]
    distributions.canvas.draw()
    correlations.canvas.draw()


def test_tables_without_a_common_column_cannot_be_drawn() -> None:
    with pytest.raises(TableError, match="share no column"):
        show_distributions(TABLE[["age"]], TABLE[["ward"]])
    with pytest.raises(TableError, match="'weight' is not a column of both"):
        show_distributions(TABLE, TABLE, columns=["weight"])
