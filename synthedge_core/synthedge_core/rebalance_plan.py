"""How many rows every class will have: by strategy and ratio, or as stated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.labels import Labels

Strategy = Literal["oversample", "undersample", "hybrid"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
# Below this many observed rows a class says too little about itself to generate from.
MIN_CLASS_ROWS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPlan:
    """What will happen to one class.

    Attributes
    ----------
    level : object
        The label value.
    n_observed, n_wanted : int
        Rows now, rows afterwards.
    """

    level: Any
    n_observed: int
    n_wanted: int

    @property
    def n_kept(self) -> int:
        """Observed rows that stay."""
        return min(self.n_observed, self.n_wanted)

    @property
    def n_dropped(self) -> int:
        """Observed rows that are left out."""
        return self.n_observed - self.n_kept

    @property
    def n_new(self) -> int:
        """Rows to generate."""
        return self.n_wanted - self.n_kept


@dataclass(frozen=True, kw_only=True, slots=True)
class RebalancePlan:
    """What a rebalancing would do, before anything is done.

    Attributes
    ----------
    target_column, strategy : str
    classes : tuple of ClassPlan
        Largest class first.
    n_unlabelled : int
        Rows without a label; they stay as they are.
    notes : tuple of str
        What to know beforehand.
    """

    target_column: str
    strategy: str
    classes: tuple[ClassPlan, ...]
    n_unlabelled: int
    notes: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows of the result."""
        return self.n_unlabelled + sum(c.n_wanted for c in self.classes)

    def to_frame(self) -> pd.DataFrame:
        """Give one row per class: observed, kept, dropped, generated, afterwards."""
        return pd.DataFrame(
            [
                {
                    self.target_column: c.level,
                    "observed": c.n_observed,
                    "kept": c.n_kept,
                    "left out": c.n_dropped,
                    "generated": c.n_new,
                    "afterwards": c.n_wanted,
                }
                for c in self.classes
            ]
        )

    def __str__(self) -> str:
        lines = [
            f"{self.strategy} of '{self.target_column}':",
            self.to_frame().to_string(index=False),
        ]
        return "\n".join([*lines, *self.notes])


def plan_classes(
    labels: Labels,
    counts: Mapping[Any, int],
    *,
    strategy: str,
    ratio: float | None,
    sampling_ratio: float | None,
    target_counts: Mapping[Any, int] | None,
) -> RebalancePlan:
    """Work out every class's number of rows.

    Parameters
    ----------
    labels : Labels
    counts : mapping of label value to int
        Observed rows.
    strategy : str
        ``"oversample"``: every smaller class grows to `ratio` times the largest, nothing is left out.
        ``"undersample"``: every larger class shrinks until the smallest is `ratio` times it.
        ``"hybrid"``: both, meeting where the number of rows stays (nearly) the same.
    ratio, sampling_ratio : float
        Two names for the same number, in (0, 1]; default 1.
    target_counts : mapping of label value to int
        Rows of each class afterwards, instead of a ratio; classes not named stay.

    Returns
    -------
    RebalancePlan

    Raises
    ------
    UsageError
        If an argument makes no sense, arguments contradict each other, or `target_counts` asks an
        oversampling to leave rows out (or an undersampling to generate).
    RefusedError
        If a class that must grow has fewer than 5 observed rows.
    """
    if strategy not in STRATEGIES:
        raise UsageError(
            f"there is no strategy '{strategy}'; choose one of {', '.join(STRATEGIES)}"
        )
    if None not in (ratio, sampling_ratio) and ratio != sampling_ratio:
        raise UsageError("ratio and sampling_ratio are the same thing; give one of them")
    if target_counts is not None:
        if ratio is not None or sampling_ratio is not None:
            raise UsageError("target_counts and a ratio contradict each other; give one of them")
        wanted = _stated(labels, counts, target_counts, strategy)
    else:
        share = ratio if ratio is not None else sampling_ratio
        wanted = _by_ratio(counts, strategy, 1.0 if share is None else share)
    classes = tuple(
        ClassPlan(level=level, n_observed=counts[level], n_wanted=wanted[level])
        for level in sorted(counts, key=lambda level: -counts[level])
    )
    for one in classes:
        if one.n_new and one.n_observed < MIN_CLASS_ROWS:
            raise RefusedError(
                f"class {one.level} of '{labels.column}' has {one.n_observed} observed rows, expected "
                f"at least {MIN_CLASS_ROWS} to generate from; collect or request real rows, leave the "
                "class out with target_counts, or join it with another"
            )
    return RebalancePlan(
        target_column=labels.column,
        strategy=strategy,
        classes=classes,
        n_unlabelled=labels.n_unlabelled,
        notes=_notes(classes),
    )


def _stated(
    labels: Labels, counts: Mapping[Any, int], target_counts: Mapping[Any, int], strategy: str
) -> dict[Any, int]:
    wanted = dict(counts)
    for given, number in target_counts.items():
        level = next((x for x in counts if x == given or str(x) == str(given)), None)
        if level is None:
            raise UsageError(
                f"target_counts names class {given}, but '{labels.column}' has only "
                f"{', '.join(map(str, counts))}"
            )
        if isinstance(number, bool) or int(number) != number or number < 0:
            raise UsageError(
                f"target_counts gives class {given} {number} rows; expected a whole number"
            )
        if strategy == "oversample" and number < counts[level]:
            raise UsageError(
                f"target_counts gives class {given} {number} rows, fewer than its {counts[level]} "
                "observed ones; an oversampling leaves nothing out: use strategy 'hybrid'"
            )
        if strategy == "undersample" and number > counts[level]:
            raise UsageError(
                f"target_counts gives class {given} {number} rows, more than its {counts[level]} "
                "observed ones; an undersampling generates nothing: use strategy 'hybrid'"
            )
        wanted[level] = int(number)
    return wanted


def _by_ratio(counts: Mapping[Any, int], strategy: str, ratio: float) -> dict[Any, int]:
    if not 0 < ratio <= 1:
        raise UsageError(
            f"the ratio is {ratio}; expected above 0 and at most 1 (smaller class over largest)"
        )
    if strategy == "oversample":
        least = _up(ratio * max(counts.values()))
        return {level: max(n, least) for level, n in counts.items()}
    if strategy == "undersample":
        most = _down(min(counts.values()) / ratio)
        return {level: min(n, most) for level, n in counts.items()}

    def between(most: int) -> dict[Any, int]:
        least = _up(ratio * most)
        return {level: min(max(n, least), most) for level, n in counts.items()}

    # The total grows with the largest class's number: bisect for the one that changes it least.
    total = sum(counts.values())
    low, high = 1, max(counts.values())
    while low < high:
        middle = (low + high) // 2
        if sum(between(middle).values()) < total:
            low = middle + 1
        else:
            high = middle
    return min(
        (between(most) for most in {max(1, low - 1), low}),
        key=lambda wanted: abs(sum(wanted.values()) - total),
    )


def _up(number: float) -> int:
    return math.ceil(number - 1e-9)


def _down(number: float) -> int:
    return math.floor(number + 1e-9)


def _notes(classes: tuple[ClassPlan, ...]) -> tuple[str, ...]:
    return tuple(
        f"class {c.level}: {c.n_new / c.n_observed:.1f} generated rows for each observed one; "
        "they repeat what those say and add nothing to it"
        for c in classes
        if c.n_new > c.n_observed
    )
