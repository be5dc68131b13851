"""Rank donors for sites' gaps, from published reports alone, brought up to date report by report.

Blind to rows: everything here is a function of what sites published under one dictionary. A match is a hint;
nothing happens until the recipient's steward signs a request.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from synthedge_core.errors import GridError, UsageError
from synthedge_core.frame import BoolArray, FloatArray
from synthedge_core.grids import IntArray, NamedGrid
from synthedge_core.holes import GridStatistics, VoxelProfile, leave_one_out_profiles
from synthedge_core.match_strategies import (
    SeedStrategy,
    ShareStrategy,
    SiteReport,
    Strategy,
    seed_in_words,
    share_in_words,
)
from synthedge_core.similarity import (
    Float32Array,
    Nearest,
    Points,
    best_of_both,
    nearest_in_less_need,
)

StrategyName = Literal["share", "seed"]
STRATEGIES: Final[tuple[StrategyName, ...]] = get_args(StrategyName)

# Keeps one message of proposals far below the message limit, however many sites there are.
DONORS_PER_GAP: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DonorMatch:
    """A recipient's gap paired with a donor's voxel.

    Attributes
    ----------
    grid, donor_grid : str
        Names; the strategy ``share`` stays within one grid.
    voxel, donor_voxel : int
        Flat indices in these grids.
    donor : str
        Site id.
    similarity : float
        Cosine of the centroids, in [-1, 1].
    rank : int
        1 is the best donor for this voxel.
    reason : str
        For people; holds published numbers only.
    """

    grid: str
    voxel: int
    donor: str
    donor_grid: str
    donor_voxel: int
    similarity: float
    rank: int
    reason: str


@dataclass(kw_only=True, slots=True, eq=False)
class _Member:
    """A site that takes part: its points, and the best donors' points of each."""

    site: str
    report: SiteReport
    code: int
    mask_of: int
    place: IntArray
    need: FloatArray
    # Owner's code and place of each kept candidate, shape (n_points, n_kept); -1 where there are fewer.
    owner: IntArray
    donor_place: IntArray
    similarity: Float32Array


class Matcher:
    """The donors of every site's gaps under one dictionary.

    Rules: `update` searches only what a new report can change, and what it leaves is what matching everything
    anew would give; every number comes from the reports it was last given.

    Parameters
    ----------
    grids : sequence of NamedGrid
        All grids of the dictionary.
    similarity : float
        Least cosine of strategy ``share``, in (0, 1].
    min_shared_features : int
        A grid with fewer features has no matches: sites that report a grid share all of its features, and no
        others count.
    min_others : int
        Other sites that must have reported a voxel, at least 2.
    strategy : str
        ``share`` or ``seed``, see `match_strategies`.
    n_donors : int
        Donors kept per gap.

    Raises
    ------
    UsageError
        If there is no such strategy.
    GridError
        If there is no grid.
    """

    def __init__(
        self,
        grids: Sequence[NamedGrid],
        *,
        similarity: float,
        min_shared_features: int = 1,
        min_others: int = 2,
        strategy: StrategyName = "share",
        n_donors: int = DONORS_PER_GAP,
    ) -> None:
        if not grids:
            raise GridError("there is no grid to match; add [[grids]] to the dictionary")
        if strategy not in STRATEGIES:
            raise UsageError(
                f"there is no strategy '{strategy}'; take one of {', '.join(STRATEGIES)}"
            )
        self._name = strategy
        self._strategy: Strategy = (
            SeedStrategy(grids) if strategy == "seed" else ShareStrategy(grids, similarity)
        )
        self._grids = tuple(grids)
        self._place = [(grid, voxel) for grid in grids for voxel in range(grid.n_voxels)]
        self._min_shared_features = min_shared_features
        self._min_others = min_others
        self._n_donors = n_donors
        self._n_kept = n_donors * self._strategy.most_per_donor
        vectors = self._strategy.vectors
        self._distances: FloatArray = np.linalg.norm(vectors[:, None] - vectors, axis=2)
        # In order of their names; `_row_of_code` and the rows of `_needs` (one column a place) keep to it.
        self._members: dict[str, _Member] = {}
        self._n_codes = 0
        self._masks: list[BoolArray] = []
        self._profiles: dict[str, dict[str, VoxelProfile]] = {}

    def update(self, reports: Mapping[str, SiteReport]) -> None:
        """Bring the matches up to date.

        Parameters
        ----------
        reports : mapping of site id to SiteReport
            All current reports. A report that is the same object as before is taken as unchanged.

        Raises
        ------
        GridError
            If a report does not fit a grid.
        """
        stay = {
            site: member
            for site, member in self._members.items()
            if site in reports and reports[site] is member.report
        }
        if len(stay) == len(reports) == len(self._members):
            return
        news = [self._member(site, reports[site]) for site in reports if site not in stay]
        everybody = sorted([*stay.values(), *news], key=lambda member: member.site)
        index = _Index(everybody, self._strategy, self._masks)
        # A list that was cut off at its end and lost an entry may have to take in what was cut off.
        lost = _concatenated(
            [_forget_the_gone(member, index) for member in stay.values()], np.bool_
        )
        self._renew(list(stay.values()), news, lost, index)
        self._renew(news, [], np.ones(sum(len(m.place) for m in news), dtype=np.bool_), index)
        self._members = {member.site: member for member in everybody}
        self._row_of_code = np.full(self._n_codes + 1, -1, dtype=np.int64)
        self._row_of_code[index.codes] = np.arange(len(everybody))
        self._needs = np.full((len(everybody), len(self._place)), np.inf)
        for row, member in enumerate(everybody):
            self._needs[row, member.place] = member.need
        self._profiles = {}
        for grid in self._grids:
            published = {
                m.site: m.report.grids[grid.name] for m in everybody if grid.name in m.report.grids
            }
            self._profiles[grid.name] = leave_one_out_profiles(published, self._min_others)

    def matches(self, site: str) -> list[DonorMatch]:
        """Rank the donors of a site's gaps.

        Parameters
        ----------
        site : str

        Returns
        -------
        list of DonorMatch
            By grid and voxel, then rank; one entry per donor and voxel. Empty with too few other sites.

        Raises
        ------
        GridError
            If the site has no report.

        Notes
        -----
        Rank: the same voxel, then similarity, then distance in the frame, then the donor's share. A share
        says how a site's positives are spread, not how many there are; whether a donor has rows to give is
        its own, human decision.
        """
        if site not in self._members:
            raise GridError(f"site {site!r} has no report")
        if len(self._members) <= self._min_others:
            return []
        member, n_members = self._members[site], len(self._members)
        gaps = np.array(
            [i for i in np.argsort(member.place, kind="stable") if self._is_gap(member, int(i))],
            dtype=np.int64,
        )
        i_gap, slot = np.nonzero(member.owner[gaps] >= 0)
        i = gaps[i_gap]
        here, there = member.place[i], member.donor_place[i, slot]
        donor = self._row_of_code[member.owner[i, slot]]
        # Single precision differs by the order of summation; two floats of one distance must not.
        similarity = np.round(member.similarity[i, slot].astype(np.float64), 5)
        need = self._needs[donor, there]
        order = np.lexsort(
            (donor, need, self._distances[here, there], -similarity, here != there, i_gap)
        )
        # The best place of every donor, then the best donors.
        _, first = np.unique((i_gap * n_members + donor)[order], return_index=True)
        best = order[np.sort(first)]
        start = np.searchsorted(i_gap[best], i_gap[best])
        rank = np.arange(len(best)) - start + 1
        names = list(self._members)
        return [
            self._match(
                member,
                int(i[k]),
                donor=names[donor[k]],
                there=int(there[k]),
                need=float(need[k]),
                similarity=float(similarity[k]),
                rank=int(r),
            )
            for k, r in zip(best, rank, strict=True)
            if r <= self._n_donors
        ]

    def _is_gap(self, member: _Member, i: int) -> bool:
        if self._name == "seed":
            return True
        grid, voxel = self._place[member.place[i]]
        profile = self._profiles[grid.name].get(member.site)
        return (
            profile is not None
            and len(grid.features) >= self._min_shared_features
            and bool(profile.known[voxel])
            and -member.need[i] < profile.f[voxel]
        )

    def _match(
        self,
        member: _Member,
        i: int,
        *,
        donor: str,
        there: int,
        need: float,
        similarity: float,
        rank: int,
    ) -> DonorMatch:
        here = int(member.place[i])
        (grid, voxel), (donor_grid, donor_voxel) = self._place[here], self._place[there]
        if self._name == "seed":
            reason = seed_in_words(
                label=grid.label(voxel),
                recipient=member.site,
                score=float(member.need[i]),
                donor=donor,
                donor_label=donor_grid.label(donor_voxel),
                donor_score=need,
                similarity=similarity,
            )
        else:
            similarity = float(self._strategy.cosine[here, there])
            reason = share_in_words(
                grid,
                recipient=member.site,
                voxel=voxel,
                expected_part=float(
                    -member.need[i] / self._profiles[grid.name][member.site].f[voxel]
                )
                if member.report.grids[grid.name].known[voxel]
                else None,
                donor=donor,
                donor_voxel=donor_voxel,
                times_even=-need * grid.n_voxels,
                similarity=similarity,
            )
        return DonorMatch(
            grid=grid.name,
            voxel=voxel,
            donor=donor,
            donor_grid=donor_grid.name,
            donor_voxel=donor_voxel,
            similarity=similarity,
            rank=rank,
            reason=reason,
        )

    def _member(self, site: str, report: SiteReport) -> _Member:
        place, need = self._strategy.points(report)
        mask = self._strategy.mask(report)
        known = (i for i, other in enumerate(self._masks) if np.array_equal(mask, other))
        mask_of = next(known, len(self._masks))
        if mask_of == len(self._masks):
            self._masks.append(mask)
        self._n_codes += 1
        nobody = np.full((len(place), self._n_kept), -1, dtype=np.int64)
        return _Member(
            site=site,
            report=report,
            code=self._n_codes,
            mask_of=mask_of,
            place=place,
            need=need,
            owner=nobody,
            donor_place=nobody,
            similarity=np.full(nobody.shape, -np.inf, dtype=np.float32),
        )

    def _renew(
        self, members: list[_Member], news: list[_Member], anew: BoolArray, index: "_Index"
    ) -> None:
        """Let new sites' points into the lists of whole sites; search those of the points `anew` afresh."""
        if not members:
            return
        rows = index.rows_of(members)
        position = index.positions(
            np.concatenate([m.owner for m in members]),
            np.concatenate([m.donor_place for m in members]),
        )
        similarity = np.concatenate([m.similarity for m in members])
        if news:
            # In the order of the index, which is the order of rising need.
            columns = np.sort(index.rows_of(news))
            best = self._nearest(rows, columns, index)
            found = np.where(best.position >= 0, columns[best.position], -1)
            best = best_of_both(position, similarity, found, best.similarity)
            position, similarity = best.position, best.similarity
        if anew.any():
            best = self._nearest(rows[anew], np.arange(len(index.place)), index)
            position[anew], similarity[anew] = best.position, best.similarity
        index.write(members, position, similarity)

    def _nearest(self, rows: IntArray, columns: IntArray, index: "_Index") -> Nearest:
        return nearest_in_less_need(
            index.points.take(rows),
            index.points.take(columns),
            least=self._strategy.least[index.place[rows]],
            n_best=self._n_kept,
            may_match=self._filter(index, rows, columns),
        )

    def _filter(
        self, index: "_Index", rows: IntArray, columns: IntArray
    ) -> "_PairsThatMayMatch | None":
        allowed, least = self._strategy.may_match, self._strategy.min_shared_features
        if allowed is None and not least:
            return None
        return _PairsThatMayMatch(index, rows, columns, allowed, least)


class _Index:
    """All sites' points in order of rising need, ties by site and place."""

    def __init__(
        self, members: Sequence[_Member], strategy: Strategy, masks: Sequence[BoolArray]
    ) -> None:
        sizes = [len(member.place) for member in members]
        of_member = np.repeat(np.arange(len(members)), sizes)
        self.codes = np.array([member.code for member in members], dtype=np.int64)
        place = _concatenated([member.place for member in members], np.int64)
        need = _concatenated([member.need for member in members], np.float64)
        order = np.lexsort((place, of_member, need))
        self.place = place[order]
        mask_of = np.array([member.mask_of for member in members], dtype=np.int64)[of_member[order]]
        table = np.stack(masks) if masks else np.empty((0, strategy.vectors.shape[1]), np.bool_)
        self.points = Points(
            vectors=np.where(table[mask_of], strategy.vectors[self.place], 0.0).astype(np.float32),
            masks=table,
            mask_of=mask_of,
            need=need[order],
            owner=self.codes[of_member[order]],
        )
        self.features = [frozenset(member.report.features) for member in members]
        self._n_places = len(strategy.vectors)
        # From (owner, place) back to the position in this index.
        keys = self.points.owner * self._n_places + self.place
        self._by_key = np.argsort(keys, kind="stable")
        self._keys = keys[self._by_key]

    def positions(self, owner: IntArray, place: IntArray) -> IntArray:
        """Where points are in this index; -1 for owner -1."""
        found = np.searchsorted(self._keys, owner * self._n_places + place)
        safe = np.minimum(found, max(len(self._keys) - 1, 0))
        return np.where(owner >= 0, self._by_key[safe], -1)

    def rows_of(self, members: Iterable[_Member]) -> IntArray:
        """Positions of whole sites' points, site by site in their own order."""
        return _concatenated(
            [self.positions(np.full(len(m.place), m.code), m.place) for m in members], np.int64
        )

    def write(
        self, members: Iterable[_Member], position: IntArray, similarity: Float32Array
    ) -> None:
        """Write what was found for whole sites' points down as owners and places."""
        start = 0
        for member in members:
            part = slice(start, start + len(member.place))
            is_found = position[part] >= 0
            member.owner = np.where(is_found, self.points.owner[position[part]], -1)
            member.donor_place = np.where(is_found, self.place[position[part]], -1)
            member.similarity = similarity[part]
            start = part.stop


class _PairsThatMayMatch:
    """Decides on pairs of queries and candidates by their places and their owners' features."""

    def __init__(
        self,
        index: _Index,
        rows: IntArray,
        columns: IntArray,
        allowed: BoolArray | None,
        min_shared_features: int,
    ) -> None:
        self._row_place, self._column_place = index.place[rows], index.place[columns]
        self._allowed = allowed
        self._shared: BoolArray | None = None
        if min_shared_features:
            codes = index.codes
            names = sorted(set().union(*index.features)) if index.features else []
            has = np.array([[name in features for name in names] for features in index.features])
            self._shared = (
                has.astype(np.float32) @ has.T.astype(np.float32)
            ) >= min_shared_features
            order = np.argsort(codes)
            sites = order[np.searchsorted(codes[order], index.points.owner)]
            self._row_site, self._column_site = sites[rows], sites[columns]

    def __call__(self, row: IntArray, column: IntArray) -> BoolArray:
        """Whether each pair may match."""
        may = np.ones(len(row), dtype=np.bool_)
        if self._allowed is not None:
            may &= self._allowed[self._row_place[row], self._column_place[column]]
        if self._shared is not None:
            may &= self._shared[self._row_site[row], self._column_site[column]]
        return may


def _forget_the_gone(member: _Member, index: _Index) -> BoolArray:
    """Drop donors that are gone; mark the points whose list was full and lost one, shape (n_points,)."""
    gone = (member.owner >= 0) & ~np.isin(member.owner, index.codes)
    lost: BoolArray = gone.any(axis=1) & (member.owner[:, -1] >= 0)
    member.owner = np.where(gone, -1, member.owner)
    return lost


def _concatenated(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)


def rank_donors(
    grid: NamedGrid,
    recipient: str,
    reports: Mapping[str, GridStatistics],
    *,
    similarity: float,
    min_shared_features: int = 1,
    min_others: int = 2,
) -> list[DonorMatch]:
    """Rank the donors of every gap of one site in one grid, by the strategy ``share``.

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
    similarity, min_shared_features, min_others
        As for `Matcher`.

    Returns
    -------
    list of DonorMatch

    Raises
    ------
    GridError
        If the recipient has no report, or a report does not fit the grid.
    """
    matcher = Matcher(
        [grid],
        similarity=similarity,
        min_shared_features=min_shared_features,
        min_others=min_others,
    )
    matcher.update(
        {
            site: SiteReport(features=grid.features, grids={grid.name: report})
            for site, report in reports.items()
        }
    )
    return matcher.matches(recipient)
