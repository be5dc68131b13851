"""What may be wrong with a mapped table: each check counts the rows it is about and never shows a value."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthedge_client.settings import SiteSettings
from synthedge_client.units import fitting_units
from synthedge_core.dictionary import Feature
from synthedge_core.rescale import AffineUnit, ColumnMap, LevelMap

FloatArray = NDArray[np.float64]

# From this share of implausible values on, another unit is likelier than so many slips.
_WRONG_UNIT_SHARE = 0.5
_MOSTLY_MISSING_SHARE = 0.5
# Rows of fewer measured features coincide by chance.
_TELLING_FEATURES = 8


@dataclass(frozen=True)
class Problem:
    """Something about the table that does not fit.

    Attributes
    ----------
    about : str
        A column, a feature or a file.
    found : str
        What, and what to do next; no value.
    rows : int or None
        How many rows have it.
    stops : bool
        Whether the table cannot be used before it is mended.
    """

    about: str
    found: str
    rows: int | None
    stops: bool


def unreadable_cells(column_map: ColumnMap, n_rows: int) -> Problem:
    """Cells that are neither missing nor a number or listed code."""
    if isinstance(column_map.coding, LevelMap):
        found = (
            f"codes not listed in [columns.{column_map.feature}] levels; list them, or as missing"
        )
    else:
        found = f"neither a number nor a code listed as missing in [columns.{column_map.feature}]"
    return Problem(f"column '{column_map.column}'", found, n_rows, True)


def unmapped_levels(feature: Feature, column_map: ColumnMap) -> list[Problem]:
    """Levels of the dictionary that the site has no code for."""
    if not isinstance(column_map.coding, LevelMap):
        return []
    missing = [
        level for i, level in enumerate(feature.levels) if column_map.coding.code_of(i) is None
    ]
    if not missing:
        return []
    found = (
        f"no own code for the dictionary's {', '.join(missing)} in [columns.{feature.name}] levels; "
        "samples that have them cannot be received"
    )
    return [Problem(f"feature '{feature.name}'", found, None, False)]


def value_problems(feature: Feature, column_map: ColumnMap, column: FloatArray) -> list[Problem]:
    """Missing, implausible and fractional values of one feature.

    Parameters
    ----------
    feature : Feature
    column_map : ColumnMap
        How it was read.
    column : ndarray of shape (n_rows,)
        Dictionary units or level indices, NaN = missing.
    """
    about, n_rows = f"feature '{feature.name}'", len(column)
    n_missing = int(np.isnan(column).sum())
    if n_rows and n_missing == n_rows:
        found = (
            "no row has a value; a feature nobody measured is no feature of this site, "
            f"write absent = true in [columns.{feature.name}] of site.toml"
        )
        return [Problem(about, found, n_missing, True)]
    problems = []
    if n_missing > _MOSTLY_MISSING_SHARE * n_rows:
        found = (
            "missing in most rows; grids that use it count few of your patients. If it is hardly ever measured "
            f"here, write absent = true in [columns.{feature.name}]"
        )
        problems.append(Problem(about, found, n_missing, False))
    problems += _implausible(feature, column_map, column)
    low, high = feature.plausible or (-np.inf, np.inf)
    present = column[(column >= low) & (column <= high)]
    has_own_unit = column_map.coding == AffineUnit()
    if feature.kind == "integer" and has_own_unit and (fractional := present % 1 != 0).any():
        found = "not whole numbers, which the dictionary expects; they are rounded when they leave"
        problems.append(Problem(about, found, int(fractional.sum()), False))
    return problems


def _implausible(feature: Feature, column_map: ColumnMap, column: FloatArray) -> list[Problem]:
    if feature.plausible is None or not isinstance(column_map.coding, AffineUnit):
        return []
    about, (low, high) = f"feature '{feature.name}'", feature.plausible
    own = column_map.coding.to_own(column)
    outside = (column < low) | (column > high)
    zeros = outside & np.isclose(own, 0.0, atol=1e-9)
    where = f"[columns.{feature.name}] of site.toml"
    problems = []
    if zeros.any():
        found = (
            f"zero, which is outside the plausible range {low:g} to {high:g} {feature.unit}; if it means 'not "
            f'measured\', write missing = ["0"] in {where}'
        )
        problems.append(Problem(about, found, int(zeros.sum()), True))
    others = outside & ~zeros
    if others.any():
        found = (
            f"outside the plausible range {low:g} to {high:g} {feature.unit}: wrong unit, or a code "
            f"that means missing? Correct {where} or the file"
        )
        measured = ~np.isnan(column) & ~zeros
        if others.sum() > _WRONG_UNIT_SHARE * measured.sum():
            units = fitting_units(feature, own[measured])
            if units:
                found += (
                    f"; in {' or '.join(units)} the values would be plausible: is that your unit?"
                )
        problems.append(Problem(about, found, int(others.sum()), True))
    return problems


def column_conflicts(
    maps: Sequence[ColumnMap], settings: SiteSettings, label_column: str
) -> list[Problem]:
    """One column that is read as two things: a label among the features would predict itself."""
    taken = {label_column: "the label", settings.patient_id: "the patient id"}
    problems = []
    for column_map in maps:
        if column_map.column in taken:
            found = (
                f"is read as feature '{column_map.feature}' and as {taken[column_map.column]}; "
                "correct site.toml"
            )
            problems.append(Problem(f"column '{column_map.column}'", found, None, True))
        taken.setdefault(column_map.column, f"feature '{column_map.feature}'")
    return problems


def label_problems(
    labels: list[str],
    column: str,
    positive: tuple[str, ...],
    negative: tuple[str, ...] | None,
) -> list[Problem]:
    """Empty labels, unknown codes, and a positive code that no row has."""
    about = f"label '{column}'"
    present = set(labels) - {""}
    problems = []
    n_empty = labels.count("")
    if n_empty:
        problems.append(Problem(about, "empty; these rows are left out", n_empty, False))
    if negative is None and len(present - set(positive)) > 1:
        found = (
            "several codes that are not the positive one; list those that mean negative in [label]"
        )
        n_rows = sum(label not in positive and label != "" for label in labels)
        problems.append(Problem(about, found, n_rows, True))
    if negative is not None:
        n_unknown = sum(label not in (*positive, *negative, "") for label in labels)
        if n_unknown:
            found = "codes that [label] lists neither as positive nor as negative; list them"
            problems.append(Problem(about, found, n_unknown, True))
    if not present & set(positive):
        found = (
            f"no row has the positive code ({', '.join(positive)}); correct [label] of site.toml"
        )
        problems.append(Problem(about, found, None, True))
    return problems


def identity_problems(patient_ids: list[str], settings: SiteSettings) -> list[Problem]:
    """Rows without a patient id, and further rows of the same patient."""
    about = f"column '{settings.patient_id}'"
    problems = []
    n_empty = patient_ids.count("")
    if n_empty:
        problems.append(Problem(about, "no patient id; every row needs one", n_empty, True))
    n_again = len(patient_ids) - len(set(patient_ids))
    if n_again and not n_empty:
        found = "a patient id seen before; only each patient's first row is counted and shared"
        problems.append(Problem(about, found, n_again, False))
    return problems


def repeated_rows(
    values: FloatArray, positive: NDArray[np.bool_], patient_ids: list[str]
) -> list[Problem]:
    """Rows that equal another patient's in every feature and the label.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        Dictionary units, NaN = missing.
    positive : ndarray of bool, shape (n_rows,)
    patient_ids : list of str, length n_rows
    """
    seen: dict[bytes, str] = {}
    n_again = 0
    # NaN has many bit patterns and zero two: one each.
    plain = np.where(np.isnan(values), np.nan, values) + 0.0
    telling = (~np.isnan(values)).sum(axis=1) >= _TELLING_FEATURES
    for i in np.flatnonzero(telling):
        patient = patient_ids[i]
        first = seen.setdefault(plain[i].tobytes() + positive[i].tobytes(), patient)
        n_again += first != patient
    if not n_again:
        return []
    found = (
        "every feature and the label equal another patient's: one patient under two ids? "
        "Such a patient counts twice"
    )
    return [Problem("patients", found, n_again, False)]
