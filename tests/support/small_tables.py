"""Made-up clinical tables for tests of the single-site engine."""

import numpy as np
import pandas as pd


def ward_table(n_rows: int = 400, seed: int = 0, *, has_gap: bool = False) -> pd.DataFrame:
    """Give patients of every kind of column; a risk that rises with age, pressure and smoking.

    With `has_gap` the positive smoking men are missing.
    """
    rng = np.random.default_rng(seed)
    age = rng.integers(30, 85, n_rows)
    systolic = rng.normal(95 + 0.6 * age, 12).round(1)
    diastolic = (0.62 * systolic + rng.normal(0, 6, n_rows)).round(1).clip(40, systolic - 5)
    sex = np.where(rng.random(n_rows) < 0.5, "F", "M")
    smoker = rng.random(n_rows) < 0.4
    ward = rng.choice(["A", "B", "C"], n_rows, p=[0.5, 0.3, 0.2])
    risk = 0.06 * (age - 58) + 0.02 * (systolic - 130) + 1.2 * smoker + 0.8 * (sex == "M") - 1.2
    positive = rng.random(n_rows) < 1 / (1 + np.exp(-risk))
    glucose = rng.normal(100, 15, n_rows).round(0)
    table = pd.DataFrame(
        {
            "mrn": np.arange(n_rows) + 5000,
            "age": age,
            "systolic": systolic,
            "diastolic": diastolic.round(1),
            "glucose": np.where(rng.random(n_rows) < 0.1, np.nan, glucose),
            "sex": sex,
            "smoker": smoker,
            "ward": pd.Categorical(ward),
            "stage": rng.integers(1, 5, n_rows),
            "unit": 3,
            "note": [f"seen by doctor {i % 97}" for i in range(n_rows)],
            "progressed": np.where(positive, "yes", "no"),
        }
    )
    if has_gap:
        gone = (table.sex == "M") & table.smoker & (table.progressed == "yes")
        table = table[~gone].reset_index(drop=True)
    return table


def noise_table(n_rows: int, positive_share: float, seed: int) -> pd.DataFrame:
    """Give columns and labels that have nothing to do with each other."""
    rng = np.random.default_rng([n_rows, int(100 * positive_share), seed])
    table = pd.DataFrame(rng.normal(size=(n_rows, 7)), columns=list("abcdefg"))
    table["h"] = rng.integers(0, 2, n_rows)
    is_positive = np.arange(n_rows) < max(6, int(positive_share * n_rows))
    table["y"] = rng.permutation(is_positive.astype(int))
    return table
