"""Holes: voxels where other sites have positive samples and this one has none, or hardly any.

A complete hole cannot be seen in a site's own data, and the coordinator cannot compute it either,
since reports hold no totals. So the coordinator publishes a profile, the leave-one-out mean of the
other sites' reports, and the site compares it with its own true counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from synthedge_core.errors import GridError
from synthedge_core.frame import BoolArray, FloatArray
from synthedge_core.grids import IntArray

# A published positive rate of exactly 0 or 1 has no finite odds. The voxels of a named grid hold
# some 25 patients at the sites this is for (200 to 300 patients, at most 12 voxels), and half a
# patient among 25 is the least a rate can be resolved to: the correction that Haldane and Anscombe
# (both 1956) add to the counts themselves, which the coordinator does not have. Nothing hangs on
# it: with 0.001 to 0.05 a carved voxel of the diabetes data comes first equally often, since E1
# takes over from extreme odds.
MIN_RATE: Final = 0.02
# A site shows some twenty voxels, and the largest of their z is looked at: between sites that draw their
# patients from one population it exceeds 2.15 in a tenth of the cases at 900 patients, less at smaller ones
# (`benchmarks/holes.py`). 2 and each voxel's own scatter confirmed a hole at 9 to 20 % of such sites.
CONFIRMED_Z: Final = 2.2
N_SUSPECTED: Final = 3
# Fewer than two expected positives missing is nothing anybody could act on.
MIN_EXPECTED: Final = 2.0
# Case mixes differ between hospitals; only a kind of patient that is practically absent is a hole.
ABSENT_SHARE: Final = 0.1

Status = Literal["confirmed", "suspected"]
Kind = Literal["positives", "population"]
# From one row per site to rows of sums over some of them.
_Sums = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GridStatistics:
    """What one site published about one grid.

    Attributes
    ----------
    density : ndarray of shape (n_voxels,)
        Observed over expected samples under an even spread; at least 0.
    positive_rate : ndarray of shape (n_voxels,)
        In [0, 1].
    grid_positive_rate : float
        In [0, 1].
    known : ndarray of bool of shape (n_voxels,)
        False where disclosure control suppressed the voxel.
    """

    density: FloatArray
    positive_rate: FloatArray
    grid_positive_rate: float
    known: BoolArray

    @property
    def positive_share(self) -> FloatArray:
        """Share of the site's positive samples in each voxel, shape (n_voxels,); NaN if unknown.

        ``density * positive_rate / (n_voxels * grid_positive_rate)``. A site without positives has
        no shares at all.
        """
        if self.grid_positive_rate <= 0:
            return np.full(self.density.shape, np.nan)
        share = self.density * self.positive_rate / (len(self.density) * self.grid_positive_rate)
        return np.where(self.known, share, np.nan)

    @property
    def patient_share(self) -> FloatArray:
        """Share of the site's samples in each voxel, shape (n_voxels,); NaN if unknown."""
        return np.where(self.known, self.density / len(self.density), np.nan)

    @property
    def gap_score(self) -> FloatArray:
        """The seed's score of each voxel, shape (n_voxels,); see `gap_score.gap_scores`."""
        inside = (self.positive_rate > 0) & (self.positive_rate < 1)
        p = np.where(inside, self.positive_rate, 0.5)
        entropy = np.where(inside, -(p * np.log2(p) + (1 - p) * np.log2(1 - p)), 0.0)
        sparsity = np.maximum(0.0, 1.0 - self.density)
        return 0.5 * sparsity + 0.3 * entropy + 0.2 * self.positive_rate

    @property
    def relative_odds(self) -> FloatArray:
        """Odds of the voxel over odds of the grid, shape (n_voxels,); NaN if unknown or empty.

        An empty voxel has no rate; its published 0 must not be read as "nobody here is positive".
        """
        odds = _odds(self.positive_rate) / _odds(np.array(self.grid_positive_rate))
        has_odds = self.known & (self.density > 0) & (self.grid_positive_rate > 0)
        return np.where(has_odds, odds, np.nan)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VoxelProfile:
    """Means over the other sites, voxel by voxel; every number is finite.

    Attributes
    ----------
    f, v_f : ndarray of shape (n_voxels,)
        Positive share and its squared standard error; 0 where unknown.
    o, v_o : ndarray of shape (n_voxels,)
        Relative odds and their squared standard error; 1 and 0 where fewer than the required sites
        have patients there: no evidence that the voxel differs from its grid.
    known : ndarray of bool of shape (n_voxels,)
        Whether enough other sites with positives reported the voxel.
    share, v_share : ndarray of shape (n_voxels,)
        Patient share and its squared standard error; 0 where unknown.
    patients_known : ndarray of bool of shape (n_voxels,)
        Whether enough other sites reported the voxel; a site without positives counts here.
    n_sites : int
        Other sites that reported the grid.
    """

    f: FloatArray
    v_f: FloatArray
    o: FloatArray
    v_o: FloatArray
    known: BoolArray
    share: FloatArray
    v_share: FloatArray
    patients_known: BoolArray
    n_sites: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hole:
    """A voxel that falls short of what the other sites let expect.

    Attributes
    ----------
    kind : str
        ``"positives"``: too few positive samples; ``"population"``: no patients of a kind at all.
    voxel : int
        Flat index.
    expected : float
        Samples (positive ones, or patients in a population hole) the site should have there.
    observed : int
        Samples it has.
    z : float
        Shortfall in standard errors; above 0.
    status : str
        ``"confirmed"`` (z at least `CONFIRMED_Z`) or ``"suspected"`` (among the first three).
    """

    kind: Kind
    voxel: int
    expected: float
    observed: int
    z: float
    status: Status


def hole_profile(others: Sequence[GridStatistics], min_others: int = 2) -> VoxelProfile:
    """Average what the other sites reported about a grid.

    Parameters
    ----------
    others : sequence of GridStatistics
        Reports of one grid under one dictionary, without the site the profile is for.
    min_others : int
        Sites that must have reported a voxel, at least 2: the mean of one would be that site's own
        report, and has no standard error.

    Returns
    -------
    VoxelProfile

    Raises
    ------
    GridError
        If there is no report, `min_others` is below 2, or the reports differ in their voxels.
    """
    _check_reports(others, min_others)
    return _profiles(others, _sum_of_all, min_others)[0]


def leave_one_out_profiles(
    reports: Mapping[str, GridStatistics], min_others: int = 2
) -> dict[str, VoxelProfile]:
    """Average, for every site, what the others reported about a grid.

    Parameters
    ----------
    reports : mapping of site id to GridStatistics
        Of one grid under one dictionary.
    min_others : int
        As for `hole_profile`.

    Returns
    -------
    dict of site id to VoxelProfile
        Equal to `hole_profile` of the others, site by site; empty if there are no others.

    Raises
    ------
    GridError
        As for `hole_profile`.
    """
    if len(reports) < 2:
        return {}
    _check_reports(list(reports.values()), min_others)
    profiles = _profiles(list(reports.values()), _sums_without_each, min_others)
    return dict(zip(reports, profiles, strict=True))


def find_holes(profile: VoxelProfile, positives: IntArray, negatives: IntArray) -> list[Hole]:
    """Find the voxels of one grid in which the site lacks positive samples.

    Parameters
    ----------
    profile : VoxelProfile
        Of the other sites.
    positives, negatives : ndarray of shape (n_voxels,)
        The site's own true counts.

    Returns
    -------
    list of Hole
        Confirmed and suspected ones, the largest z first. A site that looks at several grids passes
        the lists through `rank_holes`, because "among the first three" is meant per site.

    Raises
    ------
    GridError
        If counts and profile differ in their voxels.

    Notes
    -----
    With P and N the site's totals over the grid: ``E1 = P f``, what the others' share of positives
    lets expect; ``E2 = N(c) o P / N``, what the site's own negatives there let expect (its
    positives cannot, they are what may be missing). ``E = min(E1, E2)``, because a voxel is short
    of positives only if both say so: where a site has few patients of a kind, E2 is small.
    ``z = (E - P(c)) / sqrt(E + 1/2 + V)``: Poisson variance of the count, a continuity term that
    keeps voxels without expectation from winning, and V, the squared standard error of the profile
    belonging to the smaller, in counts. Two or three other sites agree by chance in some voxel,
    so that V is at least what the grid's other voxels let expect (`_at_least_pooled`).
    """
    _check_counts(len(profile.f), positives, negatives)
    total_positives, total_negatives = float(positives.sum()), float(negatives.sum())
    if total_positives == 0 or total_negatives == 0:
        # Without both labels there is no rate to compare; doctor reports such a table.
        return []
    by_share = total_positives * profile.f
    per_odds = negatives * (total_positives / total_negatives)
    by_odds = per_odds * profile.o
    is_share = by_share <= by_odds
    expected = np.where(is_share, by_share, by_odds)
    v_f = _at_least_pooled(profile.v_f, profile.f)
    v_o = _at_least_pooled(profile.v_o, profile.o**2)
    variance = np.where(is_share, total_positives**2 * v_f, per_odds**2 * v_o)
    return _ranked("positives", expected, positives, variance, profile.known)


def population_holes(profile: VoxelProfile, positives: IntArray, negatives: IntArray) -> list[Hole]:
    """Find kinds of patients that the other sites have and this one practically lacks.

    `find_holes` is blind to them by construction (no negatives, so E2 is 0), and a transfer of
    positives does not mend them alone: they are reported apart.

    Parameters
    ----------
    profile : VoxelProfile
        Of the other sites.
    positives, negatives : ndarray of shape (n_voxels,)
        The site's own true counts.

    Returns
    -------
    list of Hole
        Voxels with at most a tenth of the patients expected, the largest z first; status as for
        `find_holes`.

    Raises
    ------
    GridError
        If counts and profile differ in their voxels.
    """
    _check_counts(len(profile.share), positives, negatives)
    counts = positives + negatives
    total = float(counts.sum())
    expected = total * profile.share
    is_absent = profile.patients_known & (counts <= ABSENT_SHARE * expected)
    v_share = _at_least_pooled(profile.v_share, profile.share)
    return _ranked("population", expected, counts, total**2 * v_share, is_absent)


def rank_holes(by_grid: Mapping[str, Sequence[Hole]]) -> list[tuple[str, Hole]]:
    """Rank the holes of all a site's grids together.

    Parameters
    ----------
    by_grid : mapping of grid name to holes
        From `find_holes`, or all from `population_holes`; the two kinds are ranked apart.

    Returns
    -------
    list of (grid name, Hole)
        The largest z first; suspected ones only if they are among the site's first three.
    """
    pairs = [(grid, hole) for grid, holes in by_grid.items() for hole in holes]
    pairs.sort(key=lambda pair: -pair[1].z)
    return [
        pair for i, pair in enumerate(pairs) if i < N_SUSPECTED or pair[1].status == "confirmed"
    ]


def _odds(rate: FloatArray) -> FloatArray:
    clipped = np.clip(rate, MIN_RATE, 1 - MIN_RATE)
    return clipped / (1 - clipped)


def _check_reports(reports: Sequence[GridStatistics], min_others: int) -> None:
    if min_others < 2:
        raise GridError(f"a profile needs at least 2 other sites, not {min_others}")
    sizes = {len(site.density) for site in reports}
    if len(sizes) != 1:
        raise GridError(
            f"reports with {sorted(sizes)} voxels cannot be averaged; "
            "expected one or more reports of the same grid"
        )


def _check_counts(n_voxels: int, positives: IntArray, negatives: IntArray) -> None:
    if positives.shape != (n_voxels,) or negatives.shape != (n_voxels,):
        raise GridError(
            f"counts of shape {positives.shape} and {negatives.shape} against a profile of "
            f"{n_voxels} voxels; expected the same grid"
        )


def _sum_of_all(values: FloatArray) -> FloatArray:
    total: FloatArray = values.sum(axis=0, keepdims=True)
    return total


def _sums_without_each(values: FloatArray) -> FloatArray:
    """Per row, the sum of all others: of those before it and those behind it, so that nothing cancels."""
    nothing = np.zeros((1, values.shape[1]))
    before = np.concatenate([nothing, np.cumsum(values[:-1], axis=0)])
    behind = np.concatenate([np.cumsum(values[:0:-1], axis=0)[::-1], nothing])
    sums: FloatArray = before + behind
    return sums


def _profiles(
    reports: Sequence[GridStatistics], sums: _Sums, min_others: int
) -> list[VoxelProfile]:
    """One profile per row that `sums` makes of the reports."""
    f, v_f, known = _means([r.positive_share for r in reports], sums, min_others)
    o, v_o, has_odds = _means([r.relative_odds for r in reports], sums, min_others)
    share, v_share, patients_known = _means([r.patient_share for r in reports], sums, min_others)
    n_sites = sums(np.ones((len(reports), 1)))
    return [
        VoxelProfile(
            f=f[i],
            v_f=v_f[i],
            o=np.where(has_odds[i], o[i], 1.0),
            v_o=v_o[i],
            known=known[i],
            share=share[i],
            v_share=v_share[i],
            patients_known=patients_known[i],
            n_sites=int(n_sites[i, 0]),
        )
        for i in range(len(f))
    ]


def _means(
    per_site: Sequence[FloatArray], sums: _Sums, min_others: int
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Means, squared standard errors and whether enough sites are known; NaN marks unknown.

    All three have one row per row that `sums` makes of one row per site.
    """
    stacked = np.stack(per_site)
    is_number = ~np.isnan(stacked)
    # About the mean of all, so that the sums of squares do not cancel.
    centre = np.where(is_number, stacked, 0.0).sum(axis=0) / np.maximum(is_number.sum(axis=0), 1)
    deviations = np.where(is_number, stacked - centre, 0.0)
    n = sums(is_number.astype(np.float64))
    known = n >= min_others
    divisor = np.where(known, n, 2.0)
    shift = sums(deviations) / divisor
    squares = np.maximum(sums(deviations**2) - divisor * shift**2, 0.0)
    variance = squares / (divisor - 1) / divisor
    # Rounding must not make a share negative.
    mean = np.maximum(centre + shift, 0.0)
    return np.where(known, mean, 0.0), np.where(known, variance, 0.0), known


def _at_least_pooled(variance: FloatArray, grows_with: FloatArray) -> FloatArray:
    """Squared standard errors, none below what the whole grid lets expect of such a voxel.

    A count's variance grows with the count, and that of odds with their square: the ratio is one
    number for all voxels, and twelve of them tell it better than the two or three sites behind one.
    """
    is_told = (variance > 0) & (grows_with > 0)
    if not is_told.any():
        return variance
    ratio = float(np.mean(variance[is_told] / grows_with[is_told]))
    return np.maximum(variance, ratio * grows_with)


def _ranked(
    kind: Kind, expected: FloatArray, observed: IntArray, variance: FloatArray, eligible: BoolArray
) -> list[Hole]:
    z = (expected - observed) / np.sqrt(expected + 0.5 + variance)
    order = [int(i) for i in np.argsort(-z, kind="stable")]
    candidates = [i for i in order if eligible[i] and z[i] > 0 and expected[i] >= MIN_EXPECTED]
    holes = [
        Hole(
            kind=kind,
            voxel=i,
            expected=float(expected[i]),
            observed=int(observed[i]),
            z=float(z[i]),
            status="confirmed" if z[i] >= CONFIRMED_Z else "suspected",
        )
        for i in candidates
    ]
    return [hole for i, hole in enumerate(holes) if i < N_SUSPECTED or hole.status == "confirmed"]
