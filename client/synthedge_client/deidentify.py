"""Quasi-identifiers among rows that leave: coarsened until nobody stands alone, and how many rows are unique anyway.

Rules
-----
* Every combination of `quasi` features is shared by at least k of the rows, or it does not leave.
* Coarser first: values become the centres of the dictionary's intervals, the feature with most values first.
  What is still rare is left empty. Features of the requested region keep their interval: it was asked for by name.
* The rows stay personal data all the same: the steward is shown how many are unique.

k-anonymity is Sweeney's (2002), local recoding and suppression; it says nothing about the other features.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthedge_core.dictionary import Dictionary
from synthedge_core.grids import interval_center

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Protected:
    """Rows whose quasi-identifiers are coarse enough.

    Attributes
    ----------
    values : ndarray of shape (n_rows, n_features)
    coarsened : tuple of str
        Features that hold centres of intervals now.
    emptied : dict of str to int
        Feature to how many of its cells were left empty.
    """

    values: FloatArray
    coarsened: tuple[str, ...]
    emptied: dict[str, int]


def protect_quasi(
    values: FloatArray,
    dictionary: Dictionary,
    features: Sequence[str],
    region: Collection[str],
    k: int,
) -> Protected:
    """Coarsen the quasi-identifiers of the rows of one region.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        Top-coded and rounded, dictionary units, NaN = missing; all in one voxel.
    dictionary : Dictionary
    features : sequence of str
        The columns of `values`.
    region : collection of str
        Features of the voxel's grid.
    k : int
        How many rows must share a combination.

    Returns
    -------
    Protected
    """
    values = values.copy()
    quasi = [i for i, name in enumerate(features) if dictionary.feature(name).privacy == "quasi"]
    finest_first = sorted(quasi, key=lambda i: (features[i] not in region, -_n_values(values, i)))
    coarsened = []
    for i in finest_first:
        if _smallest(values, quasi) >= k:
            break
        feature = dictionary.feature(features[i])
        if not feature.cut_points:
            continue
        column = values[:, i]
        known = ~np.isnan(column)
        intervals = np.searchsorted(np.array(feature.cut_points), column[known], side="right")
        centers = np.array([interval_center(feature, int(j)) for j in intervals])
        column[known] = (
            centers if feature.top_code is None else np.minimum(centers, feature.top_code)
        )
        coarsened.append(features[i])
    emptied = _empty_rare(values, [i for i in quasi if features[i] not in region], k)
    return Protected(
        values,
        tuple(name for name in features if name in coarsened),
        {features[i]: n for i, n in emptied.items() if n},
    )


def _empty_rare(values: FloatArray, quasi: list[int], k: int) -> dict[int, int]:
    """Empty the cells of combinations that fewer than k rows share; return how many a column."""
    if not quasi or not len(values):
        return {}
    groups = _groups(values, quasi)
    sizes = np.bincount(groups)
    rare = sizes < k
    # The emptied rows share a combination of their own: it too needs k rows, or all of them.
    for group in np.argsort(sizes, kind="stable"):
        if not rare.any() or sizes[rare].sum() >= k:
            break
        rare[group] = True
    rows = rare[groups]
    emptied = {i: int((~np.isnan(values[rows, i])).sum()) for i in quasi}
    for i in quasi:
        values[rows, i] = np.nan
    return emptied


def unique_rows(values: FloatArray, columns: Sequence[int]) -> int:
    """How many rows share their combination of some columns with no other row; NaN equals NaN."""
    if not len(values) or not len(columns):
        return 0
    return int((np.bincount(_groups(values, columns)) == 1).sum())


def uniqueness_in_words(
    values: FloatArray, dictionary: Dictionary, features: Sequence[str]
) -> list[str]:
    """Say how many of the rows are unique: on what others may know of a patient, and on everything.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        As they would leave.
    """
    telling = [
        i for i, name in enumerate(features) if dictionary.feature(name).privacy in ("age", "quasi")
    ]
    lines: list[str] = []
    for columns in (telling, list(range(len(features)))):
        if columns and not (lines and columns == telling):
            n_unique = unique_rows(values, columns)
            named = ", ".join(features[i] for i in columns)
            lines.append(f"{n_unique} of {len(values)} rows are unique on {named}")
    return lines


def _n_values(values: FloatArray, column: int) -> int:
    return len(np.unique(values[:, column]))


def _smallest(values: FloatArray, columns: list[int]) -> int:
    if not columns or not len(values):
        return len(values)
    return int(np.bincount(_groups(values, columns)).min())


def _groups(values: FloatArray, columns: Sequence[int]) -> IntArray:
    """Number of each row's combination."""
    # One missing value is as good as another; -inf is nobody's measurement.
    keys = np.where(np.isnan(values[:, columns]), -np.inf, values[:, columns])
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
