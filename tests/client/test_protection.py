"""Noise on every voxel, and what OpenDP says it is worth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from synthedge_client.protection import dp_scale, guarantees, protect_dp
from synthedge_core.errors import DisclosureRefusedError

counts = hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 60))


def pairs_of(*arrays: list[int]) -> list[np.ndarray]:
    return [np.array(array, dtype=np.int64) for array in arrays]


def test_every_voxel_of_every_grid_gets_noise_empty_ones_too() -> None:
    zeros = [np.zeros(12, dtype=np.int64)] * 3

    drawn = [protect_dp(zeros, zeros, epsilon=0.1) for _ in range(30)]

    assert all(len(grid.positives) == 12 and not grid.suppressed.any() for grid in drawn[0])
    for i_grid in range(3):
        for name in ("positives", "negatives"):
            values = np.array([getattr(grids[i_grid], name) for grids in drawn])
            # Clipped at zero, half of the draws stay above it: 2**-30 that a voxel never does.
            assert (values.max(axis=0) > 0).all()


def test_the_noise_is_as_large_as_sensitivity_over_epsilon_demands() -> None:
    truth = [np.full(1000, 10_000)]
    noise = protect_dp(truth, truth, epsilon=0.5)[0].positives - 10_000

    assert dp_scale(1, 0.5) == 2
    # A Laplace distribution of scale 2 has mean absolute deviation 2; 1000 draws know it to about 0.06.
    assert abs(np.abs(noise).mean() - 2.0) < 0.4
    assert abs(noise.mean()) < 0.5


@given(st.integers(1, 3), st.floats(0.01, 10))
@settings(max_examples=25, deadline=None)
def test_opendp_confirms_epsilon_for_a_patient_who_is_in_every_grid(
    n_grids: int, epsilon: float
) -> None:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64")
    measurement = dp.m.make_laplace(*space, scale=dp_scale(n_grids, epsilon))

    spent: float = measurement.map(n_grids)  # type: ignore[no-untyped-call]
    assert epsilon * (1 - 1e-6) <= spent <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, 0.0, -1.0])
def test_an_epsilon_that_bounds_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(DisclosureRefusedError, match="epsilon is"):
        protect_dp(pairs_of([1]), pairs_of([1]), epsilon)


def test_no_grid_means_no_release() -> None:
    with pytest.raises(DisclosureRefusedError, match="no grid"):
        protect_dp([], [], 1.0)


@given(counts)
@settings(max_examples=25, deadline=None)
def test_noisy_counts_are_whole_and_never_negative(positives: np.ndarray) -> None:
    (protected,) = protect_dp([positives], [positives], epsilon=1.0)

    for values in (protected.positives, protected.negatives):
        assert (values >= 0).all()
        assert (values % 1 == 0).all()


def test_both_kinds_of_neighbours_are_told_by_opendp_itself() -> None:
    told = guarantees(n_grids=3, epsilon=1.0)

    assert told["add_or_remove"] == pytest.approx(1.0, rel=1e-9)
    assert told["replace"] == pytest.approx(2.0, rel=1e-9)
