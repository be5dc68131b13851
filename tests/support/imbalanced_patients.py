"""A small table with everything that makes rebalancing hard: codes, gaps, an identifier, few cases."""

import numpy as np
import pandas as pd


def imbalanced_patients(n_rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """Make a table: mostly men, few deaths, never a pregnant man, missing blood pressures."""
    rng = np.random.default_rng(seed)
    sex = rng.choice(["F", "M"], n_rows, p=[0.3, 0.7])
    age = np.clip(rng.normal(55, 11, n_rows).round(), 20, 95).astype(int)
    systolic = (105 + 0.5 * age + rng.normal(0, 10, n_rows)).round()
    risk = 1 / (1 + np.exp(-(age - 74) / 6))
    table = pd.DataFrame(
        {
            "patient_id": rng.permutation(n_rows) + 10_000,
            "sex": sex,
            "pregnant": np.where((sex == "F") & (age < 50) & (rng.random(n_rows) < 0.5), "y", "n"),
            "age": age,
            "systolic": systolic,
            "diastolic": (systolic * 0.55 + rng.normal(0, 4, n_rows)).round(1),
            "ward": rng.choice(["north", "south", "east"], n_rows, p=[0.5, 0.3, 0.2]),
            "died": (rng.random(n_rows) < risk).astype(int),
        }
    )
    table.loc[table.index % 15 == 0, "diastolic"] = np.nan
    return table
