"""A hole carved into the diabetes data of scikit-learn, as in the demonstration."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from synthedge_core.gap_score import voxel_statistics
from synthedge_core.holes import GridStatistics, find_holes, hole_profile, rank_holes

CUTS = {"bp": (80, 90, 100), "bmi": (23, 26, 30)}


def _voxels(columns: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, int]]:
    """Flat voxel per sample and number of voxels per grid, by hand rather than by `NamedGrid`."""
    flat = {name: np.digitize(columns[name], cuts) for name, cuts in CUTS.items()}
    sex_age = (columns["sex"] - 1) * 3 + np.digitize(columns["age"], (40, 55))
    return {
        "bp": (flat["bp"], 4),
        "bmi": (flat["bmi"], 4),
        "sex x age": (sex_age.astype(int), 6),
    }


def _split(columns: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Four hospitals that differ in age and body mass; the first is the largest."""
    drivers = np.column_stack([columns["age"], columns["bmi"]])
    z = (drivers - drivers.mean(axis=0)) / drivers.std(axis=0, ddof=1)
    weights = np.array([[0, 0], [1, 0.5], [-1, 0.5], [0, -1.0]])
    logits = z @ weights.T + rng.gumbel(size=(len(z), 4))
    logits[:, 0] += np.log(3)
    hospital: np.ndarray = logits.argmax(axis=1)
    return hospital


@pytest.mark.parametrize("noise_scale", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_carved_hole_comes_first(seed: int, noise_scale: int) -> None:
    data = load_diabetes(scaled=False)
    columns = dict(zip(data.feature_names, data.data.T, strict=True))
    positive = data.target >= 150
    rng = np.random.default_rng(seed)
    hospital = _split(columns, rng)
    own = np.flatnonzero(hospital == 0)
    is_high = columns["bp"] >= 100
    train, _ = train_test_split(
        own, test_size=0.5, stratify=positive[own] * 2 + is_high[own], random_state=seed
    )
    train = train[~(positive[train] & is_high[train])]

    def published(rows: np.ndarray, flat: np.ndarray, n_voxels: int) -> GridStatistics:
        counts = [
            np.bincount(flat[rows[positive[rows] == label]], minlength=n_voxels)
            for label in (True, False)
        ]
        if noise_scale:
            stop = 1 - np.exp(-1 / noise_scale)
            noise = rng.geometric(stop, (2, n_voxels)) - rng.geometric(stop, (2, n_voxels))
            counts = [np.maximum(c + n, 0) for c, n in zip(counts, noise, strict=True)]
        s = voxel_statistics(counts[0], counts[1])
        return GridStatistics(
            density=s.density,
            positive_rate=s.positive_rate,
            grid_positive_rate=s.grid_positive_rate,
            known=np.ones(n_voxels, dtype=bool),
        )

    found = {}
    for name, (flat, n_voxels) in _voxels(columns).items():
        others = [published(np.flatnonzero(hospital == s), flat, n_voxels) for s in (1, 2, 3)]
        found[name] = find_holes(
            hole_profile(others),
            np.bincount(flat[train[positive[train]]], minlength=n_voxels),
            np.bincount(flat[train[~positive[train]]], minlength=n_voxels),
        )
    grid, hole = rank_holes(found)[0]
    assert (grid, hole.voxel, hole.observed) == ("bp", 3, 0)
