import numpy as np
import pandas as pd
import pytest

from clinical_data import clinical_data_dir
from small_tables import noise_table, ward_table
from synthedge_core import SynthEdge
from synthedge_core.benefit import estimate_benefit, probability_real
from synthedge_core.severity import level_of


def verdicts_of_noise(n_rows: int, positive_share: float, n_draws: int) -> list[str]:
    levels: list[str] = []
    for draw in range(n_draws):
        synthedge = SynthEdge(noise_table(n_rows, positive_share, draw), "y")
        synthedge.analyze(with_benefit=False)
        levels.append(synthedge.verdict().level)
    return levels


@pytest.mark.parametrize("n_rows", [100, 1_000])
@pytest.mark.parametrize("positive_share", [0.5, 0.2, 0.06])
def test_pure_noise_has_no_gap(n_rows: int, positive_share: float) -> None:
    levels = verdicts_of_noise(n_rows, positive_share, 100 if n_rows == 100 else 20)
    assert levels.count("NONE") >= 0.95 * len(levels)


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [300, 5_000, 50_000])
@pytest.mark.parametrize("positive_share", [0.5, 0.2, 0.06])
def test_pure_noise_has_no_gap_in_larger_tables(n_rows: int, positive_share: float) -> None:
    levels = verdicts_of_noise(n_rows, positive_share, 20 if n_rows == 50_000 else 100)
    assert levels.count("NONE") >= 0.95 * len(levels)


def test_a_carved_subgroup_is_found_named_and_worth_filling() -> None:
    verdict = SynthEdge(ward_table(1_500, has_gap=True), "progressed", positive="yes").verdict()
    assert verdict.level in {"MODERATE", "SEVERE"}
    assert verdict.signals["regions"][0]["region"] == "sex = M, smoker = True"
    assert verdict.signals["regions"][0]["positive"] == 0
    assert verdict.will_help
    assert verdict.benefit is not None
    assert verdict.benefit.low <= verdict.benefit.estimate <= verdict.benefit.high
    assert "expected to help" in verdict.recommendation


def test_the_same_table_without_the_carve_is_left_alone() -> None:
    verdict = SynthEdge(ward_table(1_500), "progressed", positive="yes").verdict()
    assert verdict.level == "NONE"
    assert not verdict.will_help
    assert verdict.score < 0.15


def test_filling_the_carved_subgroup_does_help_on_held_out_rows() -> None:
    from sklearn.metrics import roc_auc_score

    from synthedge_core.columns import analysis_matrix, encode
    from synthedge_core.models import class_weights, fit_predict

    train = SynthEdge(ward_table(1_500, has_gap=True), "progressed", positive="yes")
    test = ward_table(3_000, seed=9)
    held = analysis_matrix(encode(test, train.analysed), train.analysed)[0]
    labels = (test["progressed"] == "yes").to_numpy()
    train.fill(n_top=1, seed=0)
    analysis = train.analysis()
    aucs = []
    for made in (train.filled_values[:0], train.filled_values):
        matrix = np.vstack([analysis.matrix, analysis_matrix(made, analysis.columns)[0]])
        positive = np.concatenate([analysis.positive, np.ones(len(made), dtype=bool)])
        weights = class_weights(analysis.positive)
        predicted = fit_predict("gradient boosting", matrix, positive, weights, held)
        aucs.append(roc_auc_score(labels, predicted))
    assert aucs[1] > aucs[0]


def test_rare_positives_everywhere_alike_get_other_advice_than_filling() -> None:
    table = noise_table(900, 0.06, 1)
    verdict = SynthEdge(table, "y").verdict()
    assert "SMOTE may do better here" in verdict.recommendation


def test_few_positives_get_the_advice_to_find_more() -> None:
    verdict = SynthEdge(noise_table(200, 0.06, 1), "y").verdict()
    assert not verdict.will_help
    assert "collect or request real data instead" in verdict.recommendation


def test_the_published_score_stays_visible() -> None:
    verdict = SynthEdge(noise_table(5_000, 0.2, 0), "y").analyze(with_benefit=False)
    assert verdict["seed_level"] == "SEVERE"  # pure noise: the fault that the verdict mends
    assert verdict["severity"] == "NONE"


def test_the_levels_have_the_published_limits() -> None:
    scores = [0.0, 0.149, 0.15, 0.349, 0.35, 0.599, 0.6, 1.0]
    assert [level_of(score) for score in scores] == [
        *["NONE"] * 2,
        *["MILD"] * 2,
        *["MODERATE"] * 2,
        *["SEVERE"] * 2,
    ]


def test_a_smaller_p_value_makes_a_gap_more_probable() -> None:
    chances = [probability_real(p) for p in (1.0, 0.5, 0.2, 0.05, 0.01, 0.0025)]
    assert chances == sorted(chances)
    assert chances[0] == pytest.approx(0.2)


def test_too_few_rows_of_a_class_give_no_estimate() -> None:
    table = noise_table(100, 0.06, 0)
    assert estimate_benefit(SynthEdge(table, "y").analysis()) is None


def test_carved_framingham_is_detected_and_the_whole_one_is_not() -> None:
    table = pd.read_csv(clinical_data_dir() / "framingham.csv")
    whole = SynthEdge(table, "TenYearCHD")
    assert whole.analyze(with_benefit=False)["severity"] == "NONE"
    subgroups = {
        "smokers": (table.currentSmoker == 1) & (table.sysBP >= 140),
        "men": (table.male == 1) & (table.BMI >= 28),
        "women": (table.male == 0) & (table.age >= 60),
    }
    for members in subgroups.values():
        carved = table[~(members & (table.TenYearCHD == 1))]
        verdict = SynthEdge(carved, "TenYearCHD").analyze(with_benefit=False)
        assert verdict["severity"] != "NONE"
        assert verdict["will_help"]
