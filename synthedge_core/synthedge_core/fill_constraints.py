"""Rules of the user that every generated row must keep.

Written as text, one rule each: ``chol > 0``, ``40 <= age <= 90``, ``diaBP < sysBP``,
``fixed: sex, pregnant`` (only combinations that some real row has).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from synthedge_core.columns import Column
from synthedge_core.errors import UsageError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_OPERATOR = re.compile(r"(<=|>=|<|>)")
_COMPARE: dict[str, Any] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """``left < right`` and its kin; a term is a column's index or a number."""

    text: str
    left: int | float
    right: int | float
    left_is_column: bool
    right_is_column: bool
    operator: str
    # Values of level indices, per column that has levels: rules speak of values, rows hold indices.
    level_values: dict[int, tuple[float, ...]]

    def holds(self, rows: FloatArray) -> BoolArray:
        """Say which rows keep the rule; a missing value breaks no rule."""
        left = self._term(rows, self.left, self.left_is_column)
        right = self._term(rows, self.right, self.right_is_column)
        with np.errstate(invalid="ignore"):
            kept = _COMPARE[self.operator](left, right)
        return np.asarray(kept | np.isnan(left) | np.isnan(right))

    def _term(self, rows: FloatArray, term: int | float, is_column: bool) -> FloatArray:
        if not is_column:
            return np.full(len(rows), float(term))
        column = int(term)
        values = rows[:, column]
        if column not in self.level_values:
            return values
        numbers = np.array([*self.level_values[column], np.nan])
        return np.asarray(numbers[np.where(np.isnan(values), len(numbers) - 1, values).astype(int)])


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedCombination:
    """Only combinations of these columns that occur in the real rows."""

    text: str
    columns: tuple[int, ...]
    allowed: frozenset[tuple[float, ...]]

    def holds(self, rows: FloatArray) -> BoolArray:
        """Say which rows have an allowed combination; a missing value equals a missing value."""
        return np.array([key in self.allowed for key in combinations(rows, self.columns)], bool)


Constraint = Order | FixedCombination


def combinations(rows: FloatArray, columns: Sequence[int]) -> list[tuple[float, ...]]:
    """Give each row's values of some columns as a tuple, -inf standing for missing."""
    part = rows[:, list(columns)]
    return list(map(tuple, np.where(np.isnan(part), -np.inf, part).tolist()))


def parse_constraints(
    texts: Sequence[str], columns: Sequence[Column], values: FloatArray
) -> tuple[Constraint, ...]:
    """Read the user's rules.

    Parameters
    ----------
    texts : sequence of str
        See the module's documentation. ``positive: chol`` is another way to write ``chol > 0``.
    columns : sequence of Column
        The analysed columns, in the order of `values`.
    values : ndarray of shape (n_rows, n_columns)
        Encoded real rows, for fixed combinations.

    Returns
    -------
    tuple of Constraint

    Raises
    ------
    UsageError
        If a rule cannot be read, names no analysed column, or compares words.
    """
    rules: list[Constraint] = []
    names = {column.name: i for i, column in enumerate(columns)}
    for text in texts:
        word, _, rest = text.partition(":")
        if word.strip() == "fixed" and rest:
            wanted = [name.strip() for name in rest.split(",")]
            indices = tuple(_column(name, names, text) for name in wanted)
            allowed = frozenset(combinations(values, indices))
            rules.append(FixedCombination(text=text, columns=indices, allowed=allowed))
            continue
        if word.strip() == "positive" and rest:
            text = f"{rest.strip()} > 0"
        rules.extend(_chain(text, names, columns))
    return tuple(rules)


def _chain(text: str, names: dict[str, int], columns: Sequence[Column]) -> list[Order]:
    parts = [part.strip() for part in _OPERATOR.split(text)]
    if len(parts) < 3 or any(not part for part in parts):
        raise UsageError(
            f"the rule '{text}' cannot be read; write for example 'chol > 0', "
            "'40 <= age <= 90', 'diaBP < sysBP' or 'fixed: sex, pregnant'"
        )
    rules = []
    for left, operator, right in zip(parts[:-2:2], parts[1:-1:2], parts[2::2], strict=True):
        terms: list[tuple[int | float, bool]] = []
        for term in (left, right):
            number = _number(term)
            terms.append((_column(term, names, text), True) if number is None else (number, False))
        level_values: dict[int, tuple[float, ...]] = {}
        for index, is_column in terms:
            column = columns[int(index)] if is_column else None
            if column is None or not column.has_levels:
                continue
            if not column.is_numeric:
                raise UsageError(f"the rule '{text}' compares '{column.name}', which holds words")
            level_values[int(index)] = tuple(float(level) for level in column.levels)
        rules.append(
            Order(
                text=text,
                left=terms[0][0],
                right=terms[1][0],
                left_is_column=terms[0][1],
                right_is_column=terms[1][1],
                operator=operator,
                level_values=level_values,
            )
        )
    return rules


def _number(term: str) -> float | None:
    try:
        return float(term)
    except ValueError:
        return None


def _column(name: str, names: dict[str, int], text: str) -> int:
    if name not in names:
        raise UsageError(
            f"the rule '{text}' names '{name}', which is no analysed column; "
            f"those are {', '.join(names)}"
        )
    return names[name]
