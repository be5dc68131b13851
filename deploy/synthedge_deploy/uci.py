"""The four hospitals of the UCI Heart Disease data, from their CSV files as they are.

Missing values, zeros that mean "not measured" and features that a hospital hardly ever recorded
stay in the tables; each hospital's site.toml says so, as a data manager would. Patient ids and
consents are invented: the files have none.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from synthedge_core.dictionary import Dictionary, Feature, parse_dictionary
from synthedge_core.errors import TableError
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_deploy.cohorts import (
    Cohort,
    Hospital,
    carved_cohort,
    consents,
    patient_ids,
)
from synthedge_deploy.samples import FloatArray, Samples, Subgroup

SOURCE: Final = (
    "920 real patients of four hospitals (UCI Heart Disease: Cleveland, Budapest, Zurich and "
    "Basel, Long Beach; CC BY 4.0, doi:10.24432/C52P4X), positive = angiographic disease; "
    "patient ids and consents are invented"
)
DICTIONARY: Final = "heart"
LABEL: Final = "num"
POSITIVE: Final = ["1", "2", "3", "4"]
NEGATIVE: Final = ["0"]

# site id: (file, prefix of the invented ids, description)
SITES: Final = {
    "cleveland": ("uci_heart_cleveland.csv", "CLE", "Cleveland Clinic; complete tables"),
    "budapest": ("uci_heart_hungarian.csv", "BUD", "Hungarian Institute of Cardiology"),
    "zurich-basel": (
        "uci_heart_switzerland.csv",
        "CHE",
        "university hospitals, nearly all positive",
    ),
    "long-beach": ("uci_heart_va.csv", "LOB", "V.A. Medical Center, older men"),
}
CARVED_SITE: Final = "cleveland"
# Angina in the exercise test: decides about angiography, and is common at all four hospitals.
SUBGROUP: Final = Subgroup("angina brought on by exercise", {"exang": (1.0, 1.0)})

# Nobody has these at zero: there a zero is a measurement that was not made.
NEVER_ZERO: Final = ("trestbps", "chol", "thalach")
# A feature known for fewer than half of the patients is no feature of that hospital.
MAX_MISSING_SHARE: Final = 0.5


def uci_hospitals(folder: Path, seed: int) -> tuple[Hospital, ...]:
    """Four real hospitals, each with its whole table.

    Parameters
    ----------
    folder : Path
        Holds the four files ``uci_heart_*.csv`` (commas, one header line, empty = missing).
    seed : int
        Decides ids and consents; 0 or more.

    Returns
    -------
    tuple of Hospital

    Raises
    ------
    TableError
        If the folder or a file is missing, cannot be read as CSV, lacks a column or holds a code
        that the dictionary does not have.
    """
    if not folder.is_dir():
        raise TableError(
            f"no folder {folder}; give --data the folder that holds {', '.join(_file_names())}"
        )
    dictionary = parse_dictionary(public_dictionary(DICTIONARY))
    hospitals = []
    for i, site in enumerate(SITES):
        raw = _read(folder / SITES[site][0], dictionary)
        hospitals.append(_hospital(site, raw, dictionary, np.random.default_rng([seed, i])))
    return tuple(hospitals)


def uci_cohort(folder: Path, seed: int) -> Cohort:
    """Four real hospitals; Cleveland lacks its positives with exercise angina, on purpose.

    Parameters
    ----------
    folder : Path
        As for `uci_hospitals`.
    seed : int
        Decides Cleveland's held-out half, ids and consents; 0 or more.

    Returns
    -------
    Cohort
        Half of Cleveland's rows are held out, stratified by label x exercise angina; then every
        training positive with exercise angina is taken away.

    Raises
    ------
    TableError
        As `uci_hospitals`.
    """
    return carved_cohort(
        uci_hospitals(folder, seed),
        source=SOURCE,
        dictionary_text=public_dictionary(DICTIONARY),
        site=CARVED_SITE,
        subgroup=SUBGROUP,
        seed=seed,
    )


def _file_names() -> list[str]:
    return [name for name, _, _ in SITES.values()]


def _read(path: Path, dictionary: Dictionary) -> pd.DataFrame:
    raw = read_columns(path, [*dictionary.feature_names, LABEL])
    unknown = ~raw[LABEL].isin(POSITIVE + NEGATIVE)
    if unknown.any():
        raise TableError(
            f"column '{LABEL}' of {path} holds {int(unknown.sum())} codes other than 0 to 4; "
            "correct the file"
        )
    return raw


def read_columns(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read some columns of a CSV file as text, a missing value as the empty text.

    Raises
    ------
    TableError
        If the file is missing, no CSV, or lacks a column.
    """
    if not path.is_file():
        raise TableError(f"no file {path}; the data folder must hold {path.name}")
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise TableError(f"{path} is not a comma-separated UTF-8 file; fetch it again") from None
    lacking = [name for name in columns if name not in raw.columns]
    if lacking:
        raise TableError(f"{path} lacks the column '{lacking[0]}'; expected {', '.join(columns)}")
    return raw[columns]


def _hospital(
    site: str, raw: pd.DataFrame, dictionary: Dictionary, generator: np.random.Generator
) -> Hospital:
    file, prefix, description = SITES[site]
    columns: dict[str, dict[str, Any]] = {}
    values = np.full((len(raw), len(dictionary.features)), np.nan)
    for i, feature in enumerate(dictionary.features):
        column = canonical_column(raw[feature.name], feature, file)
        is_zero = (column == 0.0) & (feature.name in NEVER_ZERO)
        column[is_zero] = np.nan
        if np.isnan(column).mean() > MAX_MISSING_SHARE:
            columns[feature.name] = {"absent": True}
            continue
        if is_zero.any():
            columns[feature.name] = {"missing": ["0"]}
        values[:, i] = column
    table = raw.copy()
    table.insert(0, "patient_id", patient_ids(prefix, len(raw), generator))
    table["consent"] = consents(len(raw), generator)
    return Hospital(
        site=site,
        description=description,
        table=table,
        patient_id="patient_id",
        consent="consent",
        label={"column": LABEL, "positive": POSITIVE, "negative": NEGATIVE},
        columns=columns,
        samples=Samples(values, raw[LABEL].isin(POSITIVE).to_numpy(dtype=np.bool_)),
    )


def canonical_column(column: pd.Series, feature: Feature, file: str) -> FloatArray:
    """Turn a column of text in the dictionary's own codes or unit into canonical numbers, NaN = missing.

    Raises
    ------
    TableError
        If it holds anything else.
    """
    known = column != ""
    if feature.has_levels:
        numbers = column.map({code: float(i) for i, code in enumerate(feature.levels)})
    else:
        numbers = pd.to_numeric(column, errors="coerce")
    n_wrong = int((numbers.isna() & known).sum())
    if n_wrong:
        raise TableError(
            f"column '{feature.name}' of {file} holds {n_wrong} values that are no {feature.kind} "
            "codes or numbers of the dictionary; correct the file"
        )
    return np.array(numbers, dtype=np.float64)
