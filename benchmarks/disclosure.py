"""What attacks on gap reports achieve, beside what is promised; both modes.

By noise: the best guess at one patient from many reports, as a lower bound on epsilon, beside the epsilon of
OpenDP's map. By threshold: counts recovered from exact rates and from ours, small groups that published margins
narrow down with and without complementary suppression, and one patient more seen in the difference of two
reports. On made-up tables with nested grids, and on the hospitals of the demonstration.
"""

from collections.abc import Sequence

import numpy as np
from attacks import BoolArray, FloatArray, IntArray, epsilon_at_least, knowledge, smallest_total
from bench import Bar, run_benchmark

from synthedge_client.attacker import NEGATIVE, POSITIVE, Group, Layout, Reader
from synthedge_client.protection import ProtectedCounts, dp_scale, guarantees, protect_dp
from synthedge_client.thresholds import Grid, protect_threshold
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.grids import NamedGrid
from synthedge_deploy.diabetes import diabetes_cohort

K = 5
BASE = 60  # patients of a voxel, so that no noisy count is clipped

NESTED = parse_dictionary(
    """
schema_version = 1
name = "nested"
[target]
column = "ill"
positive = "1"
definition = "made up"
[[features]]
name = "sex"
kind = "binary"
levels = ["1", "2"]
privacy = "measurement"
[[features]]
name = "stage"
kind = "ordinal"
levels = ["1", "2", "3"]
center = 1
scale = 1
privacy = "measurement"
[[grids]]
name = "sex"
features = ["sex"]
[[grids]]
name = "stage"
features = ["stage"]
[[grids]]
name = "sex x stage"
features = ["sex", "stage"]
[policy]
disclosure = "threshold"
epsilon = 1.0
epsilon_total = 4.0
min_count = 5
min_sites = 3
similarity = 0.7
rows_per_transfer = 20
"""
)


def guess(
    n_runs: int, n_grids: int, epsilon: float, *, n_releases: int = 1, exchange: bool
) -> float:
    """Measure epsilon: one patient in every grid comes, or takes the place of another."""

    def draw(is_there: bool) -> FloatArray:
        columns = []
        for _ in range(n_releases):
            one = [np.full(n_runs, BASE + is_there) for _ in range(n_grids)]
            other = [np.full(n_runs, BASE + (exchange and not is_there)) for _ in range(n_grids)]
            # Each voxel of the call is a run of its own; the other patient counts among the negatives.
            told = protect_dp(one, other, epsilon)
            columns += [grid.positives for grid in told]
            columns += [grid.negatives for grid in told] if exchange else []
        return np.column_stack(columns)

    def llr(reports: FloatArray) -> FloatArray:
        nearer = np.abs(reports - BASE) - np.abs(reports - BASE - 1)
        if exchange:
            own = np.arange(reports.shape[1]) // n_grids % 2 == 0
            nearer = np.where(own, nearer, -nearer)
        ratio: FloatArray = nearer.sum(axis=1) / dp_scale(n_grids, epsilon)
        return ratio

    return epsilon_at_least(draw, llr)


def by_noise(*, quick: bool) -> list[Bar]:
    """Measure the distinguishing attack."""
    n_runs, bars = (20_000 if quick else 400_000), []
    for n_grids, epsilon in ((1, 1.0), (3, 0.5), (3, 1.0), (3, 2.0)):
        for exchange, name in ((False, "add_or_remove"), (True, "replace")):
            promised = guarantees(n_grids, epsilon)[name]
            what = (
                f"epsilon measured, grids: {n_grids}, epsilon {epsilon:g}, {name.replace('_', ' ')}"
            )
            measured = guess(n_runs, n_grids, epsilon, exchange=exchange)
            bars.append(Bar(what, measured, at_most=promised))
    averaged = guess(n_runs, 3, 1.0, n_releases=4, exchange=False)
    bars.append(
        Bar("epsilon measured, averaging the 4 releases of a budget", averaged, at_most=4.0)
    )
    return bars


def primary_only(
    voxels: IntArray, positive: BoolArray, grids: Sequence[Grid]
) -> list[ProtectedCounts]:
    """Round and suppress each voxel by itself, as is often done."""
    found = []
    for g, grid in enumerate(grids):
        n_voxels = int(np.prod(grid.shape))
        counts = np.stack(
            [
                np.bincount(
                    voxels[(positive == label) & (voxels[:, g] >= 0), g], minlength=n_voxels
                )
                for label in (True, False)
            ]
        )
        hidden = (counts.sum(axis=0) > 0) & ((counts.sum(axis=0) < K) | (counts < K).all(axis=0))
        told = np.where(counts < K, (K - 1) / 2, np.maximum(5 * np.round(counts / 5), K))
        told[:, hidden | (counts.sum(axis=0) == 0)] = 0
        found.append(ProtectedCounts(told[0], told[1], hidden, ("",) * n_voxels))
    return found


def narrowed(
    layouts: Sequence[Layout],
    protected: list[ProtectedCounts],
    voxels: IntArray,
    positive: BoolArray,
) -> tuple[int, int]:
    """Count small classes of voxels, and those of which a reader can exclude a count from 0 to k-1."""
    reader = Reader(layouts, knowledge(protected, K), len(positive))
    n_small = n_narrowed = 0
    for g in range(len(layouts)):
        for voxel in np.unique(voxels[voxels[:, g] >= 0, g]):
            inside = voxels[:, g] == voxel
            for label, of_label in ((POSITIVE, positive), (NEGATIVE, ~positive)):
                if (inside & of_label).sum() < K:
                    low, high = reader.bounds(Group(label, {g: int(voxel)}))
                    n_small += 1
                    n_narrowed += low > 0 or high < K - 1
    return n_small, n_narrowed


def nested_tables(n_tables: int) -> list[Bar]:
    """Measure margins and differences on made-up hospitals."""
    grids = [NamedGrid(NESTED, spec) for spec in NESTED.grids]
    small = alone = together = moved_alone = moved = n_given_up = n_voxels = 0
    for seed in range(n_tables):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(60, 400))
        shares = rng.dirichlet(np.full(3, 2.0))
        values = np.column_stack([rng.integers(0, 2, n), rng.choice(3, n, p=shares)]).astype(float)
        values[rng.random(values.shape) < 0.02] = np.nan
        positive = rng.random(n) < rng.uniform(0.1, 0.5)
        voxels = np.column_stack([grid.assign(values) for grid in grids])
        naive = primary_only(voxels, positive, grids)
        ours, figures = protect_threshold(grids, voxels, positive, K)
        n_small, n_alone = narrowed(grids, naive, voxels, positive)
        small, alone = small + n_small, alone + n_alone
        together += narrowed(grids, ours, voxels, positive)[1]
        n_voxels += sum(len(p.suppressed) for p in ours)
        n_given_up += sum(
            (p.suppressed & ~q.suppressed).sum() for p, q in zip(ours, naive, strict=True)
        )
        one_less = np.arange(n) != 0
        again_naive = primary_only(voxels[one_less], positive[one_less], grids)
        again, _ = protect_threshold(grids, voxels[one_less], positive[one_less], K, figures)
        moved_alone += any(not same(a, b) for a, b in zip(naive, again_naive, strict=True))
        moved += any(not same(a, b) for a, b in zip(ours, again, strict=True))
    return [
        Bar("nested grids, small groups narrowed, each voxel by itself, share", alone / small),
        Bar("nested grids, small groups narrowed, ours, share", together / small, at_most=0.0),
        Bar("nested grids, voxels given up as complements, share", n_given_up / n_voxels),
        Bar(
            "one patient seen in the difference of two reports, rounded anew",
            moved_alone / n_tables,
        ),
        Bar(
            "one patient seen in the difference of two reports, ours", moved / n_tables, at_most=0.0
        ),
    ]


def same(one: ProtectedCounts, other: ProtectedCounts) -> bool:
    """Whether two releases show the same figures of a grid."""
    return bool(
        np.array_equal(one.positives, other.positives)
        and np.array_equal(one.negatives, other.negatives)
        and np.array_equal(one.suppressed, other.suppressed)
    )


def real_hospitals(seeds: int) -> list[Bar]:
    """Try to recover the counts of the demonstration's hospitals from rates."""
    tried = exact_found = ours_found = suppressed = n_voxels = 0
    for seed in range(seeds):
        cohort = diabetes_cohort(seed)
        grids = [NamedGrid(cohort.dictionary, spec) for spec in cohort.dictionary.grids]
        for hospital in cohort.hospitals:
            values, positive = hospital.samples.values, hospital.samples.positive
            voxels = np.column_stack([grid.assign(values) for grid in grids])
            protected, _ = protect_threshold(grids, voxels, positive, K)
            for g, (grid, told) in enumerate(zip(grids, protected, strict=True)):
                inside = voxels[:, g] >= 0
                p = np.bincount(voxels[inside & positive, g], minlength=grid.n_voxels)
                n = np.bincount(voxels[inside & ~positive, g], minlength=grid.n_voxels)
                tried += 1
                exact_found += is_recovered(p, n, p, n)
                ours_found += is_recovered(told.positives, told.negatives, p, n)
                suppressed += int(told.suppressed.sum())
                n_voxels += grid.n_voxels
    return [
        Bar(
            "hospital grids whose counts are recovered from exact rates, share", exact_found / tried
        ),
        Bar(
            "hospital grids whose counts are recovered from ours, share",
            ours_found / tried,
            at_most=0.0,
        ),
        Bar("hospital voxels suppressed by threshold, share", suppressed / n_voxels),
    ]


def is_recovered(
    p: FloatArray | IntArray, n: FloatArray | IntArray, true_p: IntArray, true_n: IntArray
) -> bool:
    """Whether the rates of some counts give the true ones away."""
    rates = voxel_statistics(p, n)
    found = smallest_total(rates.density, rates.positive_rate, most=2_000)
    if found is None:
        return False
    positives, counts = found.positives, found.counts
    return np.array_equal(positives, true_p) and np.array_equal(counts, true_p + true_n)


def measure(*, quick: bool) -> list[Bar]:
    """Measure all of it."""
    return [
        *by_noise(quick=quick),
        *nested_tables(10 if quick else 60),
        *real_hospitals(1 if quick else 5),
    ]


if __name__ == "__main__":
    run_benchmark("disclosure", measure)
