"""How severe a table's gaps are."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

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
