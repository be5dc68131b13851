"""Fill gaps with generated rows: draw, gate, count.

Engines draw candidates; every candidate passes the same gates; what each gate stopped is counted,
and a voxel that cannot be filled says why instead of lowering the gates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from synthedge_core import fill_gates
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.fill_constraints import combinations
from synthedge_core.fill_engines import FillEngine, FillTable, Gap, fill_seeds

FloatArray = npt.NDArray[np.float64]

# Rounds of drawing per gap. Each draws twice what is still wanted, so a gap where 4 % of the
# candidates pass is still filled.
_MAX_ROUNDS = 12
_MIN_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class VoxelReport:
    """What was asked for in a voxel and what became of it.

    Attributes
    ----------
    voxel : str
        Label of the voxel.
    engine : str
        Engine that drew the rows.
    requested, generated, accepted : int
        Rows wanted, candidates drawn, rows kept.
    rejected : mapping of str to int
        Candidates stopped by each gate, in the order of the gates; ``"surplus"`` counts good ones
        that were not needed.
    note : str
        Why fewer rows than requested came out; empty if all did.
    """

    voxel: str
    engine: str
    requested: int
    generated: int
    accepted: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FilledRows:
    """Generated rows and their account.

    Attributes
    ----------
    values : ndarray of shape (n_accepted, n_columns)
        Encoded rows.
    voxels : tuple of str
        The voxel each row was made for.
    reports : tuple of VoxelReport
        One per gap, in the order asked for.
    """

    values: FloatArray
    voxels: tuple[str, ...]
    reports: tuple[VoxelReport, ...]


def fill_gaps(
    table: FillTable, gaps: Sequence[Gap], requested: Sequence[int], engine: FillEngine, seed: int
) -> FilledRows:
    """Draw rows for gaps.

    Parameters
    ----------
    table : FillTable
        The real rows and what every row must respect.
    gaps : sequence of Gap
        Voxels to fill.
    requested : sequence of int
        Rows wanted per gap, each at least 1.
    engine : FillEngine
        Trained here, once.
    seed : int
        At least 0. The same arguments and seed give byte-identical rows.

    Returns
    -------
    FilledRows

    Raises
    ------
    UsageError
        If a number of rows is below 1, or the numbers do not fit the gaps.
    RefusedError
        If the engine cannot learn from this table.
    """
    if len(requested) != len(gaps) or any(n < 1 for n in requested):
        raise UsageError("expected one number of rows, at least 1, for every gap")
    if seed < 0:
        raise UsageError(f"the seed is {seed}; expected 0 or more")
    seeds = fill_seeds(seed, 1 + len(gaps) * _MAX_ROUNDS)
    engine.fit(table, seeds[0])
    real = fill_gates.RealRows.of(table)
    seen: set[tuple[float, ...]] = set()
    parts: list[FloatArray] = []
    labels: list[str] = []
    reports: list[VoxelReport] = []
    for i, (gap, n_wanted) in enumerate(zip(gaps, requested, strict=True)):
        own_seeds = seeds[1 + i * _MAX_ROUNDS : 1 + (i + 1) * _MAX_ROUNDS]
        rows, report = _fill_one(table, gap, n_wanted, engine, own_seeds, real, seen)
        parts.append(rows)
        labels.extend([gap.name] * len(rows))
        reports.append(report)
    values = np.concatenate(parts) if parts else np.empty((0, table.schema.n_columns))
    return FilledRows(values=values, voxels=tuple(labels), reports=tuple(reports))


def _fill_one(
    table: FillTable,
    gap: Gap,
    n_wanted: int,
    engine: FillEngine,
    seeds: Sequence[int],
    real: fill_gates.RealRows,
    seen: set[tuple[float, ...]],
) -> tuple[FloatArray, VoxelReport]:
    rejected = dict.fromkeys((*fill_gates.GATES, "surplus"), 0)
    kept: list[FloatArray] = []
    n_kept = n_generated = 0
    note = ""
    for seed in seeds:
        if n_kept >= n_wanted:
            break
        try:
            rows = engine.draw(gap, max(_MIN_BATCH, 2 * (n_wanted - n_kept)), seed)
        except RefusedError as refused:
            note = str(refused)
            break
        n_generated += len(rows)
        good = _gated(rows, gap, table, real, seen, rejected)
        kept.append(good[: n_wanted - n_kept])
        rejected["surplus"] += max(0, len(good) - (n_wanted - n_kept))
        n_kept += len(kept[-1])
    if n_kept < n_wanted and not note:
        worst = max(fill_gates.GATES, key=lambda gate: rejected[gate])
        note = (
            f"{n_kept} of {n_wanted} rows: {rejected[worst]} of {n_generated} candidates were "
            f"stopped by the gate '{worst}'; ask for fewer, or collect or request real rows"
        )
    values = np.concatenate(kept) if kept else np.empty((0, table.schema.n_columns))
    return values, VoxelReport(
        voxel=gap.name,
        engine=engine.name,
        requested=n_wanted,
        generated=n_generated,
        accepted=n_kept,
        rejected=rejected,
        note=note,
    )


def _gated(
    rows: FloatArray,
    gap: Gap,
    table: FillTable,
    real: fill_gates.RealRows,
    seen: set[tuple[float, ...]],
    rejected: dict[str, int],
) -> FloatArray:
    """Pass candidates through the gates in order, counting what each stops."""
    near = table.values[gap.near]
    fresh: set[tuple[float, ...]] = set(seen)
    gates: dict[str, Callable[[FloatArray], fill_gates.BoolArray]] = {
        "rules": lambda r: fill_gates.rules_gate(r, table),
        "region": lambda r: fill_gates.region_gate(r, gap.is_in_region),
        "duplicate": lambda r: fill_gates.duplicate_gate(r, fresh, real),
        "copied patient": lambda r: fill_gates.copied_patient_gate(r, table, real),
        "discriminator": lambda r: fill_gates.discriminator_gate(r, near, table),
    }
    for name, gate in gates.items():
        if len(rows) == 0:
            break
        good = gate(rows)
        rejected[name] += int((~good).sum())
        rows = rows[good]
    seen.update(combinations(rows, range(rows.shape[1])))
    return rows
