"""Rebalancing a credit-like table of 150,000 x 10, against imbalanced-learn's SMOTE-NC and stock ctgan.

The table is generated after the published description of the well-known credit file (7 % defaults, skewed amounts,
counts, codes, missing incomes); the real one is not shipped. Every contender raises the defaults to half the others in
a process of its own: seconds from the table to the rebalanced table, and peak memory above what the table and the
imports take. SMOTE-NC and ctgan take no missing value and get medians. ctgan learns the default rows only, as its
users do to rebalance, for 10 epochs (its own default is 300: thirty times the training). The forest's AUC says how
well a random forest tells 500 generated from 500 observed default rows; 0.5 is not at all.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from bench import Bar, run_benchmark

CONTENDERS = ("synthedge", "smote-nc", "ctgan")
CODES = ["homeowner", "region", "dependents"]
RATIO = 0.5


def credit_table(n_rows: int, seed: int = 0) -> pd.DataFrame:
    """Generate loans: ten features and whether they defaulted."""
    rng = np.random.default_rng(seed)
    age = np.clip(rng.gamma(14, 3.7, n_rows).round(), 21, 100).astype(int)
    stress = rng.normal(0, 1, n_rows)
    utilisation = 1 / (1 + np.exp(-(stress - 0.7 + rng.normal(0, 1, n_rows))))
    late = rng.poisson(np.exp(-1.6 + 0.7 * stress))
    income = rng.lognormal(8.6 + 0.004 * age - 0.1 * stress, 0.6).round()
    table = pd.DataFrame(
        {
            "utilisation": utilisation.round(4),
            "age": age,
            "late_30": late,
            "late_90": rng.binomial(late, 0.25),
            "debt_ratio": rng.lognormal(-1.1 + 0.2 * stress, 0.8).round(4),
            "income": income,
            "open_lines": rng.poisson(8, n_rows),
            "dependents": np.minimum(rng.poisson(0.75, n_rows), 6),
            "homeowner": (rng.random(n_rows) < 0.3 + age / 200).astype(int),
            "region": rng.choice(
                ["north", "south", "east", "west"], n_rows, p=[0.4, 0.3, 0.2, 0.1]
            ),
        }
    )
    risk = -4.6 + 0.9 * stress + 0.5 * late + 1.2 * utilisation - 0.01 * (age - 50)
    table["default"] = (rng.random(n_rows) < 1 / (1 + np.exp(-risk))).astype(int)
    table.loc[rng.random(n_rows) < 0.2, "income"] = np.nan
    return table


def with_synthedge(table: pd.DataFrame, _: int) -> pd.DataFrame:
    """Every gate and every measurement switched on, as by default."""
    from synthedge_core import augment_imbalanced

    return augment_imbalanced(table, "default", ratio=RATIO, discrete_columns=CODES, seed=1)


def with_smote_nc(table: pd.DataFrame, _: int) -> pd.DataFrame:
    """Use imbalanced-learn, on medians."""
    from imblearn.over_sampling import SMOTENC

    filled = table.fillna({"income": table["income"].median()})
    features = filled.drop(columns="default")
    sampler = SMOTENC(categorical_features=CODES, sampling_strategy=RATIO, random_state=1)
    rows, labels = sampler.fit_resample(features, filled["default"])
    rebalanced: pd.DataFrame = rows.assign(default=labels)
    return rebalanced.assign(_synthetic=np.arange(len(rows)) >= len(table))


def with_ctgan(table: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """Use the ctgan package as it comes, on the default rows."""
    from ctgan import CTGAN

    filled = table.fillna({"income": table["income"].median()})
    rare = filled[filled["default"] == 1].drop(columns="default")
    model = CTGAN(epochs=epochs, enable_gpu=False)
    model.set_random_state(1)
    model.fit(rare, CODES)
    n_new = -int(-RATIO * (len(filled) - len(rare)) // 1) - len(rare)
    new: pd.DataFrame = model.sample(n_new)
    parts = [filled.assign(_synthetic=False), new.assign(default=1, _synthetic=True)]
    return pd.concat(parts, ignore_index=True)


def peak_mb() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compete(contender: str, n_rows: int, epochs: int) -> dict[str, Any]:
    """Run one contender in this process."""
    import imblearn.over_sampling  # noqa: F401 - imports are not what is measured

    from synthedge_core import augment_imbalanced  # noqa: F401
    from synthedge_core.columns import encode, infer_columns
    from synthedge_core.rebalance_quality import class_quality

    if contender == "ctgan":
        import ctgan  # noqa: F401
    warnings.simplefilter("ignore")
    table = credit_table(n_rows)
    run = {"synthedge": with_synthedge, "smote-nc": with_smote_nc, "ctgan": with_ctgan}[contender]
    before = peak_mb()
    started = time.perf_counter()
    result = run(table, epochs)
    seconds = time.perf_counter() - started
    peak = peak_mb() - before
    real = table[table["default"] == 1].drop(columns="default")
    new = result[result["_synthetic"].to_numpy(bool)][real.columns]
    columns = infer_columns(real, discrete=CODES)
    quality = class_quality(encode(new, columns), encode(real, columns), columns, 0)
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "n_new": len(new),
        "n_wanted": -int(-RATIO * (table["default"] == 0).sum() // 1) - len(real),
        "forest_auc": quality.forest_auc,
    }


def measure(*, quick: bool) -> list[Bar]:
    """Run every contender in a process of its own."""
    n_rows, epochs = (30_000, 3) if quick else (150_000, 10)
    found = {}
    for contender in CONTENDERS:
        command = [sys.executable, __file__, "--contender", contender, str(n_rows), str(epochs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[contender] = json.loads(done.stdout)
    bars = []
    for name, figures in found.items():
        label = f"{name}, {n_rows} x 10" + (f", {epochs} epochs" if name == "ctgan" else "")
        bars += [
            Bar(f"{label}: seconds", figures["seconds"]),
            Bar(f"{label}: peak MB above the table", figures["peak_mb"]),
            Bar(f"{label}: forest AUC, generated from observed", figures["forest_auc"]),
        ]
    ours = found["synthedge"]
    missing = abs(ours["n_new"] - ours["n_wanted"])
    bars.append(Bar("synthedge: rows missing or too many", float(missing), at_most=0.0))
    rival = found["ctgan"]
    bars.append(
        Bar("synthedge: share of ctgan's time", ours["seconds"] / rival["seconds"], at_most=1.0)
    )
    return bars


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--contender", nargs=3)
    given, _ = parser.parse_known_args()
    if given.contender:
        name, rows, rounds = given.contender
        print(json.dumps(compete(name, int(rows), int(rounds))))
    else:
        run_benchmark("rebalancing", measure)
