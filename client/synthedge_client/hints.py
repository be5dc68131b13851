"""What the coordinator tells of the other sites: checked when it arrives, read back for the site's own holes.

The coordinator is not trusted with numbers any more than a site is: a profile with a NaN, or a proposal to ask
a site for another region than the one that is short, would lead a steward to a request that helps nobody.
"""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from synthedge_core.dictionary import Dictionary
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import VoxelProfile
from synthedge_protocols.errors import LimitExceededError, MalformedError
from synthedge_protocols.limits import Limits
from synthedge_protocols.names import check_name
from synthedge_protocols.v1 import coordinator_pb2 as wire

# Where rounding makes a number just too large.
_TOLERANCE: Final = 1e-9


def check_profile(profile: wire.HoleProfile, dictionary: Dictionary) -> None:
    """Return if a profile could be the mean of reports under the dictionary.

    Parameters
    ----------
    profile : HoleProfile
        As it arrived; its dictionary digest is checked before.
    dictionary : Dictionary
        The one this site accepted.

    Raises
    ------
    MalformedError
        If a grid is unknown or told twice, has other voxels than the dictionary's, was averaged over too few
        sites, or a number is not finite or out of range.
    """
    grids = _grids(dictionary)
    _require_each_once("profile", (grid.grid for grid in profile.grids), grids)
    min_others = dictionary.policy.min_sites - 1
    for told in profile.grids:
        where = f"hole profile, grid '{told.grid}'"
        n_voxels = grids[told.grid].n_voxels
        if len(told.voxels) != n_voxels:
            raise MalformedError(f"{where}: {len(told.voxels)} voxels; expected all {n_voxels}")
        if told.n_sites < min_others:
            raise MalformedError(
                f"{where}: the mean of {told.n_sites} sites; the policy demands at least {min_others}"
            )
        for voxel in told.voxels:
            shares = (voxel.positive_share, voxel.patient_share)
            others = (
                voxel.positive_share_var,
                voxel.patient_share_var,
                voxel.odds_ratio,
                voxel.odds_ratio_var,
            )
            # Written so that NaN, which compares with nothing, is refused too.
            if not (
                all(0 <= share <= 1 + _TOLERANCE for share in shares)
                and all(0 <= number < math.inf for number in others)
            ):
                raise MalformedError(f"{where}: a number is not finite or out of range")


def check_proposals(
    proposals: wire.Proposals, dictionary: Dictionary, own_site: str, limits: Limits
) -> None:
    """Return if proposals name regions of the dictionary that could help each other, and other sites.

    Whether a named site is known is not asked here, because a new site may be proposed before this one has read
    of it in the directory; nobody is asked whose keys were not compared.

    Parameters
    ----------
    proposals : Proposals
        As they arrived; their dictionary digest is checked before.
    dictionary : Dictionary
        The one this site accepted.
    own_site : str
        This site's id.
    limits : Limits

    Raises
    ------
    MalformedError
        If a grid or voxel is unknown, the donor's voxel is neither the same nor beside it, the donor is this site
        or no site id, a similarity is no cosine or below the policy's, a rank is 0, or a donor is proposed twice
        for one voxel.
    LimitExceededError
        If a reason is too long.
    """
    grids = _grids(dictionary)
    seen: set[tuple[str, int, str]] = set()
    for proposal in proposals.proposals:
        grid = grids.get(proposal.grid)
        if grid is None:
            raise MalformedError("a proposal names a grid the dictionary does not have")
        # GridError if there is no such voxel: refused, recorded and shown like a MalformedError.
        voxel = grid.flat_of(tuple(proposal.voxel))
        donor_voxel = grid.flat_of(tuple(proposal.donor_voxel))
        if donor_voxel != voxel and donor_voxel not in grid.neighbours(voxel):
            raise MalformedError(
                f"a proposal for {grid.label(voxel)} names {grid.label(donor_voxel)}, which is not beside it"
            )
        if check_name("site", proposal.donor) == own_site:
            raise MalformedError("a proposal names this site as its own donor")
        least = dictionary.policy.similarity - _TOLERANCE
        if not least <= proposal.similarity <= 1 + _TOLERANCE or proposal.rank < 1:
            raise MalformedError(
                f"a proposal for {grid.label(voxel)} has an impossible similarity or rank"
            )
        if len(proposal.reason.encode()) > limits.text_bytes:
            raise LimitExceededError(
                f"a proposal's reason has {len(proposal.reason.encode())} bytes; "
                f"at most {limits.text_bytes} are kept"
            )
        key = (proposal.grid, voxel, proposal.donor)
        if key in seen:
            raise MalformedError(f"a donor is proposed twice for {grid.label(voxel)}")
        seen.add(key)


def profile_of_grid(told: wire.GridProfile) -> VoxelProfile:
    """A checked profile as numbers to compute with."""

    def column(name: str) -> np.ndarray:
        return np.array([getattr(voxel, name) for voxel in told.voxels])

    return VoxelProfile(
        f=column("positive_share"),
        v_f=column("positive_share_var"),
        o=column("odds_ratio"),
        v_o=column("odds_ratio_var"),
        known=column("known").astype(np.bool_),
        share=column("patient_share"),
        v_share=column("patient_share_var"),
        patients_known=column("patients_known").astype(np.bool_),
        n_sites=told.n_sites,
    )


def _grids(dictionary: Dictionary) -> dict[str, NamedGrid]:
    return {spec.name: NamedGrid(dictionary, spec) for spec in dictionary.grids}


def _require_each_once(what: str, names: Iterable[str], known: dict[str, NamedGrid]) -> None:
    seen: set[str] = set()
    for name in names:
        if name not in known:
            raise MalformedError(f"a {what} names a grid the dictionary does not have")
        if name in seen:
            raise MalformedError(f"a {what} tells grid '{name}' twice")
        seen.add(name)
