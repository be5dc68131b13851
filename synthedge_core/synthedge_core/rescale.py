"""Units and codings of a site's own columns, into dictionary units and back.

The same physical value in another unit, nothing else: matching a donor's distribution to the
recipient's would hide the very difference the rows are sent for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from synthedge_core.errors import TableError, UsageError
from synthedge_core.frame import BoolArray, FloatArray

Cell = str | float | None
ObjectArray = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class AffineUnit:
    """A linear change of unit: ``dictionary = own * factor + offset``.

    Attributes
    ----------
    factor : float
        Dictionary units per own unit; finite, not 0.
    offset : float
        In dictionary units; only temperatures have one.

    Raises
    ------
    UsageError
        If the factor is 0, or one of the two is not finite.
    """

    factor: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.factor == 0 or not math.isfinite(self.factor) or not math.isfinite(self.offset):
            raise UsageError(
                f"a unit with factor {self.factor} and offset {self.offset} cannot be taken back; "
                "expected finite numbers and a factor other than 0"
            )

    def to_dictionary(self, own: FloatArray) -> FloatArray:
        """Take values, shape (n,), from the site's unit to the dictionary's; NaN stays NaN."""
        return own * self.factor + self.offset

    def to_own(self, values: FloatArray) -> FloatArray:
        """Take values, shape (n,), from the dictionary's unit to the site's; NaN stays NaN."""
        return (values - self.offset) / self.factor


@dataclass(frozen=True, slots=True)
class LevelMap:
    """A site's own codes for the levels of a feature.

    Attributes
    ----------
    levels : mapping of own code to level index
        Several codes may mean one level; the first listed is the one used on the way back.
    """

    levels: Mapping[str, int]
    _codes: dict[int, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        codes: dict[int, str] = {}
        for code, level in self.levels.items():
            codes.setdefault(level, code)
        object.__setattr__(self, "_codes", codes)

    def level_of(self, code: str) -> int | None:
        """Level index of an own code; None if the site lists no such code."""
        return self.levels.get(code)

    def code_of(self, level: int) -> str | None:
        """Own code of a level index; None if the site has no code for it."""
        return self._codes.get(level)


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """How one column of a site's table becomes one feature of the dictionary.

    Attributes
    ----------
    feature : str
        Dictionary name.
    column : str
        The site's name.
    coding : AffineUnit or LevelMap
    missing : frozenset of str
        Own codes that mean "not measured"; an empty cell always does. Where the column holds
        numbers, "0" means every way to write zero.
    """

    feature: str
    column: str
    coding: AffineUnit | LevelMap
    missing: frozenset[str] = frozenset()
    _missing_numbers: frozenset[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = frozenset(n for code in self.missing if (n := _as_number(code)) is not None)
        object.__setattr__(self, "_missing_numbers", numbers)

    def unreadable(self, cells: Sequence[Cell]) -> BoolArray:
        """Mark the cells that are neither missing nor a number or listed code; shape (n,)."""
        return np.array(
            [cell is not None and self._own_value(cell) is None for cell in cells],
            dtype=np.bool_,
        )

    def to_dictionary(self, cells: Sequence[Cell]) -> FloatArray:
        """Read a column into dictionary units or level indices.

        Parameters
        ----------
        cells : sequence of str, float or None, length n
            As the site's file holds them; text is stripped of blanks around it.

        Returns
        -------
        ndarray of shape (n,)
            NaN is missing.

        Raises
        ------
        TableError
            Naming the column and how many cells cannot be read.
        """
        own = [math.nan if cell is None else self._own_value(cell) for cell in cells]
        n_unreadable = own.count(None)
        if n_unreadable:
            what = "a number" if isinstance(self.coding, AffineUnit) else "a code listed as a level"
            raise TableError(
                f"column {self.column!r}: {n_unreadable} cells hold neither {what} nor a missing "
                f"code; correct [columns.{self.feature}] in site.toml or the file"
            )
        values = np.array(own, dtype=np.float64)
        if isinstance(self.coding, AffineUnit):
            return self.coding.to_dictionary(values)
        return values

    def to_own(self, values: FloatArray) -> ObjectArray:
        """Write dictionary values the site's way.

        Parameters
        ----------
        values : ndarray of shape (n,)
            Dictionary units or level indices; NaN is missing.

        Returns
        -------
        ndarray of object of shape (n,)
            Floats in the site's unit or the site's codes; None is missing.

        Raises
        ------
        TableError
            If the site has no code for a level that occurs.
        """
        own = np.full(values.shape, None, dtype=np.object_)
        present = ~np.isnan(values)
        if isinstance(self.coding, AffineUnit):
            own[present] = self.coding.to_own(values[present])
            return own
        for level in np.unique(values[present]):
            code = self.coding.code_of(int(level))
            if code is None:
                raise TableError(
                    f"column {self.column!r} has no own code for the level of "
                    f"{np.count_nonzero(values == level)} values of feature {self.feature!r}; list "
                    f"a code for every level in [columns.{self.feature}] of site.toml"
                )
            own[values == level] = code
        return own

    def _own_value(self, cell: str | float) -> float | None:
        """Own number or level index of a cell, NaN if it says missing; None if it is unreadable."""
        if not isinstance(cell, str) and math.isnan(cell):
            return math.nan
        code = _as_code(cell)
        if not code or code in self.missing:
            return math.nan
        if isinstance(self.coding, LevelMap):
            return self.coding.level_of(code)
        number = _as_number(cell)
        return math.nan if number in self._missing_numbers else number


def _as_number(cell: str | float) -> float | None:
    """Number in a cell; None if it holds none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    # Python reads "1_000" as a number; in a table of measurements it is a typing error.
    is_number = math.isfinite(number) and not (isinstance(cell, str) and "_" in cell)
    return number if is_number else None


def _as_code(cell: str | float) -> str:
    """Text of a cell; a number without a fraction reads ``"1"``, whatever type the file gave it."""
    if isinstance(cell, str):
        return cell.strip()
    return str(int(cell)) if float(cell).is_integer() else str(cell)
