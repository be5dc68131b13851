"""What a user asks of generated rows: levels, comparisons and ranges, and the nearest possible ones.

A condition is written as a value (``"F"``, ``1``), a comparison (``(">", 60)``, ``("<=", 60)``), a range
(``("between", 40, 60)``, ``(40, 60)``, ``"[40.0, 60.0)"``, ``pandas.Interval``), or a choice
(``("in", ["A", "B"])``, ``("not_in", ["C"])``, a list).
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.columns import Column
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.rebalance_table import PreparedTable

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# The nearest possible conditions that a message shows are met by at least so many observed rows.
MIN_SHOWN_ROWS = 5
# A single value of a measurement is drawn for in a window of this share of the column's range, and
# then written into the rows: no continuous draw ever hits one value.
_PIN_WINDOW = 0.02

_INTERVAL = re.compile(r"^\s*([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])\s*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One column's condition over encoded rows.

    Attributes
    ----------
    column : str
    index : int
        Position of the column among the analysed ones.
    text : str
        The condition for people.
    allowed : tuple of int or None
        Level indices, for a column with levels.
    low, high : float
        Ends of the range of a measured column.
    includes_low, includes_high : bool
    pinned : float or None
        The one value asked for; `low` and `high` are then a window around it.
    """

    column: str
    index: int
    text: str
    allowed: tuple[int, ...] | None = None
    low: float = -math.inf
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True
    pinned: float | None = None

    def holds(self, rows: FloatArray) -> BoolArray:
        """Say which encoded rows meet it; a missing value does not."""
        values = rows[:, self.index]
        if self.allowed is not None:
            return np.isin(values, self.allowed)
        with np.errstate(invalid="ignore"):
            above = values >= self.low if self.includes_low else values > self.low
            below = values <= self.high if self.includes_high else values < self.high
        return np.asarray(above & below)

    def distance(self, rows: FloatArray, scale: float) -> FloatArray:
        """Say how far rows are from meeting it: 0 or 1 for levels, else in units of `scale`."""
        if self.allowed is not None:
            return (~self.holds(rows)).astype(float)
        values = rows[:, self.index]
        gap = np.maximum(np.maximum(self.low - values, values - self.high), 0.0) / scale
        # Just outside an open end is outside.
        gap = np.where(self.holds(rows), 0.0, np.maximum(gap, 1e-9))
        return np.where(np.isnan(values), np.inf, gap)


def parse_interval(text: str) -> tuple[float, float, bool, bool] | None:
    """Read ``[0.0, 50.0)``: low, high, whether each end is included; None if it is no interval."""
    found = _INTERVAL.match(text)
    if found is None:
        return None
    opening, low, high, closing = found.groups()
    try:
        return float(low), float(high), opening == "[", closing == "]"
    except ValueError:
        return None


def parse_conditions(
    conditions: Mapping[str, Any] | None, prepared: PreparedTable
) -> tuple[Condition, ...]:
    """Read a user's conditions.

    Parameters
    ----------
    conditions : mapping of column to condition
        See the module's documentation.
    prepared : PreparedTable

    Returns
    -------
    tuple of Condition

    Raises
    ------
    UsageError
        If a column is none of the analysed ones or a condition cannot be read.
    RefusedError
        If a level never occurs; the message names the nearest that does.
    """
    return tuple(
        condition_on(name, wanted, prepared) for name, wanted in (conditions or {}).items()
    )


def condition_on(name: str, wanted: Any, prepared: PreparedTable) -> Condition:
    """Read one condition; errors as for `parse_conditions`."""
    index = prepared.index_of(name)
    if index is None:
        known = {c.name: c.reason for c in prepared.columns}
        why = f"takes no part ({known[name]})" if name in known else "is no column"
        raise UsageError(
            f"a condition names '{name}', which {why}; columns with conditions can be "
            f"{', '.join(c.name for c in prepared.analysed)}"
        )
    column = prepared.analysed[index]
    interval = _interval_of(wanted, column)
    if interval is not None:
        return _range(column, index, interval)
    if isinstance(wanted, tuple) and wanted and wanted[0] in ("in", "not_in"):
        chosen = [_level(column, value, prepared.values[:, index]) for value in wanted[1]]
        if wanted[0] == "not_in":
            chosen = [i for i in range(len(column.levels)) if i not in chosen]
        return _choice(column, index, chosen)
    if isinstance(wanted, (list, set, frozenset)):
        values = list(wanted)
        return _choice(
            column, index, [_level(column, v, prepared.values[:, index]) for v in values]
        )
    if isinstance(wanted, (tuple, dict)):
        raise UsageError(
            f"the condition on '{name}' cannot be read; write a value, ('>', 60), "
            "('between', 40, 60), '[40, 60)' or ('in', [...])"
        )
    if column.has_levels:
        return _choice(column, index, [_level(column, wanted, prepared.values[:, index])])
    return _pinned(column, index, wanted)


def _interval_of(wanted: Any, column: Column) -> tuple[float, float, bool, bool] | None:
    if isinstance(wanted, pd.Interval):
        return (
            float(wanted.left),
            float(wanted.right),
            bool(wanted.closed_left),
            bool(wanted.closed_right),
        )
    if isinstance(wanted, str) and wanted not in map(str, column.levels):
        return parse_interval(wanted)
    if not isinstance(wanted, tuple):
        return None
    try:
        match wanted:
            case (">", value):
                return float(value), math.inf, False, True
            case (">=", value):
                return float(value), math.inf, True, True
            case ("<", value):
                return -math.inf, float(value), True, False
            case ("<=", value):
                return -math.inf, float(value), True, True
            case ("between", low, high):
                return float(low), float(high), True, True
            case (int() | float() as low, int() | float() as high):
                return float(low), float(high), True, True
    except (TypeError, ValueError):
        raise UsageError(
            f"the condition on '{column.name}' compares with something that is no number"
        ) from None
    return None


def _range(column: Column, index: int, interval: tuple[float, float, bool, bool]) -> Condition:
    low, high, includes_low, includes_high = interval
    text = _range_text(column.name, *interval)
    if not column.is_numeric:
        raise UsageError(f"the condition '{text}' compares '{column.name}', which holds words")
    if low > high or (low == high and not (includes_low and includes_high)):
        raise UsageError(f"the condition '{text}' leaves nothing: its ends are the wrong way round")
    condition = Condition(
        column=column.name,
        index=index,
        text=text,
        low=low,
        high=high,
        includes_low=includes_low,
        includes_high=includes_high,
    )
    if not column.has_levels:
        return condition
    numbers = np.array([[float(level)] for level in column.levels])
    inside = Condition(
        column=column.name,
        index=0,
        text=text,
        low=low,
        high=high,
        includes_low=includes_low,
        includes_high=includes_high,
    ).holds(numbers)
    if not inside.any():
        raise RefusedError(
            f"no row can have {text}: '{column.name}' is one of "
            f"{', '.join(map(str, column.levels))}"
        )
    allowed = tuple(int(i) for i in np.flatnonzero(inside))
    return Condition(column=column.name, index=index, text=text, allowed=allowed)


def _range_text(name: str, low: float, high: float, includes_low: bool, includes_high: bool) -> str:
    if high == math.inf:
        return f"{name} {'>=' if includes_low else '>'} {low:g}"
    if low == -math.inf:
        return f"{name} {'<=' if includes_high else '<'} {high:g}"
    left, right = "[" if includes_low else "(", "]" if includes_high else ")"
    return f"{name} in {left}{low:g}, {high:g}{right}"


def _choice(column: Column, index: int, chosen: Sequence[int]) -> Condition:
    if not column.has_levels:
        raise UsageError(
            f"the condition on '{column.name}' chooses among values of a measurement; "
            "give a range, or name the column in discrete_columns"
        )
    if not chosen:
        raise UsageError(f"the condition on '{column.name}' leaves no level")
    levels = [str(column.levels[i]) for i in chosen]
    text = f"{column.name} = {levels[0]}"
    if len(levels) > 1:
        text = f"{column.name} in {{{', '.join(levels)}}}"
    return Condition(column=column.name, index=index, text=text, allowed=tuple(sorted(chosen)))


def _level(column: Column, wanted: Any, values: FloatArray) -> int:
    if not column.has_levels:
        raise UsageError(
            f"the condition on '{column.name}' chooses among values of a measurement; "
            "give a range, or name the column in discrete_columns"
        )
    for i, level in enumerate(column.levels):
        if level == wanted or str(level) == str(wanted):
            return i
    for i, level in enumerate(column.levels):
        if isinstance(level, float) and level.is_integer() and str(int(level)) == str(wanted):
            return i
    frequent = [
        i for i in range(len(column.levels)) if int((values == i).sum()) >= MIN_SHOWN_ROWS
    ] or list(range(len(column.levels)))
    nearest = column.levels[_nearest_level(column, wanted, frequent)]
    raise RefusedError(
        f"no observed row has {column.name} = {wanted}; the nearest possible is "
        f"{column.name} = {nearest}"
    )


def _nearest_level(column: Column, wanted: Any, among: Sequence[int]) -> int:
    if column.is_numeric:
        try:
            number = float(wanted)
        except (TypeError, ValueError):
            number = float(column.levels[among[0]])
        return min(among, key=lambda i: abs(float(column.levels[i]) - number))
    words = [str(column.levels[i]) for i in among]
    close = difflib.get_close_matches(str(wanted), words, n=1, cutoff=0.0)
    return among[words.index(close[0])] if close else among[0]


def _pinned(column: Column, index: int, wanted: Any) -> Condition:
    try:
        value = float(wanted)
    except (TypeError, ValueError):
        raise UsageError(f"the condition on '{column.name}' is no number") from None
    if not math.isfinite(value) or round(value, column.decimals) != value:
        raise UsageError(
            f"'{column.name}' is written with {column.decimals} decimal places; "
            "the condition asks for a value that cannot be written so"
        )
    window = max(_PIN_WINDOW * (column.high - column.low), 10.0**-column.decimals / 2)
    return Condition(
        column=column.name,
        index=index,
        text=f"{column.name} = {value:g}",
        low=value - window,
        high=value + window,
        pinned=value,
    )


def meet_all(conditions: Sequence[Condition], rows: FloatArray) -> BoolArray:
    """Say which encoded rows meet every condition."""
    good = np.ones(len(rows), dtype=bool)
    for condition in conditions:
        good &= condition.holds(rows)
    return good


def describe(conditions: Sequence[Condition]) -> str:
    """Say the conditions in words."""
    return " and ".join(c.text for c in conditions) if conditions else "no condition"


def nearest_possible(conditions: Sequence[Condition], prepared: PreparedTable) -> str:
    """Say which conditions, changed as little as possible, at least 5 observed rows meet.

    Levels count 1 each, ranges by standard deviations. The ends of a widened range are rounded
    outwards to two digits, so that no patient's own value shows.
    """
    values = prepared.values
    scales = [_spread(values[:, c.index]) for c in conditions]
    distances = np.sum(
        [c.distance(values, s) for c, s in zip(conditions, scales, strict=True)], axis=0
    )
    order = np.argsort(distances, kind="stable")[:MIN_SHOWN_ROWS]
    nearest = values[order[np.isfinite(distances[order])]]
    if len(nearest) < MIN_SHOWN_ROWS:
        return "none: fewer than 5 observed rows have a value in every column asked for"
    parts = []
    relaxed: list[Condition] = []
    for condition in conditions:
        column = prepared.analysed[condition.index]
        if bool(condition.holds(nearest).all()):
            relaxed.append(condition)
            continue
        if condition.allowed is not None:
            found = sorted({int(v) for v in nearest[:, condition.index]})
            relaxed.append(_choice(column, condition.index, found))
            continue
        part = nearest[:, condition.index]
        # A pinned value's window is not what the user asked for.
        asked = (condition.low, condition.high)
        if condition.pinned is not None:
            asked = (condition.pinned, condition.pinned)
        low = min(asked[0], _outwards(float(part.min()), -1))
        high = max(asked[1], _outwards(float(part.max()), 1))
        relaxed.append(_range(column, condition.index, (low, high, True, True)))
    n_rows = int(meet_all(relaxed, values).sum())
    parts = [c.text for c in relaxed]
    return f"{' and '.join(parts)} ({n_rows} observed rows)"


def _spread(values: FloatArray) -> float:
    present = values[~np.isnan(values)]
    spread = float(present.std()) if len(present) else 0.0
    return spread if spread > 0 else 1.0


def _outwards(value: float, side: int) -> float:
    """Round away from the middle to two significant digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    steps = value / unit
    return float(f"{(math.floor(steps) if side < 0 else math.ceil(steps)) * unit:.12g}")
