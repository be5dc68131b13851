"""Threshold mode: rounded counts, suppressed voxels, and what must be suppressed besides.

Rules
-----
* Counts are rounded to multiples of 5 first; a class with fewer than k patients is told as the band 0..k-1 only, a
  voxel without any patient as empty.
* Suppressed are voxels with 1..k-1 patients, and those whose two classes are both below k: with at least k patients
  in all, the two bands together would say more than either.
* Nothing that is published, taken together with the number of patients and over all grids, excludes for a small
  class any count from 0 to k-1 (`attacker.Reader`); voxels are suppressed until that holds. Patients with a missing
  value are a small class like any other.
* A later release under the same dictionary repeats a voxel's figure unless at least k patients came, left or changed
  their label there. Figures that changed describe the change of k patients or more; two releases that differ by
  fewer patients are alike.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from synthedge_client.attacker import MISSING, NEGATIVE, POSITIVE, Group, Known, Layout, Reader
from synthedge_client.protection import Figures, ProtectedCounts
from synthedge_core.errors import DisclosureRefusedError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

ROUNDING: Final = 5


class Grid(Layout, Protocol):
    """A grid with a name; a `NamedGrid` is one."""

    @property
    def name(self) -> str:
        """As in the dictionary."""

    def label(self, flat: int) -> str:
        """A voxel in words."""


def protect_threshold(
    grids: Sequence[Grid],
    voxels: IntArray,
    positive: BoolArray,
    min_count: int,
    earlier: Mapping[str, Figures] | None = None,
) -> tuple[list[ProtectedCounts], dict[str, Figures]]:
    """Round, suppress small voxels and whatever would give them away.

    Parameters
    ----------
    grids : sequence of n_grids Grid
    voxels : ndarray of shape (n_patients, n_grids)
        Each patient's voxel of each grid, -1 where a feature of it is missing.
    positive : ndarray of bool, shape (n_patients,)
    min_count : int
        k, at least 2.
    earlier : mapping of grid name to Figures, optional
        Of the last release under the same dictionary and k.

    Returns
    -------
    list of ProtectedCounts
        One a grid.
    dict of str to Figures
        To be kept for the next release.

    Raises
    ------
    DisclosureRefusedError
        If k is below 2, or an earlier release leaves nothing to suppress that would protect a small group.
    """
    if min_count < 2:
        raise DisclosureRefusedError(
            f"min_count is {min_count}, expected at least 2; set it in the dictionary's [policy]"
        )
    protector = _Protector(grids, voxels, positive, min_count, earlier or {})
    protector.suppress_complements()
    return protector.protected(), protector.figures()


class _Protector:
    """One release in the making: which voxels are fresh, which suppressed, and why."""

    def __init__(
        self,
        grids: Sequence[Grid],
        voxels: IntArray,
        positive: BoolArray,
        k: int,
        earlier: Mapping[str, Figures],
    ) -> None:
        self.grids, self.voxels, self.positive, self.k = grids, voxels, positive, k
        self.counts: list[IntArray] = []  # (2, n_voxels) each: what the figures rest on
        self.fresh: list[BoolArray] = []
        self.suppressed: list[BoolArray] = []
        self.reasons: list[list[str]] = []
        for g, grid in enumerate(grids):
            self._start(g, grid, earlier.get(grid.name))

    def _start(self, g: int, grid: Grid, before: Figures | None) -> None:
        n_voxels = int(np.prod(grid.shape))
        now = np.stack(
            [
                np.bincount(
                    self.voxels[(self.positive == is_positive) & (self.voxels[:, g] >= 0), g],
                    minlength=n_voxels,
                )
                for is_positive in (True, False)
            ]
        )
        fresh = np.ones(n_voxels, dtype=np.bool_)
        total, k = now.sum(axis=0), self.k
        is_few = (total > 0) & (total < k)
        both_small = (total >= k) & (now < k).all(axis=0)
        suppressed = is_few | both_small
        reasons = [
            f"fewer than {k} patients"
            if is_few[i]
            else f"fewer than {k} positive and fewer than {k} negative patients"
            if both_small[i]
            else "no patient"
            if not total[i]
            else self._band_in_words(now[:, i])
            for i in range(n_voxels)
        ]
        if before is not None:
            then = np.stack([before.positives, before.negatives])
            # At least so many patients came, left or changed their label.
            fresh = np.abs(now - then).sum(axis=0) >= k
            now = np.where(fresh, now, then)
            suppressed = np.where(fresh, suppressed, before.suppressed)
            for i in np.flatnonzero(~fresh):
                reasons[i] = f"as before: fewer than {k} patients changed"
        self.counts.append(now)
        self.fresh.append(fresh)
        self.suppressed.append(suppressed)
        self.reasons.append(reasons)

    def _band_in_words(self, counts: IntArray) -> str:
        words = [
            f"{name} told as 0 to {self.k - 1}"
            for name, n in (("positives", counts[0]), ("negatives", counts[1]))
            if n < self.k
        ]
        return ", ".join(words)

    def suppress_complements(self) -> None:
        """Suppress until no small class can be told from any other small count.

        What is suppressed follows from what the reader knows at that point, never from a true count: else the
        suppression itself would tell. One pass is enough, since suppressing one more voxel only adds to what
        is possible.
        """
        known = [self._known(g) for g in range(len(self.grids))]
        reader = Reader(self.grids, known, len(self.positive))
        for group in self._small_groups(reader):
            largest = min(self.k - 1, len(self.positive))
            for count in (0, largest):
                while not reader.is_possible(group, count):
                    if MISSING in group.voxels.values() and reader.bounds(group)[0] >= self.k:
                        break  # not small, as everybody can see
                    g, voxel = self._choose(reader, group, upwards=count > 0)
                    self.suppressed[g][voxel] = True
                    self.reasons[g][voxel] = f"would tell how few {self._in_words(group)} are"
                    reader.known[g] = self._known(g)

    def _known(self, g: int) -> Known:
        """What the reader of this release and the one before knows of a grid's present counts."""
        counts, k = self.counts[g].astype(np.float64), self.k
        is_band, is_empty = counts < k, counts.sum(axis=0) == 0
        rounded = _rounded(counts, k)
        lowest = np.where(rounded == _first_figure(k), k, rounded - ROUNDING // 2)
        low = np.where(is_band, 0.0, lowest)
        high = np.where(is_band, k - 1.0, rounded + ROUNDING // 2)
        high[:, is_empty] = 0.0
        least = np.where(is_empty, 0.0, float(k))
        # A figure that was repeated may be old: fewer than k patients changed since.
        slack = np.where(self.fresh[g], 0.0, k - 1.0)
        low, high, least = low - slack, high + slack, least - slack
        hidden = self.suppressed[g]
        low[:, hidden], high[:, hidden], least[hidden] = 0.0, np.inf, 0.0
        return Known(np.maximum(low, 0.0), high, np.maximum(least, 0.0))

    def _small_groups(self, reader: Reader) -> Iterator[Group]:
        """Every class that is told as a band or suppressed as small, and every class of missing values."""
        for g in range(len(self.grids)):
            for voxel in np.flatnonzero(self.counts[g].sum(axis=0) > 0):
                for label in (POSITIVE, NEGATIVE):
                    if self.counts[g][label, voxel] < self.k:
                        yield Group(label, {g: int(voxel)})
        for part in reader.parts:
            for g, h in itertools.product(part, part):
                if g == h:
                    places = [{g: MISSING}]
                else:
                    filled = np.flatnonzero(self.counts[h].sum(axis=0) > 0)
                    places = [{g: MISSING, h: int(voxel)} for voxel in filled]
                for place in places:
                    if reader.exists(Group(POSITIVE, place)):
                        yield Group(POSITIVE, place)
                        yield Group(NEGATIVE, place)

    def _choose(self, reader: Reader, group: Group, *, upwards: bool) -> tuple[int, int]:
        """The voxel to give up: of those that bind, the one told with the fewest patients."""

        def may_go(g: int, voxel: int) -> bool:
            # What an earlier release said cannot be taken back.
            return bool(self.fresh[g][voxel] and not self.suppressed[g][voxel])

        binding = [place for place in reader.binding(group, upwards=upwards) if may_go(*place)]
        everywhere = [
            (g, voxel)
            for g in range(len(self.grids))
            for voxel in range(self.counts[g].shape[1])
            if may_go(g, voxel)
        ]
        candidates = binding or everywhere
        if not candidates:
            raise DisclosureRefusedError(
                f"together with the release before, a report would tell how few {self._in_words(group)} are; "
                "publish when more patients were added, or under the next dictionary"
            )
        told = [self._told(g).sum(axis=0) for g in range(len(self.grids))]
        return min(candidates, key=lambda place: float(told[place[0]][place[1]]))

    def _in_words(self, group: Group) -> str:
        label = "positives" if group.label == POSITIVE else "negatives"
        places = [
            f"without a value in '{self.grids[g].name}'"
            if voxel == MISSING
            else f"in '{self.grids[g].label(voxel)}'"
            for g, voxel in group.voxels.items()
        ]
        return " ".join([label, *places])

    def protected(self) -> list[ProtectedCounts]:
        """The counts as they may be looked at."""
        found = []
        for g, (hidden, reasons) in enumerate(zip(self.suppressed, self.reasons, strict=True)):
            told = self._told(g)
            found.append(ProtectedCounts(told[0], told[1], hidden, tuple(reasons)))
        return found

    def _told(self, g: int) -> FloatArray:
        """Figures of a grid, shape (2, n_voxels); 0 where suppressed or empty."""
        counts, k = self.counts[g], self.k
        told: FloatArray = np.where(counts < k, (k - 1) / 2, _rounded(counts, k))
        told[:, self.suppressed[g] | (counts.sum(axis=0) == 0)] = 0.0
        return told

    def figures(self) -> dict[str, Figures]:
        """What the next release is held against."""
        return {
            grid.name: Figures(self.counts[g][0], self.counts[g][1], self.suppressed[g])
            for g, grid in enumerate(self.grids)
        }


def _first_figure(k: int) -> int:
    """The smallest multiple of 5 that is told of a class that is not small."""
    return ROUNDING * math.ceil(k / ROUNDING)


def _rounded(counts: FloatArray | IntArray, k: int) -> FloatArray:
    # Without the lower bound a k of 7 would tell a class of exactly 7 as 5, and nothing else as 5.
    rounded: FloatArray = np.maximum(ROUNDING * np.round(counts / ROUNDING), _first_figure(k))
    return rounded
