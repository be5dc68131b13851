"""Complete numeric tables on which the scan is compared with the published package."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Settings = dict[str, int]


def scan_cases() -> Iterator[tuple[str, FloatArray, IntArray, Settings]]:
    """Give name, values, labels and the scan's settings."""
    cancer = load_breast_cancer()
    yield "breast cancer", cancer.data, cancer.target, {}
    yield "breast cancer, 6 bins", cancer.data, cancer.target, {"n_bins": 6, "top_k": 25}
    diabetes = load_diabetes()
    yield "diabetes", diabetes.data, (diabetes.target >= 150).astype(int), {}
    wine = load_wine()
    yield "wine, class 2", wine.data, (wine.target == 2).astype(int), {}
    for n_rows, n_features in ((120, 2), (700, 1), (1_500, 12), (5_000, 8)):
        rng = np.random.default_rng(n_rows)
        values = rng.normal(size=(n_rows, n_features)) @ rng.normal(size=(n_features, n_features))
        labels = (rng.random(n_rows) < 0.25).astype(int)
        yield f"{n_rows} x {n_features}", values, labels, {}
    rng = np.random.default_rng(9)
    values = np.column_stack(
        [rng.integers(0, 3, 900), rng.integers(0, 2, 900), rng.normal(50, 9, 900), np.full(900, 7)]
    )
    yield "codes and a constant", values.astype(float), rng.integers(0, 2, 900), {"n_bins": 5}
