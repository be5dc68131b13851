"""A hole in words, from what the other sites published and the site's own counts.

The sentence holds the site's own true counts: it is for the site's own people and never leaves.
"""

from synthedge_core.errors import GridError
from synthedge_core.grids import IntArray
from synthedge_core.holes import Hole, VoxelProfile


def explain_hole(
    hole: Hole, profile: VoxelProfile, positives: IntArray, negatives: IntArray
) -> str:
    """Say what was expected in a hole, why, and how sure it is.

    Parameters
    ----------
    hole : Hole
        From `find_holes` or `population_holes`.
    profile : VoxelProfile
        The one it was found with.
    positives, negatives : ndarray of shape (n_voxels,)
        The site's own true counts, the same ones.

    Returns
    -------
    str
        One sentence without a full stop, for the site's own people.

    Raises
    ------
    GridError
        If the profile has no such voxel.
    """
    if not 0 <= hole.voxel < len(profile.f):
        raise GridError(f"a profile of {len(profile.f)} voxels has no voxel {hole.voxel}")
    return f"{_expectation(hole, profile, positives, negatives)}; {_certainty(hole)}"


def _expectation(
    hole: Hole, profile: VoxelProfile, positives: IntArray, negatives: IntArray
) -> str:
    i = hole.voxel
    found = "none" if hole.observed == 0 else str(hole.observed)
    if hole.kind == "population":
        total = int((positives + negatives).sum())
        return (
            f"the other sites have {_percent(profile.share[i])} of their patients here; of this "
            f"site's {total} that would be {hole.expected:.1f}, and it has {found}"
        )
    total = int(positives.sum())
    if total * profile.f[i] <= hole.expected * (1 + 1e-9):
        return (
            f"the other sites have {_percent(profile.f[i])} of their positive cases here; of this "
            f"site's {total} that would be {hole.expected:.1f}, and it has {found}"
        )
    return (
        f"at the other sites the odds of a positive case are {profile.o[i]:.2g} times those of all "
        f"their patients; beside this site's {int(negatives[i])} negative cases here that would be "
        f"{hole.expected:.1f} positive ones, and it has {found}"
    )


def _certainty(hole: Hole) -> str:
    if hole.status == "confirmed":
        return f"confirmed, the shortfall is {hole.z:.1f} standard errors"
    return f"only suspected, the shortfall is {hole.z:.1f} standard errors and may be chance"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
