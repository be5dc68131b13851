"""This site's gaps: its own true counts against the other sites' profile, with the coordinator's proposals.

The comparison happens here and stays here: nobody learns which gaps a site found before a steward asks.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.dose import rows_to_ask
from synthedge_client.hints import profile_of_grid
from synthedge_client.received import load_samples
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.grids import NamedGrid, count
from synthedge_core.hole_words import explain_hole
from synthedge_core.holes import Hole, find_holes, population_holes, rank_holes
from synthedge_protocols.texts import printable
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
    kind : str
        ``positives``: too few positive patients; ``population``: no patients of a kind at all.
    grid, voxel
        Where; `voxel` is the flat index.
    label : str
        Where, in words.
    status : str
        ``confirmed`` or ``suspected``.
    expected : float
        Positive patients this site should have there; in a population hole, patients.
    observed : int
        What it has; stays at the site.
    z : float
        Shortfall in standard errors.
    rows : int
        How many positive samples to ask for; 0 where the shortfall is not evident enough to ask (`dose`).
    why : str
        The comparison in words, with this site's own counts; stays at the site.
    proposals : list of Proposed
        Best first.
    """

    kind: str
    grid: str
    voxel: int
    label: str
    status: str
    expected: float
    observed: int
    z: float
    rows: int
    why: str
    proposals: list[Proposed]

    @property
    def id(self) -> str:
        """What a steward types."""
        return f"{self.grid}/{self.voxel}"

    @property
    def deficit(self) -> int:
        """Patients that are missing, at least 1; positive ones but in a population hole."""
        return max(1, round(self.expected - self.observed))

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return (
            {"id": self.id, "deficit": self.deficit}
            | {name: value for name, value in vars(self).items() if name != "proposals"}
            | {"proposals": [vars(p) for p in self.proposals]}
        )


def awaited_in_words(site: Site) -> str:
    """What has to happen before gaps can be found; empty once the others' profile has arrived."""
    if _hint(site, "profile", wire.HoleProfile) is not None:
        return ""
    return (
        "Nothing is known of the other sites yet: sites are compared once "
        f"{site.dictionary.policy.min_sites} sites have published ('synthedge site gaps publish') and while the agent "
        "runs. Any two may agree on a region before: 'synthedge site requests new VOXEL --donor SITE'."
    )


def list_gaps(site: Site) -> list[Gap]:
    """The site's holes, worst first, population holes last; empty until a profile of the others has arrived.

    Received samples count as own: what a transfer filled is no gap any more.
    """
    profile = _hint(site, "profile", wire.HoleProfile)
    if profile is None:
        return []
    table = load_site_table(site.settings, site.dictionary)
    proposals = _hint(site, "proposals", wire.Proposals)
    first, received = table.first_row_of_patient, load_samples(site)
    values, positive = table.values[first], table.positive[first]
    if len(received):
        values = np.vstack([values, table.from_own_rows(received)])
        positive = np.concatenate([positive, np.ones(len(received), dtype=np.bool_)])
    found: tuple[dict[str, list[Hole]], dict[str, list[Hole]]] = ({}, {})
    words: dict[tuple[str, Hole], str] = {}
    for told in profile.grids:
        grid, others = site.grid(told.grid), profile_of_grid(told)
        own = count(grid, values, positive)
        for find, by_grid in zip((find_holes, population_holes), found, strict=True):
            by_grid[grid.name] = find(others, own.positives, own.negatives)
            for hole in by_grid[grid.name]:
                words[grid.name, hole] = explain_hole(hole, others, own.positives, own.negatives)
    return [
        Gap(
            kind=hole.kind,
            grid=name,
            voxel=hole.voxel,
            label=site.grid(name).label(hole.voxel),
            status=hole.status,
            expected=hole.expected,
            observed=hole.observed,
            z=hole.z,
            rows=rows_to_ask(
                hole,
                int(positive.sum()),
                least=site.dictionary.policy.min_count,
                most=site.dictionary.policy.rows_per_transfer,
            ),
            why=words[name, hole],
            proposals=_proposed(site, site.grid(name), hole.voxel, proposals),
        )
        for by_grid in found
        for name, hole in rank_holes(by_grid)
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
    proposals = _proposed(site, grid, voxel, _hint(site, "proposals", wire.Proposals))
    asked = _asked(site)
    for proposed in proposals:
        if proposed.donor == donor or (
            donor is None and (proposed.donor, name, proposed.donor_voxel) not in asked
        ):
            return Region(grid, proposed.donor_voxel, proposed.donor, printable(proposed.reason))
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
            if t.role == "recipient" and t.dictionary_digest.hex() == site.dictionary.digest
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


def _proposed(
    site: Site, grid: NamedGrid, voxel: int, proposals: wire.Proposals | None
) -> list[Proposed]:
    """What the coordinator proposes for a voxel, of sites whose keys this one has seen; best first."""
    if proposals is None:
        return []
    known = {peer["site"] for peer in site.list_peers()}
    found = [
        Proposed(
            donor=p.donor,
            donor_voxel=grid.flat_of(tuple(p.donor_voxel)),
            similarity=p.similarity,
            rank=p.rank,
            reason=printable(p.reason),
        )
        for p in proposals.proposals
        if p.grid == grid.name
        and grid.flat_of(tuple(p.voxel)) == voxel
        # Nobody can be asked whose keys are not in the directory.
        and p.donor in known
    ]
    return sorted(found, key=lambda p: p.rank)
