"""Named grids: one or two features cut at the dictionary's cut points or levels."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synthedge_core.dictionary import Dictionary, Feature, GridSpec
from synthedge_core.errors import GridError
from synthedge_core.frame import BoolArray, FloatArray, Frame, check_level_indices

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VoxelCounts:
    """True counts of a grid; they never leave a site.

    Attributes
    ----------
    positives, negatives : ndarray of shape (n_voxels,)
        Samples per voxel.
    n_missing : int
        Samples in no voxel, because a feature of the grid is missing.
    """

    positives: IntArray
    negatives: IntArray
    n_missing: int


class NamedGrid:
    """A grid of the dictionary, laid over the frame.

    Parameters
    ----------
    dictionary : Dictionary
    spec : GridSpec
        One of ``dictionary.grids``.

    Attributes
    ----------
    name : str
    features : tuple of str
        One per axis.
    shape : tuple of int
        Voxels per axis.
    n_voxels : int
        Flat indices run from 0, the last axis fastest.
    frame : Frame
    """

    def __init__(self, dictionary: Dictionary, spec: GridSpec) -> None:
        self.name = spec.name
        self.features = spec.features
        self.frame = Frame(dictionary)
        self._axes = tuple(dictionary.feature(name) for name in spec.features)
        self._columns = tuple(dictionary.index(name) for name in spec.features)
        self.shape = tuple(axis.n_voxels for axis in self._axes)
        self.n_voxels = math.prod(self.shape)

    def assign(self, values: FloatArray) -> IntArray:
        """Find every sample's voxel.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_features)
            A canonical table: all of the dictionary's features, in its order and units.

        Returns
        -------
        ndarray of shape (n_rows,)
            Flat index, or -1 where a feature of the grid is missing.

        Raises
        ------
        FrameMismatchError
            If a value of a feature with levels is no level index.
        GridError
            If the table has too few columns.
        """
        if values.ndim != 2 or values.shape[1] <= max(self._columns):
            raise GridError(
                f"grid {self.name!r}: a table of shape {values.shape} lacks its features; "
                f"expected all features in the dictionary's order"
            )
        flat = np.zeros(len(values), dtype=np.int64)
        is_missing = np.zeros(len(values), dtype=np.bool_)
        for axis, i_column in zip(self._axes, self._columns, strict=True):
            column = values[:, i_column]
            missing = ~np.isfinite(column)
            if axis.has_levels:
                check_level_indices(axis.name, column, axis.n_levels)
                index = np.where(missing, 0, column).astype(np.int64)
            else:
                # side="right": a value on an edge belongs to the voxel above it, [80, 90).
                index = np.searchsorted(np.array(axis.cut_points), column, side="right")
            flat = flat * axis.n_voxels + index
            is_missing |= missing
        flat[is_missing] = -1
        return flat

    def index_of(self, flat: int) -> tuple[int, ...]:
        """Index per axis of a voxel.

        Raises
        ------
        GridError
            If the grid has no such voxel.
        """
        self._check(flat)
        return tuple(int(i) for i in np.unravel_index(flat, self.shape))

    def flat_of(self, index: tuple[int, ...]) -> int:
        """Flat index of a voxel.

        Raises
        ------
        GridError
            If the index does not fit the grid's shape.
        """
        if len(index) != len(self.shape) or not all(
            0 <= i < n for i, n in zip(index, self.shape, strict=True)
        ):
            raise GridError(f"grid {self.name!r} of shape {self.shape} has no voxel {index}")
        return int(np.ravel_multi_index(index, self.shape))

    def label(self, flat: int) -> str:
        """Name a voxel in words, e.g. ``"female, 60-69"`` or ``"bp 90 to <100 mm[Hg]"``.

        Raises
        ------
        GridError
            If the grid has no such voxel.
        """
        index = self.index_of(flat)
        return ", ".join(_in_words(axis, i) for axis, i in zip(self._axes, index, strict=True))

    def centroid(self, flat: int) -> FloatArray:
        """Locate a voxel's geometric centre in the frame.

        An open end voxel has no centre of its own. It is taken to reach one width of the voxel next
        to it beyond its edge (two reference scales if the axis has a single edge), but not beyond
        the plausible range, where no value may lie. Any fixed rule would do, since all sites use
        the same: this one keeps centres evenly spaced on an evenly cut axis, while the plausible
        bound alone (bp: 30 and 200) would put the centre where hardly a patient is.

        Returns
        -------
        ndarray of shape (n columns of the grid's features,)
            Frame coordinates, feature by feature in the grid's order.

        Raises
        ------
        GridError
            If the grid has no such voxel.
        """
        index = self.index_of(flat)
        return np.concatenate(
            [
                self.frame.coordinates(axis.name, np.array([interval_center(axis, i)]))[0]
                for axis, i in zip(self._axes, index, strict=True)
            ]
        )

    def full_centroid(self, flat: int) -> FloatArray:
        """Complete a voxel's centroid to a point whose cosine says something.

        The features the grid does not use stand at the frame's reference, and an intercept
        coordinate 1 is added: without it a one-feature centroid has cosine 1 or -1 with any other,
        and one at the reference centre has none.

        Returns
        -------
        ndarray of shape (n_columns + 1,)

        Raises
        ------
        GridError
            If the grid has no such voxel.
        """
        full = np.append(self.frame.reference, 1.0)
        centroid = self.centroid(flat)
        start = 0
        for name in self.features:
            columns = self.frame.columns_of(name)
            width = columns.stop - columns.start
            full[columns] = centroid[start : start + width]
            start += width
        return full

    def neighbours(self, flat: int) -> tuple[int, ...]:
        """List the face-adjacent voxels along ordered axes, in flat order.

        Two levels of a categorical feature are different kinds of patient, not neighbours.

        Raises
        ------
        GridError
            If the grid has no such voxel.
        """
        index = self.index_of(flat)
        found = []
        for i_axis, axis in enumerate(self._axes):
            if not axis.is_ordered:
                continue
            for step in (-1, 1):
                moved = index[i_axis] + step
                if 0 <= moved < axis.n_voxels:
                    found.append(self.flat_of((*index[:i_axis], moved, *index[i_axis + 1 :])))
        return tuple(sorted(found))

    def _check(self, flat: int) -> None:
        if not 0 <= flat < self.n_voxels:
            raise GridError(f"grid {self.name!r} has voxels 0 to {self.n_voxels - 1}, not {flat}")


def count(grid: NamedGrid, values: FloatArray, positive: BoolArray) -> VoxelCounts:
    """Count positive and negative samples per voxel.

    Parameters
    ----------
    grid : NamedGrid
    values : ndarray of shape (n_rows, n_features)
        A canonical table; one row per patient if the counts are to be protected per patient.
    positive : ndarray of bool of shape (n_rows,)

    Returns
    -------
    VoxelCounts

    Raises
    ------
    GridError
        If table and labels differ in length, or the table does not fit the grid.
    FrameMismatchError
        If a value of a feature with levels is no level index.
    """
    if positive.shape != (len(values),):
        raise GridError(
            f"grid {grid.name!r}: {len(values)} samples but labels of shape {positive.shape}"
        )
    flat = grid.assign(values)
    inside = flat >= 0
    return VoxelCounts(
        positives=np.bincount(flat[inside & positive], minlength=grid.n_voxels),
        negatives=np.bincount(flat[inside & ~positive], minlength=grid.n_voxels),
        n_missing=int(np.count_nonzero(~inside)),
    )


def interval_center(axis: Feature, i_voxel: int) -> float:
    """Locate the centre of a voxel along one axis; see `NamedGrid.centroid` for the open ends.

    Returns
    -------
    float
        In the feature's unit, or the level's index.
    """
    if axis.has_levels:
        return float(i_voxel)
    edges = axis.cut_points
    # parse_dictionary gives every feature with cut points a plausible range around them.
    lowest, highest = axis.plausible or (-math.inf, math.inf)
    if 0 < i_voxel < len(edges):
        return (edges[i_voxel - 1] + edges[i_voxel]) / 2
    if i_voxel == 0:
        width = edges[1] - edges[0] if len(edges) > 1 else 2 * (axis.scale or 1.0)
        return (max(edges[0] - width, lowest) + edges[0]) / 2
    width = edges[-1] - edges[-2] if len(edges) > 1 else 2 * (axis.scale or 1.0)
    return (edges[-1] + min(edges[-1] + width, highest)) / 2


def _in_words(axis: Feature, i_voxel: int) -> str:
    """Describe a voxel along one axis; numbers carry their feature's name, ages alone speak."""
    if axis.has_levels:
        return axis.level_in_words(i_voxel)
    words = _range_in_words(axis, i_voxel)
    if axis.privacy == "age" and axis.unit == "a":
        return words
    unit = "" if axis.unit == "1" else f" {axis.unit}"
    return f"{axis.name} {words}{unit}"


def _range_in_words(axis: Feature, i_voxel: int) -> str:
    edges = axis.cut_points
    if i_voxel == 0:
        return f"below {_number(edges[0])}"
    if i_voxel == len(edges):
        return f"at least {_number(edges[-1])}"
    low, high = edges[i_voxel - 1], edges[i_voxel]
    if axis.kind == "continuous":
        return f"{_number(low)} to <{_number(high)}"
    if high - low == 1:
        return _number(low)
    # A hyphen beside a minus sign cannot be read.
    return f"{_number(low)}{'-' if low >= 0 else ' to '}{_number(high - 1)}"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)
