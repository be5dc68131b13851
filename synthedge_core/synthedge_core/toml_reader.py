"""Take a parsed TOML table apart key by key, noting every problem rather than the first.

A person who edits a configuration file wants all its mistakes at once. Getters therefore return
None (or an empty tuple) for a wrong entry after noting one sentence about it; whoever made the
reader raises when `problems` is not empty.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

_MISSING: Final = object()


class TableReader:
    """One TOML table and the problems found in it.

    Parameters
    ----------
    table : Mapping
        What ``tomllib`` made of the table.
    where : str
        How messages name the table, e.g. ``"feature 'bp'"``.
    problems : list of str
        Shared by all readers of one file; sentences are appended.
    """

    def __init__(self, table: Mapping[str, Any], where: str, problems: list[str]) -> None:
        self._table = table
        self._used: set[str] = set()
        self.where = where
        self.problems = problems

    def note(self, key: str, expectation: str) -> None:
        """Note that an entry is not what it must be."""
        self.problems.append(f"{self.where}: {key} {expectation}")

    def has(self, key: str) -> bool:
        """Tell whether the table holds the key."""
        return key in self._table

    def text(self, key: str, *, required: bool = False, max_characters: int = 500) -> str | None:
        """Read a non-empty text of printable characters."""
        value = self._take(key, required)
        if value is _MISSING:
            return None
        if not isinstance(value, str) or not value.strip():
            self.note(key, "must be a text that is not empty")
        elif len(value) > max_characters or not value.isprintable():
            self.note(key, f"must be at most {max_characters} printable characters on one line")
        else:
            return value
        return None

    def boolean(self, key: str) -> bool:
        """Read true or false; false if there is none."""
        value = self._take(key, required=False)
        if value is not _MISSING and not isinstance(value, bool):
            self.note(key, "must be true or false")
        return value is True

    def choice(self, key: str, allowed: Sequence[str], *, required: bool = False) -> str | None:
        """Read one of a few words."""
        value = self._take(key, required)
        if value is _MISSING:
            return None
        if not isinstance(value, str) or value not in allowed:
            self.note(key, f"must be one of {', '.join(allowed)}")
            return None
        return value

    def number(
        self,
        key: str,
        *,
        required: bool = False,
        above: float = -math.inf,
        at_most: float = math.inf,
    ) -> float | None:
        """Read a finite number in ``(above, at_most]``."""
        value = self._take(key, required)
        if value is _MISSING:
            return None
        number = _finite(value)
        if number is None:
            self.note(key, "must be a finite number")
        elif not above < number <= at_most:
            self.note(key, f"must be {_range_in_words(above, at_most)}")
        else:
            return number
        return None

    def integer(
        self, key: str, *, required: bool = False, at_least: int, at_most: int
    ) -> int | None:
        """Read an integer in ``[at_least, at_most]``."""
        value = self._take(key, required)
        if value is _MISSING:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.note(key, "must be an integer")
        elif not at_least <= value <= at_most:
            self.note(key, f"must be between {at_least} and {at_most}")
        else:
            return value
        return None

    def numbers(self, key: str, *, required: bool = False) -> tuple[float, ...]:
        """Read a strictly increasing list of finite numbers."""
        value = self._take(key, required)
        if value is _MISSING:
            return ()
        numbers = [_finite(item) for item in value] if isinstance(value, list) else []
        finite = [number for number in numbers if number is not None]
        if not finite or len(finite) < len(numbers):
            self.note(key, "must be a list of finite numbers")
            return ()
        if any(b <= a for a, b in itertools.pairwise(finite)):
            self.note(key, "must be strictly increasing")
            return ()
        return tuple(finite)

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        """Read a list of distinct texts that are not empty."""
        value = self._take(key, required)
        if value is _MISSING:
            return ()
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(item, str) and item and item.isprintable() for item in value)
        ):
            self.note(key, "must be a list of texts in quotes, none of them empty")
            return ()
        if len(set(value)) < len(value):
            self.note(key, "must not name anything twice")
            return ()
        return tuple(value)

    def table(self, key: str, *, required: bool = False) -> "TableReader | None":
        """Read a table inside this one."""
        value = self._take(key, required)
        if value is _MISSING:
            return None
        if not isinstance(value, dict):
            self.note(key, f"must be a table: [{key}]")
            return None
        return TableReader(value, key, self.problems)

    def tables(self, key: str, *, required: bool = False) -> list["TableReader"]:
        """Read an array of tables, each named by its `name` entry where it has one."""
        value = self._take(key, required)
        if value is _MISSING:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.note(key, f"must be tables: [[{key}]]")
            return []
        return [
            TableReader(item, _name_of(item, key, i), self.problems) for i, item in enumerate(value)
        ]

    def refuse(self, key: str, reason: str) -> None:
        """Note a key that has no meaning here, if it is present."""
        self._used.add(key)
        if key in self._table:
            self.note(key, reason)

    def finish(self) -> None:
        """Note every key that nobody asked for."""
        for key in self._table:
            if key not in self._used:
                self.note(repr(key), "is not a known key; correct or remove it")

    def _take(self, key: str, required: bool) -> Any:
        self._used.add(key)
        if key not in self._table and required:
            self.note(key, "is missing; it has no default")
        return self._table.get(key, _MISSING)


def _finite(value: object) -> float | None:
    # bool is an int in Python; `plausible = [false, true]` is a mistake all the same.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _range_in_words(above: float, at_most: float) -> str:
    words = []
    if above > -math.inf:
        words.append(f"above {above:g}")
    if at_most < math.inf:
        words.append(f"at most {at_most:g}")
    return " and ".join(words)


def _name_of(item: Mapping[str, Any], key: str, position: int) -> str:
    name = item.get("name")
    singular = key.removesuffix("s")
    if isinstance(name, str) and name.strip() and name.isprintable() and len(name) <= 100:
        return f"{singular} {name!r}"
    return f"{singular} number {position + 1}"
