"""Which rows a donor may give for a region, and which of them it gives.

Rules
-----
* What lies in the region is decided by the values that would leave, since the recipient sees no others.
* Positive samples only: measured, negatives in their place halve the over-prediction but recover less.
* A random pick: asking for the rows nearest to other shortfalls of the recipient raised the share of rows from the
  true group by a tenth and recovered nothing more (docs/mission.md), and would have told the donor of those shortfalls.
"""

import numpy as np
from numpy.typing import NDArray

from synthedge_client.outbound import coarsen
from synthedge_core.dictionary import Dictionary
from synthedge_core.grids import NamedGrid

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def giveable(
    values: FloatArray,
    positive: BoolArray,
    may_leave: BoolArray,
    dictionary: Dictionary,
    grid: NamedGrid,
    voxel: int,
) -> IntArray:
    """Positions of the positive rows of a region that may leave.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        The donor's table in dictionary units, NaN = missing.
    positive : ndarray of bool, shape (n_rows,)
    may_leave : ndarray of bool, shape (n_rows,)
        Consented, and whatever else the donor's rules ask of a row.
    dictionary : Dictionary
    grid, voxel
        The region that was asked for; `voxel` is a flat index.

    Returns
    -------
    ndarray of int, shape (n_giveable,)
    """
    in_region = grid.assign(coarsen(values, dictionary)) == voxel
    return np.flatnonzero(in_region & positive & may_leave)


def choose(rows: IntArray, n_wanted: int, generator: np.random.Generator) -> IntArray:
    """Pick at most `n_wanted` of the rows at random, in random order."""
    return generator.permutation(rows)[:n_wanted]
