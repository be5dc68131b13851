"""The recipient's gate: received samples are compared with the agreement and with own rows, then taken or refused.

Rules
-----
* A delivery is taken whole or refused whole, but for rows of patients this site already has (`duplicates`): up to a
  fifth of the rows are left out beforehand.
* A feature is refused only if it differs both from own rows of the region (other labels: in a hole they are all
  negative) and from own positives (other regions): each differs from clean samples for good reasons of its own.
  Measured on deliveries between real hospitals, this refuses 0 of 60 clean ones (10 % against the region alone), 95 %
  with a wrong unit and 75 % with two columns swapped; a bias of 2 sd in one feature is seen in a third of the cases,
  and wrong labels cannot be seen in features at all.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthedge_core.dictionary import Dictionary
from synthedge_core.grids import NamedGrid

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MAX_DUPLICATE_SHARE = 0.2
MAX_KS = 0.85
# Below this a Kolmogorov-Smirnov distance of 0.85 between samples of one distribution is no rarity.
MIN_ROWS_FOR_KS = 8


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes
    ----------
    accepted : bool
    reason : str
        The rule in words; never a value.
    """

    accepted: bool
    reason: str


def check_delivery(
    samples: FloatArray,
    own: FloatArray,
    positive: BoolArray,
    dictionary: Dictionary,
    features: tuple[str, ...],
    grid: NamedGrid,
    voxel: int,
) -> GateResult:
    """Decide on one delivery.

    Parameters
    ----------
    samples : ndarray of shape (n_rows, n_features)
        What arrived, in dictionary units; NaN = missing.
    own : ndarray of shape (n_own, n_features)
        All of the recipient's own rows, in dictionary units.
    positive : ndarray of bool, shape (n_own,)
        Which of them are positive.
    dictionary : Dictionary
    features : tuple of str
        The features that were agreed on; every other column must be empty.
    grid, voxel
        The region that was asked for.

    Returns
    -------
    GateResult
    """
    problem = schema_problem(samples, dictionary, features, grid, voxel)
    if problem:
        return GateResult(False, problem)
    n_duplicates = len(samples) - len(np.unique(samples, axis=0))
    n_duplicates += int(_rows_in(samples, own).sum())
    if n_duplicates / len(samples) > MAX_DUPLICATE_SHARE:
        return GateResult(False, f"{n_duplicates} of {len(samples)} rows are duplicates")
    # The region's own features confine the samples; own positives elsewhere must differ in them.
    compared = [
        i
        for i, feature in enumerate(dictionary.features)
        if feature.name in features and feature.name not in grid.features
    ]
    region = own[grid.assign(own) == voxel]
    return _compare(samples, (region, own[positive]), dictionary, compared)


def schema_problem(
    samples: FloatArray,
    dictionary: Dictionary,
    features: tuple[str, ...],
    grid: NamedGrid,
    voxel: int,
) -> str:
    """What breaks dictionary or agreement: features, levels, plausible range, region; empty if nothing does."""
    agreed = np.isin(dictionary.feature_names, features)
    if not np.isnan(samples[:, ~agreed]).all():
        return "features arrived that were not agreed on"
    for i, feature in enumerate(dictionary.features):
        column = samples[:, i][~np.isnan(samples[:, i])]
        if feature.levels:
            if not np.isin(column, np.arange(len(feature.levels))).all():
                return f"'{feature.name}' holds levels the dictionary does not have"
        elif (
            feature.plausible
            and ((column < feature.plausible[0]) | (column > feature.plausible[1])).any()
        ):
            return f"'{feature.name}' lies outside its plausible range"
    n_outside = int((grid.assign(samples) != voxel).sum())
    if n_outside:
        return f"{n_outside} of {len(samples)} rows lie outside the requested region"
    return ""


def _compare(
    samples: FloatArray,
    references: tuple[FloatArray, ...],
    dictionary: Dictionary,
    features: list[int],
) -> GateResult:
    n_compared = 0
    for i in features:
        theirs = _present(samples[:, i])
        ours = [
            column
            for reference in references
            if len(column := _present(reference[:, i])) >= MIN_ROWS_FOR_KS
        ]
        if len(theirs) < MIN_ROWS_FOR_KS or not ours:
            continue
        n_compared += 1
        distance = min(ks_distance(theirs, column) for column in ours)
        if distance > MAX_KS:
            return GateResult(
                False,
                f"'{dictionary.features[i].name}' differs from own rows of the region and from own positives "
                f"(KS {distance:.2f}, limit {MAX_KS})",
            )
    return GateResult(
        True, f"schema, region and duplicates checked; {n_compared} features compared with own rows"
    )


def ks_distance(one: FloatArray, other: FloatArray) -> float:
    """Kolmogorov-Smirnov distance: the largest difference between two samples' distribution functions, in [0, 1].

    SciPy's does the same; its statistics would cost every agent a second at its start and 80 MB.

    Parameters
    ----------
    one, other : ndarray of shape (n,), (m,)
        Without missing values, neither empty.
    """
    values = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(s), values, side="right") / len(s) for s in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def _present(column: FloatArray) -> FloatArray:
    return column[~np.isnan(column)]


def _rows_in(samples: FloatArray, own: FloatArray) -> NDArray[np.bool_]:
    """Rows that the recipient already has, to the last digit, in the features both hold."""
    found = np.zeros(len(samples), dtype=np.bool_)
    for i, sample in enumerate(samples):
        known = ~np.isnan(sample)
        if known.any() and len(own):
            found[i] = bool((own[:, known] == sample[known]).all(axis=1).any())
    return found
