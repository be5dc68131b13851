"""Received rows that are a patient this site already has: the same values, or nearly the same.

A patient may be in two hospitals' tables, measured twice. Rows carry no identity, so what can be asked is whether a
received row agrees with an own one in so many features, and so rarely agreed-on ones, that chance is no explanation:
Fellegi and Sunter (1969). Each feature that both rows hold adds ``log2(m / u)``: m, how often two rows of one patient
agree that well, and u, how often a row of somebody else does, counted in the site's own rows.

Rules
-----
* Rows that are duplicates are left out; what is left is taken if enough is left (`gate.MAX_DUPLICATE_SHARE`).
* A result tells counts, never a value or which patient.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from synthedge_client.outbound import coarsen
from synthedge_core.dictionary import Dictionary, Feature

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# How two rows of one patient agree in a measured feature: to its rounding; within a tenth and within three tenths of
# its scale, as a second measurement does; or not at all. Levels are coded again with an error of a few percent.
M_MEASURED: Final = (0.40, 0.30, 0.22, 0.08)
CLOSE_IN_SCALES: Final = (0.1, 0.3)
M_LEVEL: Final = (0.95, 0.05)
# Among n own rows, log2(n) bits of agreement are reached by one stranger on average; a link must be eight times
# likelier. Measured on positives of one real hospital against the rows of another: 0.2 % (UCI heart) and 0.3 %
# (Framingham) of 1,200 clean rows are called near duplicates, and of rows measured anew with an error of 5 %, 10 % and
# 20 % of each feature's scale (3 % of the levels coded otherwise) 67-94 %, 49-68 % and 16-18 %.
LINK_ODDS: Final = 8.0
# Features of one patient go together: what the second of two related features adds is partly said by the first.
INDEPENDENT_SHARE: Final = 0.8


@dataclass(frozen=True)
class Duplicates:
    """Which received rows are somebody this site already has.

    Attributes
    ----------
    exact : ndarray of bool, shape (n_rows,)
        The same in every feature that both rows hold, where that is no chance, or the same as an earlier
        row of the delivery.
    near : ndarray of bool, shape (n_rows,)
        Agreeing beyond chance, but not exact.
    """

    exact: BoolArray
    near: BoolArray

    @property
    def any(self) -> BoolArray:
        """Exact or near, shape (n_rows,)."""
        return self.exact | self.near

    def in_words(self) -> str:
        """Counts for people; no value."""
        return (
            f"{int(self.any.sum())} of {len(self.exact)} rows are patients this site already has "
            f"({int(self.exact.sum())} the same, {int(self.near.sum())} nearly the same)"
        )


def find_duplicates(
    samples: FloatArray, own: FloatArray, dictionary: Dictionary, features: Collection[str]
) -> Duplicates:
    """Compare received rows with this site's rows and with each other.

    Parameters
    ----------
    samples : ndarray of shape (n_rows, n_features)
        What arrived, in dictionary units; NaN = missing.
    own : ndarray of shape (n_own, n_features)
        This site's own rows and those it received before, in dictionary units.
    dictionary : Dictionary
    features : collection of str
        Those to compare: the agreed ones that came as they were measured.

    Returns
    -------
    Duplicates
    """
    compared = np.isin(dictionary.feature_names, list(features))
    samples, own = (np.where(compared, rows, np.nan) for rows in (samples, own))
    exact = np.zeros(len(samples), dtype=np.bool_)
    near = np.zeros(len(samples), dtype=np.bool_)
    # What was rounded before it left is compared with what it would be rounded to.
    rounded = coarsen(own, dictionary) if len(own) else own
    for i, sample in enumerate(samples):
        is_linked = linkage_scores(sample, rounded, dictionary) >= least_score(len(own))
        # A few rounded values may agree by chance; the same values with the same ones missing are the same row.
        alike = _same_values(sample, own) & _same_missing(sample, own)
        alike |= _same_values(sample, rounded) & is_linked
        earlier = _same_values(sample, samples[:i]) & _same_missing(sample, samples[:i])
        exact[i] = bool(alike.any() or earlier.any())
        near[i] = bool(is_linked.any()) and not exact[i]
    return Duplicates(exact, near)


def linkage_scores(sample: FloatArray, own: FloatArray, dictionary: Dictionary) -> FloatArray:
    """How much likelier one patient than two explains the agreement with each own row, in bits.

    Parameters
    ----------
    sample : ndarray of shape (n_features,)
        One received row in dictionary units; NaN = missing.
    own : ndarray of shape (n_own, n_features)
    dictionary : Dictionary

    Returns
    -------
    ndarray of shape (n_own,)
        Sum over features of ``log2(m / u)``; a feature that either row lacks adds nothing.
    """
    total = np.zeros(len(own))
    for i, feature in enumerate(dictionary.features):
        if np.isnan(sample[i]):
            continue
        total += _weights(sample[i], own[:, i], feature)
    return total


def least_score(n_own: int) -> float:
    """Score from which two rows are called one patient, in bits; more where there are more to compare with."""
    return float(np.log2(max(1, n_own) * LINK_ODDS))


def _weights(value: float, column: FloatArray, feature: Feature) -> FloatArray:
    """log2(m / u) of one feature's agreement with every own row; 0 where the own value is missing."""
    known = ~np.isnan(column)
    n_known = int(known.sum())
    if feature.has_levels:
        agreement, m = (column != value).astype(np.int64), np.array(M_LEVEL)
    else:
        rounding = 0.5 * 10.0 ** -(feature.decimals or 0)
        edges = [rounding, *(max(rounding, x * (feature.scale or 0.0)) for x in CLOSE_IN_SCALES)]
        # Differences of two rounded numbers are not exactly what they look like.
        agreement = np.searchsorted(np.array(edges) * (1 + 1e-9), np.abs(column - value))
        m = np.array(M_MEASURED)
    # One more than was counted in each class: an agreement never seen before is not impossible.
    u = (np.bincount(agreement[known], minlength=len(m)) + 1.0) / (n_known + len(m))
    weight = np.log2(m / u)
    weight = np.where(weight > 0, INDEPENDENT_SHARE * weight, weight)
    return np.where(known, weight[agreement], 0.0)


def _same_values(sample: FloatArray, rows: FloatArray) -> BoolArray:
    """Which rows hold the same values in every feature that they share with the sample, and at least one."""
    both = ~np.isnan(sample) & ~np.isnan(rows)
    same = ((rows == sample) | ~both).all(axis=1) & both.any(axis=1)
    return np.asarray(same, dtype=np.bool_)


def _same_missing(sample: FloatArray, rows: FloatArray) -> BoolArray:
    """Which rows lack the same features as the sample."""
    return np.asarray((np.isnan(rows) == np.isnan(sample)).all(axis=1), dtype=np.bool_)
