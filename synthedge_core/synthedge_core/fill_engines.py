"""The interface of a fill engine, and the engines that need no training library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.fill_constraints import Constraint
from synthedge_core.fill_copula import MIN_NEAR_ROWS, copula_rows
from synthedge_core.fill_schema import RowSchema

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ENGINES = ("copula", "ctgan", "gaussian", "smote-nc")
_SMOTE_NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FillTable:
    """What an engine may learn from.

    Attributes
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Encoded real rows.
    positive : ndarray of bool, shape (n_rows,)
        Rows with the label that is to be filled.
    schema : RowSchema
    constraints : tuple of Constraint
    distance : callable
        Brings encoded rows into the standardised frame where distances are taken.
    report_progress : callable
        Called with the share of the training done, in [0, 1].
    """

    values: FloatArray
    positive: npt.NDArray[np.bool_]
    schema: RowSchema
    constraints: tuple[Constraint, ...]
    distance: Callable[[FloatArray], FloatArray]
    report_progress: Callable[[float], None] = lambda share: None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gap:
    """One gap to be filled.

    Attributes
    ----------
    name : str
        The voxel's label.
    near : ndarray of int, shape (n_near,)
        Positive rows around it, nearest first.
    inside : ndarray of int, shape (n_inside,)
        The positive rows inside the voxel.
    is_in_region : callable
        Says of encoded rows which lie in the voxel or one that shares a face with it.
    """

    name: str
    near: IntArray
    inside: IntArray
    is_in_region: Callable[[FloatArray], npt.NDArray[np.bool_]]


class FillEngine(Protocol):
    """What draws candidate rows; gates and counting are `fill`'s."""

    name: str

    def fit(self, table: FillTable, seed: int) -> None:
        """Learn once from the table."""

    def draw(self, gap: Gap, n_rows: int, seed: int) -> FloatArray:
        """Draw about `n_rows` encoded candidates for a gap; the same seed gives the same rows."""


def make_engine(name: str, **settings: Any) -> FillEngine:
    """Make an engine by name.

    Raises
    ------
    UsageError
        If there is no engine of that name.
    """
    if name == "copula":
        return CopulaEngine()
    if name == "gaussian":
        return GaussianEngine()
    if name == "smote-nc":
        return SmoteEngine()
    if name == "ctgan":
        # Loads torch, which takes seconds: only when asked for.
        from synthedge_core.fill_ctgan import CtganEngine

        engine: FillEngine = CtganEngine(**settings)
        return engine
    raise UsageError(f"there is no fill engine '{name}'; choose one of {', '.join(ENGINES)}")


class CopulaEngine:
    """A mixed-type Gaussian copula of the positive rows around the gap: the default."""

    name = "copula"

    def fit(self, table: FillTable, seed: int) -> None:
        """Keep the table: the copula is fitted anew around every gap."""
        self._table = table

    def draw(self, gap: Gap, n_rows: int, seed: int) -> FloatArray:
        """Draw around the gap's near rows."""
        _need(gap, MIN_NEAR_ROWS, self.name)
        table = self._table
        near = table.values[gap.near]
        return copula_rows(near, n_rows, table.schema, constraints=table.constraints, seed=seed)


class GaussianEngine:
    """A Gaussian of the voxel, the published package's fallback, rounded to codes that exist."""

    name = "gaussian"

    def fit(self, table: FillTable, seed: int) -> None:
        """Keep the table: the Gaussian is fitted anew for every voxel."""
        self._table = table

    def draw(self, gap: Gap, n_rows: int, seed: int) -> FloatArray:
        """Draw from the mean and covariance of the positives in the voxel (or the nearest few)."""
        _need(gap, MIN_NEAR_ROWS, self.name)
        members = gap.inside if len(gap.inside) >= MIN_NEAR_ROWS else gap.near[:MIN_NEAR_ROWS]
        rows = self._table.values[members]
        missing = np.isnan(rows)
        counts = np.maximum((~missing).sum(axis=0), 1)
        mean = np.where(missing, 0.0, rows).sum(axis=0) / counts
        centred = np.where(missing, 0.0, rows - mean)
        covariance = centred.T @ centred / max(1, len(rows) - 1)
        covariance += 1e-5 * np.diag(np.diag(covariance) + 1e-5)
        rng = np.random.default_rng(seed)
        drawn = rng.multivariate_normal(mean, covariance, size=n_rows, method="cholesky")
        fitted = self._table.schema.fit(drawn)
        fitted[missing[rng.integers(len(rows), size=n_rows)]] = np.nan
        return fitted


class SmoteEngine:
    """SMOTE-NC among the gap's near rows (Chawla et al. 2002, section 6.1), as a reference.

    Measured columns lie on the line between a row and one of its 5 nearest; a column of codes takes
    the most frequent code of those 5. Needs no more than what is here, and imbalanced-learn's class
    can neither start from given rows nor take missing values.
    """

    name = "smote-nc"

    def fit(self, table: FillTable, seed: int) -> None:
        """Keep the table."""
        self._table = table

    def draw(self, gap: Gap, n_rows: int, seed: int) -> FloatArray:
        """Interpolate between near rows."""
        _need(gap, MIN_NEAR_ROWS, self.name)
        rng = np.random.default_rng(seed)
        near = self._table.values[gap.near]
        points = self._table.distance(near)
        distances = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
        np.fill_diagonal(distances, np.inf)
        k = min(_SMOTE_NEIGHBOURS, len(near) - 1)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
        start = rng.integers(len(near), size=n_rows)
        partner = nearest[start, rng.integers(k, size=n_rows)]
        share = rng.random((n_rows, 1))
        rows = near[start] + share * (near[partner] - near[start])
        for i, n_levels in enumerate(self._table.schema.n_levels):
            if n_levels:
                rows[:, i] = _most_frequent(near[:, i], nearest, n_levels)[start]
        return self._table.schema.fit(rows)


def _most_frequent(codes: FloatArray, nearest: IntArray, n_levels: int) -> FloatArray:
    votes = np.stack([(codes[nearest] == level).sum(axis=1) for level in range(n_levels)], axis=1)
    return np.where(votes.sum(axis=1) > 0, votes.argmax(axis=1).astype(float), np.nan)


def _need(gap: Gap, n_rows: int, engine: str) -> None:
    if len(gap.near) < n_rows:
        raise RefusedError(
            f"voxel {gap.name} has {len(gap.near)} positive rows around it; the engine {engine} "
            f"needs at least {n_rows}: collect or request real rows instead"
        )


def fill_seeds(seed: int, n: int) -> Sequence[int]:
    """Derive independent seeds, one per draw, from the user's one seed."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n, dtype=np.uint32)]
