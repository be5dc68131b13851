"""Draw an exact number of rows that meet conditions: engine, gates, counts, or a clear refusal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from synthedge_core.conditions import Condition, describe, meet_all, nearest_possible
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.fill_engines import FillEngine, FillTable, Gap, fill_seeds, make_engine
from synthedge_core.fill_gates import RealRows, copied_patient_gate, duplicate_gate
from synthedge_core.rebalance_quality import boosted_model
from synthedge_core.rebalance_table import PreparedTable

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# With fewer matching rows than this, the nearest other rows join them; what is drawn outside the
# conditions is then rejected.
MIN_NEAR_ROWS = 10
EXTENDED_NEAR_ROWS = 30
_MAX_ROUNDS = 30
_MIN_BATCH = 64
# Below this share of good candidates, drawing on is called off.
_MIN_ACCEPTED = 1e-4
_ENOUGH_TRIED = 50_000
# The interpolating engine compares every near row with every other.
_MOST_SMOTE_ROWS = 1_000

REASONS = ("condition", "schema", "constraint", "quality", "duplicate", "copied patient")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DrawnRows:
    """Exactly the rows asked for, and their account.

    Attributes
    ----------
    values : ndarray of shape (n_wanted, n_columns)
        Encoded rows.
    n_generated : int
        Candidates drawn.
    rejected : dict of str to int
        Candidates stopped, by reason; ``"surplus"`` counts good ones that were not needed.
        `n_generated` is the number of rows plus the sum of these.
    """

    values: FloatArray
    n_generated: int
    rejected: dict[str, int]

    @property
    def n_accepted(self) -> int:
        """Rows kept."""
        return len(self.values)


class RowDrawer:
    """Draws rows from one table with one engine.

    Parameters
    ----------
    prepared : PreparedTable
    engine : str
        One of `fill_engines.ENGINES`.
    seed : int
        Of the engine's training.
    quality_threshold : float, optional
        In [0, 1]; see `quality_gate`.
    is_gated : bool
        Whether copies of patients and duplicates are stopped.
    engine_settings : dict, optional
        Further arguments of the engine.

    Raises
    ------
    UsageError
        If there is no such engine or the threshold is out of range.
    """

    def __init__(
        self,
        prepared: PreparedTable,
        engine: str = "copula",
        *,
        seed: int = 0,
        quality_threshold: float | None = None,
        is_gated: bool = True,
        engine_settings: dict[str, Any] | None = None,
    ) -> None:
        if quality_threshold is not None and not 0 <= quality_threshold <= 1:
            raise UsageError(f"the quality threshold is {quality_threshold}; expected 0 to 1")
        if seed < 0:
            raise UsageError(f"the seed is {seed}; expected 0 or more")
        self.prepared = prepared
        self.engine = engine
        self._settings = engine_settings or {}
        make_engine(engine, **self._settings)  # an unknown name is refused before any work
        self._seed = seed
        self._threshold = quality_threshold
        self._is_gated = is_gated
        self._seen: set[tuple[float, ...]] = set()
        self._whole: FillEngine | None = None

    def fit(self) -> None:
        """Train on every row now, for an engine that trains; others learn when they draw."""
        if self.engine == "ctgan":
            self._whole = make_engine(self.engine, **self._settings)
            everything = np.ones(len(self.prepared.values), dtype=bool)
            self._whole.fit(self._fill_table(everything), self._seed)

    def forget(self) -> None:
        """Forget which rows were drawn before: the next ones may repeat them."""
        self._seen.clear()

    def draw(
        self,
        n_wanted: int,
        conditions: Sequence[Condition] = (),
        *,
        seed: int,
        among: BoolArray | None = None,
    ) -> DrawnRows:
        """Draw exactly `n_wanted` rows.

        Parameters
        ----------
        n_wanted : int
            At least 0.
        conditions : sequence of Condition
            Every row meets them all.
        seed : int
        among : ndarray of bool of shape (n_rows,), optional
            The only rows to learn from.

        Returns
        -------
        DrawnRows

        Raises
        ------
        RefusedError
            If the number cannot be reached; the message says what stopped the candidates and, for
            conditions that nobody meets, the nearest possible ones.
        """
        rejected = dict.fromkeys((*REASONS, "surplus"), 0)
        n_columns = len(self.prepared.analysed)
        if n_wanted == 0:
            return DrawnRows(values=np.empty((0, n_columns)), n_generated=0, rejected=rejected)
        values = self.prepared.values
        eligible = np.ones(len(values), dtype=bool) if among is None else among
        matching = meet_all(conditions, values) & eligible
        self._refuse_unseen(conditions, matching, eligible)
        near = self._near_rows(conditions, matching, eligible, seed)
        gap = Gap(
            name=describe(conditions),
            near=near,
            inside=np.flatnonzero(matching),
            is_in_region=lambda rows: np.ones(len(rows), dtype=bool),
        )
        engine = self._engine_for(gap.near, seed)
        compared = np.flatnonzero(matching)
        if len(compared) < MIN_NEAR_ROWS:
            compared = near
        real = RealRows.of(self._fill_table_of(compared)) if self._is_gated else None
        kept: list[FloatArray] = []
        n_kept = n_generated = 0
        batch = max(_MIN_BATCH, int(1.1 * n_wanted))
        for round_seed in fill_seeds(seed, _MAX_ROUNDS):
            rows = engine.draw(gap, batch, round_seed)
            n_generated += len(rows)
            good = self._gated(rows, conditions, near, real, rejected, round_seed)
            take = good[: n_wanted - n_kept]
            rejected["surplus"] += len(good) - len(take)
            kept.append(take)
            n_kept += len(take)
            if n_kept == n_wanted:
                break
            share = n_kept / max(1, n_generated)
            if n_generated >= _ENOUGH_TRIED and share < _MIN_ACCEPTED:
                break
            batch = int(np.clip(1.2 * (n_wanted - n_kept) / max(share, 0.01), _MIN_BATCH, 200_000))
        if n_kept < n_wanted:
            raise RefusedError(self._why(n_kept, n_wanted, n_generated, conditions, rejected))
        return DrawnRows(values=np.concatenate(kept), n_generated=n_generated, rejected=rejected)

    def _refuse_unseen(
        self, conditions: Sequence[Condition], matching: BoolArray, eligible: BoolArray
    ) -> None:
        """Refuse combinations of levels, and ranges, that no observed row has."""
        if matching.any():
            return
        values = self.prepared.values
        levels = [c for c in conditions if c.allowed is not None]
        base = meet_all(levels, values) & eligible
        is_reachable = bool(base.any())
        for condition in conditions:
            if condition.allowed is None and is_reachable:
                part = values[base, condition.index]
                part = part[~np.isnan(part)]
                # Between two observed values lies a possible one, beyond the last does not.
                is_reachable = len(part) > 1 and not (
                    part.max() < condition.low or part.min() > condition.high
                )
        if not is_reachable:
            raise RefusedError(
                f"no row can have {describe(conditions)}: none of the {int(eligible.sum())} "
                "observed rows does; the nearest possible is "
                f"{nearest_possible(conditions, self.prepared)}"
            )

    def _near_rows(
        self, conditions: Sequence[Condition], matching: BoolArray, eligible: BoolArray, seed: int
    ) -> IntArray:
        inside = np.flatnonzero(matching)
        if len(inside) < MIN_NEAR_ROWS and conditions:
            inside = self._extend(inside, conditions, eligible)
        if self.engine == "smote-nc" and len(inside) > _MOST_SMOTE_ROWS:
            rng = np.random.default_rng(seed)
            inside = np.sort(rng.choice(inside, _MOST_SMOTE_ROWS, replace=False))
        return inside

    def _extend(
        self, inside: IntArray, conditions: Sequence[Condition], eligible: BoolArray
    ) -> IntArray:
        """Add the rows that come nearest to meeting the conditions."""
        prepared = self.prepared
        scale = prepared.values.std(axis=0)
        distance = np.zeros(len(prepared.values))
        for condition in conditions:
            column_scale = scale[condition.index]
            one = 1.0 if not column_scale > 0 else float(column_scale)
            distance += condition.distance(prepared.values, one)
        if len(inside):
            points = prepared.points(prepared.values)
            away = ((points - points[inside].mean(axis=0)) ** 2).mean(axis=1)
            distance += 0.1 * np.sqrt(away)
        distance[inside] = -1.0
        distance[~eligible] = np.inf
        order = np.argsort(distance, kind="stable")[:EXTENDED_NEAR_ROWS]
        return np.asarray(order[np.isfinite(distance[order])])

    def _engine_for(self, near: IntArray, seed: int) -> FillEngine:
        if self._whole is not None:
            return self._whole
        engine = make_engine(self.engine, **self._settings)
        is_near = np.zeros(len(self.prepared.values), dtype=bool)
        is_near[near] = True
        engine.fit(self._fill_table(is_near), self._seed)
        return engine

    def _fill_table(self, positive: BoolArray) -> FillTable:
        return FillTable(
            values=self.prepared.values,
            positive=positive,
            schema=self.prepared.schema,
            constraints=(),  # checked here, so that what each rule stops is counted
            distance=self.prepared.points,
        )

    def _fill_table_of(self, rows: IntArray) -> FillTable:
        return FillTable(
            values=self.prepared.values[rows],
            positive=np.ones(len(rows), dtype=bool),
            schema=self.prepared.schema,
            constraints=(),
            distance=self.prepared.points,
        )

    def _gated(
        self,
        rows: FloatArray,
        conditions: Sequence[Condition],
        near: IntArray,
        real: RealRows | None,
        rejected: dict[str, int],
        seed: int,
    ) -> FloatArray:
        """Pass candidates through the gates in order, counting what each stops."""

        def stop(reason: str, good: BoolArray) -> None:
            nonlocal rows
            rejected[reason] += int((~good).sum())
            rows = rows[good]

        stop("condition", meet_all(conditions, rows))
        for condition in conditions:
            if condition.pinned is not None:
                rows[:, condition.index] = condition.pinned
        stop("schema", self.prepared.schema.holds(rows))
        for rule in self.prepared.rules:
            if len(rows):
                stop("constraint", rule.holds(rows))
        if self._threshold is not None and len(rows):
            observed = self.prepared.values[near]
            stop("quality", quality_gate(rows, observed, self._threshold, seed))
        if real is not None and len(rows):
            stop("duplicate", duplicate_gate(rows, self._seen, real))
            stop("copied patient", copied_patient_gate(rows, self._fill_table_of(near), real))
        return rows

    def _why(
        self,
        n_kept: int,
        n_wanted: int,
        n_generated: int,
        conditions: Sequence[Condition],
        rejected: dict[str, int],
    ) -> str:
        worst = max(REASONS, key=lambda reason: rejected[reason])
        text = (
            f"{n_kept} of {n_wanted} rows with {describe(conditions)} could be generated: "
            f"{rejected[worst]} of {n_generated} candidates were stopped as '{worst}'; "
        )
        if worst == "condition":
            return f"{text}the nearest possible is {nearest_possible(conditions, self.prepared)}"
        advice = {
            "constraint": "loosen the constraints, or ask for fewer",
            "quality": "lower quality_threshold, or ask for fewer",
            "duplicate": "ask for fewer: the columns hold too few different rows",
            "copied patient": "ask for fewer: what is left to draw is what single patients have",
        }
        return text + advice.get(worst, "ask for fewer")


def quality_gate(rows: FloatArray, observed: FloatArray, threshold: float, seed: int) -> BoolArray:
    """Say which generated rows are good enough.

    A row's quality is ``min(1, 2 * (1 - p))``, with p the probability of a class-balanced boosted
    classifier, trained on the other half of the rows, that it is generated: 1 if it looks at least as
    much like an observed row, 0 if it is surely generated. With fewer than 20 rows on either side
    there is nothing to learn from and all pass.
    """
    n_least, n_most = 20, 5_000
    if min(len(rows), len(observed)) < n_least:
        return np.ones(len(rows), dtype=bool)
    rng = np.random.default_rng(seed)
    if len(observed) > n_most:
        observed = observed[rng.choice(len(observed), n_most, replace=False)]
    half = np.arange(len(rows)) % 2
    half_observed = np.arange(len(observed)) % 2
    probability = np.empty(len(rows))
    for part in (0, 1):
        made = rows[half != part][:n_most]
        real = observed[half_observed != part]
        is_generated = np.concatenate([np.ones(len(made)), np.zeros(len(real))])
        model = boosted_model(np.vstack([made, real]), is_generated, is_balanced=True)
        probability[half == part] = model(rows[half == part])[:, 1]
    return np.asarray(np.minimum(1.0, 2 * (1 - probability)) >= threshold)
