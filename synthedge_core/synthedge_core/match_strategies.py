"""What a matching strategy compares, which pairs it lets match, and how it says why.

``share``, ours: a donor is richer in positives in the same voxel, or else in one beside it. ``seed``, the
published synthedge rule, kept to be measured against: gap against gap, whatever the grid, by full vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from synthedge_core.errors import GridError
from synthedge_core.frame import BoolArray, FloatArray
from synthedge_core.grids import IntArray, NamedGrid
from synthedge_core.holes import GridStatistics
from synthedge_core.similarity import masked_cosine

# The published synthedge rule: cosine, features in common, and the gaps that a site lists.
SEED_SIMILARITY: Final = 0.70
SEED_SHARED_FEATURES: Final = 3
SEED_LISTED: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SiteReport:
    """What one site published.

    Attributes
    ----------
    features : tuple of str
        The dictionary's features it has.
    grids : mapping of grid name to GridStatistics
    """

    features: tuple[str, ...]
    grids: Mapping[str, GridStatistics]


class Strategy(Protocol):
    """A rule for matching; a *place* is a voxel of any of the grids, numbered through.

    Attributes
    ----------
    vectors : ndarray of shape (n_places, n_columns)
        Centroids.
    least : ndarray of shape (n_places,)
        Least cosine a donor of a gap there must reach.
    may_match : ndarray of bool, shape (n_places, n_places), or None
        Gap's place to donor's place; None lets all match.
    cosine : ndarray of shape (n_places, n_places)
        Of all columns, in double precision.
    min_shared_features : int
        Features that two sites must have in common.
    most_per_donor : int
        Places of one donor that may match one gap.
    """

    vectors: FloatArray
    least: FloatArray
    may_match: BoolArray | None
    cosine: FloatArray
    min_shared_features: int
    most_per_donor: int

    def mask(self, report: SiteReport) -> BoolArray:
        """Columns in which a site's centroids may be compared, shape (n_columns,)."""

    def points(self, report: SiteReport) -> tuple[IntArray, FloatArray]:
        """Places a site takes part with, and its need there: lower is richer."""


class _Places:
    """The voxels of all grids in one row."""

    def __init__(self, grids: Sequence[NamedGrid]) -> None:
        self.grids = tuple(grids)
        self.first = dict(
            zip(
                (grid.name for grid in grids),
                np.cumsum([0, *(grid.n_voxels for grid in grids)]).tolist(),
                strict=False,
            )
        )

    def checked(self, report: SiteReport) -> list[tuple[NamedGrid, GridStatistics]]:
        """A site's grids, each with the voxels it must have."""
        found = []
        for grid in self.grids:
            statistics = report.grids.get(grid.name)
            if statistics is None:
                continue
            if statistics.density.shape != (grid.n_voxels,):
                raise GridError(
                    f"a site reported {len(statistics.density)} voxels of grid {grid.name!r}; "
                    f"expected {grid.n_voxels}"
                )
            found.append((grid, statistics))
        return found


class ShareStrategy:
    """Ours: the same voxel, else one beside it, of a site with a larger share of its positives there.

    Parameters
    ----------
    grids : sequence of NamedGrid
    similarity : float
        Least cosine of the completed centroids, in (0, 1].

    Notes
    -----
    Donors are compared by their published positive share ``d p / (K q)``, not by the seed's gap
    score. The score rises with sparsity and with mixed labels, so that a hole among many negatives
    (dense, entropy 0, rate 0) scores 0, the best there is: a rule "donor's score below the
    recipient's" would turn away every donor of exactly the gaps this project is for.
    """

    min_shared_features = 0  # sites that report a grid have all of its features; no others count

    def __init__(self, grids: Sequence[NamedGrid], similarity: float) -> None:
        self._places = places = _Places(grids)
        self.vectors = np.concatenate([_centroids(grid) for grid in grids])
        everything = np.ones(self.vectors.shape[1], dtype=np.bool_)
        self.cosine = masked_cosine(self.vectors, everything, self.vectors, everything)
        near = np.eye(len(self.vectors), dtype=np.bool_)
        for grid in grids:
            first = places.first[grid.name]
            for voxel in range(grid.n_voxels):
                near[first + voxel, [first + i for i in grid.neighbours(voxel)]] = True
        self.may_match: BoolArray | None = near & (self.cosine >= similarity)
        self.least = np.where(self.may_match, self.cosine, 1.0).min(axis=1)
        self.most_per_donor = int(self.may_match.sum(axis=1).max())

    def mask(self, report: SiteReport) -> BoolArray:
        """All columns: the centroids are completed."""
        return np.ones(self.vectors.shape[1], dtype=np.bool_)

    def points(self, report: SiteReport) -> tuple[IntArray, FloatArray]:
        """Every voxel it published, and those it suppressed.

        A suppressed voxel counts as one without positives: it is nobody's donor, and others are proposed for
        it, since only its own site knows whether it is a hole. Holes are small, so that thresholds suppress
        them most of all.
        """
        places, need = [], []
        for grid, statistics in self._places.checked(report):
            share = np.where(statistics.known, statistics.positive_share, 0.0)
            known = np.flatnonzero(~np.isnan(share))
            places.append(known + self._places.first[grid.name])
            need.append(-share[known])
        return _joined(places, need)


class SeedStrategy:
    """The published rule: a site's worst gaps against other sites' gaps of a lower score, in any grid.

    Parameters
    ----------
    grids : sequence of NamedGrid
    """

    may_match: BoolArray | None = None
    min_shared_features = SEED_SHARED_FEATURES
    most_per_donor = SEED_LISTED

    def __init__(self, grids: Sequence[NamedGrid]) -> None:
        self._places = _Places(grids)
        # Without the intercept: the published rule knows none.
        self.vectors = np.concatenate([_centroids(grid)[:, :-1] for grid in grids])
        self._frame = grids[0].frame
        everything = np.ones(self.vectors.shape[1], dtype=np.bool_)
        self.cosine = masked_cosine(self.vectors, everything, self.vectors, everything)
        self.least = np.full(len(self.vectors), SEED_SIMILARITY)

    def mask(self, report: SiteReport) -> BoolArray:
        """Columns of the features the site has."""
        return self._frame.mask(report.features)

    def points(self, report: SiteReport) -> tuple[IntArray, FloatArray]:
        """Its five worst gaps by score; an empty voxel has none, as the published package skips it."""
        places, need = [], []
        for grid, statistics in self._places.checked(report):
            scored = np.flatnonzero(statistics.known & (statistics.density > 0))
            places.append(scored + self._places.first[grid.name])
            need.append(statistics.gap_score[scored])
        place, score = _joined(places, need)
        worst = np.argsort(-score, kind="stable")[:SEED_LISTED]
        return place[worst], score[worst]


def share_in_words(
    grid: NamedGrid,
    *,
    recipient: str,
    voxel: int,
    expected_part: float | None,
    donor: str,
    donor_voxel: int,
    times_even: float,
    similarity: float,
) -> str:
    """Why `share` matched, from published values: shares relative to the others' and to an even spread.

    `expected_part` is None where the recipient published nothing.
    """
    has = (
        "did not publish how many positive cases it has"
        if expected_part is None
        else f"has {_part_in_words(expected_part)} the expected share of positive cases"
    )
    place = "there" if donor_voxel == voxel else f"beside it, in {grid.label(donor_voxel)}"
    verb = "is rich" if times_even > 1 else "has more"
    return (
        f"{grid.label(voxel)}: {recipient} {has}; {donor} {verb} {place} ({times_even:.1f} times its even share); "
        f"similarity {similarity:.2f}"
    )


def seed_in_words(
    *,
    label: str,
    recipient: str,
    score: float,
    donor: str,
    donor_label: str,
    donor_score: float,
    similarity: float,
) -> str:
    """Why `seed` matched, from published values: the two gap scores."""
    return (
        f"{label}: {recipient}'s gap scores {score:.2f}; {donor}'s gap in {donor_label} scores lower "
        f"({donor_score:.2f}); similarity {similarity:.2f}"
    )


def _centroids(grid: NamedGrid) -> FloatArray:
    return np.stack([grid.full_centroid(i) for i in range(grid.n_voxels)])


def _joined(places: list[IntArray], need: list[FloatArray]) -> tuple[IntArray, FloatArray]:
    if not places:
        return np.empty(0, dtype=np.int64), np.empty(0)
    return np.concatenate(places), np.concatenate(need)


_FRACTIONS: Final = {
    1 / 10: "about a tenth of",
    1 / 9: "about a ninth of",
    1 / 8: "about an eighth of",
    1 / 7: "about a seventh of",
    1 / 6: "about a sixth of",
    1 / 5: "about a fifth of",
    1 / 4: "about a quarter of",
    1 / 3: "about a third of",
    1 / 2: "about half of",
    2 / 3: "about two thirds of",
    3 / 4: "about three quarters of",
    1.0: "nearly all of",
}


def _part_in_words(part: float) -> str:
    if part == 0:
        return "none of"
    if part < 0.095:
        return "less than a tenth of"
    return _FRACTIONS[min(_FRACTIONS, key=lambda fraction: abs(fraction - part))]
