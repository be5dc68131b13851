"""`ConditionalSampler` and `alter_distributions`: tables whose columns have given distributions.

Example
-------
>>> from synthedge_core import ConditionalGenerator, ConditionalSampler
>>> sampler = ConditionalSampler(ConditionalGenerator().fit(table))
>>> sampler.sample(100, explicit_marginals={"sex": [("F", 0.5), ("M", 0.5)]})
>>> sampler.alter_distributions(table, 500, {"age": {"[40.0, 60.0)": 0.5, "[60.0, 80.0)": 0.5}})
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import pandas as pd

from synthedge_core.conditional import ConditionalGenerator
from synthedge_core.constraint import Constraint
from synthedge_core.errors import TableError, UsageError
from synthedge_core.marginals import Marginals, find_cells, parse_marginals, whole_cells
from synthedge_core.rebalance_mix import (
    DroppedMinorityWarning,
    GroupOutcome,
    add_up,
    dropped_minority,
    mix_rows,
)
from synthedge_core.rebalance_rows import RowDrawer
from synthedge_core.rebalance_table import PreparedTable, checked_table, column_names, stack


@dataclass(frozen=True, kw_only=True, slots=True)
class AlteredReport:
    """What `alter_distributions` did.

    Attributes
    ----------
    outcomes : tuple of GroupOutcome
        One per combination of the values asked for.
    is_minority : tuple of bool
        Whether a larger share of each combination is asked for than was observed.
    n_outside : int
        Observed rows left out because they have none of the values asked for.
    n_missing : int
        Those of them that have no value at all in a column asked for.
    n_rows_to_keep_minority : int
        The smallest number of rows that would keep every observed minority row.
    """

    outcomes: tuple[GroupOutcome, ...]
    is_minority: tuple[bool, ...]
    n_outside: int
    n_missing: int
    n_rows_to_keep_minority: int

    @property
    def n_generated(self) -> int:
        """Candidates drawn."""
        return sum(o.n_generated for o in self.outcomes)

    @property
    def n_accepted(self) -> int:
        """Candidates kept as new rows."""
        return sum(o.n_accepted for o in self.outcomes)

    @property
    def rejected(self) -> dict[str, int]:
        """Candidates not kept, by reason."""
        return add_up([o.rejected for o in self.outcomes])

    @property
    def n_dropped_minority(self) -> int:
        """Observed rows of minority combinations left out."""
        return sum(o.n_dropped for o, m in zip(self.outcomes, self.is_minority, strict=True) if m)


class ConditionalSampler:
    """Samples rows whose columns have given marginal distributions.

    Parameters
    ----------
    generator : ConditionalGenerator
        Fitted.
    """

    def __init__(self, generator: ConditionalGenerator) -> None:
        self.generator = generator

    def sample(
        self, num_rows: int, explicit_marginals: Marginals | None = None, *, seed: int = 0
    ) -> pd.DataFrame:
        """Generate rows.

        Parameters
        ----------
        num_rows : int
            At least 1.
        explicit_marginals : mapping, optional
            ``{column: [(value, probability), ...]}`` or ``{column: {value: probability}}``; bins such
            as ``"[0.0, 50.0)"`` on measured columns. Without it the table's own distribution.
        seed : int
            At least 0.

        Returns
        -------
        pandas.DataFrame
            Exactly `num_rows` generated rows in random order, with their marks. Every marginal is
            exact: each value has its probability times `num_rows` rows, rounded to whole rows.

        Raises
        ------
        UsageError
            If a number or marginal makes no sense, such as probabilities that do not sum to 1.
        RefusedError
            If the marginals are impossible, alone or together, or too few rows pass the gates.
        """
        if explicit_marginals is None:
            return self.generator.generate(num_rows, seed=seed)
        _check(num_rows, seed)
        prepared = self.generator.prepared
        cells = find_cells(parse_marginals(explicit_marginals, prepared), prepared)
        nobody = np.full(len(prepared.values), -1)
        wanted = whole_cells(cells, num_rows)
        mixed = mix_rows(self.generator.drawer, cells.groups, nobody, wanted, seed)
        order = np.random.default_rng(seed).permutation(num_rows)
        return prepared.to_frame(mixed.values[order], f"synthetic:{self.generator.method}")

    def alter_distributions(
        self, df: pd.DataFrame, num_rows: int, explicit_marginals: Marginals, *, seed: int = 0
    ) -> pd.DataFrame:
        """Mix observed and generated rows; see the function `alter_distributions`.

        Raises
        ------
        TableError
            If the table's columns are not those the generator learned.
        """
        prepared = self.generator.prepared
        table = checked_table(df)
        if list(table.columns) != list(prepared.table.columns):
            raise TableError(
                "the table's columns are not those the generator learned: "
                f"{', '.join(table.columns)}; expected {', '.join(prepared.table.columns)}"
            )
        if table.equals(prepared.table):
            drawer = self.generator.drawer
            return _alter(prepared, drawer, num_rows, explicit_marginals, seed)[0]
        other = PreparedTable.of(
            table,
            discrete_columns=[c.name for c in prepared.analysed if c.has_levels],
            continuous_columns=[c.name for c in prepared.analysed if not c.has_levels],
        )
        return _alter(other, self.generator.drawer, num_rows, explicit_marginals, seed)[0]


@overload
def alter_distributions(
    df: pd.DataFrame,
    num_rows: int,
    explicit_marginals: Marginals,
    *,
    discrete_columns: Collection[str] | None = ...,
    constraints: Sequence[Constraint | str] = ...,
    engine: str = ...,
    engine_settings: dict[str, Any] | None = ...,
    quality_threshold: float | None = ...,
    seed: int = ...,
    return_report: Literal[False] = ...,
) -> pd.DataFrame: ...


@overload
def alter_distributions(
    df: pd.DataFrame,
    num_rows: int,
    explicit_marginals: Marginals,
    *,
    discrete_columns: Collection[str] | None = ...,
    constraints: Sequence[Constraint | str] = ...,
    engine: str = ...,
    engine_settings: dict[str, Any] | None = ...,
    quality_threshold: float | None = ...,
    seed: int = ...,
    return_report: Literal[True],
) -> tuple[pd.DataFrame, AlteredReport]: ...


def alter_distributions(
    df: pd.DataFrame,
    num_rows: int,
    explicit_marginals: Marginals,
    *,
    discrete_columns: Collection[str] | None = None,
    constraints: Sequence[Constraint | str] = (),
    engine: str = "copula",
    engine_settings: dict[str, Any] | None = None,
    quality_threshold: float | None = None,
    seed: int = 0,
    return_report: bool = False,
) -> pd.DataFrame | tuple[pd.DataFrame, AlteredReport]:
    """Give a table the distributions asked for, from its own rows and generated ones.

    Observed rows are used first; what is missing is generated; of values that become rarer, observed
    rows are left out at random.

    Parameters
    ----------
    df : pandas.DataFrame
    num_rows : int
        Rows of the result, at least 1.
    explicit_marginals : mapping
        As for `ConditionalSampler.sample`.
    discrete_columns, constraints, engine, engine_settings, quality_threshold
        As for `ConditionalGenerator`.
    seed : int
        At least 0.
    return_report : bool
        Also return an `AlteredReport`.

    Returns
    -------
    pandas.DataFrame
        Exactly `num_rows` rows: observed ones in their order, then generated ones, marked.
    AlteredReport
        If asked for.

    Warns
    -----
    DroppedMinorityWarning
        If observed rows of a value that becomes more frequent do not fit into `num_rows` (the message
        says how many rows would keep them all), or rows are left out for a missing value.

    Raises
    ------
    TableError, UsageError, RefusedError
        As for `ConditionalSampler.sample`.
    """
    prepared = PreparedTable.of(
        df,
        discrete_columns=[
            *(stated := column_names(discrete_columns)),
            *_discrete_by_marginals(df, explicit_marginals, stated),
        ],
        constraints=constraints,
    )
    drawer = RowDrawer(
        prepared,
        engine,
        seed=seed,
        quality_threshold=quality_threshold,
        engine_settings=engine_settings,
    )
    drawer.fit()
    table, report = _alter(prepared, drawer, num_rows, explicit_marginals, seed)
    return (table, report) if return_report else table


def _discrete_by_marginals(
    df: pd.DataFrame, marginals: Marginals, stated: Collection[str]
) -> list[str]:
    """Columns whose marginal names single values that are words: they are levels."""
    names = []
    for name, given in marginals.items():
        pairs: list[Any] = list(given.items()) if isinstance(given, Mapping) else list(given)
        values = [pair[0] for pair in pairs if isinstance(pair, (tuple, list)) and pair]
        is_binned = any(isinstance(v, (str, pd.Interval)) and str(v)[:1] in "[(" for v in values)
        if name in df.columns and name not in stated and not is_binned:
            names.append(name)
    return names


def _check(num_rows: int, seed: int) -> None:
    if num_rows < 1:
        raise UsageError(f"{num_rows} rows are asked for; expected at least 1")
    if seed < 0:
        raise UsageError(f"the seed is {seed}; expected 0 or more")


def _alter(
    prepared: PreparedTable, drawer: RowDrawer, num_rows: int, marginals: Marginals, seed: int
) -> tuple[pd.DataFrame, AlteredReport]:
    _check(num_rows, seed)
    cells = find_cells(parse_marginals(marginals, prepared), prepared)
    if drawer.prepared is not prepared:
        # The conditions' level indices must be those of the table the generator learned.
        learned = parse_marginals(marginals, drawer.prepared)
        if learned != cells.marginals:
            raise TableError(
                "the table has other levels than the one the generator learned; "
                "fit a generator on this table"
            )
    mixed = mix_rows(drawer, cells.groups, cells.cell_of, whole_cells(cells, num_rows), seed)
    new_rows = prepared.to_frame(mixed.values, f"synthetic:{drawer.engine}")
    table = stack([prepared.observed(mixed.kept), new_rows])
    asked = [m.conditions[0].index for m in cells.marginals]
    is_minority = cells.shares > cells.n_observed / len(prepared.values)
    needed = cells.n_observed[is_minority] / cells.shares[is_minority]
    report = AlteredReport(
        outcomes=mixed.outcomes,
        is_minority=tuple(is_minority.tolist()),
        n_outside=int((cells.cell_of < 0).sum()),
        n_missing=int(np.isnan(prepared.values[:, asked]).any(axis=1).sum()),
        n_rows_to_keep_minority=int(np.ceil(needed.max() - 1e-9)) if len(needed) else 0,
    )
    _warn(report, num_rows)
    return table, report


def _warn(report: AlteredReport, num_rows: int) -> None:
    if report.n_missing:
        warnings.warn(
            f"{report.n_missing} observed rows are left out because they have no value in a column "
            "whose distribution is asked for; fill it in first to keep them",
            DroppedMinorityWarning,
            stacklevel=4,
        )
    text = dropped_minority(report.outcomes, report.is_minority)
    if text:
        warnings.warn(
            f"{text}, because {num_rows} rows are too few; {report.n_rows_to_keep_minority} would keep "
            "them all",
            DroppedMinorityWarning,
            stacklevel=4,
        )
