"""How many samples to ask for, and of which region: what `gaps list` recommends to the steward.

Rules
-----
* Without being told otherwise, only for a confirmed gap: between hospitals that differ by nature some region comes
  first at every one, and filling such a gap harms as often as it helps (docs/mission.md).
* As many as are missing, at least the least number that a donor may send, at most what the consortium's policy
  leaves of its rows per site.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from synthedge_core.holes import Hole


@dataclass(frozen=True)
class Recommendation:
    """A region to ask for, and how many rows."""

    grid: str
    hole: Hole
    rows: int


def recommended_rows(expected: float, observed: int, *, least: int, most: int) -> int:
    """How many rows a gap calls for.

    Parameters
    ----------
    expected, observed : float, int
        Positive patients, as in `Hole`.
    least : int
        A donor sends no fewer (the policy's ``min_count``).
    most : int
        What is left of the policy's ``rows_per_transfer``.

    Returns
    -------
    int
        Between 0 and `most`.
    """
    missing = math.ceil(expected - observed)
    return max(0, min(max(missing, least), most))


def recommend(
    ranked: Sequence[tuple[str, Hole]],
    asked: Collection[tuple[str, int]],
    *,
    least: int,
    most: int,
    suspected: bool = False,
) -> Recommendation | None:
    """Choose the next region to ask for.

    Parameters
    ----------
    ranked : sequence of (grid name, Hole)
        From `rank_holes`, with received rows counted as own: what a transfer filled is no gap any more.
    asked : collection of (grid name, voxel)
        Regions that were asked for before.
    least, most : int
        As for `recommended_rows`.
    suspected : bool
        Whether a suspected gap will do.

    Returns
    -------
    Recommendation or None
        None where the right answer is to ask for nothing.
    """
    for grid, hole in ranked:
        if (grid, hole.voxel) in asked or not (suspected or hole.status == "confirmed"):
            continue
        rows = recommended_rows(hole.expected, hole.observed, least=least, most=most)
        return Recommendation(grid, hole, rows) if rows else None
    return None
