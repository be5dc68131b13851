"""`ConditionalGenerator`: learn a table, then generate exactly so many rows that meet conditions.

Example
-------
>>> from synthedge_core import ConditionalGenerator
>>> generator = ConditionalGenerator().fit(table, discrete_columns=["sex"])
>>> generator.generate(200, conditions={"sex": "F", "age": ("between", 60, 70)})
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from synthedge_core.conditions import Condition, parse_conditions
from synthedge_core.constraint import Constraint
from synthedge_core.errors import UsageError
from synthedge_core.fill_engines import fill_seeds
from synthedge_core.rebalance_rows import DrawnRows, RowDrawer
from synthedge_core.rebalance_table import PreparedTable


class ConditionalGenerator:
    """Generates rows under conditions.

    Rules: a row that no observed row supports is refused, not invented; the number of rows is exact
    or the call raises; copies of patients are stopped; the same fit, arguments and seed give the same
    rows.

    Parameters
    ----------
    method : str
        ``"copula"`` (default: around the rows that meet the conditions), ``"ctgan"`` (trained once in
        `fit`; needs 50 rows and the extra ``ctgan``), ``"gaussian"`` or ``"smote-nc"``.
    constraints : sequence of Constraint or str
        Rules every generated row keeps.
    quality_threshold : float, optional
        Rows below this quality, in [0, 1], are rejected; see `rebalance_rows.quality_gate`.
    seed : int
        Of the training, at least 0.
    method_settings : dict, optional
        Further arguments of the method, such as ``{"steps": 500}`` for ``"ctgan"``.

    """

    def __init__(
        self,
        method: str = "copula",
        *,
        constraints: Sequence[Constraint | str] = (),
        quality_threshold: float | None = None,
        seed: int = 0,
        method_settings: dict[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.constraints = tuple(constraints)
        self.quality_threshold = quality_threshold
        self.seed = seed
        self.method_settings = method_settings
        self._drawer: RowDrawer | None = None
        self._drawn: DrawnRows | None = None

    def fit(
        self,
        df: pd.DataFrame,
        discrete_columns: Collection[str] | None = None,
        *,
        continuous_columns: Collection[str] = (),
    ) -> "ConditionalGenerator":
        """Learn a table; returns itself.

        Raises
        ------
        TableError
            If the table has no usable column, or a named one does not exist.
        UsageError
            If a constraint does not fit the table, there is no such method, or the quality threshold
            is out of range.
        RefusedError
            If the method cannot learn from so few rows.
        """
        prepared = PreparedTable.of(
            df,
            discrete_columns=discrete_columns,
            continuous_columns=continuous_columns,
            constraints=self.constraints,
        )
        drawer = RowDrawer(
            prepared,
            self.method,
            seed=self.seed,
            quality_threshold=self.quality_threshold,
            engine_settings=self.method_settings,
        )
        drawer.fit()
        self._drawer = drawer
        return self

    @property
    def drawer(self) -> RowDrawer:
        """What draws the rows.

        Raises
        ------
        UsageError
            If nothing was learned yet.
        """
        if self._drawer is None:
            raise UsageError("nothing was learned yet; call fit(table) first")
        return self._drawer

    @property
    def prepared(self) -> PreparedTable:
        """The table learned; raises as `drawer`."""
        return self.drawer.prepared

    def generate(
        self, n_samples: int, conditions: Mapping[str, Any] | None = None, *, seed: int = 0
    ) -> pd.DataFrame:
        """Generate rows.

        Parameters
        ----------
        n_samples : int
            Rows wanted, at least 1.
        conditions : mapping of column to condition, optional
            All hold at once; see `conditions` for the forms.
        seed : int
            At least 0.

        Returns
        -------
        pandas.DataFrame
            Exactly `n_samples` rows with the columns and types of the table, and the marks
            ``_origin`` and ``_synthetic``.

        Raises
        ------
        UsageError
            If a number makes no sense or a condition cannot be read.
        RefusedError
            If the conditions are impossible (the message says the nearest possible ones) or too few
            rows pass the gates.
        """
        if n_samples < 1:
            raise UsageError(f"{n_samples} rows are asked for; expected at least 1")
        drawn = self.draw(n_samples, parse_conditions(conditions, self.prepared), seed=seed)
        return self.prepared.to_frame(drawn.values, f"synthetic:{self.method}")

    def draw(self, n_samples: int, conditions: Sequence[Condition], *, seed: int) -> DrawnRows:
        """Generate encoded rows; as `generate`, for callers that hold read conditions."""
        if seed < 0:
            raise UsageError(f"the seed is {seed}; expected 0 or more")
        self.drawer.forget()
        self._drawn = self.drawer.draw(n_samples, conditions, seed=fill_seeds(seed, 1)[0])
        return self._drawn

    @property
    def last_drawn(self) -> DrawnRows:
        """The account of the last call: candidates drawn, rejected by reason.

        Raises
        ------
        UsageError
            If nothing was generated yet.
        """
        if self._drawn is None:
            raise UsageError("nothing was generated yet; call generate() first")
        return self._drawn
