"""Is `will_help` right, and is noise called noise? Beside the published package's score.

Configurations: every table of real data, uncarved and with 70 or 100 % of a subgroup's positive
training rows removed. The measured effect is that of filling (three regions at most, the product's
default plan with one region) on held-out rows that were never carved, mean over splits and two
models. Needs the clinical files: set SYNTHEDGE_DATA to their folder.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import spearmanr

from synthedge_core.analysis import Analysis
from synthedge_core.columns import analysis_matrix, encode
from synthedge_core.fill_engines import make_engine
from synthedge_core.models import MODELS, class_weights, fit_predict, score
from synthedge_core.synthedge import SynthEdge

Rule = Callable[[pd.DataFrame], "pd.Series[bool]"]
# A gain below this is not worth a decision; the strict sign is printed as well.
MIN_GAIN = 0.002
TEST_SHARE = 0.3

FRAMINGHAM: dict[str, Rule] = {
    "men of 50-59": lambda d: (d.male == 1) & d.age.between(50, 59),
    "women from 60": lambda d: (d.male == 0) & (d.age >= 60),
    "smokers from 140 mmHg": lambda d: (d.currentSmoker == 1) & (d.sysBP >= 140),
    "men from BMI 28": lambda d: (d.male == 1) & (d.BMI >= 28),
}
HEART: dict[str, Rule] = {
    "men of 50-59": lambda d: (d.sex == 1) & d.age.between(50, 59),
    "asymptomatic from 60": lambda d: (d.cp == 4) & (d.age >= 60),
    "men with exercise angina": lambda d: (d.exang == 1) & (d.sex == 1),
    "from 50 with 140 mmHg": lambda d: (d.trestbps >= 140) & (d.age >= 50),
}


def tables(folder: Path) -> Iterator[tuple[str, pd.DataFrame, str, dict[str, Rule]]]:
    """Give the real tables: three hospitals, Framingham, and Framingham in four uneven sites."""
    for name in ("cleveland", "hungarian", "va"):
        table = pd.read_csv(folder / f"uci_heart_{name}.csv")
        table["num"] = (table["num"] > 0).astype(int)
        yield name, table, "num", HEART
    framingham = pd.read_csv(folder / "framingham.csv")
    yield "framingham", framingham, "TenYearCHD", FRAMINGHAM
    noise = np.random.default_rng(5).normal(0, 8, len(framingham))
    order = np.argsort(framingham["age"].to_numpy() + noise)
    for i, rows in enumerate(np.array_split(order, 4)):
        yield f"framingham site {i + 1}", framingham.iloc[rows], "TenYearCHD", FRAMINGHAM


def held_out(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """Choose test rows, the same share of both classes."""
    rng = np.random.default_rng(100 + seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        is_test[rng.choice(rows, int(TEST_SHARE * len(rows)), replace=False)] = True
    return is_test


def effect(analysis: Analysis, test: npt.NDArray[np.float64], labels: Any, seed: int) -> float:
    """Measure what filling does to the held-out area under the ROC curve, mean of two models."""
    plan = analysis.plan(1)
    gaps, amounts = [gap for gap, _ in plan], [amount for _, amount in plan]
    made = analysis.fill(gaps, amounts, make_engine("copula"), seed).values
    weights = class_weights(analysis.positive)
    changes = []
    for model in MODELS:
        aucs = []
        for rows in (made[:0], made):
            matrix = np.vstack([analysis.matrix, analysis_matrix(rows, analysis.columns)[0]])
            positive = np.concatenate([analysis.positive, np.ones(len(rows), dtype=bool)])
            aucs.append(score(labels, fit_predict(model, matrix, positive, weights, test)).auroc)
        changes.append(aucs[1] - aucs[0])
    return float(np.mean(changes))


def configurations(folder: Path, n_splits: int, is_quick: bool) -> list[dict[str, Any]]:
    """Measure every configuration."""
    results = []
    for name, table, target, subgroups in tables(folder):
        if is_quick and name not in {"cleveland", "hungarian", "va"}:
            continue
        cases = [("nothing carved", 0.0)]
        cases += [(group, share) for group in subgroups for share in (0.7, 1.0)]
        for group, share in cases:
            verdicts, effects, seeds, p_values = [], [], [], []
            for seed in range(n_splits):
                is_test = held_out(table[target].to_numpy(), seed)
                train = table[~is_test]
                if share:
                    positive = subgroups[group](train) & (train[target] == 1)
                    train = train.drop(train[positive].sample(frac=share, random_state=seed).index)
                engine = SynthEdge(train, target, positive=1)
                verdict = engine.verdict()
                values = encode(table[is_test].reset_index(drop=True), engine.analysed)
                matrix = analysis_matrix(values, engine.analysed)[0]
                labels = table[is_test][target].to_numpy() == 1
                effects.append(effect(engine.analysis(), matrix, labels, seed))
                estimate = verdict.benefit.estimate if verdict.benefit else 0.0
                verdicts.append((verdict.will_help, estimate))
                seeds.append(verdict.seed_score)
                p_values.append(verdict.p_value)
            results.append(
                {
                    "table": name,
                    "carved": f"{share:.0%} of {group}",
                    "effect": float(np.mean(effects)),
                    "will_help": float(np.mean([v for v, _ in verdicts])) >= 0.5,
                    "estimate": float(np.mean([e for _, e in verdicts])),
                    "seed_says_yes": float(np.mean(seeds)) >= 0.15,
                    "seed_score": float(np.mean(seeds)),
                    "p_value": float(np.median(p_values)),
                }
            )
    return results


def noise_is_none(n_draws: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """Share of pure-noise tables called NONE, by the verdict and by the published score."""
    counts = {"ours": 0, "seed": 0, "tables": 0}
    worst = 1.0
    for n_rows in sizes:
        for rate in (0.5, 0.2, 0.06):
            own = 0
            draws = n_draws if n_rows <= 5_000 else max(2, n_draws // 10)
            for draw in range(draws):
                rng = np.random.default_rng([n_rows, int(100 * rate), draw])
                table = pd.DataFrame(rng.normal(size=(n_rows, 8)), columns=list("abcdefgh"))
                table["h"] = rng.integers(0, 2, n_rows)
                positive = np.arange(n_rows) < max(6, int(rate * n_rows))
                table["y"] = rng.permutation(positive.astype(int))
                engine = SynthEdge(table, "y")
                engine.analyze(with_benefit=False)
                verdict = engine.verdict()
                own += verdict.level == "NONE"
                counts["seed"] += verdict.seed_level == "NONE"
            counts["ours"] += own
            counts["tables"] += draws
            if draws >= 20:
                worst = min(worst, own / draws)
    return {
        "ours": counts["ours"] / counts["tables"],
        "seed": counts["seed"] / counts["tables"],
        "worst_size": worst,
        "tables": counts["tables"],
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tables, under a minute")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    folder = Path(os.environ.get("SYNTHEDGE_DATA", "../shared/data"))
    if not folder.is_dir():
        raise SystemExit("the clinical files are not here; set SYNTHEDGE_DATA to their folder")
    sizes = (100, 1_000) if options.quick else (100, 300, 1_000, 5_000, 50_000)
    noise = noise_is_none(20 if options.quick else options.draws, sizes)
    results = configurations(folder, 2 if options.quick else options.splits, options.quick)
    measured = np.array([r["effect"] for r in results])
    ours = np.array([r["will_help"] for r in results])
    published = np.array([r["seed_says_yes"] for r in results])
    figures: dict[str, Any] = {
        "configurations": len(results),
        "agree_strict_ours": float(np.mean((measured > 0) == ours)),
        "agree_strict_seed": float(np.mean((measured > 0) == published)),
        "agree_ours": float(np.mean((measured > MIN_GAIN) == ours)),
        "agree_seed": float(np.mean((measured > MIN_GAIN) == published)),
        "effect_where_yes": float(measured[ours].mean()) if ours.any() else None,
        "effect_where_no": float(measured[~ours].mean()),
        "spearman_estimate": float(spearmanr([r["estimate"] for r in results], measured)[0]),
        "spearman_seed": float(spearmanr([r["seed_score"] for r in results], measured)[0]),
    }
    bars: list[dict[str, Any]] = [
        {
            "what": "share of pure-noise tables called NONE, worst size",
            "value": noise["worst_size"],
            "bar": 0.95 if not options.quick else 0.9,
        },
        {
            "what": f"will_help agrees with a gain above {MIN_GAIN} more often than the seed's",
            "value": figures["agree_ours"] - figures["agree_seed"],
            "bar": 0.1,
        },
        {
            "what": "will_help agrees with the strict sign more often than the seed's",
            "value": figures["agree_strict_ours"] - figures["agree_strict_seed"],
            "bar": 0.0 if options.quick else 0.1,
        },
    ]
    for bar in bars:
        bar["ok"] = bool(bar["value"] >= bar["bar"])
    if options.json:
        print(json.dumps({"bars": bars, "noise": noise, **figures, "configurations_": results}))
        return
    for r in results:
        print(
            f"{r['table']:18} {r['carved']:32} effect {r['effect']:+.4f}  ours "
            f"{'yes' if r['will_help'] else 'no ':3} {r['estimate']:+.4f}  p {r['p_value']:.3f}  "
            f"seed {'yes' if r['seed_says_yes'] else 'no ':3} {r['seed_score']:.2f}"
        )
    print(f"noise: {noise}")
    for name, value in figures.items():
        print(f"{name}: {value}")
    for bar in bars:
        print(f"{'ok ' if bar['ok'] else 'NO '} {bar['what']}: {bar['value']:.3f} ({bar['bar']})")


if __name__ == "__main__":
    main()
