"""A hospital's table in the dictionary's terms: own columns, units and codes mapped, every problem counted.

Rules
-----
* The file is read; it is never written.
* A problem names a column and how many rows have it, never a value.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synthedge_client.consent import ACTIVE, Consents
from synthedge_client.consent_register import load_register
from synthedge_client.settings import ColumnSettings, SiteSettings
from synthedge_client.table_problems import (
    Problem,
    column_conflicts,
    identity_problems,
    label_problems,
    repeated_rows,
    unmapped_levels,
    unreadable_cells,
    value_problems,
)
from synthedge_client.tables import read_table
from synthedge_client.units import unit_conversion
from synthedge_core.dictionary import Dictionary, Feature
from synthedge_core.errors import TableError
from synthedge_core.rescale import AffineUnit, Cell, ColumnMap, LevelMap

if TYPE_CHECKING:
    # A third of the time and memory that an agent starts with, which may never have to look at the table.
    import pandas as pd

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class SiteTable:
    """The site's rows in dictionary terms.

    Attributes
    ----------
    own : DataFrame of n_rows rows
        As the site keeps them.
    values : ndarray of shape (n_rows, n_features)
        Dictionary units and level indices; NaN = missing.
    positive : ndarray of bool, shape (n_rows,)
    patient_ids : list of str
    consents : Consents
        What each row's patient consents to; ``consents.to(purpose)`` marks the rows that may leave for it.
    features : tuple of str
        The dictionary's features this site has, in its order.
    maps : tuple of ColumnMap
        One a feature of `features`.
    label_column, positive_code
        Where and how the site writes a positive label.
    """

    own: "pd.DataFrame"
    values: FloatArray
    positive: BoolArray
    patient_ids: list[str]
    consents: Consents
    features: tuple[str, ...]
    maps: tuple[ColumnMap, ...]
    label_column: str
    positive_code: str
    dictionary: Dictionary

    @cached_property
    def first_row_of_patient(self) -> BoolArray:
        """Marks one row a patient: counts and transfers are about patients."""
        import pandas as pd

        return ~pd.Series(self.patient_ids).duplicated().to_numpy()

    def to_own_rows(self, values: FloatArray) -> "pd.DataFrame":
        """Rows of positives in the site's own columns, units and codes.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_features)
            Dictionary units.

        Returns
        -------
        DataFrame
            The mapped columns and the label; numbers as the site's type of column holds them.
        """
        import pandas as pd

        columns: dict[str, list[Cell]] = {}
        for column_map in self.maps:
            cells = column_map.to_own(values[:, self.dictionary.index(column_map.feature)]).tolist()
            if pd.api.types.is_integer_dtype(self.own[column_map.column].dtype):
                cells = [c if c is None or float(c) % 1 else int(c) for c in cells]
            columns[column_map.column] = cells
        columns[self.label_column] = [self.positive_code] * len(values)
        return pd.DataFrame(columns)

    def from_own_rows(self, rows: "pd.DataFrame") -> FloatArray:
        """Rows in the site's own columns, units and codes, back in dictionary units.

        Parameters
        ----------
        rows : DataFrame
            Mapped columns, as `to_own_rows` or the site's file has them; one that is not there is missing.

        Returns
        -------
        ndarray of shape (n_rows, n_features)

        Raises
        ------
        TableError
            If a cell cannot be read.
        """
        values = np.full((len(rows), len(self.dictionary.features)), np.nan)
        for column_map in self.maps:
            if column_map.column not in rows:
                continue  # rows that came under an older dictionary may lack a feature
            cells = _cells(rows[column_map.column])
            values[:, self.dictionary.index(column_map.feature)] = column_map.to_dictionary(cells)
        return values


def load_site_table(settings: SiteSettings, dictionary: Dictionary) -> SiteTable:
    """Read and map a site's table.

    Raises
    ------
    TableError
        With the first problem that stops, and how many there are.
    """
    table, problems = examine_site_table(settings, dictionary)
    stopping = [p for p in problems if p.stops]
    if stopping or table is None:
        first = stopping[0]
        more = (
            f" ({len(stopping) - 1} more; run 'synthedge site doctor')" if len(stopping) > 1 else ""
        )
        rows = "" if first.rows is None else f" in {first.rows} rows"
        raise TableError(f"{first.about}: {first.found}{rows}{more}")
    return table


def examine_site_table(
    settings: SiteSettings, dictionary: Dictionary
) -> tuple[SiteTable | None, list[Problem]]:
    """Map a site's table and list every problem at once.

    Returns
    -------
    tuple
        The table, or None when something stops; all problems.

    Raises
    ------
    TableError
        If the file cannot be read at all.
    """
    own = read_table(settings.data)
    problems = [
        Problem(
            f"[columns.{name}]",
            "the dictionary has no such feature; remove it from site.toml",
            None,
            True,
        )
        for name in settings.columns
        if name not in dictionary.feature_names and name not in settings.known_features
    ]
    maps: list[ColumnMap] = []
    for feature in dictionary.features:
        kept_as = settings.columns.get(feature.name, ColumnSettings())
        if kept_as.absent:
            continue
        try:
            maps.append(_column_map(feature, kept_as, own))
        except TableError as error:
            problems.append(Problem(feature.name, str(error), None, True))
    label_column = settings.label.column or dictionary.target.column
    # Whatever is missing, what is there is looked at: the data manager mends the file once, not ten times.
    labels = _codes(own, label_column, "label", problems)
    patient_ids = _codes(own, settings.patient_id, "patient_id", problems)
    problems += column_conflicts(maps, settings, label_column)
    consents = _consents(own, patient_ids, settings, problems)
    values = np.full((len(own), len(dictionary.features)), np.nan)
    for column_map in maps:
        feature = dictionary.feature(column_map.feature)
        problems += unmapped_levels(feature, column_map)
        cells = _cells(own[column_map.column])
        unreadable = column_map.unreadable(cells)
        if unreadable.any():
            problems.append(unreadable_cells(column_map, int(unreadable.sum())))
            continue
        column = column_map.to_dictionary(cells)
        problems += value_problems(feature, column_map, column)
        values[:, dictionary.index(feature.name)] = column
    positive_codes = settings.label.positive or (dictionary.target.positive,)
    if labels is not None:
        problems += label_problems(labels, label_column, positive_codes, settings.label.negative)
    if patient_ids is not None:
        problems += identity_problems(patient_ids, settings)
    if any(p.stops for p in problems) or labels is None or patient_ids is None or consents is None:
        return None, problems
    kept = np.array([bool(label) for label in labels], dtype=np.bool_)
    table = SiteTable(
        own=own[kept].reset_index(drop=True),
        values=values[kept],
        positive=np.array([label in positive_codes for label in labels], dtype=np.bool_)[kept],
        patient_ids=[p for p, keep in zip(patient_ids, kept, strict=True) if keep],
        consents=consents.selected(kept),
        features=tuple(m.feature for m in maps),
        maps=tuple(maps),
        label_column=label_column,
        positive_code=positive_codes[0],
        dictionary=dictionary,
    )
    return table, problems + repeated_rows(table.values, table.positive, table.patient_ids)


def _codes(
    own: "pd.DataFrame", column: str, what: str, problems: list[Problem]
) -> list[str] | None:
    if column in own.columns:
        return [_code(cell) for cell in _cells(own[column])]
    found = f"the table has no such column for the {what}; correct site.toml"
    problems.append(Problem(f"column '{column}'", found, None, True))
    return None


def _consents(
    own: "pd.DataFrame",
    patient_ids: list[str] | None,
    settings: SiteSettings,
    problems: list[Problem],
) -> Consents | None:
    if settings.consent_register is None:
        codes = _codes(own, settings.consent, "consent", problems)
        if codes is None or patient_ids is None:
            return None
        if not any(code.strip().lower() == ACTIVE for code in codes):
            found = f"no row says '{ACTIVE}', so no patient consents to anything and nothing can be given"
            problems.append(Problem(f"column '{settings.consent}'", found, None, False))
        return Consents.from_column(codes, patient_ids)
    try:
        register = load_register(settings.consent_register)
    except TableError as error:
        # Nobody consents, then; and rows that were refused for it would look like withdrawals.
        problems.append(Problem("consent", str(error), None, True))
        return None
    if patient_ids is None:
        return None
    n_unknown = len(set(patient_ids) - set(register))
    if n_unknown:
        found = "patients without an entry in the consent register; they do not consent"
        problems.append(Problem("consent", found, n_unknown, False))
    return Consents.from_register(register, patient_ids)


def _column_map(feature: Feature, column: ColumnSettings, own: "pd.DataFrame") -> ColumnMap:
    name = column.column or feature.name
    if name not in own.columns:
        raise TableError(
            f"no column '{name}' in the table; name it in [columns.{feature.name}] of site.toml, "
            "or write absent = true"
        )
    coding: AffineUnit | LevelMap
    if feature.levels:
        if column.unit is not None:
            raise TableError("a unit is given for a feature with levels; remove it from site.toml")
        codes = column.levels or {level: level for level in feature.levels}
        unknown = sorted(set(codes.values()) - set(feature.levels))
        if unknown:
            raise TableError(
                f"level '{unknown[0]}' is none of the dictionary's ({', '.join(feature.levels)}); "
                f"correct [columns.{feature.name}] of site.toml"
            )
        coding = LevelMap({own: feature.levels.index(level) for own, level in codes.items()})
    else:
        if column.levels is not None:
            raise TableError(
                "levels are given for a feature that has none; remove them from site.toml"
            )
        same = column.unit is None or column.unit == feature.unit
        coding = AffineUnit() if same else unit_conversion(column.unit or "", feature)
    return ColumnMap(
        feature=feature.name, column=name, coding=coding, missing=frozenset(column.missing)
    )


def _cells(column: "pd.Series") -> list[Cell]:
    """A column's cells: text, numbers, None where empty."""
    import pandas as pd

    return [None if pd.isna(cell) else _plain(cell) for cell in column.tolist()]


def _plain(cell: object) -> Cell:
    return float(cell) if isinstance(cell, bool | int | float) else str(cell)


def _code(cell: Cell) -> str:
    """A cell as a code: 1 and 1.0 are the code "1"; empty is ""."""
    if cell is None:
        return ""
    return f"{cell:.15g}" if isinstance(cell, float) else cell.strip()
