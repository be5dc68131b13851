"""What the demonstration gives each hospital: a table, its mapping, and a hole made on purpose.

Every number comes from a real patient. The demonstration decides which hospital a diabetes patient
belongs to, invents patient ids and consents, and writes each table in the hospital's own columns,
units and codes, so that the mapping to the dictionary is really used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_deploy.samples import BoolArray, FloatArray, IntArray, Samples, Subgroup

PATIENTS_FILE = "patients.csv"

# Nearly everybody consents, some withdrew, some were never asked.
CONSENT_SHARES = {"active": 0.95, "withdrawn": 0.03, "": 0.02}


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """One hospital before its site is set up.

    Attributes
    ----------
    site : str
        The site's id.
    description : str
        What sets its patients or its table apart, for people.
    table : DataFrame
        Its table as it keeps it: own columns, units and codes, all text; empty = missing.
    patient_id, consent : str
        Columns of `table`.
    label, columns : mapping
        The ``[label]`` and ``[columns.*]`` parts of its site.toml.
    samples : Samples
        The same rows in dictionary units, in the order of `table`.
    """

    site: str
    description: str
    table: pd.DataFrame
    patient_id: str
    consent: str
    label: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    samples: Samples

    @property
    def has_consent(self) -> BoolArray:
        """Rows whose patient agreed to a transfer."""
        return (self.table[self.consent] == "active").to_numpy(dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Four hospitals, one of which lacks a group of patients on purpose.

    Attributes
    ----------
    source : str
        Where the patients come from and what was done to them, for people.
    dictionary_text : str
        A consortium.toml.
    hospitals : tuple of Hospital
    carved_site : str
        The hospital that a subgroup's positives were taken from.
    subgroup : Subgroup
    carved : Samples
        The rows taken; they are in no hospital's table.
    held_out : Samples
        Real rows of the carved hospital, with the subgroup, that no hospital's table holds.
    """

    source: str
    dictionary_text: str
    hospitals: tuple[Hospital, ...]
    carved_site: str
    subgroup: Subgroup
    carved: Samples
    held_out: Samples

    @cached_property
    def dictionary(self) -> Dictionary:
        """`dictionary_text` as a checked value."""
        return parse_dictionary(self.dictionary_text)

    @property
    def recipient(self) -> Hospital:
        """The carved hospital."""
        return next(hospital for hospital in self.hospitals if hospital.site == self.carved_site)

    @property
    def donors(self) -> tuple[Hospital, ...]:
        """The other hospitals."""
        return tuple(h for h in self.hospitals if h.site != self.carved_site)


def write_site_files(hospital: Hospital, folder: Path) -> dict[str, Any]:
    """Write a hospital's patients.csv; return the mapping its site.toml needs.

    Parameters
    ----------
    hospital : Hospital
    folder : Path
        The site's folder; made if there is none.

    Returns
    -------
    dict
        ``{"label": {...}, "columns": {feature: {...}}}``, to be merged into site.toml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hospital.table.to_csv(folder / PATIENTS_FILE, index=False, lineterminator="\n")
    return {
        "label": dict(hospital.label),
        "columns": {name: dict(column) for name, column in hospital.columns.items()},
    }


def dictionary_file(name: str) -> str:
    """Read the text of a dictionary that ships with this package."""
    return files("synthedge_deploy").joinpath("dictionaries", name).read_text(encoding="utf-8")


def patient_ids(prefix: str, n_rows: int, generator: np.random.Generator) -> list[str]:
    """Invented local ids, distinct, long enough to be searched for in other people's files."""
    numbers = generator.choice(9 * 10**7, size=n_rows, replace=False) + 10**7
    return [f"{prefix}-{number}" for number in numbers]


def consents(n_rows: int, generator: np.random.Generator) -> list[str]:
    """Invented consents, in the shares of `CONSENT_SHARES`."""
    drawn = generator.choice(list(CONSENT_SHARES), size=n_rows, p=list(CONSENT_SHARES.values()))
    return [str(code) for code in drawn]


def carved_cohort(
    hospitals: Sequence[Hospital],
    *,
    source: str,
    dictionary_text: str,
    site: str,
    subgroup: Subgroup,
    seed: int,
    share: float = 1.0,
) -> Cohort:
    """Hold out half of one hospital's rows, and take a subgroup's positives out of the other half.

    Parameters
    ----------
    hospitals : sequence of Hospital
        With their whole tables.
    source, dictionary_text : str
        As in `Cohort`.
    site : str
        The hospital that is carved.
    subgroup : Subgroup
    seed : int
        Decides the halves, which are stratified by label x subgroup, and the rows taken.
    share : float
        Of the subgroup's training positives, in [0, 1].

    Returns
    -------
    Cohort
    """
    dictionary = parse_dictionary(dictionary_text)
    whole = next(hospital for hospital in hospitals if hospital.site == site)
    training, held_out, carved = hold_out_and_carve(
        whole.samples,
        np.arange(len(whole.samples)),
        subgroup.contains(whole.samples.values, dictionary),
        seed,
        share,
    )
    recipient = replace(
        whole,
        table=whole.table.iloc[training].reset_index(drop=True),
        samples=whole.samples.rows(training),
    )
    return Cohort(
        source=source,
        dictionary_text=dictionary_text,
        hospitals=tuple(recipient if h is whole else h for h in hospitals),
        carved_site=site,
        subgroup=subgroup,
        carved=whole.samples.rows(carved),
        held_out=whole.samples.rows(held_out),
    )


def hold_out_and_carve(
    samples: Samples, rows: IntArray, members: BoolArray, seed: int, share: float = 1.0
) -> tuple[IntArray, IntArray, IntArray]:
    """Hold out half of a hospital's rows; carve a subgroup's positives out of the other half.

    Parameters
    ----------
    samples : Samples
        All rows.
    rows : ndarray of int
        Positions of the hospital's rows.
    members : ndarray of bool, shape (len(samples),)
        The subgroup.
    seed : int
    share : float
        Of the subgroup's training positives that are taken, in [0, 1].

    Returns
    -------
    training, held_out, carved : ndarray of int
        Positions, sorted; the halves are stratified by label x subgroup.
    """
    from sklearn.model_selection import train_test_split

    strata = samples.positive[rows] * 2 + members[rows]
    training, held_out = train_test_split(rows, test_size=0.5, stratify=strata, random_state=seed)
    training = np.sort(training)
    candidates = training[samples.positive[training] & members[training]]
    carved = np.sort(
        np.random.default_rng([seed, 300]).permutation(candidates)[: round(share * len(candidates))]
    )
    return np.setdiff1d(training, carved), np.sort(held_out), carved


def plain_numbers(column: FloatArray) -> list[str]:
    """Numbers as a hospital's export writes them: no exponent, no trailing zero."""
    return ["" if np.isnan(v) else np.format_float_positional(v, trim="-") for v in column]


def coded(column: FloatArray, codes: Sequence[str]) -> list[str]:
    """Level indices as a hospital's own codes."""
    return ["" if np.isnan(v) else codes[int(v)] for v in column]
