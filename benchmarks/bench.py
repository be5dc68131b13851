"""What the benchmark scripts share: their options, their bars and how they show them."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Bar:
    """One figure and what it must not exceed, or must reach.

    Attributes
    ----------
    what : str
        Which figure, with its unit.
    value : float
    at_most, at_least : float or None
        The bar, one of them; both None for a figure shown for comparison.
    """

    what: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the figure keeps its bar; one without a bar does."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.at_most is None or self.value <= self.at_most

    def as_dict(self) -> dict[str, Any]:
        """As programs read it."""
        return {
            "what": self.what,
            "value": round(self.value, 4),
            "bar": self.at_most if self.at_least is None else self.at_least,
            "ok": self.is_ok,
        }


class Measure(Protocol):
    """What a script measures."""

    def __call__(self, *, quick: bool) -> list[Bar]:
        """Measure; in under a minute if `quick`."""


def run_benchmark(name: str, measure: Measure) -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--quick", action="store_true", help="under a minute, less exact")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    bars = [bar.as_dict() for bar in measure(quick=options.quick)]
    if options.json:
        print(json.dumps({"bars": bars}))
    else:
        show(name, bars, print)


def show(name: str, bars: list[dict[str, Any]], write: Callable[[str], None]) -> None:
    """Print a benchmark's figures for people."""
    write(name)
    for bar in bars:
        verdict = "" if bar["bar"] is None else "ok" if bar["ok"] else "MISSED"
        limit = "" if bar["bar"] is None else f"bar {bar['bar']}"
        write(f"  {bar['what']:<68}{bar['value']:>11.3f}  {limit:<10}{verdict}".rstrip())
