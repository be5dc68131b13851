"""The frame: the one space in which all sites of a consortium describe voxels.

Centre, scale and levels come from the dictionary alone, never from a site's own data, so that two
sites' coordinates of the same patient are equal.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from synthedge_core.dictionary import Dictionary
from synthedge_core.errors import FrameMismatchError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Frame:
    """Coordinates over the features of one dictionary.

    Continuous, integer and ordinal features have one column, ``(value - center) / scale`` (ordinal:
    of the level index). Categorical and binary features have one column per level, 1 or 0.

    Parameters
    ----------
    dictionary : Dictionary

    Attributes
    ----------
    frame_id : str
        The dictionary's digest: arrays of frames with different ids are never comparable.
    columns : tuple of str
        Column names, ``"bp"`` or ``"sex=1"``, in the dictionary's feature order.
    reference : ndarray of shape (n_columns,)
        A point without any property: 0 where a feature has one column, ``1 / n_levels`` in each
        column of a categorical or binary one.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self._dictionary = dictionary
        self.frame_id = dictionary.digest
        names: list[str] = []
        reference: list[float] = []
        self._slices: dict[str, slice] = {}
        for feature in dictionary.features:
            start = len(names)
            if feature.is_ordered:
                names.append(feature.name)
                reference.append(0.0)
            else:
                names.extend(f"{feature.name}={level}" for level in feature.levels)
                reference.extend([1.0 / feature.n_levels] * feature.n_levels)
            self._slices[feature.name] = slice(start, len(names))
        self.columns = tuple(names)
        self.reference: FloatArray = np.array(reference, dtype=np.float64)
        self.reference.flags.writeable = False

    @property
    def n_columns(self) -> int:
        """Number of coordinates."""
        return len(self.columns)

    def columns_of(self, feature: str) -> slice:
        """Columns that belong to a feature.

        Raises
        ------
        DictionaryError
            If the dictionary has no such feature.
        """
        self._dictionary.index(feature)
        return self._slices[feature]

    def coordinates(self, feature: str, values: FloatArray) -> FloatArray:
        """Take one feature's values to its columns of the frame.

        Parameters
        ----------
        feature : str
        values : ndarray of shape (n,)
            In dictionary units; level indices for features with levels; NaN is missing.

        Returns
        -------
        ndarray of shape (n, n columns of the feature)
            NaN in every column where the value is missing.

        Raises
        ------
        DictionaryError
            If the dictionary has no such feature.
        FrameMismatchError
            If a value of a feature with levels is no level index.
        """
        known = self._dictionary.feature(feature)
        if known.has_levels:
            check_level_indices(feature, values, known.n_levels)
        if known.is_ordered:
            # parse_dictionary gives every ordered feature a centre and a scale above 0.
            center, scale = known.center or 0.0, known.scale or 1.0
            return ((values - center) / scale)[:, np.newaxis]
        columns: FloatArray = (values[:, np.newaxis] == np.arange(known.n_levels)).astype(
            np.float64
        )
        columns[np.isnan(values)] = np.nan
        return columns

    def transform(self, values: FloatArray) -> FloatArray:
        """Take a canonical table into the frame.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_features)
            In the dictionary's feature order and units; level indices; NaN is missing.

        Returns
        -------
        ndarray of shape (n_rows, n_columns)
            Dimensionless; NaN where the value is missing.

        Raises
        ------
        FrameMismatchError
            If the table has another number of features, or holds something that is no level index.
        """
        n_features = len(self._dictionary.features)
        if values.ndim != 2 or values.shape[1] != n_features:
            raise FrameMismatchError(
                f"a table of shape {values.shape} does not fit frame {self.frame_id[:12]}; "
                f"expected {n_features} feature columns in the dictionary's order"
            )
        columns = [
            self.coordinates(name, values[:, i])
            for i, name in enumerate(self._dictionary.feature_names)
        ]
        return np.concatenate(columns, axis=1) if columns else np.empty((len(values), 0))

    def mask(self, features: Iterable[str]) -> BoolArray:
        """Mark the columns of the features a site has.

        Parameters
        ----------
        features : iterable of str

        Returns
        -------
        ndarray of shape (n_columns,)

        Raises
        ------
        DictionaryError
            If the dictionary has no such feature.
        """
        mask = np.zeros(self.n_columns, dtype=np.bool_)
        for feature in features:
            mask[self.columns_of(feature)] = True
        return mask


def check_level_indices(feature: str, values: FloatArray, n_levels: int) -> None:
    """Refuse values of a feature with levels that are no level index.

    Raises
    ------
    FrameMismatchError
        Naming the feature and how many values do not fit.
    """
    # Comparisons with NaN are false, so a missing value never counts as wrong.
    wrong = (values < 0) | (values > n_levels - 1) | (np.floor(values) < values)
    n_wrong = int(np.count_nonzero(wrong))
    if n_wrong:
        raise FrameMismatchError(
            f"feature {feature!r}: {n_wrong} values are no level index; expected whole numbers "
            f"from 0 to {n_levels - 1}, so map the column's codes to levels first"
        )
