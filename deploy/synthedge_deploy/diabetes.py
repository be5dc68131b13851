"""The 442 patients of scikit-learn's diabetes set as four hospitals with different patients."""

from typing import Any, Final

import numpy as np
import pandas as pd

from synthedge_core.dictionary import parse_dictionary
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_deploy.cohorts import (
    Cohort,
    Hospital,
    coded,
    consents,
    hold_out_and_carve,
    patient_ids,
    plain_numbers,
)
from synthedge_deploy.samples import FloatArray, IntArray, Samples, Subgroup

SOURCE: Final = (
    "442 real diabetes patients (scikit-learn's diabetes set in original units), dealt to four "
    "hospitals by age and body mass index; positive = progression score of at least 150 after one "
    "year, which is not a clinical diagnosis; patient ids and consents are invented"
)
PROGRESSION: Final = 150.0
SUBGROUP: Final = Subgroup(
    "mean arterial blood pressure of at least 100 mm[Hg]", {"bp": (100.0, np.inf)}
)

# Pull of z(age), z(bmi) towards each hospital; the first is large and takes all kinds.
WEIGHTS: Final = np.array([[0.0, 0.0], [1.0, 0.5], [-1.0, 0.5], [0.0, -1.0]])
LARGE: Final = np.log(3.0)

# scikit-learn's names to the dictionary's.
SOURCE_COLUMNS: Final = {
    "age": "age",
    "sex": "sex",
    "bmi": "bmi",
    "bp": "bp",
    "s1": "total_cholesterol",
    "s2": "ldl",
    "s3": "hdl",
    "s4": "cholesterol_ratio",
    "s5": "log_triglycerides",
    "s6": "glucose",
}
MOLAR_MASS_CHOLESTEROL: Final = 386.65
MOLAR_MASS_GLUCOSE: Final = 180.156

# How each hospital keeps its table. A `unit` of mmol/L is written with two decimals.
_MMOL = {"unit": "mmol/L"}
SITES: Final[dict[str, dict[str, Any]]] = {
    "north": {
        "description": "large, all kinds of patients; lipids in mmol/L, sex as F and M",
        "prefix": "NOR",
        "patient_id": "mrn",
        "consent": "research_consent",
        "label": {"column": "progressed", "positive": ["yes"], "negative": ["no"]},
        "columns": {
            "sex": {"column": "sex", "levels": {"F": "1", "M": "2"}},
            "total_cholesterol": {"column": "tc_mmol", **_MMOL},
            "ldl": {"column": "ldl_mmol", **_MMOL},
            "hdl": {"column": "hdl_mmol", **_MMOL},
        },
    },
    "east": {
        "description": "older and heavier patients; other column names, glucose in mmol/L",
        "prefix": "EAS",
        "patient_id": "patient_no",
        "consent": "consent",
        "label": {"column": "progressed", "positive": ["1"], "negative": ["0"]},
        "columns": {
            "bp": {"column": "map_mmhg"},
            "glucose": {"column": "glucose_mmol", **_MMOL},
        },
    },
    "south": {
        "description": "younger and heavier patients; columns in own words, sex as female and male",
        "prefix": "SOU",
        "patient_id": "pid",
        "consent": "consent",
        "label": {"column": "outcome", "positive": ["P"], "negative": ["N"]},
        "columns": {
            "age": {"column": "age_years"},
            "sex": {"column": "gender", "levels": {"female": "1", "male": "2"}},
            "bmi": {"column": "body_mass_index"},
            "log_triglycerides": {"column": "ln_tg"},
        },
    },
    "west": {
        "description": "slim patients; the table is as the dictionary has it",
        "prefix": "WES",
        "patient_id": "patient_id",
        "consent": "consent",
        "label": {"column": "progressed", "positive": ["1"], "negative": ["0"]},
        "columns": {},
    },
}


def diabetes_cohort(seed: int) -> Cohort:
    """Four hospitals with a non-random shift; the first lacks its hypertensive positives.

    Parameters
    ----------
    seed : int
        Decides the split, the held-out half, ids and consents; 0 or more.

    Returns
    -------
    Cohort

    Notes
    -----
    Hospital = argmax over ``[z(age), z(bmi)] @ WEIGHTS.T + Gumbel noise`` with log 3 added for the
    first: a multinomial logit. At the first hospital half of the rows are held out, stratified by
    label x (bp >= 100), and every training positive with bp >= 100 is taken away.
    """
    everybody, age_bmi = _load()
    generator = np.random.default_rng(seed)
    z = (age_bmi - age_bmi.mean(axis=0)) / age_bmi.std(axis=0, ddof=1)
    pull = z @ WEIGHTS.T + generator.gumbel(size=(len(everybody), len(SITES)))
    pull[:, 0] += LARGE
    hospital_of = pull.argmax(axis=1)

    text = public_dictionary("diabetes")
    training, held_out, carved = hold_out_and_carve(
        everybody,
        np.flatnonzero(hospital_of == 0),
        SUBGROUP.contains(everybody.values, parse_dictionary(text)),
        seed,
    )
    hospitals = []
    for i, site in enumerate(SITES):
        rows = training if i == 0 else np.flatnonzero(hospital_of == i)
        hospitals.append(_hospital(site, everybody, rows, np.random.default_rng([seed, i])))
    return Cohort(
        source=SOURCE,
        dictionary_text=text,
        hospitals=tuple(hospitals),
        carved_site="north",
        subgroup=SUBGROUP,
        carved=everybody.rows(carved),
        held_out=everybody.rows(held_out),
    )


def _load() -> tuple[Samples, FloatArray]:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(as_frame=True, scaled=False)
    table = bunch.data[list(SOURCE_COLUMNS)]
    values = table.to_numpy(dtype=np.float64)
    values[:, table.columns.get_loc("sex")] -= 1  # codes 1 and 2 to level indices
    positive = bunch.target.to_numpy() >= PROGRESSION
    return Samples(values, positive), table[["age", "bmi"]].to_numpy(dtype=np.float64)


def _hospital(
    site: str, everybody: Samples, rows: IntArray, generator: np.random.Generator
) -> Hospital:
    spec = SITES[site]
    samples = everybody.rows(rows)
    values = samples.values.copy()
    table = pd.DataFrame({spec["patient_id"]: patient_ids(spec["prefix"], len(rows), generator)})
    for i, feature in enumerate(SOURCE_COLUMNS.values()):
        own = spec["columns"].get(feature, {})
        if feature == "sex":
            text = coded(values[:, i], list(own.get("levels", {"1": "1", "2": "2"})))
        elif "unit" in own:
            mass = MOLAR_MASS_GLUCOSE if feature == "glucose" else MOLAR_MASS_CHOLESTEROL
            mg_dl_per_mmol_l = mass / 10
            millimoles = np.round(values[:, i] / mg_dl_per_mmol_l, 2)
            text = plain_numbers(millimoles)
            # What the hospital wrote down is what it has; the source's last digit is gone.
            values[:, i] = millimoles * mg_dl_per_mmol_l
        else:
            text = plain_numbers(values[:, i])
        table[own.get("column", feature)] = text
    positive, negative = spec["label"]["positive"][0], spec["label"]["negative"][0]
    table[spec["label"]["column"]] = np.where(samples.positive, positive, negative)
    table[spec["consent"]] = consents(len(rows), generator)
    return Hospital(
        site=site,
        description=spec["description"],
        table=table,
        patient_id=spec["patient_id"],
        consent=spec["consent"],
        label=spec["label"],
        columns=spec["columns"],
        samples=Samples(values, samples.positive),
    )
