"""The gates a generated row must pass: rules, region, copies, copied patients, discriminator.

Each gate says which of the candidates it lets through; none changes a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression

from synthedge_core.fill_constraints import combinations
from synthedge_core.fill_engines import FillTable

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# A combination of values that so many patients share points at none of them.
MIN_SHARED_BY = 5
# A candidate closer to a patient than this share of the usual distance between two patients is that
# patient with a rounding error.
NEAREST_SHARE = 0.1
# The balanced discriminator must not be surer than this that a row is synthetic.
MAX_SYNTHETIC_PROBABILITY = 0.9
_MIN_DISCRIMINATED = 20
_N_TREE_ROWS = 20_000

GATES = ("rules", "region", "duplicate", "copied patient", "discriminator")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RealRows:
    """The real rows as the gates need them, prepared once.

    Attributes
    ----------
    counts : dict
        How many real rows have each exact combination of values.
    tree : cKDTree
        The real rows in the standardised frame.
    usual_distance : float
        Median distance of a real row to its nearest other real row of different values.
    """

    counts: dict[tuple[float, ...], int]
    tree: cKDTree
    usual_distance: float

    @staticmethod
    def of(table: FillTable) -> "RealRows":
        """Prepare the real rows of a table."""
        keys = combinations(table.values, range(table.schema.n_columns))
        counts: dict[tuple[float, ...], int] = {}
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        points = np.unique(table.distance(table.values), axis=0)
        tree = cKDTree(points)
        usual = 0.0
        if len(points) > 1:
            distances, _ = tree.query(points[:_N_TREE_ROWS], k=2)
            usual = float(np.median(distances[:, 1]))
        return RealRows(counts=counts, tree=tree, usual_distance=usual)


def rules_gate(rows: FloatArray, table: FillTable) -> BoolArray:
    """Let through what respects kinds, levels, ranges and the user's constraints."""
    good = table.schema.holds(rows)
    for constraint in table.constraints:
        good &= constraint.holds(rows)
    return good


def region_gate(rows: FloatArray, is_in_region: Callable[[FloatArray], BoolArray]) -> BoolArray:
    """Let through what lies in the gap's voxel or one that shares a face with it."""
    return is_in_region(rows)


def duplicate_gate(rows: FloatArray, seen: set[tuple[float, ...]], real: RealRows) -> BoolArray:
    """Stop a second generated copy of a row; add the ones let through to `seen`.

    A combination that at least 5 patients share may also be generated more than once: in a table of
    few codes there is nothing else to generate.
    """
    good = np.zeros(len(rows), dtype=bool)
    for i, key in enumerate(combinations(rows, range(rows.shape[1]))):
        if key not in seen or real.counts.get(key, 0) >= MIN_SHARED_BY:
            seen.add(key)
            good[i] = True
    return good


def copied_patient_gate(rows: FloatArray, table: FillTable, real: RealRows) -> BoolArray:
    """Stop rows that are, or nearly are, one of fewer than 5 patients' records."""
    if len(rows) == 0:
        return np.zeros(0, dtype=bool)
    keys = combinations(rows, range(rows.shape[1]))
    shared_by = np.array([real.counts.get(key, 0) for key in keys])
    distances, _ = real.tree.query(table.distance(rows))
    is_near = distances < NEAREST_SHARE * real.usual_distance
    return np.asarray((shared_by >= MIN_SHARED_BY) | ~(is_near | (shared_by > 0)))


def discriminator_gate(rows: FloatArray, near: FloatArray, table: FillTable) -> BoolArray:
    """Stop rows that a class-balanced classifier, not trained on them, is sure are synthetic.

    Two halves judge each other; with fewer than 20 candidates or near rows there is nothing to
    learn from, and all pass. A classifier trained on the rows it judges, as in the published
    package, and on unbalanced classes, measures the classes' sizes.
    """
    if min(len(rows), len(near)) < _MIN_DISCRIMINATED:
        return np.ones(len(rows), dtype=bool)
    points = np.vstack([table.distance(near), table.distance(rows)])
    is_synthetic = np.concatenate([np.zeros(len(near)), np.ones(len(rows))])
    half = np.arange(len(points)) % 2
    probability = np.empty(len(points))
    for part in (0, 1):
        model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=200)
        model.fit(points[half != part], is_synthetic[half != part])
        probability[half == part] = model.predict_proba(points[half == part])[:, 1]
    return np.asarray(probability[len(near) :] <= MAX_SYNTHETIC_PROBABILITY)
