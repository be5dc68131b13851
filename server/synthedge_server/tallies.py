"""What a running coordinator counts about itself: plain numbers, cheap enough to be counted always.

`metrics` shows them; the names and meanings are there. No number says anything of a patient.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import Final

_SECONDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How often values up to each bound came.

    Attributes
    ----------
    bounds : tuple of float
        Ascending, inclusive.
    counts : list of int
        One more than bounds: the last one counts what is above all of them.
    total : float
        Of all values.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Tallies:
    """All of them.

    Attributes
    ----------
    calls : Counter
        By method and status name.
    call_seconds : dict of Histogram
        By method; of streams until they ended.
    under_way : Counter
        Calls that were begun and not ended, by method.
    limited : Counter
        Calls refused by `rates`, by the limit.
    group_sizes, group_seconds : Histogram
        Changes in one transaction of the writer, and how long it took until it was durable.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.call_seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_SECONDS))
        self.under_way: Counter[str] = Counter()
        self.limited: Counter[str] = Counter()
        self.group_sizes = Histogram(_SIZES)
        self.group_seconds = Histogram(_SECONDS)

    def call_ended(self, method: str, status: str, seconds: float) -> None:
        """Count a call that was answered with a status."""
        self.calls[method, status] += 1
        self.call_seconds[method].add(seconds)

    def committed(self, n_changes: int, seconds: float) -> None:
        """Count a transaction of the writer; called in its thread."""
        self.group_sizes.add(n_changes)
        self.group_seconds.add(seconds)
