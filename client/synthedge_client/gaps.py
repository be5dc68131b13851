"""This site's gaps: its own true counts against the other sites' profile, with the coordinator's proposals.

The comparison happens here and stays here: nobody learns which gaps a site found before a steward asks.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.grids import NamedGrid, count
from synthedge_core.holes import Hole, VoxelProfile, find_holes, rank_holes
from synthedge_protocols.v1 import coordinator_pb2 as wire

HintT = TypeVar("HintT", wire.HoleProfile, wire.Proposals)


@dataclass(frozen=True)
class Proposed:
    """A donor the coordinator proposes for one voxel."""

    donor: str
    donor_voxel: int
    similarity: float
    rank: int
    reason: str


@dataclass(frozen=True)
class Gap:
    """A voxel that falls short of what the other sites let expect.

    Attributes
    ----------
    grid, voxel
        Where; `voxel` is the flat index.
    label : str
        Where, in words.
    status : str
        ``confirmed`` or ``suspected``.
    expected : float
        Positive patients this site should have there.
    observed : int
        Positive patients it has; stays at the site.
    z : float
        Shortfall in standard errors.
    proposals : list of Proposed
        Best first.
    """

    grid: str
    voxel: int
    label: str
    status: str
    expected: float
    observed: int
    z: float
    proposals: list[Proposed]

    @property
    def id(self) -> str:
        """What a steward types."""
        return f"{self.grid}/{self.voxel}"

    @property
    def deficit(self) -> int:
        """Positive patients that are missing, at least 1."""
        return max(1, round(self.expected - self.observed))

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return (
            {"id": self.id, "deficit": self.deficit}
            | {
                name: getattr(self, name)
                for name in ("grid", "voxel", "label", "status", "expected", "observed", "z")
            }
            | {"proposals": [vars(p) for p in self.proposals]}
        )


def list_gaps(site: Site) -> list[Gap]:
    """The site's holes, worst first; empty until a profile of the other sites has arrived."""
    profile = _hint(site, "profile", wire.HoleProfile)
    if profile is None:
        return []
    table = load_site_table(site.settings, site.dictionary)
    proposals = _hint(site, "proposals", wire.Proposals)
    first = table.first_row_of_patient
    holes: dict[str, list[Hole]] = {}
    for grid_profile in profile.grids:
        grid = site.grid(grid_profile.grid)
        counts = count(grid, table.values[first], table.positive[first])
        holes[grid.name] = find_holes(
            _voxel_profile(grid_profile), counts.positives, counts.negatives
        )
    return [
        Gap(
            grid=name,
            voxel=hole.voxel,
            label=site.grid(name).label(hole.voxel),
            status=hole.status,
            expected=hole.expected,
            observed=hole.observed,
            z=hole.z,
            proposals=_proposed(site.grid(name), hole.voxel, proposals),
        )
        for name, hole in rank_holes(holes)
    ]


@dataclass(frozen=True)
class Region:
    """Where samples are asked for, and of whom."""

    grid: NamedGrid
    voxel: int
    donor: str
    reason: str


def choose_region(site: Site, typed: str, donor: str | None) -> Region:
    """Turn what a steward typed into a donor and the donor's voxel.

    Parameters
    ----------
    site : Site
    typed : str
        A gap's or voxel's id: the grid's name, a slash, the voxel's number.
    donor : str or None
        A site the steward names, proposed or not; None takes the best proposed one not asked yet.

    Raises
    ------
    UsageError
        If there is no such voxel.
    RefusedError
        If nobody is named and nobody is left to propose.
    """
    name, _, number = typed.rpartition("/")
    known = {spec.name for spec in site.dictionary.grids}
    if name not in known or not number.isdecimal() or int(number) >= site.grid(name).n_voxels:
        raise UsageError(
            f"there is no voxel '{typed}'; take an id from 'synthedge site gaps list' or 'gaps preview'"
        )
    grid, voxel = site.grid(name), int(number)
    proposals = _proposed(grid, voxel, _hint(site, "proposals", wire.Proposals))
    asked = _asked(site)
    for proposed in proposals:
        if proposed.donor == donor or (
            donor is None and (proposed.donor, name, proposed.donor_voxel) not in asked
        ):
            return Region(grid, proposed.donor_voxel, proposed.donor, proposed.reason)
    if donor is not None:
        return Region(
            grid, voxel, donor, "named by the steward; the coordinator does not propose it"
        )
    raise RefusedError(
        f"every site that was proposed for {grid.label(voxel)} has been asked, or none was; wait for new reports, "
        "or name a site with --donor"
    )


def _asked(site: Site) -> set[tuple[str, str, int]]:
    from synthedge_client.transfers import list_transfers, region_of

    with site.store.read() as connection:
        return {
            (t.peer, t.request.grid, region_of(site, t.request)[1])
            for t in list_transfers(connection)
            if t.role == "recipient"
        }


def _hint(site: Site, kind: str, message: type[HintT]) -> HintT | None:
    with site.store.read() as connection:
        blob = connection.execute(
            sa.select(store.hints.c.message).where(
                (store.hints.c.dictionary_digest == site.dictionary.digest)
                & (store.hints.c.kind == kind)
            )
        ).scalar_one_or_none()
    return None if blob is None else message.FromString(blob)


def _voxel_profile(profile: wire.GridProfile) -> VoxelProfile:
    return VoxelProfile(
        f=np.array([v.positive_share for v in profile.voxels]),
        v_f=np.array([v.positive_share_var for v in profile.voxels]),
        o=np.array([v.odds_ratio for v in profile.voxels]),
        v_o=np.array([v.odds_ratio_var for v in profile.voxels]),
        known=np.array([v.known for v in profile.voxels], dtype=np.bool_),
        n_sites=profile.n_sites,
    )


def _proposed(grid: NamedGrid, voxel: int, proposals: wire.Proposals | None) -> list[Proposed]:
    if proposals is None:
        return []
    found = [
        Proposed(
            donor=p.donor,
            donor_voxel=grid.flat_of(tuple(p.donor_voxel)),
            similarity=p.similarity,
            rank=p.rank,
            reason=p.reason,
        )
        for p in proposals.proposals
        if p.grid == grid.name and grid.flat_of(tuple(p.voxel)) == voxel
    ]
    return sorted(found, key=lambda p: p.rank)
