"""Labelled rows in dictionary units, for evaluation on one machine; no site's process uses them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthedge_core.dictionary import Dictionary

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """A canonical table.

    Attributes
    ----------
    values : ndarray of shape (n_rows, n_features)
        The dictionary's feature order and units; level indices; NaN = missing.
    positive : ndarray of bool, shape (n_rows,)
    """

    values: FloatArray
    positive: BoolArray

    def __len__(self) -> int:
        return len(self.positive)

    def rows(self, which: IntArray | BoolArray) -> "Samples":
        """Take the rows at some positions, or where a mask is true."""
        return Samples(self.values[which], self.positive[which])


def join(parts: Sequence[Samples]) -> Samples:
    """Put tables of one dictionary under each other."""
    return Samples(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.positive for part in parts]),
    )


@dataclass(frozen=True)
class Subgroup:
    """Patients between limits in one or several features.

    Attributes
    ----------
    description : str
        For people.
    limits : mapping of str to (float, float)
        Least and greatest value, both included, by feature of the dictionary; in the feature's unit, or level
        indices.
    """

    description: str
    limits: Mapping[str, tuple[float, float]]

    def contains(self, values: FloatArray, dictionary: Dictionary) -> BoolArray:
        """Which rows of a canonical table belong to it; a missing value does not.

        Raises
        ------
        DictionaryError
            If the dictionary has no such feature.
        """
        members = np.ones(len(values), dtype=np.bool_)
        for feature, (least, greatest) in self.limits.items():
            column = values[:, dictionary.index(feature)]
            # A comparison with NaN is false, which is what a missing value should be.
            members &= (column >= least) & (column <= greatest)
        return members
