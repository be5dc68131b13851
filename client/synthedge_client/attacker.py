"""What a reader can conclude about small groups from rounded and suppressed counts: exact bounds.

The reader knows the rules, every published figure and the number of patients in the table, and sets all of it
against each other: margins of grids that share features, grids against each other through the common total,
missing values as the rest. The smallest and largest count of a group that fits everything is an integer programme,
solved by HiGHS (Huangfu and Hall 2018) through SciPy.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy import sparse

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MISSING: Final = -1
POSITIVE: Final = 0
NEGATIVE: Final = 1
# A dual value below this is rounding of the solver.
_TIGHT: Final = 1e-7


class Layout(Protocol):
    """What the reader knows of a grid beforehand; a `NamedGrid` is one."""

    @property
    def features(self) -> tuple[str, ...]:
        """One per axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""


@dataclass(frozen=True)
class Known:
    """What the reader knows of one grid's counts.

    Attributes
    ----------
    low, high : ndarray of shape (2, n_voxels)
        Least and largest count that fits the published figures, positives first; high may be infinite.
    least : ndarray of shape (n_voxels,)
        Least number of patients, positives and negatives together.
    """

    low: FloatArray
    high: FloatArray
    least: FloatArray


@dataclass(frozen=True)
class Group:
    """Patients of one label in one voxel of one or two grids.

    Attributes
    ----------
    label : int
        `POSITIVE` or `NEGATIVE`.
    voxels : dict of int to int
        Number of a grid to a voxel of it, or to `MISSING`: a feature of that grid is missing.
    """

    label: int
    voxels: dict[int, int]


class Reader:
    """The largest conclusions that can be drawn from a set of grids.

    Parameters
    ----------
    layouts : sequence of n_grids Layout
    known : sequence of n_grids Known
        Changed by the caller's own hand only: bounds are read anew at every question.
    n_patients : int
        In the whole table, missing values or not: a hospital may have told it elsewhere.

    Notes
    -----
    A patient is in one combination of voxels, a missing value counting as one. Grids that share no feature meet
    in the totals alone, since any two tables with equal totals can be combined: the unknowns are the
    combinations within each set of grids that share features, not the product of all.
    """

    def __init__(self, layouts: Sequence[Layout], known: list[Known], n_patients: int) -> None:
        self.known = known
        self.n_patients = n_patients
        self.parts = _parts(layouts)
        self._atoms = [_atoms([layouts[g] for g in part]) for part in self.parts]
        sizes = [len(atoms) for atoms in self._atoms]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self._n_atoms = int(self._starts[-1])
        self._layouts = layouts
        self._sums = self._voxel_sums()
        self._totals = self._total_rows()

    def exists(self, group: Group) -> bool:
        """Whether a patient can be there at all; nobody without a sex is in a voxel of sex and age."""
        return bool(self._indicator(group).any())

    def bounds(self, group: Group) -> tuple[int, int]:
        """The least and the largest count of a group that fits everything."""
        cost = self._indicator(group)
        low, high = self._solve(cost), -self._solve(-cost)
        return round(low), round(high)

    def is_possible(self, group: Group, count: int) -> bool:
        """Whether a group may hold so many patients."""
        # Half a second to load, which every command would pay that reads the ledger.
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp

        cost = self._indicator(group)
        limits = self._limits()
        rows = sparse.vstack([self._sums, self._totals, sparse.csr_matrix(cost)])
        low = np.concatenate([limits[0], self._total_values(), [count]])
        high = np.concatenate([limits[1], self._total_values(), [count]])
        found = milp(
            np.zeros(2 * self._n_atoms),
            integrality=np.ones(2 * self._n_atoms),
            bounds=Bounds(0, np.inf),
            constraints=LinearConstraint(rows, low, high),
        )
        return bool(found.status == 0)

    def binding(self, group: Group, *, upwards: bool) -> list[tuple[int, int]]:
        """Which voxels (grid, voxel) keep a group's count from being smaller, or larger.

        Returns
        -------
        list of tuple
            Those with a dual value at the optimum of the linear relaxation; may be empty when only
            whole numbers forbid it.
        """
        from scipy import sparse
        from scipy.optimize import linprog

        cost = self._indicator(group) * (-1.0 if upwards else 1.0)
        low, high = self._limits()
        has_low, has_high = low > 0, np.isfinite(high)
        found = linprog(
            cost,
            A_ub=sparse.vstack([-self._sums[has_low], self._sums[has_high]]),
            b_ub=np.concatenate([-low[has_low], high[has_high]]),
            A_eq=self._totals,
            b_eq=self._total_values(),
            method="highs",
        )
        which = np.concatenate([np.flatnonzero(has_low), np.flatnonzero(has_high)])
        if found.status != 0:
            return []
        rows = which[np.abs(found.ineqlin.marginals) > _TIGHT]
        places = self._places()
        return sorted({places[int(row)] for row in rows})

    def _solve(self, cost: FloatArray) -> float:
        from scipy.optimize import Bounds, LinearConstraint, milp

        low, high = self._limits()
        found = milp(
            cost,
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, np.inf),
            constraints=[
                LinearConstraint(self._sums, low, high),
                LinearConstraint(self._totals, self._total_values(), self._total_values()),
            ],
        )
        if found.status != 0:
            raise ArithmeticError("the bounds of a group could not be computed")
        return float(found.fun)

    def _places(self) -> list[tuple[int, int]]:
        """The (grid, voxel) of every row of sums: positives, negatives, both together."""
        once = [
            (g, voxel)
            for g, layout in enumerate(self._layouts)
            for voxel in range(int(np.prod(layout.shape)))
        ]
        return once * 3

    def _voxel_sums(self) -> "sparse.csr_matrix":
        from scipy import sparse

        rows = []
        for g, layout in enumerate(self._layouts):
            i_part = next(i for i, part in enumerate(self.parts) if g in part)
            column = self._atoms[i_part][:, self.parts[i_part].index(g)]
            for voxel in range(int(np.prod(layout.shape))):
                row = np.zeros(self._n_atoms)
                row[self._starts[i_part] : self._starts[i_part + 1]] = column == voxel
                rows.append(row)
        once, nothing = np.array(rows), np.zeros((len(rows), self._n_atoms))
        return sparse.csr_matrix(np.block([[once, nothing], [nothing, once], [once, once]]))

    def _total_rows(self) -> "sparse.csr_matrix":
        """All parts hold the same positives and the same negatives; together they are all patients."""
        from scipy import sparse

        rows = []
        for label in (POSITIVE, NEGATIVE):
            for i_part in range(1, len(self.parts)):
                row = np.zeros((2, self._n_atoms))
                row[label, : self._starts[1]] = 1
                row[label, self._starts[i_part] : self._starts[i_part + 1]] = -1
                rows.append(row.ravel())
        everybody = np.zeros((2, self._n_atoms))
        everybody[:, : self._starts[1]] = 1
        return sparse.csr_matrix(np.array([*rows, everybody.ravel()]))

    def _total_values(self) -> FloatArray:
        values = np.zeros(self._totals.shape[0])
        values[-1] = self.n_patients
        return values

    def _limits(self) -> tuple[FloatArray, FloatArray]:
        low = np.concatenate(
            [np.concatenate([k.low[label] for k in self.known]) for label in (POSITIVE, NEGATIVE)]
            + [np.concatenate([k.least for k in self.known])]
        )
        high = np.concatenate(
            [np.concatenate([k.high[label] for k in self.known]) for label in (POSITIVE, NEGATIVE)]
            + [np.full(sum(len(k.least) for k in self.known), np.inf)]
        )
        return low, high

    def _indicator(self, group: Group) -> FloatArray:
        first = next(iter(group.voxels))
        i_part = next(i for i, part in enumerate(self.parts) if first in part)
        part, atoms = self.parts[i_part], self._atoms[i_part]
        inside = np.ones(len(atoms), dtype=np.bool_)
        for g, voxel in group.voxels.items():
            inside &= atoms[:, part.index(g)] == voxel
        row = np.zeros((2, self._n_atoms))
        row[group.label, self._starts[i_part] : self._starts[i_part + 1]] = inside
        flat: FloatArray = row.ravel()
        return flat


def _parts(layouts: Sequence[Layout]) -> list[list[int]]:
    """Numbers of the grids, those that share features (also by way of others) together."""
    parts: list[tuple[set[str], list[int]]] = []
    for g, layout in enumerate(layouts):
        features, members = set(layout.features), [g]
        for other in [p for p in parts if p[0] & features]:
            parts.remove(other)
            features |= other[0]
            members = sorted([*other[1], *members])
        parts.append((features, members))
    return [members for _, members in parts]


def _atoms(layouts: Sequence[Layout]) -> IntArray:
    """Every possible combination of voxels of grids that share features; shape (n_atoms, n_grids)."""
    sizes = {name: n for x in layouts for name, n in zip(x.features, x.shape, strict=True)}
    names = list(sizes)
    found = set()
    for states in itertools.product(*(range(MISSING, sizes[name]) for name in names)):
        at = dict(zip(names, states, strict=True))
        found.add(
            tuple(
                MISSING
                if MISSING in (index := tuple(at[name] for name in layout.features))
                else int(np.ravel_multi_index(index, layout.shape))
                for layout in layouts
            )
        )
    return np.array(sorted(found), dtype=np.int64)
