"""Rules that every generated row must keep, as objects: `Constraint.range("age", 0, 120)`.

The text forms of `fill_constraints` are the other way to write them; both end in the same checks.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.columns import Column, decode
from synthedge_core.errors import UsageError
from synthedge_core.fill_constraints import parse_constraints

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_IN_INTERVAL = re.compile(r"^\s*(.+?)\s+in\s+([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])\s*$")


class Rule(Protocol):
    """A constraint made ready for one table's encoded rows."""

    @property
    def text(self) -> str:
        """The rule for people."""

    def holds(self, rows: FloatArray) -> BoolArray:
        """Say which encoded rows of shape (n, n_columns) keep it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """One rule for generated rows; make it with one of the static methods.

    A missing value breaks no rule. Observed rows are never changed or dropped for a rule.

    Attributes
    ----------
    text : str
        The rule for people.
    parts : tuple of str
        The rule in the text form of `fill_constraints`; empty for a function.
    function : callable or None
        A rule given as a function.
    """

    text: str
    parts: tuple[str, ...] = ()
    function: Callable[[pd.DataFrame], Any] | None = None

    @staticmethod
    def positive(column: str) -> "Constraint":
        """Values above zero."""
        return Constraint(text=f"{column} > 0", parts=(f"{column} > 0",))

    @staticmethod
    def range(column: str, low: float | None = None, high: float | None = None) -> "Constraint":
        """Values in the closed range ``[low, high]``; None leaves that side open.

        Raises
        ------
        UsageError
            If neither side is given or `low` is above `high`.
        """
        if low is None and high is None:
            raise UsageError(f"the range of '{column}' has no end; give low, high or both")
        if low is not None and high is not None and low > high:
            raise UsageError(f"the range of '{column}' is empty: {low} is above {high}")
        parts = []
        if low is not None:
            parts.append(f"{column} >= {low}")
        if high is not None:
            parts.append(f"{column} <= {high}")
        return Constraint(text=" and ".join(parts), parts=tuple(parts))

    @staticmethod
    def inequality(low_column: str, high_column: str, *, strict: bool = False) -> "Constraint":
        """One column at most (with `strict`: below) another."""
        text = f"{low_column} {'<' if strict else '<='} {high_column}"
        return Constraint(text=text, parts=(text,))

    @staticmethod
    def fixed_combinations(columns: Sequence[str]) -> "Constraint":
        """Only combinations of these columns that some observed row has.

        Raises
        ------
        UsageError
            If fewer than two columns are named.
        """
        if isinstance(columns, str) or len(columns) < 2:
            raise UsageError("fixed combinations need a list of at least two columns")
        text = f"fixed: {', '.join(columns)}"
        return Constraint(text=text, parts=(text,))

    @staticmethod
    def custom(function: Callable[[pd.DataFrame], Any], name: str = "custom rule") -> "Constraint":
        """A function of the generated rows (a table of the analysed columns) that says which are good.

        Parameters
        ----------
        function : callable
            Takes a DataFrame of n rows, returns n booleans; must not depend on the other rows.
        name : str
            How the rule is called in reports and errors.
        """
        return Constraint(text=name, function=function)

    @staticmethod
    def parse(text: str) -> "Constraint":
        """Read the text form: that of `fill_constraints`, or ``age in [0,120]``, ``bmi in (10, 60]``.

        Raises
        ------
        UsageError
            If the ends of an interval are no numbers or it is empty.
        """
        found = _IN_INTERVAL.match(text)
        if found is None:
            return Constraint(text=text, parts=(text,))
        column, opening, low, high, closing = found.groups()
        try:
            is_empty = float(low) > float(high)
        except ValueError:
            raise UsageError(
                f"the rule '{text}' cannot be read; write for example 'age in [0,120]'"
            ) from None
        if is_empty:
            raise UsageError(f"the rule '{text}' leaves nothing: {low} is above {high}")
        lower = f"{column} {'>=' if opening == '[' else '>'} {low}"
        upper = f"{column} {'<=' if closing == ']' else '<'} {high}"
        return Constraint(text=text, parts=(lower, upper))

    @staticmethod
    def of(given: "Constraint | str") -> "Constraint":
        """Take a constraint, or read one.

        Raises
        ------
        UsageError
            If it is neither.
        """
        if isinstance(given, Constraint):
            return given
        if isinstance(given, str):
            return Constraint.parse(given)
        raise UsageError(
            f"a constraint is given as {type(given).__name__}; expected text such as 'age >= 0' or "
            "Constraint.range(...)"
        )

    def rules(
        self, columns: Sequence[Column], values: FloatArray, table: pd.DataFrame
    ) -> tuple[Rule, ...]:
        """Make the constraint ready for a table.

        Parameters
        ----------
        columns : sequence of Column
            The analysed columns.
        values : ndarray of shape (n_rows, n_columns)
            The observed rows encoded.
        table : pandas.DataFrame
            The observed rows, for their types.

        Raises
        ------
        UsageError
            If it names no analysed column, compares words, or is a function that does not answer
            with one boolean per row.
        """
        if self.function is not None:
            return (_CustomRule(self.text, self.function, tuple(columns), table),)
        return tuple(parse_constraints(self.parts, columns, values))


@dataclass(frozen=True, slots=True, eq=False)
class _CustomRule:
    """A user's function over decoded rows."""

    text: str
    function: Callable[[pd.DataFrame], Any]
    columns: tuple[Column, ...]
    table: pd.DataFrame

    def holds(self, rows: FloatArray) -> BoolArray:
        frame = pd.DataFrame(decode(rows, self.columns, self.table))
        answer = np.asarray(self.function(frame))
        if answer.shape != (len(rows),) or answer.dtype != np.bool_:
            raise UsageError(
                f"the constraint '{self.text}' answered with {answer.dtype} of shape "
                f"{answer.shape}; expected one boolean for each of {len(rows)} rows"
            )
        return answer
