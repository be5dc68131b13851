"""How fast the coordinator matches, against the matrix product alone and against reading the numbers.

The functions are those it runs at a publication: `nearest_in_less_need` on points of a frame (invented ones, all
different and in clusters of similar ones, which is its worst case) and a `Matcher` that takes in one more report
(a consortium of one dictionary). The product alone multiplies the same blocks, the quicker of two ways: one block
after the other on all cores, or a block a core.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from bench import Bar, run_benchmark
from threadpoolctl import threadpool_limits

from synthedge_core.dictionary import parse_dictionary
from synthedge_core.grids import NamedGrid
from synthedge_core.holes import GridStatistics
from synthedge_core.match_strategies import SiteReport
from synthedge_core.matching import Matcher
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_core.similarity import Points, nearest_in_less_need

N_COLUMNS = 64
N_BEST = 10
SIMILARITY = 0.7
# One site's gaps, as three grids of twelve voxels give.
GAPS_A_SITE = 36
QUERIES, CANDIDATES = 256, 4096


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Shortest of several times, which other work on the machine disturbs least."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def points(n: int, n_masks: int, n_columns: int = N_COLUMNS) -> Points:
    """Invented gaps of n / 36 sites; in clusters of 50, so that there is something to find."""
    generator = np.random.default_rng(n)
    centres = generator.normal(size=(max(1, n // 50), n_columns)).astype(np.float32)
    vectors = centres[generator.integers(0, len(centres), n)]
    vectors += 0.5 * generator.standard_normal(size=vectors.shape, dtype=np.float32)
    owner = generator.permutation(np.arange(n) // GAPS_A_SITE)
    masks = np.ones((1, n_columns), dtype=np.bool_)
    if n_masks > 1:
        masks = generator.random((n_masks, n_columns)) < 0.85
        vectors *= masks[owner % n_masks]
    return Points(
        vectors=vectors,
        masks=masks,
        mask_of=owner % n_masks,
        need=np.sort(generator.random(n)),
        owner=owner,
    )


def queries(candidates: Points, n: int) -> Points:
    """Gaps of whole sites, in more need than all others: nothing is spared by its need."""
    some = candidates.take(np.flatnonzero(candidates.owner <= n // GAPS_A_SITE)[:n])
    return replace(some, need=np.full(n, 2.0))


def product_alone(asked: np.ndarray, others: np.ndarray) -> None:
    """Multiply every block, one after the other."""
    out = np.empty((QUERIES, CANDIDATES), dtype=np.float32)
    for start in range(0, len(asked), QUERIES):
        rows = asked[start : start + QUERIES]
        for left in range(0, len(others), CANDIDATES):
            block = others[left : left + CANDIDATES]
            np.matmul(rows, block.T, out=out[: len(rows), : len(block)])


def product_by_core(asked: np.ndarray, others: np.ndarray) -> None:
    """Multiply every block, a block a core."""
    parts = [asked[start : start + QUERIES] for start in range(0, len(asked), QUERIES)]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor() as pool:
        list(pool.map(lambda part: product_alone(part, others), parts))


def all_against_all(n: int, n_asked: int, n_columns: int, repeats: int) -> tuple[float, float]:
    """Share of the product's speed that the search reaches, and masked over unmasked time."""
    plain, masked = points(n, 1, n_columns), points(n, n // GAPS_A_SITE, n_columns)
    asked, asked_masked = queries(plain, n_asked), queries(masked, n_asked)
    times = []
    # Side by side in every round: a machine that slows down slows all of them.
    for _ in range(repeats):
        times.append(
            (
                seconds(lambda: product_alone(asked.vectors, plain.vectors), 1),
                seconds(lambda: product_by_core(asked.vectors, plain.vectors), 1),
                seconds(lambda: _search(asked, plain), 1),
                seconds(lambda: _search(asked_masked, masked), 1),
            )
        )
    alone, by_core, found, found_masked = np.min(times, axis=0)
    return float(min(alone, by_core) / found), float(found_masked / found)


def _search(asked: Points, candidates: Points) -> None:
    nearest_in_less_need(asked, candidates, least=SIMILARITY, n_best=N_BEST)


def few_against_many(n: int, repeats: int) -> tuple[float, float]:
    """Time of 10 new gaps against n, in times of reading the n once; unmasked, and masked."""
    passes = []
    for n_masks in (1, 64):
        candidates = points(n, n_masks)
        asked = queries(candidates, 10)
        read = seconds(lambda c=candidates: c.vectors.max(), repeats)  # type: ignore[misc]
        found = seconds(lambda a=asked, c=candidates: _search(a, c), repeats)  # type: ignore[misc]
        passes.append(found / read)
    return passes[0], passes[1]


def one_more_report(n_sites: int) -> tuple[float, float]:
    """CPU seconds in which a matcher takes in all reports at once, and one more."""
    dictionary = parse_dictionary(public_dictionary("heart"))
    grids = [NamedGrid(dictionary, spec) for spec in dictionary.grids]
    generator = np.random.default_rng(3)
    reports = {f"site-{i}": _report(grids, generator) for i in range(n_sites)}
    matcher = Matcher(grids, similarity=SIMILARITY)
    started = time.process_time()
    matcher.update(reports)
    at_once = time.process_time() - started
    reports["site-0"] = _report(grids, generator)
    started = time.process_time()
    matcher.update(reports)
    return at_once, time.process_time() - started


def _report(grids: list[NamedGrid], generator: np.random.Generator) -> SiteReport:
    published = {}
    for grid in grids:
        counts = generator.integers(0, 40, grid.n_voxels) + 1.0
        rate = generator.random(grid.n_voxels)
        published[grid.name] = GridStatistics(
            density=counts / counts.mean(),
            positive_rate=rate,
            grid_positive_rate=float((counts * rate).sum() / counts.sum()),
            known=np.ones(grid.n_voxels, dtype=np.bool_),
        )
    return SiteReport(features=tuple(grids[0].frame.columns[:1]), grids=published)


def measure(*, quick: bool) -> list[Bar]:
    """Measure; quick asks for fewer gaps, against as many."""
    n_asked, repeats = (4_096, 2) if quick else (16_384, 5)
    bars = []
    for n in (100_000,) if quick else (100_000, 300_000):
        share, ratio = all_against_all(n, n_asked, N_COLUMNS, repeats)
        what = f"{n_asked} of {n} gaps, {N_COLUMNS} columns"
        bars.append(Bar(f"{what}: share of the product's speed", share, at_least=0.6))
        bars.append(Bar(f"{what}: masked over unmasked", ratio, at_most=2.5))
    share, ratio = all_against_all(100_000, n_asked, 32, repeats)
    bars.append(Bar("the same with 32 columns: share of the product's speed", share))
    bars.append(Bar("the same with 32 columns: masked over unmasked", ratio, at_most=2.5))
    plain, masked = few_against_many(1_000_000, repeats)
    bars.append(Bar("10 gaps against 1,000,000, in read passes", plain, at_most=12))
    bars.append(Bar("10 gaps against 1,000,000, masked, in read passes", masked))
    at_once, one_more = one_more_report(300 if quick else 3_000)
    what = "300" if quick else "3000"
    bars.append(Bar(f"{what} sites of one dictionary at once, CPU seconds", at_once))
    bars.append(Bar(f"one more report at {what} sites, CPU seconds", one_more))
    return bars


if __name__ == "__main__":
    run_benchmark("matching", measure)
