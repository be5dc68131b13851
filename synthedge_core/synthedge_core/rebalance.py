"""`augment_imbalanced`: bring the classes of a table to the sizes asked for, exactly and on the record.

Example
-------
>>> from synthedge_core import augment_imbalanced
>>> balanced, report = augment_imbalanced(table, "died", ratio=0.5, return_report=True)
>>> report.quality_score, report.n_generated, report.n_accepted, report.rejected
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.columns import Column
from synthedge_core.conditions import Condition, condition_on
from synthedge_core.constraint import Constraint
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.fill_schema import RowSchema
from synthedge_core.labels import read_labels
from synthedge_core.marginals import Marginals, find_cells, parse_marginals, whole_cells
from synthedge_core.rebalance_mix import (
    DroppedMinorityWarning,
    GroupOutcome,
    MixedRows,
    add_up,
    dropped_minority,
    mix_rows,
)
from synthedge_core.rebalance_plan import RebalancePlan, plan_classes
from synthedge_core.rebalance_quality import (
    ClassQuality,
    Probe,
    class_quality,
    over_augmentation,
    probe_rebalancing,
)
from synthedge_core.rebalance_rows import RowDrawer
from synthedge_core.rebalance_table import PreparedTable, checked_table, column_names, stack

IntArray = npt.NDArray[np.int64]

# With marginals, an oversampling that keeps every row may need a far larger table.
_MOST_GROWTH = 20


class OverAugmentationWarning(UserWarning):
    """More rows were generated than the observed ones support; the message says what was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassOutcome:
    """What became of one class.

    Attributes
    ----------
    level : object
        The label value.
    rows : GroupOutcome
        Its account; with marginals, all its groups together.
    quality : ClassQuality or None
        Of its generated rows; None if there are none.
    """

    level: Any
    rows: GroupOutcome
    quality: ClassQuality | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RebalanceReport:
    """What a rebalancing did.

    Attributes
    ----------
    plan : RebalancePlan
    engine : str
    seed : int
    classes : tuple of ClassOutcome
        In the plan's order.
    groups : tuple of GroupOutcome
        With marginals, one per combination of their values; else one per class.
    probe : Probe or None
        What the new class sizes (not the marginals) do to a model, on held-out rows; None if nothing
        was generated, a class is too small, or the engine is not the copula (it would have to be
        trained five times).
    warnings : tuple of str
    observed_breaking : dict of str to int
        Observed rows that break a constraint; they stay.
    columns : tuple of Column
        What every column was taken for.
    n_outside : int
        Observed rows left out because they have none of the marginals' values.
    """

    plan: RebalancePlan
    engine: str
    seed: int
    classes: tuple[ClassOutcome, ...]
    groups: tuple[GroupOutcome, ...]
    probe: Probe | None
    warnings: tuple[str, ...]
    observed_breaking: dict[str, int]
    columns: tuple[Column, ...]
    n_outside: int = 0

    @property
    def n_generated(self) -> int:
        """Candidates drawn."""
        return sum(g.n_generated for g in self.groups)

    @property
    def n_accepted(self) -> int:
        """Candidates kept as new rows."""
        return sum(g.n_accepted for g in self.groups)

    @property
    def rejected(self) -> dict[str, int]:
        """Candidates not kept, by reason."""
        return add_up([g.rejected for g in self.groups])

    @property
    def quality_score(self) -> float | None:
        """Mean quality of the generated rows over the classes, in [0, 1]; None if unmeasured.

        Weighted by the rows generated; see `ClassQuality` for what is in it.
        """
        known = [
            (c.quality.score, c.rows.n_accepted)
            for c in self.classes
            if c.quality is not None and c.quality.score is not None
        ]
        if not known:
            return None
        return float(np.average([s for s, _ in known], weights=[n for _, n in known]))


@overload
def augment_imbalanced(
    df: pd.DataFrame,
    target_column: str,
    strategy: str = ...,
    *,
    ratio: float | None = ...,
    sampling_ratio: float | None = ...,
    target_counts: Mapping[Any, int] | None = ...,
    discrete_columns: Collection[str] | None = ...,
    constraints: Sequence[Constraint | str] = ...,
    explicit_marginals: Marginals | None = ...,
    quality_threshold: float | None = ...,
    engine: str = ...,
    engine_settings: dict[str, Any] | None = ...,
    seed: int = ...,
    measure: bool = ...,
    dry_run: Literal[False] = ...,
    return_report: Literal[False] = ...,
) -> pd.DataFrame: ...


@overload
def augment_imbalanced(
    df: pd.DataFrame,
    target_column: str,
    strategy: str = ...,
    *,
    ratio: float | None = ...,
    sampling_ratio: float | None = ...,
    target_counts: Mapping[Any, int] | None = ...,
    discrete_columns: Collection[str] | None = ...,
    constraints: Sequence[Constraint | str] = ...,
    explicit_marginals: Marginals | None = ...,
    quality_threshold: float | None = ...,
    engine: str = ...,
    engine_settings: dict[str, Any] | None = ...,
    seed: int = ...,
    measure: bool = ...,
    dry_run: Literal[False] = ...,
    return_report: Literal[True],
) -> tuple[pd.DataFrame, RebalanceReport]: ...


@overload
def augment_imbalanced(
    df: pd.DataFrame,
    target_column: str,
    strategy: str = ...,
    *,
    ratio: float | None = ...,
    sampling_ratio: float | None = ...,
    target_counts: Mapping[Any, int] | None = ...,
    discrete_columns: Collection[str] | None = ...,
    constraints: Sequence[Constraint | str] = ...,
    explicit_marginals: Marginals | None = ...,
    quality_threshold: float | None = ...,
    engine: str = ...,
    engine_settings: dict[str, Any] | None = ...,
    seed: int = ...,
    measure: bool = ...,
    dry_run: Literal[True],
    return_report: bool = ...,
) -> RebalancePlan: ...


def augment_imbalanced(
    df: pd.DataFrame,
    target_column: str,
    strategy: str = "oversample",
    *,
    ratio: float | None = None,
    sampling_ratio: float | None = None,
    target_counts: Mapping[Any, int] | None = None,
    discrete_columns: Collection[str] | None = None,
    constraints: Sequence[Constraint | str] = (),
    explicit_marginals: Marginals | None = None,
    quality_threshold: float | None = None,
    engine: str = "copula",
    engine_settings: dict[str, Any] | None = None,
    seed: int = 0,
    measure: bool = True,
    dry_run: bool = False,
    return_report: bool = False,
) -> pd.DataFrame | tuple[pd.DataFrame, RebalanceReport] | RebalancePlan:
    """Change how many rows each class has.

    Parameters
    ----------
    df : pandas.DataFrame
        Any types, missing values allowed. Give training rows only: generated rows have no place in a
        test set.
    target_column : str
        The label; two classes or up to 20.
    strategy, ratio, sampling_ratio, target_counts
        See `rebalance_plan.plan_classes`.
    discrete_columns : collection of str, optional
        Columns that hold codes; the others are inferred.
    constraints : sequence of Constraint or str
        Rules every generated row keeps.
    explicit_marginals : mapping, optional
        Distributions that other columns shall have in the result, as for `ConditionalSampler`. A
        ``"hybrid"`` has the planned number of rows; an ``"oversample"`` as many more as keeping every
        row needs; an ``"undersample"`` as many as can be had without generating.
    quality_threshold : float, optional
        In [0, 1]: generated rows below it are rejected, see `rebalance_rows.quality_gate`.
    engine : str
        ``"copula"`` (default), ``"ctgan"``, ``"gaussian"`` or ``"smote-nc"``.
    engine_settings : dict, optional
        Further arguments of the engine.
    seed : int
        At least 0; the same table, arguments and seed give the same bytes.
    measure : bool
        False leaves out the quality, the probe and the warnings that rest on them (a second or so), for
        loops over splits.
    dry_run : bool
        Only say what would happen.
    return_report : bool
        Also return a `RebalanceReport`.

    Returns
    -------
    pandas.DataFrame
        Exactly the planned number of rows of every class: observed rows unchanged and in order, then
        the new ones. ``_origin`` says ``observed`` or ``synthetic:<engine>``, ``_synthetic`` false or
        true.
    RebalanceReport
        If asked for.
    RebalancePlan
        Instead of all that, with `dry_run`.

    Warns
    -----
    OverAugmentationWarning
        If a class gets more generated rows than it supports, or a model gets worse; with what was
        measured.
    DroppedMinorityWarning
        If a hybrid with marginals leaves out observed rows of values that become more frequent.

    Raises
    ------
    TableError
        If the label or the table cannot be used.
    UsageError
        If an argument makes no sense.
    RefusedError
        If a class is too small, or its number of rows cannot be reached; never silently fewer.
    """
    if seed < 0:
        raise UsageError(f"the seed is {seed}; expected 0 or more")
    table = checked_table(df)
    labels = read_labels(table, target_column)
    label_of = table.loc[labels.is_labelled, target_column]
    counts = {level: int((label_of == level).sum()) for level in labels.levels}
    plan = plan_classes(
        labels,
        counts,
        strategy=strategy,
        ratio=ratio,
        sampling_ratio=sampling_ratio,
        target_counts=target_counts,
    )
    if dry_run:
        return plan
    prepared = PreparedTable.of(
        table,
        discrete_columns={*column_names(discrete_columns), target_column},
        constraints=constraints,
    )
    drawer = RowDrawer(
        prepared,
        engine,
        seed=seed,
        quality_threshold=quality_threshold,
        engine_settings=engine_settings,
    )
    classes = [condition_on(target_column, c.level, prepared) for c in plan.classes]
    if explicit_marginals is None:
        mixed = _by_class(drawer, plan, classes, seed)
    else:
        mixed = _by_marginals(drawer, plan, classes, explicit_marginals, seed)
    new_rows = prepared.to_frame(mixed.rows.values, f"synthetic:{engine}")
    result = stack([prepared.observed(mixed.kept), new_rows])
    report = _report(prepared, plan, classes, mixed, engine, seed, quality_threshold, measure)
    for text in report.warnings:
        warnings.warn(text, OverAugmentationWarning, stacklevel=2)
    if mixed.dropped:
        warnings.warn(mixed.dropped, DroppedMinorityWarning, stacklevel=2)
        report = replace(report, warnings=(*report.warnings, mixed.dropped))
    return (result, report) if return_report else result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Mixed:
    """The rows, which observed ones stay, their groups, each group's class, rows of no group."""

    rows: MixedRows
    kept: IntArray
    group_of_row: IntArray
    class_of_group: IntArray
    n_outside: int
    dropped: str | None = None


def _by_class(
    drawer: RowDrawer, plan: RebalancePlan, classes: Sequence[Condition], seed: int
) -> _Mixed:
    values = drawer.prepared.values
    group_of = np.full(len(values), -1)
    for i, condition in enumerate(classes):
        group_of[condition.holds(values)] = i
    wanted = np.array([c.n_wanted for c in plan.classes])
    mixed = mix_rows(drawer, [(c,) for c in classes], group_of, wanted, seed)
    unlabelled = np.flatnonzero(group_of < 0)
    return _Mixed(
        rows=mixed,
        kept=np.sort(np.concatenate([mixed.kept, unlabelled])),
        group_of_row=group_of,
        class_of_group=np.arange(len(classes)),
        n_outside=0,
    )


def _by_marginals(
    drawer: RowDrawer,
    plan: RebalancePlan,
    classes: Sequence[Condition],
    marginals: Marginals,
    seed: int,
) -> _Mixed:
    if plan.target_column in marginals:
        raise UsageError(
            f"'{plan.target_column}' has a marginal and a strategy; state its distribution once"
        )
    prepared = drawer.prepared
    n_planned = sum(c.n_wanted for c in plan.classes)
    label_shares = {c.level: c.n_wanted / n_planned for c in plan.classes if c.n_wanted}
    cells = find_cells(
        parse_marginals({plan.target_column: label_shares, **marginals}, prepared), prepared
    )
    n_outside = int((cells.cell_of < 0).sum())
    if plan.strategy == "oversample" and n_outside:
        raise RefusedError(
            f"{n_outside} observed rows have none of the marginals' values (or no label), and an "
            "oversampling leaves nothing out; give their values a probability, or use 'hybrid'"
        )
    per_share = cells.n_observed / cells.shares
    if plan.strategy == "hybrid":
        wanted = whole_cells(cells, n_planned)
    elif plan.strategy == "oversample":
        n_rows = int(np.ceil(per_share.max() - 1e-9))
        if n_rows > _MOST_GROWTH * len(prepared.values):
            raise RefusedError(
                f"keeping every observed row under these marginals needs {n_rows} rows, more than "
                f"{_MOST_GROWTH} times the table; use strategy 'hybrid'"
            )
        wanted = whole_cells(cells, n_rows)
        while (wanted < cells.n_observed).any():  # a cell was rounded down
            n_rows += 1
            wanted = whole_cells(cells, n_rows)
    else:
        n_rows = int(np.floor(per_share.min() + 1e-9))
        wanted = whole_cells(cells, max(1, n_rows))
        while (wanted > cells.n_observed).any() and n_rows > 1:  # a cell was rounded up
            n_rows -= 1
            wanted = whole_cells(cells, n_rows)
        if n_rows < 1 or (wanted > cells.n_observed).any():
            raise RefusedError(
                "leaving rows out alone cannot give these marginals; use strategy 'hybrid'"
            )
    mixed = mix_rows(drawer, cells.groups, cells.cell_of, wanted, seed)
    asked = np.flatnonzero([c.n_wanted > 0 for c in plan.classes])
    is_minority = cells.shares > cells.n_observed / len(prepared.values)
    dropped = dropped_minority(mixed.outcomes, is_minority.tolist())
    return _Mixed(
        rows=mixed,
        kept=mixed.kept,
        group_of_row=cells.cell_of,
        class_of_group=asked[cells.codes[:, 0]],
        n_outside=n_outside,
        dropped=dropped if plan.strategy == "hybrid" else None,
    )


def _report(
    prepared: PreparedTable,
    plan: RebalancePlan,
    classes: Sequence[Condition],
    mixed: _Mixed,
    engine: str,
    seed: int,
    quality_threshold: float | None,
    measure: bool,
) -> RebalanceReport:
    i_target = classes[0].index
    without_label = [i for i in range(len(prepared.analysed)) if i != i_target]
    columns = [prepared.analysed[i] for i in without_label]
    outcomes, texts = [], []
    new_values = mixed.rows.values
    for i, (class_plan, condition) in enumerate(zip(plan.classes, classes, strict=True)):
        of_class = np.flatnonzero(mixed.class_of_group == i)
        groups = [mixed.rows.outcomes[g] for g in of_class]
        observed = condition.holds(prepared.values)
        new = new_values[condition.holds(new_values)]
        quality = None
        if measure and len(new) and columns:
            alike = _alike(mixed, of_class, seed)
            quality = class_quality(
                new[:, without_label], prepared.values[alike][:, without_label], columns, seed
            )
            text = over_augmentation(class_plan.level, int(observed.sum()), len(new), quality)
            texts.extend([text] if text else [])
        rows = GroupOutcome(
            group=condition.text,
            n_observed=int(observed.sum()),
            n_kept=sum(g.n_kept for g in groups),
            n_generated=sum(g.n_generated for g in groups),
            n_accepted=len(new),
            rejected=add_up([g.rejected for g in groups]),
        )
        outcomes.append(ClassOutcome(level=class_plan.level, rows=rows, quality=quality))
    probe = None
    if measure and engine == "copula" and len(new_values) and columns:
        probe = _probe(prepared, outcomes, classes, without_label, seed)
    if probe is not None and probe.is_harmful:
        texts.append(
            f"on held-out observed rows a boosted model has a ROC-AUC of {probe.auc_after:.3f} with "
            f"these class sizes and {probe.auc_before:.3f} without (standard error of the "
            f"difference {probe.standard_error:.3f}); ask for a smaller ratio, or weight the classes"
        )
    report = RebalanceReport(
        plan=plan,
        engine=engine,
        seed=seed,
        classes=tuple(outcomes),
        groups=mixed.rows.outcomes,
        probe=probe,
        warnings=tuple(texts),
        observed_breaking={
            rule.text: int((~rule.holds(prepared.values)).sum()) for rule in prepared.rules
        },
        columns=prepared.columns,
        n_outside=mixed.n_outside,
    )
    score = report.quality_score
    if quality_threshold is None or score is None or score >= quality_threshold:
        return report
    text = (
        f"the generated rows' quality score is {score:.2f}, below the threshold "
        f"{quality_threshold:.2f}: single rows pass, but together they differ from the observed ones"
    )
    return replace(report, warnings=(*report.warnings, text))


def _alike(mixed: _Mixed, groups: IntArray, seed: int) -> IntArray:
    """Choose observed rows of a class that are spread over its groups as the new rows are.

    With marginals the new rows of a class differ from its observed ones on purpose; how good they are
    shows only beside rows of the same mixture. No row is taken twice: a forest would know it again.
    """
    rng = np.random.default_rng(seed)
    n_new = np.array([(mixed.rows.group_of == g).sum() for g in groups])
    members = [rng.permutation(np.flatnonzero(mixed.group_of_row == g)) for g in groups]
    used = [g for g in range(len(groups)) if n_new[g]]
    share = min(len(members[g]) / n_new[g] for g in used)
    chosen = [members[g][: max(1, round(share * n_new[g]))] for g in used]
    return np.sort(np.concatenate(chosen))


def _probe(
    prepared: PreparedTable,
    outcomes: Sequence[ClassOutcome],
    classes: Sequence[Condition],
    without_label: Sequence[int],
    seed: int,
) -> Probe | None:
    values = prepared.values
    code = np.full(len(values), -1)
    growth = {}
    for i, (outcome, condition) in enumerate(zip(outcomes, classes, strict=True)):
        code[condition.holds(values)] = i
        growth[i] = outcome.rows.n_rows / max(1, outcome.rows.n_observed)
    known = code >= 0
    return probe_rebalancing(
        values[known][:, list(without_label)],
        code[known],
        growth,
        RowSchema.of_columns([prepared.analysed[i] for i in without_label]),
        seed,
    )
