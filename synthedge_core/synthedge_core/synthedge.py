"""`SynthEdge`: diagnose a table's gaps, fill them, measure what came out.

Example
-------
>>> from synthedge_core import SynthEdge
>>> engine = SynthEdge(table, target_col="progressed")
>>> engine.analyze()["severity"]
>>> filled = engine.fill(n_top=3, seed=1)
>>> engine.quality_report(held_out_rows)
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.analysis import Analysis, Target
from synthedge_core.columns import Column, as_type, decode, encode, infer_columns
from synthedge_core.dictionary import Dictionary
from synthedge_core.errors import RefusedError, TableError, UsageError
from synthedge_core.fill import FilledRows, VoxelReport, fill_gaps
from synthedge_core.fill_constraints import parse_constraints
from synthedge_core.fill_engines import Gap, make_engine
from synthedge_core.gap_score import gap_scores
from synthedge_core.grids import NamedGrid, count
from synthedge_core.labels import LabelClass, read_labels
from synthedge_core.quality import quality_of
from synthedge_core.severity import Severity, judge

FloatArray = npt.NDArray[np.float64]

MIN_ROWS = 20
MIN_POSITIVES = 5
ORIGIN_COLUMN = "_origin"
VOXEL_COLUMN = "_voxel"


class SynthEdge:
    """A table and what is known of its gaps.

    Rules: the table given is never changed; every result is a function of the table, the arguments
    and the seed; columns that take no part in the analysis are kept.

    Parameters
    ----------
    df : pandas.DataFrame
        One row per patient (or visit); any index (it is not a column: `reset_index` first if it
        carries something), any types.
    target_col : str
        The label column.
    feature_cols : collection of str, optional
        Columns to analyse; the others stay in the table. Default: all but the label.
    discrete_cols, continuous_cols, ignore_cols : collections of str
        Override the inferred kind: codes; measurements; not to be used.
    positive : object or sequence, optional
        The label value(s) that count as positive, see `labels.read_labels`.
    dictionary : Dictionary, optional
        Kinds, levels and plausible ranges for columns named as its features; what lies outside is
        treated as missing and counted.
    constraints : sequence of str
        Rules every generated row keeps, see `fill_constraints`.

    Raises
    ------
    TableError
        If the table is too small (20 rows, 5 of them positive), has no usable column, one class, or
        misses a named column.
    """

    def __init__(
        self,
        df: pd.DataFrame,
        target_col: str = "target",
        feature_cols: Collection[str] | None = None,
        discrete_cols: Collection[str] | None = None,
        *,
        continuous_cols: Collection[str] = (),
        ignore_cols: Collection[str] = (),
        positive: Any = None,
        dictionary: Dictionary | None = None,
        constraints: Sequence[str] = (),
    ) -> None:
        table = df.reset_index(drop=True)
        table.columns = [str(name) for name in table.columns]
        if table.columns.has_duplicates:
            name = table.columns[table.columns.duplicated()][0]
            raise TableError(f"the column name '{name}' occurs more than once; rename one")
        for name in (ORIGIN_COLUMN, VOXEL_COLUMN):
            if name in table.columns:
                raise TableError(
                    f"the table has a column '{name}', which marks generated rows: it was filled "
                    "before; take its observed rows and drop that column"
                )
        self._table = table
        self.dictionary = dictionary
        self.labels = read_labels(table, target_col, positive)
        features = table.drop(columns=target_col)
        unused = set(ignore_cols)
        if feature_cols is not None:
            unknown = sorted(set(feature_cols) - set(features.columns))
            if unknown:
                raise TableError(f"'{unknown[0]}' is named as a feature but is no column")
            unused |= set(features.columns) - set(feature_cols)
        self._labelled = features[self.labels.is_labelled].reset_index(drop=True)
        self.columns: tuple[Column, ...] = infer_columns(
            self._labelled,
            discrete=discrete_cols or (),
            continuous=continuous_cols,
            ignore=unused,
            features=() if dictionary is None else dictionary.features,
        )
        self._check_size()
        self.analysed: tuple[Column, ...] = tuple(c for c in self.columns if c.kind is not None)
        self.values: FloatArray = encode(self._labelled, self.analysed)
        self.constraints = parse_constraints(constraints, self.analysed, self.values)
        self._analyses: dict[int, Analysis] = {}
        self._settings: dict[str, Any] = {}
        self._verdicts: dict[tuple[int, bool], Severity] = {}
        self._with_benefit = True
        self._filled: FilledRows | None = None
        self._near = np.empty(0, dtype=np.int64)

    def _check_size(self) -> None:
        n = len(self._labelled)
        if n < MIN_ROWS:
            raise TableError(
                f"the table has {n} labelled rows, expected at least {MIN_ROWS}: "
                "any score of it would be chance"
            )
        if not any(c.kind is not None for c in self.columns):
            reasons = "; ".join(f"{c.name}: {c.reason}" for c in self.columns[:5])
            raise TableError(f"no column can be analysed ({reasons}); name kinds with --discrete")
        largest = max(cls.n_positive for cls in self.labels.classes)
        if largest < MIN_POSITIVES:
            raise TableError(
                f"the label '{self.labels.column}' has {largest} positive rows, expected at least "
                f"{MIN_POSITIVES}: too few to tell a gap from chance; collect or request real rows"
            )

    # -- analysis ---------------------------------------------------------------------------------

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """The classes looked at that have at least 5 rows, rarest first."""
        return tuple(c for c in self.labels.classes if c.n_positive >= MIN_POSITIVES)

    def analysis(self, i_class: int = 0) -> Analysis:
        """Give the analysis of one class against the rest."""
        if i_class not in self._analyses:
            features = () if self.dictionary is None else self.dictionary.features
            self._analyses[i_class] = Analysis(
                values=self.values,
                columns=self.analysed,
                positive=self.classes[i_class].positive,
                constraints=self.constraints,
                cut_points={f.name: f.cut_points for f in features if f.cut_points},
                **self._settings,
            )
        return self._analyses[i_class]

    def analyze(
        self, n_bins: int | None = None, top_k: int = 10, *, with_benefit: bool = True
    ) -> dict[str, Any]:
        """Find the gaps and judge them.

        Parameters
        ----------
        n_bins : int, optional
            Voxels per axis of the PCA grid, 2 to 32; default by the number of rows, 3 to 6.
        top_k : int
            Gaps in ``top_voxels``.
        with_benefit : bool
            Estimate the benefit of filling by cross-validation, which takes seconds.

        Returns
        -------
        dict
            ``severity`` (level), ``score``, ``signals``, ``recommendation``, ``will_help``,
            ``benefit``, ``p_value``, ``seed_score``, ``top_voxels``, ``all_voxels``, ``columns``,
            and ``classes``: the verdicts on every class, rarest first; the others are the first's.

        Raises
        ------
        GridError
            If a setting is out of range.
        """
        settings = {"n_bins": n_bins, "top_k": top_k}
        if settings != self._settings:
            self._settings, self._analyses, self._verdicts = settings, {}, {}
        self._with_benefit = with_benefit
        found = self.analysis().scan
        return {
            **self.severity,
            "top_voxels": list(found.top),
            "all_voxels": list(found.voxels),
            "columns": self.columns,
            "classes": {cls.name: asdict(self.verdict(i)) for i, cls in enumerate(self.classes)},
        }

    def verdict(self, i_class: int = 0) -> Severity:
        """Give the judgement of one class against the rest."""
        key = (i_class, self._with_benefit)
        if key not in self._verdicts:
            analysis = self.analysis(i_class)
            self._verdicts[key] = judge(analysis, with_benefit=self._with_benefit)
        return self._verdicts[key]

    @property
    def severity(self) -> dict[str, Any]:
        """The judgement of the first class, with the published package's keys and ours."""
        found = asdict(self.verdict())
        return {"severity": found.pop("level"), **found}

    @property
    def gap_map(self) -> pd.DataFrame:
        """The worst voxels, one row each: counts, expected, sparsity, entropy, gap score."""
        return pd.DataFrame(
            [
                {
                    "voxel": voxel.label,
                    "observed": voxel.n_observed,
                    "expected": round(voxel.expected, 2),
                    "n_pos": voxel.n_positive,
                    "sparsity": round(voxel.sparsity, 3),
                    "entropy": round(voxel.entropy, 3),
                    "gap_score": voxel.gap_score,
                }
                for voxel in self.analysis().scan.top
            ]
        )

    @property
    def n_duplicated(self) -> int:
        """Labelled rows that repeat another one exactly in every analysed column and the label."""
        labels = self._table[self.labels.column][self.labels.is_labelled].to_numpy()
        rows = pd.DataFrame(self.values).assign(label=labels)
        return int(rows.duplicated().sum())

    @property
    def named_grids(self) -> list[dict[str, Any]]:
        """The dictionary's grids, as far as their features are here: voxels with rows, worst first.

        Empty without a dictionary. Gap scores are the published package's definition.
        """
        if self.dictionary is None:
            return []
        names = [column.name for column in self.analysed]
        canonical = np.full((len(self.values), len(self.dictionary.features)), np.nan)
        for i, feature in enumerate(self.dictionary.features):
            if feature.name in names:
                canonical[:, i] = self.values[:, names.index(feature.name)]
        found = []
        for spec in self.dictionary.grids:
            if not set(spec.features) <= set(names):
                continue
            grid = NamedGrid(self.dictionary, spec)
            tally = count(grid, canonical, self.classes[0].positive)
            observed = tally.positives + tally.negatives
            flats = np.flatnonzero(observed)
            expected = float(observed.sum() / grid.n_voxels)
            scores = gap_scores(observed[flats], tally.positives[flats], expected)
            voxels = [
                {
                    "voxel": grid.label(int(flat)),
                    "observed": int(observed[flat]),
                    "n_pos": int(tally.positives[flat]),
                    "gap_score": round(float(one), 4),
                }
                for flat, one in zip(flats, scores, strict=True)
            ]
            voxels.sort(key=lambda v: -float(str(v["gap_score"])))
            found.append({"grid": spec.name, "voxels": voxels})
        return found

    # -- fill -------------------------------------------------------------------------------------

    def fill(
        self,
        n: int | None = None,
        n_top: int = 3,
        engine: str = "copula",
        *,
        target: Target = "regions",
        seed: int = 0,
        engine_settings: dict[str, Any] | None = None,
        report_progress: Callable[[float], None] = lambda share: None,
    ) -> pd.DataFrame:
        """Add generated positive rows in the worst gaps.

        Parameters
        ----------
        n : int, optional
            Rows to add in all, shared evenly over the gaps. Default: what each gap lacks.
        n_top : int
            Gaps to fill, at least 1, per class.
        engine : str
            One of `fill_engines.ENGINES`.
        target : {"regions", "voxels"}
            Fill named regions that lack positives, or the worst voxels of the PCA grid.
        seed : int
            At least 0; the same table, arguments and seed give the same bytes.
        engine_settings : dict, optional
            Further arguments of the engine.
        report_progress : callable
            Called with the share of an engine's training done.

        Returns
        -------
        pandas.DataFrame
            The table's rows unchanged and in order under a 0..n-1 index, then the new ones. Column
            ``_origin`` says ``observed`` or ``synthetic:<engine>``, ``_voxel`` the voxel of a new
            row. Columns that were not analysed are missing in new rows (a constant is kept).

        Raises
        ------
        UsageError
            If a number or the engine's name makes no sense.
        RefusedError
            If the engine cannot learn from so few rows, or no region lacks a positive.
        """
        if target not in ("regions", "voxels"):
            raise UsageError(f"the target is '{target}'; expected regions or voxels")
        if n_top < 1:
            raise UsageError(f"n_top is {n_top}; expected at least 1 gap to fill")
        if n is not None and n < 1:
            raise UsageError(f"{n} rows are asked for; expected at least 1")
        plan = [
            (i_class, gap, amount)
            for i_class in range(len(self.classes))
            for gap, amount in self.analysis(i_class).plan(n_top, target)
        ]
        if not plan:
            raise RefusedError(
                "no region lacks a positive row, so there is nothing to fill; "
                "choose the target voxels to fill sparse voxels all the same"
            )
        if n is not None:
            shares = [n // len(plan) + (i < n % len(plan)) for i in range(len(plan))]
            plan = [(c, g, share) for (c, g, _), share in zip(plan, shares, strict=True) if share]
        parts = [self._table.assign(**{ORIGIN_COLUMN: "observed", VOXEL_COLUMN: ""})]
        results = []
        for i_class in sorted({i for i, _, _ in plan}):
            analysis = self.analysis(i_class)
            gaps = [gap for i, gap, _ in plan if i == i_class]
            filled = fill_gaps(
                replace(analysis.fill_table, report_progress=report_progress),
                gaps,
                [amount for i, _, amount in plan if i == i_class],
                make_engine(engine, **(engine_settings or {})),
                seed,
            )
            results.append(filled)
            parts.append(self._rows_of(filled, gaps, i_class, engine))
        self._near = np.unique(np.concatenate([gap.near for _, gap, _ in plan]))
        self._filled = FilledRows(
            values=np.concatenate([f.values for f in results]),
            voxels=tuple(label for f in results for label in f.voxels),
            reports=tuple(report for f in results for report in f.reports),
        )
        return _stack(parts)

    def _rows_of(
        self, filled: FilledRows, gaps: Sequence[Gap], i_class: int, engine: str
    ) -> pd.DataFrame:
        """Turn encoded rows into a table with every column of the original."""
        n = len(filled.values)
        decoded = decode(filled.values, self.analysed, self._table)
        constants = {c.name: c.levels[0] for c in self.columns if c.kind is None and c.levels}
        label_of = {gap.name: self._label_around(gap, i_class) for gap in gaps}
        new = {}
        for name in self._table.columns:
            dtype = self._table[name].dtype
            if name in decoded:
                new[name] = decoded[name]
            elif name == self.labels.column:
                cells = [label_of[voxel] for voxel in filled.voxels]
                new[name] = as_type(pd.Series(cells, dtype=object), dtype)
            else:
                cells = [constants.get(name)] * n
                new[name] = as_type(pd.Series(cells, dtype=object), dtype)
        rows = pd.DataFrame(new)
        rows[ORIGIN_COLUMN] = f"synthetic:{engine}"
        rows[VOXEL_COLUMN] = list(filled.voxels)
        return rows

    def _label_around(self, gap: Gap, i_class: int) -> Any:
        """Give the positive label value that is most frequent around a gap."""
        labels = self._table[self.labels.column][self.labels.is_labelled].reset_index(drop=True)
        levels = self.classes[i_class].levels
        around = labels.iloc[gap.near]
        return max(levels, key=lambda level: int((around == level).sum()))

    @property
    def fill_report(self) -> tuple[VoxelReport, ...]:
        """What became of every gap in the last `fill`.

        Raises
        ------
        UsageError
            If nothing was filled yet.
        """
        if self._filled is None:
            raise UsageError("nothing was filled yet; call fill() first")
        return self._filled.reports

    @property
    def filled_values(self) -> FloatArray:
        """The encoded rows of the last `fill`, shape (n_added, n_analysed); none before a fill."""
        if self._filled is None:
            return np.empty((0, len(self.analysed)))
        return self._filled.values

    def quality_report(self, held: pd.DataFrame | None = None) -> dict[str, Any]:
        """Measure the rows of the last `fill`.

        Parameters
        ----------
        held : pandas.DataFrame, optional
            Real positive rows of the gap that this table does not hold, with its feature columns.
            Without them the generated rows are compared with the positives around the gaps, which
            the engine has seen: a kinder comparison, and said so in ``compared_with``.

        Returns
        -------
        dict
            ``total_added``, ``engine``, ``voxels`` and the fields of `quality.QualityReport`.

        Raises
        ------
        UsageError
            If nothing was filled yet or no row came out.
        TableError
            If `held` lacks a column.
        """
        reports = self.fill_report
        filled = self._filled
        if filled is None:
            raise UsageError("nothing was filled yet; call fill() first")
        if held is None:
            real, words = self.values[self._near], "the positive rows around the gaps, seen before"
        else:
            absent = [c.name for c in self.analysed if c.name not in held.columns]
            if absent:
                raise TableError(f"the held-out rows lack the column '{absent[0]}'")
            real, words = encode(held, self.analysed), "held-out real rows of the gap"
        measured = quality_of(filled.values, real, self.values, self.analysed, words)
        return {
            "total_added": len(filled.values),
            "engine": reports[0].engine,
            "voxels": reports,
            **{f.name: getattr(measured, f.name) for f in fields(measured)},
        }


def _stack(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put tables under each other, keeping each column's type."""
    columns = {}
    for name in parts[0].columns:
        series = [part[name] for part in parts if len(part)]
        # Concatenating an all-missing object column must not change the type of the others.
        dtype = next((s.dtype for s in series[1:] if s.dtype != series[0].dtype), series[0].dtype)
        columns[name] = pd.concat([s.astype(dtype) for s in series], ignore_index=True)
    return pd.DataFrame(columns)
