"""The recipient's gate: received samples are compared with the agreement and with own rows, then taken or refused.

Rules
-----
* A delivery is taken whole or refused whole.
* Own rows count only where they lie in the requested region: rows from elsewhere differ for good reasons.
* The limits come from deliveries with known faults (2-sd bias, wrong units, swapped columns, duplicates, wrong
  region: 95-100 % refused; clean ones: 2-3 %). Wrong labels cannot be seen in features.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthedge_core.dictionary import Dictionary
from synthedge_core.grids import NamedGrid

FloatArray = NDArray[np.float64]

MAX_DUPLICATE_SHARE = 0.2
MAX_KS = 0.85
# Below this a Kolmogorov-Smirnov distance of 0.85 between samples of one distribution is no rarity.
MIN_OWN_ROWS_FOR_KS = 8


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
    dictionary : Dictionary
    features : tuple of str
        The features that were agreed on; every other column must be empty.
    grid, voxel
        The region that was asked for.

    Returns
    -------
    GateResult
    """
    agreed = np.isin(dictionary.feature_names, features)
    if not np.isnan(samples[:, ~agreed]).all():
        return GateResult(False, "features arrived that were not agreed on")
    for i, feature in enumerate(dictionary.features):
        column = samples[:, i][~np.isnan(samples[:, i])]
        if feature.levels:
            if not np.isin(column, np.arange(len(feature.levels))).all():
                return GateResult(
                    False, f"'{feature.name}' holds levels the dictionary does not have"
                )
        elif (
            feature.plausible
            and ((column < feature.plausible[0]) | (column > feature.plausible[1])).any()
        ):
            return GateResult(False, f"'{feature.name}' lies outside its plausible range")
    n_outside = int((grid.assign(samples) != voxel).sum())
    if n_outside:
        return GateResult(
            False, f"{n_outside} of {len(samples)} rows lie outside the requested region"
        )
    n_duplicates = len(samples) - len(np.unique(samples, axis=0))
    n_duplicates += int(_rows_in(samples, own).sum())
    if n_duplicates / len(samples) > MAX_DUPLICATE_SHARE:
        return GateResult(False, f"{n_duplicates} of {len(samples)} rows are duplicates")
    return _compare_with_region(samples, own[grid.assign(own) == voxel], dictionary, agreed)


def _compare_with_region(
    samples: FloatArray, region: FloatArray, dictionary: Dictionary, agreed: NDArray[np.bool_]
) -> GateResult:
    from scipy.stats import ks_2samp

    compared = 0
    for i in np.flatnonzero(agreed):
        theirs = samples[:, i][~np.isnan(samples[:, i])]
        ours = region[:, i][~np.isnan(region[:, i])]
        if min(len(theirs), len(ours)) < MIN_OWN_ROWS_FOR_KS:
            continue
        compared += 1
        distance = float(ks_2samp(theirs, ours, method="asymp").statistic)
        if distance > MAX_KS:
            name = dictionary.features[i].name
            return GateResult(
                False,
                f"'{name}' differs from own rows of the region (KS {distance:.2f}, limit {MAX_KS})",
            )
    return GateResult(
        True,
        f"schema, region and duplicates checked; {compared} features compared with own rows of the region",
    )


def _rows_in(samples: FloatArray, own: FloatArray) -> NDArray[np.bool_]:
    """Rows that the recipient already has, to the last digit, in the features both hold."""
    found = np.zeros(len(samples), dtype=np.bool_)
    for i, sample in enumerate(samples):
        known = ~np.isnan(sample)
        if known.any() and len(own):
            found[i] = bool((own[:, known] == sample[known]).all(axis=1).any())
    return found
