"""What a gap report must satisfy before the coordinator believes its numbers.

Every number of a report follows from voxel counts, so the numbers must agree with each other; grids, voxels
and centroids follow from the dictionary, so they must equal the dictionary's. A report that does not was
not computed by the agreed rule, and matching on it could send patients' rows to the wrong place.
"""

import math
from typing import Final

import numpy as np

from synthedge_core.dictionary import Dictionary, Policy
from synthedge_core.frame import FloatArray
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import GridStatistics
from synthedge_protocols.errors import MalformedError, PolicyError
from synthedge_protocols.v1 import statements_pb2 as pb

_RELEASE_ID_BYTES: Final = 16
# Both ends compute in float64; anything above rounding is another formula.
_TOLERANCE: Final = 1e-6


def check_report(
    report: pb.GapReport, dictionary: Dictionary, grids: dict[str, NamedGrid]
) -> dict[str, GridStatistics]:
    """Check a gap report and return what it says.

    Parameters
    ----------
    report : GapReport
        From a verified statement.
    dictionary : Dictionary
        The one it was made under.
    grids : dict of str to NamedGrid
        All grids of the dictionary, in its order.

    Returns
    -------
    dict of str to GridStatistics
        Per reported grid: exactly those whose features the site says it has.

    Raises
    ------
    MalformedError
        If a feature, grid, voxel or centroid is not the dictionary's, or a number is not finite, out
        of range, or contradicts another.
    PolicyError
        If it is protected less than the consortium's policy demands.
    """
    if len(report.release_id) != _RELEASE_ID_BYTES:
        raise MalformedError(
            f"gap report: a release id has {_RELEASE_ID_BYTES} bytes, not {len(report.release_id)}"
        )
    _check_disclosure(report, dictionary.policy)
    features = set(report.features)
    if list(report.features) != [name for name in dictionary.feature_names if name in features]:
        raise MalformedError(
            "gap report: its features are not the dictionary's, each at most once and in its order"
        )
    expected = [name for name, grid in grids.items() if set(grid.features) <= features]
    found = [grid.grid for grid in report.grids]
    if not expected or found != expected:
        raise MalformedError(
            f"gap report: {len(found)} grids; expected exactly {expected or 'one or more'}, "
            "those whose features the site has, in the dictionary's order"
        )
    return {grid.grid: _check_grid(grid, grids[grid.grid]) for grid in report.grids}


def _check_disclosure(report: pb.GapReport, policy: Policy) -> None:
    if report.disclosure == "dp":
        # A site may protect more: dp where the consortium asks for a threshold, or a smaller epsilon.
        if not 0 < report.epsilon <= policy.epsilon or report.min_count != 0:
            raise PolicyError(
                f"gap report: epsilon {report.epsilon:g} with min_count {report.min_count}; "
                f"the consortium allows epsilon up to {policy.epsilon:g} and min_count 0 in dp mode"
            )
    elif report.disclosure == "threshold" and policy.disclosure == "threshold":
        if report.epsilon != 0 or report.min_count < policy.min_count:
            raise PolicyError(
                f"gap report: min_count {report.min_count}; the consortium demands at least "
                f"{policy.min_count}, and epsilon 0 in threshold mode"
            )
    else:
        raise PolicyError(
            f"gap report: disclosure mode {report.disclosure[:20]!r}; the consortium demands "
            f"{policy.disclosure!r}"
        )


def _check_grid(report: pb.GridReport, grid: NamedGrid) -> GridStatistics:
    where = f"gap report, grid {grid.name!r}"
    if len(report.voxels) != grid.n_voxels:
        raise MalformedError(
            f"{where}: {len(report.voxels)} voxels; expected all {grid.n_voxels}, in flat order"
        )
    for flat, voxel in enumerate(report.voxels):
        if tuple(voxel.index) != grid.index_of(flat):
            raise MalformedError(
                f"{where}: voxel {flat} has another index than the dictionary's grid"
            )
        if not np.array_equal(np.array(voxel.centroid), grid.centroid(flat)):
            raise MalformedError(
                f"{where}: the centroid of voxel {flat} is not the voxel's geometric centre"
            )
    suppressed = np.array([voxel.suppressed for voxel in report.voxels])
    # Columns: density, positive rate, gap score, sparsity, entropy.
    numbers = np.array(
        [
            (v.density, v.positive_rate, v.gap_score, v.sparsity, v.label_entropy)
            for v in report.voxels
        ]
    )
    _check_numbers(where, numbers, suppressed, report.positive_rate)
    return GridStatistics(
        density=numbers[:, 0],
        positive_rate=numbers[:, 1],
        grid_positive_rate=report.positive_rate,
        known=~suppressed,
    )


def _check_numbers(
    where: str, numbers: FloatArray, suppressed: np.ndarray, grid_positive_rate: float
) -> None:
    """Refuse numbers that no voxel counts could have given."""
    if not np.isfinite(numbers).all() or not math.isfinite(grid_positive_rate):
        raise MalformedError(f"{where}: a number is not finite")
    n_voxels = len(numbers)
    density, rate, score, sparsity, entropy = numbers.T
    if not (
        (numbers >= 0).all()
        and (density <= n_voxels * (1 + _TOLERANCE)).all()
        and (numbers[:, 1:] <= 1 + _TOLERANCE).all()
        and 0 <= grid_positive_rate <= 1
    ):
        raise MalformedError(f"{where}: a number is out of range")
    if numbers[suppressed].any():
        raise MalformedError(f"{where}: a suppressed voxel carries numbers")
    if not numbers.any() and grid_positive_rate == 0:
        return  # no count at all: such a grid says nothing
    known = ~suppressed
    inside = (rate > 0) & (rate < 1)
    p = np.where(inside, rate, 0.5)
    bits = np.where(inside, -(p * np.log2(p) + (1 - p) * np.log2(1 - p)), 0.0)
    wrong = (
        (np.abs(sparsity - np.maximum(0.0, 1.0 - density)) > _TOLERANCE)
        | (np.abs(entropy - bits) > _TOLERANCE)
        | (np.abs(score - (0.5 * sparsity + 0.3 * entropy + 0.2 * rate)) > _TOLERANCE)
    )
    if (wrong & known).any():
        raise MalformedError(f"{where}: gap scores, densities and rates contradict each other")
    total, positives = float(density.sum()), float((density * rate).sum())
    slack = _TOLERANCE * n_voxels
    # Suppressed voxels may hold the rest of the patients, unless there are none.
    least = 0.0 if suppressed.any() else 1.0
    if not least * n_voxels - slack <= total <= n_voxels + slack or not (
        least * n_voxels * grid_positive_rate - slack
        <= positives
        <= n_voxels * grid_positive_rate + slack
    ):
        raise MalformedError(
            f"{where}: densities and rates do not add up to the grid's patients and positive rate"
        )
