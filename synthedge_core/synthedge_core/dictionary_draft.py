"""Draft a consortium.toml from a table: what can be guessed is guessed, what only people know is left to fill in.

Rules
-----
* What few patients have is never copied: no level of fewer than 5 rows, no lowest or highest value. Ranges come from
  the fifth lowest and highest value, widened, and end at round numbers.
* Where a column's name and values fit a common clinical measurement, its reference values and guideline cut points
  are taken instead of the table's.
* Units that cannot be known, definitions and privacy classes stay open. A feature without a class never leaves a
  site, and the draft is not valid before its open keys are filled in.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from synthedge_core.clinical_reference import (
    REFERENCES,
    SEX_NAMES,
    ClinicalReference,
    normalised,
    reference_of,
)
from synthedge_core.dictionary import MAX_GRIDS, MAX_VOXELS
from synthedge_core.errors import DictionaryError
from synthedge_core.frame import FloatArray

MIN_ROWS: Final = 5
"""A level or value that fewer rows have is not copied."""

_MIN_VALUES: Final = 4 * MIN_ROWS
_MAX_LEVELS: Final = 12
# Whole numbers of so few kinds are codes rather than measurements.
_MAX_CODES: Final = 8
_FITTING_SHARE: Final = 0.95
_MISSING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "?", ".", "-"})
_DATE: Final = re.compile(r"\d{4}-\d{1,2}-\d{1,2}.*|\d{1,2}[./]\d{1,2}[./]\d{2,4}.*")
_IDENTIFIER: Final = re.compile(
    r"(^|[_\W])(id|mrn|pid|ssn|uuid|name|surname|address|phone|email|number|nr)($|[_\W])", re.I
)
# Tells people apart as an address does, without being one.
_QUASI: Final = re.compile(
    r"race|ethnic|education|zip|postcode|postal|region|occupation|job|marital|language", re.I
)
_NOT_A_FEATURE: Final = re.compile(r"consent|date|dob|birth", re.I)


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafted dictionary.

    Attributes
    ----------
    toml : str
        Text of a consortium.toml, not valid before its open keys are filled in.
    to_fill_in : tuple of str
        What is open, in words.
    """

    toml: str
    to_fill_in: tuple[str, ...]


@dataclass(slots=True)
class _Drafted:
    """One feature's lines, and how many voxels a grid axis over it would have."""

    name: str
    lines: list[str]
    n_voxels: int = 0
    reference: ClinicalReference | None = None
    open_keys: list[str] = field(default_factory=list)


def draft_dictionary(
    name: str, columns: Mapping[str, Sequence[str]], *, target: str | None = None
) -> Draft:
    """Draft a dictionary from the columns of a public cohort's table.

    Parameters
    ----------
    name : str
        Of the dictionary.
    columns : mapping of str to sequence of str, each of length n_rows
        Cells as text, by column; an empty cell, ``NA`` and the like are missing.
    target : str or None
        The label's column; None leaves the target open.

    Returns
    -------
    Draft

    Raises
    ------
    DictionaryError
        If there is no column to draft from, or no column `target`.
    """
    if target is not None and target not in columns:
        known = ", ".join(columns)
        raise DictionaryError(f"the table has no column '{target}' for the target; it has {known}")
    features, left_out = [], []
    for column, cells in columns.items():
        if column == target:
            continue
        present = [cell.strip() for cell in cells if cell.strip().lower() not in _MISSING]
        drafted = _draft_feature(column, present)
        if isinstance(drafted, str):
            left_out.append(f"# left out: column {_quoted(column)}, {drafted}")
        else:
            features.append(drafted)
    if not features:
        raise DictionaryError(
            f"none of the table's {len(columns)} columns can be a feature: "
            + "; ".join(line.removeprefix("# left out: ") for line in left_out)
        )
    open_keys = ["target: definition, time_window, exclusions"]
    target_lines, positive_is_open = _target_lines(target, columns)
    if positive_is_open:
        open_keys.append("target: column and positive")
    for feature in features:
        open_keys.append(f"feature '{feature.name}': {', '.join(feature.open_keys)}")
    lines = [
        *_HEADER.splitlines(),
        "schema_version = 1",
        f"name = {_quoted(name)}",
        "",
        *target_lines,
        *(line for feature in features for line in ["", *feature.lines]),
        *(["", *left_out] if left_out else []),
        *_grid_lines(features),
        "",
        *_POLICY.splitlines(),
    ]
    return Draft("\n".join(lines) + "\n", tuple(open_keys))


def _target_lines(
    target: str | None, columns: Mapping[str, Sequence[str]]
) -> tuple[list[str], bool]:
    """Lines of [target], and whether column or code are open."""
    positive = ""
    if target is not None:
        cells = [cell.strip() for cell in columns[target]]
        counts = Counter(_as_code(c) for c in cells if c.lower() not in _MISSING)
        frequent = [code for code, n in counts.items() if n >= MIN_ROWS]
        if len(counts) == len(frequent) == 2:
            positive = min(frequent, key=lambda code: counts[code])
    return [
        "[target]",
        f"column = {_quoted(target or '')}" + ("" if target else _FILL_IN),
        f"positive = {_quoted(positive)}" + ("  # the rarer code" if positive else _FILL_IN),
        f'definition = ""{_FILL_IN}: the rule by which a patient is positive',
        f'time_window = ""{_FILL_IN}: the time within which it is looked at',
        f'exclusions = ""{_FILL_IN}: who is left out, or none',
    ], not (target and positive)


def _draft_feature(column: str, cells: list[str]) -> _Drafted | str:
    """One feature, or why the column is none."""
    if _NOT_A_FEATURE.search(column) or _mostly(cells, lambda cell: bool(_DATE.fullmatch(cell))):
        return "a date or a consent: neither leaves a site as a feature"
    numbers = [_as_number(cell) for cell in cells]
    values = np.array([number for number in numbers if number is not None], dtype=np.float64)
    is_numeric = len(cells) > 0 and len(values) >= _FITTING_SHARE * len(cells)
    codes = Counter(_as_code(cell) for cell in cells)
    is_whole = is_numeric and bool((values % 1 == 0).all())
    if _IDENTIFIER.search(column) or (
        len(cells) >= _MIN_VALUES and len(codes) == len(cells) and (is_whole or not is_numeric)
    ):
        return "it tells patients apart as an identifier does"
    if len(cells) < _MIN_VALUES:
        return f"fewer than {_MIN_VALUES} of its cells have a value"
    if is_numeric and not (is_whole and len(codes) <= _MAX_CODES):
        return _draft_measured(column, values, cells, is_whole)
    return _draft_coded(column, codes, is_numeric)


def _draft_measured(
    column: str, values: FloatArray, cells: list[str], is_whole: bool
) -> _Drafted | str:
    if len(np.unique(values)) < 2:
        return "all its values are the same"
    known = reference_of(column)
    fits = known is not None and _fits(known, values)
    # Whole numbers of a measurement are rounding; another site's unit or device has decimals.
    is_whole = is_whole and (not fits or known is None or known.unit == "a")
    kind = "integer" if is_whole else "continuous"
    head = ["[[features]]", f"name = {_quoted(column)}", f'kind = "{kind}"']
    if known is not None and fits:
        center, scale, cut_points = known.center, known.scale, known.cut_points
        if is_whole:
            cut_points = tuple(float(math.ceil(edge)) for edge in cut_points)
        lines = [
            *head,
            f"description = {_quoted(known.description)}",
            f"unit = {_quoted(known.unit)}  # the table's values fit it; check",
            f"plausible = {_numbers(known.plausible)}",
            f"center = {center:g}",
            f"scale = {scale:g}",
            *([f"cut_points = {_numbers(cut_points)}  # {known.source}"] if cut_points else []),
            *([] if is_whole else [f"decimals = {known.decimals}"]),
            *([f"molar_mass_g_mol = {known.molar_mass_g_mol:g}"] if known.molar_mass_g_mol else []),
        ]
        privacy = "age" if known.unit == "a" else "measurement"
        drafted = _Drafted(column, lines, len(cut_points) + 1 if cut_points else 0, known)
    else:
        low, high = _round_range(values)
        center, scale = _round_center(values, is_whole)
        center = min(max(center, low), high)
        cut_points = _round_cut_points(values, low, high, is_whole)
        hint = f" ({known.description} in {known.unit}? the values do not fit)" if known else ""
        lines = [
            *head,
            f'description = ""{_FILL_IN}',
            f'unit = ""{_FILL_IN}: UCUM text, "1" for a bare number{hint}',
            f"plausible = {_numbers((low, high))}  # widened from the table; replace by what is possible",
            f"center = {center:g}  # rounded median of the table; replace by a reference value",
            f"scale = {scale:g}  # rounded spread of the table; replace by a reference value",
            *(
                [f"cut_points = {_numbers(cut_points)}  # round numbers near the quartiles; "
                 "replace by clinical ones"]
                if cut_points
                else []
            ),
            *([] if is_whole else [f"decimals = {_decimals(cells)}"]),
        ]  # fmt: skip
        privacy = "measurement"
        drafted = _Drafted(column, lines, len(cut_points) + 1 if cut_points else 0)
        drafted.open_keys += ["description", "unit"]
    drafted.lines.append(_privacy_line(column, privacy))
    drafted.open_keys.append("privacy")
    return drafted


def _draft_coded(column: str, codes: Counter[str], is_numeric: bool) -> _Drafted | str:
    levels = [code for code, n in codes.items() if n >= MIN_ROWS]
    n_rare = len(codes) - len(levels)
    if len(levels) > _MAX_LEVELS or n_rare > _MAX_LEVELS:
        return "it has too many different values for a code; free text never leaves a site"
    if len(levels) < 2:
        return f"fewer than two of its codes are in {MIN_ROWS} rows or more"
    levels.sort(key=(lambda code: (float(code), code)) if is_numeric else None)
    kind = "binary" if len(levels) == 2 and not n_rare else "categorical"
    lines = [
        "[[features]]",
        f"name = {_quoted(column)}",
        f'kind = "{kind}"'
        + ("" if kind == "binary" else '  # "ordinal" if the levels have an order: lowest first'),
        f'description = ""{_FILL_IN}',
        f"levels = [{', '.join(_quoted(level) for level in levels)}]",
        f"# level_names = [{', '.join(['...'] * len(levels))}]  # words for them, for people",
    ]
    if n_rare:
        lines.append(
            f"# {n_rare} codes of fewer than {MIN_ROWS} rows are not shown; add what the codebook lists"
        )
    lines.append(_privacy_line(column, "measurement"))
    return _Drafted(column, lines, len(levels), open_keys=["description", "privacy"])


def _grid_lines(features: list[_Drafted]) -> list[str]:
    """Up to three named grids, on clinical grounds only: never on what the table's label says."""
    by_name = {feature.name: feature for feature in features if 2 <= feature.n_voxels <= MAX_VOXELS}
    sexes = [name for name in by_name if normalised(name) in SEX_NAMES]
    order = {reference.description: i for i, reference in enumerate(REFERENCES)}
    clinical = sorted(
        (f for f in by_name.values() if f.reference is not None),
        key=lambda f: order[f.reference.description] if f.reference else 0,
    )
    others = [f for f in by_name.values() if f.reference is None and f.name not in sexes]
    grids: list[tuple[str, ...]] = []
    for feature in [*clinical, *others]:
        if len(grids) == MAX_GRIDS:
            break
        if not grids and sexes and by_name[sexes[0]].n_voxels * feature.n_voxels <= MAX_VOXELS:
            grids.append((sexes[0], feature.name))
        else:
            grids.append((feature.name,))
    lines = []
    for grid in grids:
        lines += [
            "",
            "[[grids]]  # a suggestion; choose on clinical grounds, before anybody looks at results",
            f"name = {_quoted(' x '.join(grid))}",
            f"features = [{', '.join(map(_quoted, grid))}]",
        ]
    return lines


def _fits(known: ClinicalReference, values: FloatArray) -> bool:
    """Whether the values are plausible in the usual unit and centred where they should be."""
    low, high = known.plausible
    is_plausible = np.mean((values >= low) & (values <= high)) >= _FITTING_SHARE
    return bool(is_plausible) and bool(abs(np.median(values) - known.center) <= 4 * known.scale)


def _round_range(values: FloatArray) -> tuple[float, float]:
    """The fifth lowest to the fifth highest value, widened by half of that, ends rounded outward."""
    ordered = np.sort(values)
    low, high = float(ordered[MIN_ROWS - 1]), float(ordered[-MIN_ROWS])
    if low == high:
        low, high = low - 1.0, high + 1.0
    margin = (high - low) / 2
    step = 10.0 ** math.floor(math.log10(high - low + 2 * margin))
    lowest = math.floor((low - margin) / step) * step
    # A measurement that is never negative is not so by chance.
    if low >= 0:
        lowest = max(lowest, 0.0)
    return round(lowest, 12), round(math.ceil((high + margin) / step) * step, 12)


def _round_center(values: FloatArray, is_whole: bool) -> tuple[float, float]:
    quartiles = np.quantile(values, [0.25, 0.5, 0.75])
    # 1.349: quartiles of a normal distribution lie so many standard deviations apart.
    spread = float(quartiles[2] - quartiles[0]) / 1.349 or float(np.std(values))
    step = _round_step(spread / 4)
    center = round(round(float(quartiles[1]) / step) * step, 12)
    return (float(round(center)) if is_whole else center), max(_two_digits(spread), step)


def _round_cut_points(
    values: FloatArray, low: float, high: float, is_whole: bool
) -> tuple[float, ...]:
    quartiles = np.quantile(values, [0.25, 0.5, 0.75])
    step = _round_step(max(float(quartiles[2] - quartiles[0]), float(np.std(values))) / 2)
    if is_whole:
        step = max(step, 1.0)
    edges = sorted({round(round(float(q) / step) * step, 12) for q in quartiles})
    return tuple(edge for edge in edges if low < edge < high)


def _round_step(size: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... (or 0.5, 0.2, ...) that is not above a size."""
    power = 10.0 ** math.floor(math.log10(size))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= size * (1 + 1e-9))


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")


def _decimals(cells: list[str]) -> int:
    """Decimal places that most cells are written with, at most 3."""
    places = [len(cell.partition(".")[2]) for cell in cells]
    return min(3, int(np.quantile(places, 0.9)))


def _mostly(cells: list[str], test: Callable[[str], bool]) -> bool:
    return bool(cells) and sum(test(cell) for cell in cells) >= _FITTING_SHARE * len(cells)


def _as_number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def _as_code(cell: str) -> str:
    """1, 1.0 and 01 are one code."""
    number = _as_number(cell)
    return cell if number is None else f"{number:.15g}"


def _privacy_line(column: str, suggested: str) -> str:
    if _QUASI.search(column):
        suggested = "quasi"
    return f'# privacy = "{suggested}"  # FILL IN: a suggestion; see the head of this file'


def _quoted(text: str) -> str:
    # Every JSON string is a TOML basic string.
    return json.dumps(text, ensure_ascii=False)


def _numbers(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{number:g}" for number in numbers) + "]"


_FILL_IN: Final = "  # FILL IN"

_HEADER: Final = """\
# A draft. What says FILL IN only people know; 'synthedge-coordinator dictionary check FILE' lists what is left.
# Reference values (centre, scale, range, cut points) must come from a public cohort or the literature, never from one
# member's patients. Levels of fewer than 5 rows and the table's lowest and highest values are not in here.
# Who knows the data decides on every feature's privacy class: measurement, age, quasi (tells people apart together
# with others), date, identifier or free_text. A feature without a class never leaves a site, so nothing is set here."""

_POLICY: Final = """\
[policy]
disclosure = "dp"        # or "threshold": rounded counts, not differentially private
epsilon = 1.0            # a gap report's privacy loss
epsilon_total = 4.0      # the most all reports of a site under this dictionary may lose
min_count = 5
min_sites = 3
similarity = 0.70
rows_per_transfer = 20
retention_days = 365"""
