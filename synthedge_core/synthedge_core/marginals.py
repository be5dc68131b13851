"""Marginal distributions a user asks for: reading them, joining them, and exact whole numbers.

Several marginals at once are joined by iterative proportional fitting (Deming and Stephan 1940): the
observed joint shares, changed as little as possible until every marginal holds. The published library
for it (`ipfn`, a beta of one maintainer) wants a dense array of all combinations and does not say when
it failed to converge; over the combinations that occur it is the five lines of `joint_shares`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from synthedge_core.conditions import Condition, condition_on
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.rebalance_table import PreparedTable

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Marginals: TypeAlias = Mapping[str, Mapping[Any, float] | Sequence[tuple[Any, float]]]

_SUM_TOLERANCE = 1e-6
_CONVERGED = 1e-6
_MAX_ROUNDS = 10_000
_MAX_CELLS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Marginal:
    """The distribution asked for in one column.

    Attributes
    ----------
    column : str
    conditions : tuple of Condition
        One per value or bin; no row meets two.
    shares : tuple of float
        Their probabilities, summing to 1.
    """

    column: str
    conditions: tuple[Condition, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cells:
    """The combinations of the marginals' values that occur.

    Attributes
    ----------
    marginals : tuple of Marginal
    codes : ndarray of shape (n_cells, n_marginals)
        Which condition of each marginal a cell has.
    n_observed : ndarray of shape (n_cells,)
        Observed rows in each cell.
    cell_of : ndarray of shape (n_rows,)
        Each observed row's cell, -1 for a row outside every value asked for.
    shares : ndarray of shape (n_cells,)
        The joint distribution asked for.
    """

    marginals: tuple[Marginal, ...]
    codes: IntArray
    n_observed: IntArray
    cell_of: IntArray
    shares: FloatArray

    @property
    def groups(self) -> tuple[tuple[Condition, ...], ...]:
        """The conditions of each cell's rows."""
        return tuple(
            tuple(
                marginal.conditions[code]
                for marginal, code in zip(self.marginals, codes, strict=True)
            )
            for codes in self.codes
        )


def parse_marginals(marginals: Marginals, prepared: PreparedTable) -> tuple[Marginal, ...]:
    """Read the user's marginals.

    Parameters
    ----------
    marginals : mapping of column to list of (value, probability) or to {value: probability}
        A value is a level, or a bin such as ``"[0.0, 50.0)"`` on a measured column.
    prepared : PreparedTable

    Returns
    -------
    tuple of Marginal

    Raises
    ------
    UsageError
        If no column is named, a probability is not in [0, 1], they do not sum to 1, a value is named
        twice, or bins overlap.
    RefusedError
        If a level never occurs.
    """
    if not marginals:
        raise UsageError("no marginal is given; expected {column: [(value, probability), ...]}")
    return tuple(_parse(name, given, prepared) for name, given in marginals.items())


def _parse(
    name: str, given: Mapping[Any, float] | Sequence[tuple[Any, float]], prepared: PreparedTable
) -> Marginal:
    try:
        items = list(given.items()) if isinstance(given, Mapping) else [(v, p) for v, p in given]
        shares = [float(p) for _, p in items]
    except (TypeError, ValueError):
        raise UsageError(
            f"the marginal of '{name}' cannot be read; expected [(value, probability), ...] or "
            "{value: probability}"
        ) from None
    if any(not 0 <= p <= 1 for p in shares):
        raise UsageError(f"the marginal of '{name}' has a probability outside 0 to 1")
    total = math.fsum(shares)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise UsageError(
            f"the probabilities of '{name}' sum to {total:.6g}, expected 1; "
            "change them, or add what is left as a further value"
        )
    conditions = []
    for value, _ in items:
        condition = condition_on(name, value, prepared)
        if condition.pinned is not None:
            raise UsageError(
                f"'{name}' holds measurements; its marginal needs bins such as '[0.0, 50.0)'"
            )
        conditions.append(condition)
    for i, one in enumerate(conditions):
        for other in conditions[i + 1 :]:
            if _overlap(one, other):
                raise UsageError(
                    f"the marginal of '{name}' counts rows twice: {one.text} and {other.text} "
                    "overlap"
                )
    return Marginal(
        column=name,
        conditions=tuple(conditions),
        shares=tuple(p / total for p in shares),
    )


def _overlap(one: Condition, other: Condition) -> bool:
    if one.allowed is not None and other.allowed is not None:
        return bool(set(one.allowed) & set(other.allowed))
    first, second = sorted((one, other), key=lambda c: (c.low, c.high))
    if first.high != second.low:
        return first.high > second.low
    return first.includes_high and second.includes_low


def find_cells(marginals: Sequence[Marginal], prepared: PreparedTable) -> Cells:
    """Sort the observed rows into cells and find the joint distribution.

    Raises
    ------
    RefusedError
        If a value with a probability was never observed, or the observed combinations cannot have
        all the marginals at once.
    """
    codes = np.full((len(prepared.values), len(marginals)), -1, dtype=np.int64)
    for j, marginal in enumerate(marginals):
        for i, condition in enumerate(marginal.conditions):
            codes[condition.holds(prepared.values), j] = i
            if marginal.shares[i] > 0 and not (codes[:, j] == i).any():
                raise RefusedError(
                    f"no observed row has {condition.text}, so none can be generated; "
                    f"observed is {_observed_range(condition, prepared)}"
                )
    inside = (codes >= 0).all(axis=1)
    for j, marginal in enumerate(marginals):
        # A value with probability 0 is asked for as much as one that is not named.
        inside &= np.array([*marginal.shares, 0.0])[codes[:, j]] > 0
    unique, cell_of_inside = np.unique(codes[inside], axis=0, return_inverse=True)
    if len(unique) > _MAX_CELLS:
        raise UsageError(
            f"the marginals make {len(unique)} combinations, expected at most {_MAX_CELLS}; "
            "use fewer columns or wider bins"
        )
    cell_of = np.full(len(codes), -1, dtype=np.int64)
    cell_of[inside] = cell_of_inside.ravel()
    n_observed = np.bincount(cell_of[inside], minlength=len(unique))
    return Cells(
        marginals=tuple(marginals),
        codes=unique,
        n_observed=n_observed,
        cell_of=cell_of,
        shares=joint_shares(n_observed, unique, marginals),
    )


def _observed_range(condition: Condition, prepared: PreparedTable) -> str:
    column = prepared.analysed[condition.index]
    if column.has_levels:
        return f"{condition.column} in {{{', '.join(map(str, column.levels))}}}"
    present = prepared.values[:, condition.index]
    # The 2nd and 98th percentile: the extremes are single patients' values.
    low, high = np.nanquantile(present, [0.02, 0.98])
    return f"{condition.column} mostly in [{low:.3g}, {high:.3g}]"


def joint_shares(
    n_observed: IntArray, codes: IntArray, marginals: Sequence[Marginal]
) -> FloatArray:
    """Fit the joint distribution to the marginals, starting from the observed one.

    Parameters
    ----------
    n_observed : ndarray of shape (n_cells,)
    codes : ndarray of shape (n_cells, n_marginals)
    marginals : sequence of Marginal

    Returns
    -------
    ndarray of shape (n_cells,)
        Sums to 1; each marginal holds within 1e-6.

    Raises
    ------
    RefusedError
        If it does not converge: combinations that would be needed were never observed.
    """
    targets = [np.array(m.shares) for m in marginals]
    shares = n_observed / max(1, n_observed.sum())
    worst, off = 0, 1.0
    for _ in range(_MAX_ROUNDS):
        for j, target in enumerate(targets):
            now = np.bincount(codes[:, j], weights=shares, minlength=len(target))
            factor = np.divide(target, now, out=np.zeros_like(target), where=now > 0)
            shares = shares * factor[codes[:, j]]
        differences = [
            float(np.abs(np.bincount(codes[:, j], shares, len(target)) - target).max())
            for j, target in enumerate(targets)
        ]
        worst = int(np.argmax(differences))
        off = differences[worst]
        if off < _CONVERGED:
            return np.asarray(shares / shares.sum())
    names = " and ".join(f"'{m.column}'" for m in marginals)
    raise RefusedError(
        f"the marginals of {names} cannot hold together: '{marginals[worst].column}' stays off by "
        f"{off:.2g}, because combinations they would need were never observed; "
        "change a probability or leave a column out"
    )


def largest_remainder(shares: FloatArray, total: int) -> IntArray:
    """Give whole numbers that sum to `total`, each less than 1 from its share."""
    exact = shares * total
    whole = np.floor(exact + 1e-9).astype(np.int64)
    left = total - int(whole.sum())
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[:left]] += 1
    return whole


def whole_cells(cells: Cells, n_rows: int) -> IntArray:
    """Give every cell a whole number of rows so that every marginal is exact.

    Parameters
    ----------
    cells : Cells
    n_rows : int
        Rows in all.

    Returns
    -------
    ndarray of shape (n_cells,)
        Sums to `n_rows`; each value of each marginal has its largest-remainder number of rows.

    Raises
    ------
    RefusedError
        If no whole numbers do that.

    Notes
    -----
    Controlled rounding (Cox 1987) as a small integer programme: cells are rounded up or down, only
    where that cannot be by more than 1 (possible for three marginals and more).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    exact = cells.shares * n_rows
    base = np.floor(exact + 1e-9)
    if len(cells.marginals) == 1:
        wanted = largest_remainder(np.array(cells.marginals[0].shares), n_rows)
        return np.asarray(wanted[cells.codes[:, 0]])
    rows, columns, needed, n_before = [], [], [], 0
    for j, marginal in enumerate(cells.marginals):
        wanted = largest_remainder(np.array(marginal.shares), n_rows)
        now = np.bincount(cells.codes[:, j], base, len(wanted))
        rows.append(cells.codes[:, j] + n_before)
        columns.append(np.arange(len(base)))
        needed.append(wanted - now)
        n_before += len(wanted)
    matrix = csr_array(
        (
            np.ones(sum(map(len, rows))),
            (np.concatenate(rows), np.concatenate(columns)),
        ),
        shape=(n_before, len(base)),
    )
    sums = np.concatenate(needed)
    for reach in (0, 3):
        found = milp(
            1.0 - 2.0 * (exact - base),  # rounding up a cell that is nearly whole costs least
            integrality=np.ones(len(base)),
            bounds=Bounds(np.maximum(-base, -reach), np.full(len(base), 1.0 + reach)),
            constraints=LinearConstraint(matrix, sums, sums),
            options={"time_limit": 20.0},
        )
        if found.x is not None:
            return np.asarray(base + np.round(found.x), dtype=np.int64)
    raise RefusedError(
        f"{n_rows} rows cannot have all the marginals exactly; ask for a larger or rounder number, "
        "or for fewer marginals"
    )
