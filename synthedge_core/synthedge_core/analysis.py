"""One class of one encoded table: its scan, its gaps, its fill.

What the facade, the cross-validated benefit and the comparison all work on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from synthedge_core.columns import Column, analysis_matrix
from synthedge_core.fill import FilledRows, fill_gaps
from synthedge_core.fill_constraints import Constraint
from synthedge_core.fill_engines import FillEngine, FillTable, Gap
from synthedge_core.fill_schema import RowSchema
from synthedge_core.gap_test import GapTest, Region, find_missing_positives
from synthedge_core.regions import named_candidates, voxel_candidates
from synthedge_core.scan import Scan, Voxel, scan

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Positive rows around a gap that an engine learns from.
NEAR_ROWS = 40
_SAME_REGION = 0.5
_MIN_LACKING = 5
Target = Literal["regions", "voxels"]
# The published package's number of rows per voxel.
_ROWS_PER_OBSERVED = 3
_MIN_ROWS_PER_VOXEL = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """One class against the rest.

    Attributes
    ----------
    values : ndarray of shape (n_rows, n_columns)
        Encoded rows, see `columns.encode`.
    columns : tuple of Column
    positive : ndarray of bool, shape (n_rows,)
    constraints : tuple of Constraint
        Rules for generated rows.
    n_bins : int or None
        Voxels per axis; None lets the scan choose.
    top_k : int
        Gaps listed.
    cut_points : mapping of str to sequences of float
        The dictionary's cut points, for named regions.
    report_progress : callable
        Called with the share of an engine's training done.
    """

    values: FloatArray
    columns: tuple[Column, ...]
    positive: BoolArray
    constraints: tuple[Constraint, ...] = ()
    n_bins: int | None = None
    top_k: int = 10
    cut_points: Mapping[str, Sequence[float]] = field(default_factory=dict)
    report_progress: Callable[[float], None] = field(default=lambda share: None)

    def subset(self, rows: IntArray) -> "Analysis":
        """Give the analysis of some of the rows: nothing of the others is known to it.

        Level sets are the table's; observed ranges become those of the rows taken.
        """
        values = self.values[rows]
        return Analysis(
            values=values,
            columns=tuple(
                _with_range(column, values[:, i]) for i, column in enumerate(self.columns)
            ),
            positive=self.positive[rows],
            constraints=self.constraints,
            n_bins=self.n_bins,
            top_k=self.top_k,
            cut_points=self.cut_points,
            report_progress=self.report_progress,
        )

    @cached_property
    def matrix(self) -> FloatArray:
        """The rows as an analysis matrix in own units."""
        return analysis_matrix(self.values, self.columns)[0]

    @cached_property
    def scan(self) -> Scan:
        """The voxel scan."""
        return scan(self.matrix, self.positive, n_bins=self.n_bins, top_k=self.top_k)

    @cached_property
    def gap_test(self) -> GapTest:
        """Whether some region lacks more positives than chance explains."""
        candidates = [
            *named_candidates(self.values, self.columns, self.cut_points),
            *voxel_candidates(self.scan, self.columns),
        ]
        return find_missing_positives(self.matrix, self.positive, candidates)

    @cached_property
    def schema(self) -> RowSchema:
        """What a generated row must respect."""
        return RowSchema.of_columns(self.columns)

    def points(self, rows: FloatArray) -> FloatArray:
        """Bring encoded rows into the standardised frame of this table."""
        return self.scan.standardise(analysis_matrix(rows, self.columns)[0])

    @cached_property
    def fill_table(self) -> FillTable:
        """What a fill engine may learn from."""
        return FillTable(
            values=self.values,
            positive=self.positive,
            schema=self.schema,
            constraints=self.constraints,
            distance=self.points,
            report_progress=self.report_progress,
        )

    def voxel_gap(self, voxel: Voxel) -> Gap:
        """Describe a voxel of the PCA grid as a gap to be filled."""
        found = self.scan
        region = found.neighbours(voxel.flat)
        codes = np.asarray(found.codes)

        def is_in_region(rows: FloatArray) -> BoolArray:
            return np.isin(found.assign(analysis_matrix(rows, self.columns)[0]), region)

        return Gap(
            name=voxel.label,
            near=self._nearest_positives(voxel.centroid),
            inside=np.flatnonzero(self.positive & (codes == voxel.flat)),
            is_in_region=is_in_region,
        )

    def region_gap(self, region: Region) -> Gap:
        """Describe a named region that lacks positives as a gap to be filled.

        New rows must lie where the region's real rows lie; its own positives come first among the
        near rows, then those nearest to the middle of the region.
        """
        centre = self.scan.standardise(self.matrix[region.candidate.members]).mean(axis=0)
        nearest = self._nearest_positives(centre, keep=len(self.positive))
        inside = np.flatnonzero(self.positive & region.candidate.members)
        outside = nearest[~np.isin(nearest, inside)]
        return Gap(
            name=region.name,
            near=np.concatenate([inside, outside])[: max(NEAR_ROWS, len(inside))],
            inside=inside,
            is_in_region=region.candidate.contains,
        )

    def _nearest_positives(self, centre: FloatArray, keep: int = NEAR_ROWS) -> IntArray:
        rows = np.flatnonzero(self.positive)
        points = self.scan.standardise(self.matrix[rows])
        distances = ((points - centre) ** 2).sum(axis=1)
        return np.asarray(rows[np.argsort(distances, kind="stable")[:keep]])

    def plan(self, n_top: int, target: Target = "regions") -> list[tuple[Gap, int]]:
        """Give the gaps to fill and the rows for each.

        Parameters
        ----------
        n_top : int
            Gaps at most.
        target : {"regions", "voxels"}
            ``regions``: where positives are missing, by the gap test, worst first, as many rows as
            are missing; a region that shares half its rows with a worse one is left out.
            ``voxels``: the published package's choice, the worst voxels of the PCA grid. Measured,
            filling regions that the test confirms helps; filling sparse voxels does not.

        Returns
        -------
        list of pairs of Gap and int
            Empty if there is nowhere to fill.
        """
        if target == "voxels":
            return [(self.voxel_gap(v), default_rows(v)) for v in self.scan.top[:n_top]]
        chosen: list[Region] = []
        for region in self.gap_test.regions:
            members = region.candidate.members
            is_new = all(
                (members & other.candidate.members).sum()
                < _SAME_REGION * min(region.n_rows, other.n_rows)
                for other in chosen
            )
            if region.z > 0 and is_new and len(chosen) < n_top:
                chosen.append(region)
        return [(self.region_gap(region), _lacking_rows(region)) for region in chosen]

    def fill(
        self, gaps: Sequence[Gap], amounts: Sequence[int], engine: FillEngine, seed: int
    ) -> FilledRows:
        """Fill gaps of this table; see `fill.fill_gaps`."""
        return fill_gaps(self.fill_table, gaps, amounts, engine, seed)


def _with_range(column: Column, values: FloatArray) -> Column:
    present = values[~np.isnan(values)]
    if column.has_levels or column.is_stated or len(present) == 0:
        return column
    return replace(column, low=float(present.min()), high=float(present.max()))


def _lacking_rows(region: Region) -> int:
    """Give the rows that are missing, at least 5, at most as many as the engine has near rows."""
    return int(np.clip(round(region.n_lacking), _MIN_LACKING, max(NEAR_ROWS, region.n_positive)))


def default_rows(voxel: Voxel) -> int:
    """Give the published package's number of rows, without its flood in a well-filled voxel."""
    most = max(_MIN_ROWS_PER_VOXEL, math.ceil(voxel.expected))
    return min(most, max(_MIN_ROWS_PER_VOXEL, _ROWS_PER_OBSERVED * voxel.n_observed))
