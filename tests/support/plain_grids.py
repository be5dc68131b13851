"""Grids without a dictionary, and patients in them, for tests of disclosure control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

SEX, AGE = "sex", "age"


@dataclass(frozen=True)
class PlainGrid:
    """A grid of features with so many voxels an axis."""

    name: str
    features: tuple[str, ...]
    shape: tuple[int, ...]

    def label(self, flat: int) -> str:
        return f"{self.name} {flat}"

    @property
    def n_voxels(self) -> int:
        return int(np.prod(self.shape))


def nested(n_ages: int = 3) -> list[PlainGrid]:
    """Sex, age, and both together: the first two are the margins of the third."""
    return [
        PlainGrid("sex", (SEX,), (2,)),
        PlainGrid("age", (AGE,), (n_ages,)),
        PlainGrid("sex x age", (SEX, AGE), (2, n_ages)),
    ]


def voxels_of(grids: Sequence[PlainGrid], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Each patient's voxel of each grid; a value of -1 is missing."""
    columns = []
    for grid in grids:
        index = [values[name] for name in grid.features]
        is_missing = np.any([i < 0 for i in index], axis=0)
        flat = np.ravel_multi_index([np.where(is_missing, 0, i) for i in index], grid.shape)
        columns.append(np.where(is_missing, -1, flat))
    return np.column_stack(columns)


def patients_of(counts: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Patients with so many of each (label, sex, age); the last index of sex and age is a missing value.

    Shape of counts: (2, 2 + 1, n_ages + 1), positives first.
    """
    label, sex, age = (x.repeat(counts.ravel()) for x in map(np.ravel, np.indices(counts.shape)))
    n_sexes, n_ages = counts.shape[1] - 1, counts.shape[2] - 1
    values = {SEX: np.where(sex == n_sexes, -1, sex), AGE: np.where(age == n_ages, -1, age)}
    return values, label == 0


def tables(largest: int = 12, n_ages: int = 2) -> st.SearchStrategy[np.ndarray]:
    """Counts for `patients_of`; few missing values."""
    some = st.lists(
        st.integers(0, largest), min_size=2 * 3 * (n_ages + 1), max_size=2 * 3 * (n_ages + 1)
    )

    def few_missing(flat: list[int]) -> np.ndarray:
        counts = np.array(flat).reshape(2, 3, n_ages + 1)
        counts[:, 2, :] //= 4
        counts[:, :, n_ages] //= 4
        return counts

    return some.map(few_missing)
