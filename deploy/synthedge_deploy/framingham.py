"""The Framingham teaching extract as four hospitals with different patients, from its CSV file as it is.

The file's licence is not established: it is read where it lies and is no part of the project.
"""

from pathlib import Path
from typing import Final

import numpy as np

from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_core.errors import TableError
from synthedge_deploy.cohorts import Hospital, consents, dictionary_file, patient_ids
from synthedge_deploy.samples import Samples
from synthedge_deploy.uci import canonical_column, read_columns

FILE: Final = "framingham.csv"
DICTIONARY: Final = "framingham.toml"
LABEL: Final = "TenYearCHD"

# Pull of z(age), z(sysBP), z(smoking) towards each hospital: all kinds; older and hypertensive; young smokers;
# young, slim-pressured non-smokers.
SHIFTED: Final = ("age", "sysBP", "currentSmoker")
WEIGHTS: Final = {
    "general": (0.0, 0.0, 0.0),
    "geriatric": (0.8, 0.5, 0.0),
    "harbour": (-0.4, 0.0, 0.8),
    "suburb": (-0.4, -0.4, -0.6),
}


def framingham_hospitals(folder: Path, seed: int) -> tuple[Hospital, ...]:
    """Deal the patients to four hospitals.

    Parameters
    ----------
    folder : Path
        Holds ``framingham.csv`` (commas, one header line, empty = missing).
    seed : int
        Decides the split, ids and consents; 0 or more.

    Returns
    -------
    tuple of Hospital

    Raises
    ------
    TableError
        If the file is missing, lacks a column or holds a code that the dictionary does not have.

    Notes
    -----
    Hospital = argmax over ``z @ weights + Gumbel noise``: a multinomial logit in age, systolic pressure and smoking.
    """
    dictionary = parse_dictionary(dictionary_file(DICTIONARY))
    path = folder / FILE
    raw = read_columns(path, [*dictionary.feature_names, LABEL])
    if not raw[LABEL].isin(["0", "1"]).all():
        raise TableError(
            f"column '{LABEL}' of {path} holds codes other than 0 and 1; fetch the file again"
        )
    values = np.column_stack(
        [canonical_column(raw[feature.name], feature, FILE) for feature in dictionary.features]
    )
    positive = (raw[LABEL] == "1").to_numpy(dtype=np.bool_)
    generator = np.random.default_rng(seed)
    hospital_of = _dealt(values, dictionary, generator)
    hospitals = []
    for i, site in enumerate(WEIGHTS):
        rows = np.flatnonzero(hospital_of == i)
        table = raw.iloc[rows].reset_index(drop=True)
        table.insert(0, "patient_id", patient_ids(site[:3].upper(), len(rows), generator))
        table["consent"] = consents(len(rows), generator)
        hospitals.append(
            Hospital(
                site=site,
                description=f"{len(rows)} patients of the Framingham extract",
                table=table,
                patient_id="patient_id",
                consent="consent",
                label={"column": LABEL, "positive": ["1"], "negative": ["0"]},
                columns={},
                samples=Samples(values[rows], positive[rows]),
            )
        )
    return tuple(hospitals)


def _dealt(
    values: np.ndarray, dictionary: Dictionary, generator: np.random.Generator
) -> np.ndarray:
    shifted = values[:, [dictionary.index(name) for name in SHIFTED]]
    z = (shifted - np.nanmean(shifted, axis=0)) / np.nanstd(shifted, axis=0)
    pull = np.nan_to_num(z) @ np.array(list(WEIGHTS.values())).T
    hospital: np.ndarray = (pull + generator.gumbel(size=pull.shape)).argmax(axis=1)
    return hospital
