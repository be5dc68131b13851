"""Draw rows around a set of near rows with a mixed-type Gaussian copula.

Each column keeps the distribution it has among the near rows; a Gaussian copula carries how the
columns go together. Columns with levels take part through the latent normal variable whose
intervals have the levels' shares. The well-kept libraries' Gaussian copulas (statsmodels) are for
continuous margins only, hence this one; the correlation is scikit-learn's Ledoit-Wolf estimate,
which stays positive definite with fewer rows than columns.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from sklearn.covariance import ledoit_wolf

from synthedge_core.errors import GridError
from synthedge_core.fill_constraints import Constraint
from synthedge_core.fill_schema import RowSchema

FloatArray = npt.NDArray[np.float64]

MIN_NEAR_ROWS = 2
# Rounds of drawing before the constraints are taken to be out of reach.
_MAX_ROUNDS = 50


def copula_rows(
    near: FloatArray,
    n_rows: int,
    schema: RowSchema,
    *,
    constraints: Sequence[Constraint] = (),
    seed: int,
) -> FloatArray:
    """Draw new rows that look like the near ones.

    Parameters
    ----------
    near : ndarray of shape (n_near, n_columns)
        Encoded real rows around the gap, a site's own and received ones alike, at least 2: level
        indices, measurements in the schema's units, NaN missing.
    n_rows : int
        Rows wanted, at least 0.
    schema : RowSchema
        What a row must respect: ``RowSchema.of_features(dictionary.features)`` for a canonical
        table, ``RowSchema.of_columns(columns)`` for an inferred one.
    constraints : sequence of Constraint
        Rules that every row keeps, see `fill_constraints.parse_constraints`.
    seed : int
        The same arguments and seed give the same bytes.

    Returns
    -------
    ndarray of shape (n_drawn, n_columns)
        At most `n_rows`; fewer only if the constraints leave too little to draw. Every row respects
        the schema and the constraints, lies inside the range of the near rows, and is missing where
        some near row is missing.

    Raises
    ------
    GridError
        If there are fewer than 2 near rows, or their number of columns is not the schema's.

    Notes
    -----
    Normal scores of ranks (van der Waerden 1952); for levels the score of the middle of the level's
    interval of the distribution function. Nothing here is differentially private.
    """
    if near.ndim != 2 or near.shape[1] != schema.n_columns:
        raise GridError(f"near rows of shape {near.shape}; expected {schema.n_columns} columns")
    if len(near) < MIN_NEAR_ROWS:
        raise GridError(f"{len(near)} near rows; a copula needs at least {MIN_NEAR_ROWS}")
    rng = np.random.default_rng(seed)
    model = _Copula(near, schema)
    kept: list[FloatArray] = []
    n_kept = 0
    for _ in range(_MAX_ROUNDS):
        if n_kept >= n_rows:
            break
        rows = model.draw(max(16, n_rows), rng)
        good = schema.holds(rows)
        for constraint in constraints:
            good &= constraint.holds(rows)
        kept.append(rows[good])
        n_kept += int(good.sum())
    return np.concatenate(kept)[:n_rows] if kept else np.empty((0, schema.n_columns))


class _Copula:
    """Margins and latent correlation of the near rows."""

    def __init__(self, near: FloatArray, schema: RowSchema) -> None:
        self._near = near
        self._schema = schema
        self._missing = np.isnan(near)
        scores = np.column_stack([_normal_scores(near[:, i]) for i in range(near.shape[1])])
        covariance, _ = ledoit_wolf(scores, assume_centered=True)
        # Margins are carried by the quantiles, so the latent normals must have unit variance.
        deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
        correlation = covariance / np.outer(deviation, deviation)
        np.fill_diagonal(correlation, 1.0)
        self._root = np.linalg.cholesky(correlation + 1e-9 * np.eye(len(correlation)))
        self._sorted = [np.sort(near[~self._missing[:, i], i]) for i in range(near.shape[1])]

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        latent = rng.standard_normal((n, len(self._root))) @ self._root.T
        uniform = ndtr(latent)
        rows = np.full((n, len(self._root)), np.nan)
        for i, values in enumerate(self._sorted):
            if len(values) == 0:
                continue
            if self._schema.n_levels[i]:
                rows[:, i] = np.quantile(values, uniform[:, i], method="inverted_cdf")
            else:
                # Between two neighbouring observations every value is as likely: no copied cells.
                rows[:, i] = np.quantile(values, uniform[:, i], method="linear")
        rows = self._schema.fit(rows)
        # What was not measured on the near patients is not invented: a new row takes the pattern of
        # missing values of one of them.
        pattern = self._missing[rng.integers(len(self._near), size=n)]
        rows[pattern] = np.nan
        return rows


def _normal_scores(column: FloatArray) -> FloatArray:
    """Give normal scores of mid-ranks; 0, the centre, where the value is missing."""
    scores = np.zeros(len(column))
    present = ~np.isnan(column)
    values = column[present]
    if len(values) < MIN_NEAR_ROWS:
        return scores
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    normal = ndtri(middle / len(values))[inverse]
    spread = float(normal.std())
    scores[present] = normal / spread if spread > 0 else 0.0
    return scores
