"""Rank donors for a site's gaps, from published reports alone.

Blind to rows: everything here is a function of what sites published about one grid under one
dictionary. A match is a hint; nothing happens until the recipient's steward signs a request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from synthedge_core.errors import FrameMismatchError, GridError
from synthedge_core.frame import BoolArray, FloatArray
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import GridStatistics, hole_profile

# The published synthedge rule.
SEED_SIMILARITY: Final = 0.70
SEED_SHARED_FEATURES: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DonorMatch:
    """A recipient's gap paired with a donor's voxel.

    Attributes
    ----------
    voxel, donor_voxel : int
        Flat indices in the same grid.
    donor : str
        Site id.
    similarity : float
        Cosine of the completed centroids, in [-1, 1].
    rank : int
        1 is the best donor for this voxel.
    reason : str
        For people; holds published numbers only.
    """

    voxel: int
    donor: str
    donor_voxel: int
    similarity: float
    rank: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SiteGaps:
    """The gaps one site listed, for the strategy `seed`.

    Attributes
    ----------
    site : str
    centroids : ndarray of shape (n_gaps, n_features)
    mask : ndarray of bool of shape (n_features,)
        Features the site has.
    gap_scores : ndarray of shape (n_gaps,)
        In [0, 1].
    """

    site: str
    centroids: FloatArray
    mask: BoolArray
    gap_scores: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedMatch:
    """A pair of gaps the strategy `seed` matches; gaps are positions in their site's list."""

    gap: int
    donor: str
    donor_gap: int
    similarity: float


def masked_cosine(
    centroids_a: FloatArray, mask_a: BoolArray, centroids_b: FloatArray, mask_b: BoolArray
) -> FloatArray:
    """Cosine similarity over the features both sides have.

    Parameters
    ----------
    centroids_a, centroids_b : ndarray of shape (n_a, n_features) and (n_b, n_features)
        In one frame; entries outside the masks are ignored, NaN included.
    mask_a, mask_b : ndarray of bool of shape (n_features,), or one row per centroid

    Returns
    -------
    ndarray of shape (n_a, n_b)
        In [-1, 1]; 0 where nothing is shared, or a shared part is the origin.

    Raises
    ------
    FrameMismatchError
        If the numbers of features differ.

    Notes
    -----
    ``<a, b> / (|a restricted to b's features| |b restricted to a's|)``: with entries outside the
    masks set to 0, numerator and both norms are matrix products, so that no loop over pairs of
    sites is needed.
    """
    masks_a, masks_b = np.atleast_2d(mask_a), np.atleast_2d(mask_b)
    n_features = {x.shape[1] for x in (centroids_a, centroids_b, masks_a, masks_b)}
    if len(n_features) != 1:
        raise FrameMismatchError(
            f"centroids and masks with {sorted(n_features)} coordinates cannot be compared; "
            "expected one frame"
        )
    a = np.where(masks_a, centroids_a, 0.0)
    b = np.where(masks_b, centroids_b, 0.0)
    squared_norms = ((a * a) @ masks_b.T.astype(np.float64)) * (
        masks_a.astype(np.float64) @ (b * b).T
    )
    dots = a @ b.T
    norms = np.sqrt(squared_norms)
    cosine = np.divide(dots, norms, out=np.zeros(dots.shape), where=norms > 0)
    clipped: FloatArray = np.clip(cosine, -1.0, 1.0)
    return clipped


def rank_donors(
    grid: NamedGrid,
    recipient: str,
    reports: Mapping[str, GridStatistics],
    *,
    similarity: float,
    min_shared_features: int = 1,
    min_others: int = 2,
) -> list[DonorMatch]:
    """Rank the donors of every gap of one site in one grid.

    A gap is a voxel where the site published a smaller share of its positives than the other sites'
    mean. A donor is a site with a larger share there, or failing that in a face-adjacent voxel
    whose centroid is similar enough.

    Parameters
    ----------
    grid : NamedGrid
    recipient : str
        Site the donors are for; must be among the reports.
    reports : mapping of site id to GridStatistics
        All current reports of this grid under this dictionary.
    similarity : float
        Least cosine of the completed centroids, in (0, 1].
    min_shared_features : int
        Sites that report a grid share all of its features and no other counts; a grid with fewer
        than this has no matches.
    min_others : int
        Other sites that must have reported a voxel, at least 2.

    Returns
    -------
    list of DonorMatch
        By voxel, then rank; one entry per donor and voxel. Empty with fewer than `min_others` other
        sites.

    Raises
    ------
    GridError
        If the recipient has no report, or a report does not fit the grid.

    Notes
    -----
    Donors are compared by their published positive share ``d p / (K q)``, not by the seed's gap
    score. The score rises with sparsity and with mixed labels, so that a hole among many negatives
    (dense, entropy 0, rate 0) scores 0, the best there is: a rule "donor's score below the
    recipient's" would turn away every donor of exactly the gaps this project is for.

    Rank: the same voxel, then similarity, then distance in the frame, then the donor's share. A
    share says how a site's positives are spread, not how many there are; whether a donor has rows
    to give is its own, human decision.
    """
    if recipient not in reports:
        raise GridError(f"site {recipient!r} has no report of grid {grid.name!r}")
    for site, report in reports.items():
        if report.density.shape != (grid.n_voxels,):
            raise GridError(
                f"site {site!r} reported {len(report.density)} voxels of grid {grid.name!r}; "
                f"expected {grid.n_voxels}"
            )
    donors = {site: report for site, report in sorted(reports.items()) if site != recipient}
    if len(donors) < min_others or len(grid.features) < min_shared_features:
        return []
    profile = hole_profile(list(donors.values()), min_others)
    shares = {site: report.positive_share for site, report in donors.items()}
    own = reports[recipient].positive_share
    centroids = np.stack([grid.full_centroid(i) for i in range(grid.n_voxels)])
    everything = np.ones(centroids.shape[1], dtype=np.bool_)
    cosine = masked_cosine(centroids, everything, centroids, everything)
    matches = []
    # A comparison with NaN is false: what the recipient did not publish is no gap.
    for voxel in np.flatnonzero(profile.known & (own < profile.f)):
        ranked = []
        for site, share in shares.items():
            found = _donor_voxel(grid, int(voxel), share, float(own[voxel]), cosine, similarity)
            if found is None:
                continue
            distance = float(np.linalg.norm(centroids[voxel] - centroids[found]))
            key = (found != voxel, -cosine[voxel, found], distance, -share[found], site)
            ranked.append((key, site, found))
        for rank, (_, site, found) in enumerate(sorted(ranked), start=1):
            reached = float(cosine[voxel, found])
            matches.append(
                DonorMatch(
                    voxel=int(voxel),
                    donor=site,
                    donor_voxel=found,
                    similarity=reached,
                    rank=rank,
                    reason=_reason(
                        grid,
                        recipient=recipient,
                        voxel=int(voxel),
                        expected_part=float(own[voxel] / profile.f[voxel]),
                        donor=site,
                        donor_voxel=found,
                        times_even=float(shares[site][found] * grid.n_voxels),
                        similarity=reached,
                    ),
                )
            )
    return matches


def seed_matches(
    recipient: SiteGaps,
    donors: Sequence[SiteGaps],
    *,
    similarity: float = SEED_SIMILARITY,
    min_shared_features: int = SEED_SHARED_FEATURES,
) -> list[SeedMatch]:
    """Match gap against gap, the published synthedge way, as a rival to measure against.

    Parameters
    ----------
    recipient : SiteGaps
    donors : sequence of SiteGaps
    similarity : float
        Least cosine over the shared features.
    min_shared_features : int
        Sites that share fewer are not compared.

    Returns
    -------
    list of SeedMatch
        Where the donor's score is lower than the recipient's; by gap, most similar first.

    Raises
    ------
    FrameMismatchError
        If the sites' centroids have different numbers of features.
    """
    matches: list[SeedMatch] = []
    for donor in donors:
        cosine = masked_cosine(recipient.centroids, recipient.mask, donor.centroids, donor.mask)
        if np.count_nonzero(recipient.mask & donor.mask) < min_shared_features:
            continue
        is_richer = donor.gap_scores[np.newaxis, :] < recipient.gap_scores[:, np.newaxis]
        matches.extend(
            SeedMatch(
                gap=int(i),
                donor=donor.site,
                donor_gap=int(j),
                similarity=float(cosine[i, j]),
            )
            for i, j in np.argwhere(is_richer & (cosine >= similarity))
        )
    return sorted(matches, key=lambda m: (m.gap, -m.similarity, m.donor, m.donor_gap))


def _donor_voxel(
    grid: NamedGrid,
    voxel: int,
    share: FloatArray,
    own_share: float,
    cosine: FloatArray,
    similarity: float,
) -> int | None:
    """Find where a donor is richer than the recipient: the same voxel, else the best neighbour."""
    if share[voxel] > own_share:
        return voxel
    near = [
        i for i in grid.neighbours(voxel) if cosine[voxel, i] >= similarity and share[i] > own_share
    ]
    return max(near, key=lambda i: (cosine[voxel, i], share[i]), default=None)


def _reason(
    grid: NamedGrid,
    *,
    recipient: str,
    voxel: int,
    expected_part: float,
    donor: str,
    donor_voxel: int,
    times_even: float,
    similarity: float,
) -> str:
    place = "there" if donor_voxel == voxel else f"beside it, in {grid.label(donor_voxel)}"
    verb = "is rich" if times_even > 1 else "has more"
    return (
        f"{grid.label(voxel)}: {recipient} has {_part_in_words(expected_part)} the expected share "
        f"of positive cases; {donor} {verb} {place} ({times_even:.1f} times its even share); "
        f"similarity {similarity:.2f}"
    )


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
