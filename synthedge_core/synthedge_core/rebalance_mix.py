"""Give every group of rows its number: keep observed rows, leave some out, generate the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from synthedge_core.conditions import Condition, describe
from synthedge_core.fill_engines import fill_seeds
from synthedge_core.rebalance_rows import RowDrawer

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class DroppedMinorityWarning(UserWarning):
    """Observed rows of a value that was to become more frequent are left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupOutcome:
    """What became of one group (a class, or one combination of the marginals' values).

    Attributes
    ----------
    group : str
        The group in words.
    n_observed, n_kept : int
        Observed rows, and those kept.
    n_generated, n_accepted : int
        Candidates drawn, and those kept as new rows.
    rejected : dict of str to int
        Candidates not kept, by reason; together with `n_accepted` they are `n_generated`.
    """

    group: str
    n_observed: int
    n_kept: int
    n_generated: int
    n_accepted: int
    rejected: dict[str, int]

    @property
    def n_dropped(self) -> int:
        """Observed rows left out."""
        return self.n_observed - self.n_kept

    @property
    def n_rows(self) -> int:
        """Rows of the group in the result."""
        return self.n_kept + self.n_accepted


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixedRows:
    """Observed rows that stay, new rows, and the account of each group.

    Attributes
    ----------
    kept : ndarray of int, ascending
        Positions of the observed rows that stay; rows of no group are not among them.
    values : ndarray of shape (n_new, n_columns)
        Encoded new rows, group by group.
    group_of : ndarray of shape (n_new,)
        The group each new row belongs to.
    outcomes : tuple of GroupOutcome
    """

    kept: IntArray
    values: FloatArray
    group_of: IntArray
    outcomes: tuple[GroupOutcome, ...]

    @property
    def n_generated(self) -> int:
        """Candidates drawn."""
        return sum(o.n_generated for o in self.outcomes)

    @property
    def rejected(self) -> dict[str, int]:
        """Candidates not kept, by reason."""
        return add_up([o.rejected for o in self.outcomes])


def add_up(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Add counts by reason."""
    total: dict[str, int] = {}
    for one in counts:
        for reason, n in one.items():
            total[reason] = total.get(reason, 0) + n
    return total


def dropped_minority(outcomes: Sequence[GroupOutcome], is_minority: Sequence[bool]) -> str | None:
    """Say how many observed rows of groups that grow in share are left out; None if none are."""
    minority = [o for o, m in zip(outcomes, is_minority, strict=True) if m and o.n_dropped]
    if not minority:
        return None
    worst = max(minority, key=lambda o: o.n_dropped)
    return (
        f"{sum(o.n_dropped for o in minority)} observed rows of values that become more frequent are "
        f"left out (most of them: {worst.group}, {worst.n_kept} of {worst.n_observed} kept)"
    )


def mix_rows(
    drawer: RowDrawer,
    groups: Sequence[tuple[Condition, ...]],
    group_of: IntArray,
    wanted: IntArray,
    seed: int,
) -> MixedRows:
    """Bring every group to its number of rows.

    Parameters
    ----------
    drawer : RowDrawer
    groups : sequence of tuples of Condition
        What every row of a group meets.
    group_of : ndarray of shape (n_observed,)
        Group of each observed row, -1 for none.
    wanted : ndarray of shape (n_groups,)
        Rows of each group in the result.
    seed : int

    Returns
    -------
    MixedRows
        Observed rows are used first and left out at random.

    Raises
    ------
    RefusedError
        If a group's number cannot be reached.
    """
    n_observed = np.bincount(group_of[group_of >= 0], minlength=len(groups))
    n_kept = np.minimum(wanted, n_observed)
    drawer.forget()
    parts = [np.empty((0, len(drawer.prepared.analysed)))]
    outcomes = []
    for i, group_seed in enumerate(fill_seeds(seed, len(groups))):
        drawn = drawer.draw(int(wanted[i] - n_kept[i]), groups[i], seed=group_seed)
        parts.append(drawn.values)
        outcomes.append(
            GroupOutcome(
                group=describe(groups[i]),
                n_observed=int(n_observed[i]),
                n_kept=int(n_kept[i]),
                n_generated=drawn.n_generated,
                n_accepted=drawn.n_accepted,
                rejected=drawn.rejected,
            )
        )
    return MixedRows(
        kept=_choose(group_of, n_observed, n_kept, seed),
        values=np.concatenate(parts),
        group_of=np.repeat(np.arange(len(groups)), wanted - n_kept),
        outcomes=tuple(outcomes),
    )


def _choose(group_of: IntArray, n_observed: IntArray, n_kept: IntArray, seed: int) -> IntArray:
    """Choose the observed rows that stay, at random within each group."""
    shuffled = np.random.default_rng(seed).permutation(len(group_of))
    by_group = shuffled[np.argsort(group_of[shuffled], kind="stable")]
    starts = (group_of < 0).sum() + np.cumsum(n_observed) - n_observed
    chosen = [by_group[s : s + n] for s, n in zip(starts, n_kept, strict=True)]
    return np.sort(np.concatenate([*chosen, np.empty(0, dtype=np.int64)]))
