"""How severe a table's gaps are, and what to do about them, in plain words.

The verdict is calibrated: NONE means that nothing is missing that chance would not explain (at most
5 of 100 tables of pure noise get another level). The published package's score is kept beside it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from synthedge_core.analysis import Analysis
from synthedge_core.benefit import Benefit, estimate_benefit
from synthedge_core.gap_test import GapTest
from synthedge_core.scan import Scan

Level = Literal["NONE", "MILD", "MODERATE", "SEVERE"]
LEVELS: tuple[Level, ...] = ("NONE", "MILD", "MODERATE", "SEVERE")
# The published package's limits between its levels.
LIMITS = (0.15, 0.35, 0.60)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSeverity:
    """The published package's severity, kept for comparability only.

    Attributes
    ----------
    score : float
        In [0, 1].
    level : Level
    """

    score: float
    level: Level


def level_of(score: float) -> Level:
    """Name the level of a score: NONE < 0.15 <= MILD < 0.35 <= MODERATE < 0.60 <= SEVERE."""
    return LEVELS[sum(score >= limit for limit in LIMITS)]


def seed_severity(scan: Scan) -> SeedSeverity:
    """Give the published package's severity of a scan.

    Measured, it calls pure noise SEVERE from 5,000 rows on and correlates negatively with the
    benefit of filling: never use it for a decision.

    Notes
    -----
    ``0.35 max + 0.25 mean of the top voxels' scores + 0.25 share of voxels above 0.6 +
    0.15 max(0, 1 - 2 positive rate) - 0.3 min(1, 300 / rows)``, clipped to [0, 1].
    """
    if not scan.voxels:
        return SeedSeverity(score=0.0, level="NONE")
    top = [voxel.gap_score for voxel in scan.top]
    share_high = float(np.mean([voxel.gap_score > 0.6 for voxel in scan.voxels]))
    rate = float(scan.positives.sum() / scan.n_rows)
    raw = (
        0.35 * top[0]
        + 0.25 * float(np.mean(top))
        + 0.25 * share_high
        + 0.15 * max(0.0, 1.0 - 2.0 * rate)
        - 0.3 * min(1.0, 300.0 / scan.n_rows)
    )
    score = round(float(np.clip(raw, 0.0, 1.0)), 4)
    return SeedSeverity(score=score, level=level_of(score))


# Below so many positives no fill was measured to be trustworthy.
FEW_POSITIVES = 25
# Positive rows that an engine can learn a region from.
_FEW_NEAR = 10
_IMBALANCED = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Severity:
    """The verdict on a table.

    Attributes
    ----------
    level : Level
        Calibrated.
    score : float
        In [0, 1], by the same limits: for a confirmed gap the share of its expected positives that
        is missing beyond one standard deviation, at least 0.15; otherwise below 0.15.
    p_value : float
        Chance of so bad a region in a table without a gap.
    will_help : bool
        Whether filling is expected to help: the gap is confirmed and the estimate is above 0.
    benefit : Benefit or None
        The estimate and its interval; None if it was not asked for or there are too few rows.
    recommendation : str
        What to do, in plain words.
    signals : dict
        What the verdict rests on.
    seed_score, seed_level
        The published package's, for comparability only.
    """

    level: Level
    score: float
    p_value: float
    will_help: bool
    benefit: Benefit | None
    recommendation: str
    signals: dict[str, Any]
    seed_score: float
    seed_level: Level


def judge(analysis: Analysis, *, with_benefit: bool = True, seed: int = 0) -> Severity:
    """Judge a table.

    Parameters
    ----------
    analysis : Analysis
    with_benefit : bool
        Estimate the benefit of filling too, which takes seconds; without it ``will_help`` rests on
        the gap test alone.
    seed : int
        Of the estimate.

    Returns
    -------
    Severity
    """
    test = analysis.gap_test
    published = seed_severity(analysis.scan)
    benefit = estimate_benefit(analysis, seed=seed) if with_benefit else None
    n_positive = int(analysis.positive.sum())
    is_learnable = n_positive >= _FEW_NEAR
    will_help = test.has_gap and is_learnable and (benefit is None or benefit.estimate > 0)
    score = _score(test)
    rate = float(analysis.positive.mean())
    return Severity(
        level=level_of(score),
        score=score,
        p_value=test.p_value,
        will_help=will_help,
        benefit=benefit,
        recommendation=_recommendation(test, n_positive, rate, will_help, benefit),
        signals={
            "dataset_size": len(analysis.positive),
            "n_positive": n_positive,
            "positive_rate": round(rate, 4),
            "n_regions_tested": test.n_regions,
            "regions": [
                {
                    "region": region.name,
                    "rows": region.n_rows,
                    "positive": region.n_positive,
                    "expected": round(region.expected, 1),
                    "p_value": round(region.p_value, 4),
                }
                for region in test.regions[:5]
            ],
        },
        seed_score=published.score,
        seed_level=published.level,
    )


def _score(test: GapTest) -> float:
    if not test.has_gap:
        return round(0.149 * (1.0 - test.p_value), 4)
    return round(float(np.clip(test.regions[0].share_lacking, LIMITS[0], 1.0)), 4)


def _recommendation(
    test: GapTest, n_positive: int, rate: float, will_help: bool, benefit: Benefit | None
) -> str:
    if test.has_gap:
        worst = test.regions[0]
        words = (
            f"A gap: '{worst.name}' has {worst.n_positive} positive rows where the rest of the "
            f"table lets expect {worst.expected:.0f}. "
        )
        if n_positive < FEW_POSITIVES:
            return words + (
                f"With {n_positive} positive rows in all, synthetic rows would repeat the same few "
                "patients: collect or request real data instead."
            )
        if not will_help:
            return words + (
                "Filling it with synthetic rows is not expected to help a model: collect or "
                "request real data instead."
            )
        effect = "" if benefit is None else f" (expected: AUROC {benefit.estimate:+.3f})"
        return words + f"Filling it is expected to help{effect}; real rows help more."
    words = "No region lacks more positives than chance explains. "
    if n_positive < FEW_POSITIVES:
        return words + (
            f"But {n_positive} positive rows are too few to see a gap or to fill one: collect or "
            "request real data instead."
        )
    if rate < _IMBALANCED:
        return words + (
            f"Only {rate:.0%} of the rows are positive, everywhere alike: class weights or SMOTE "
            "may do better here than filling."
        )
    return words + "Leave the table as it is: filling is not expected to help."
