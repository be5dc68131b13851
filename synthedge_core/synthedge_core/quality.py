"""How good generated rows are, beside real ones.

Every figure compares the generated rows with real rows of the same kind: positives of the gap that
the generator never saw where the caller has them, else the positives around the gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.stats import chi2_contingency, ks_2samp
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from synthedge_core.columns import Column, analysis_matrix
from synthedge_core.errors import UsageError

FloatArray = npt.NDArray[np.float64]

MIN_ROWS = 5
DRIFT_P = 0.05
_KL_BINS = 10
_MIN_FOLD = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How one column of the generated rows differs from the real ones.

    Attributes
    ----------
    column, test : str
        ``ks`` (Kolmogorov-Smirnov) for measurements, ``chi2`` for codes.
    statistic : float
        Largest distance of the distribution functions, or Cramer's V; both in [0, 1].
    p_value : float
    """

    column: str
    test: str
    statistic: float
    p_value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityReport:
    """What was measured; None where there are too few rows (5) to say.

    Attributes
    ----------
    n_generated, n_compared : int
        Rows on either side.
    compared_with : str
        What the real rows are, in words.
    kl : float or None
        Kullback-Leibler divergence, in bits, of the real rows of the gap from the generated ones,
        mean over the columns; 0 is the same distribution.
    drift : tuple of Drift
        Every column, largest statistic first.
    n_drifted : int
        Columns with a p-value below 0.05 after Bonferroni's correction.
    correlation_difference : float or None
        Mean absolute difference of the columns' correlations, in [0, 2].
    discriminator_auc, discriminator_auc_forest : float or None
        How well a logistic regression, and a random forest, tell generated rows from real ones, out
        of fold; 0.5 is not at all.
    closest_record, closest_record_real : float or None
        Median distance of a generated row to the closest real row, in standard deviations, and the
        same between real rows; well below is copying.
    coverage : float or None
        Share of the compared real rows with a generated row no farther than their own third-nearest
        real row.
    """

    n_generated: int
    n_compared: int
    compared_with: str
    kl: float | None
    drift: tuple[Drift, ...]
    n_drifted: int
    correlation_difference: float | None
    discriminator_auc: float | None
    discriminator_auc_forest: float | None
    closest_record: float | None
    closest_record_real: float | None
    coverage: float | None


def quality_of(
    generated: FloatArray,
    real: FloatArray,
    table: FloatArray,
    columns: Sequence[Column],
    compared_with: str,
) -> QualityReport:
    """Measure generated rows.

    Parameters
    ----------
    generated, real, table : ndarrays of shape (n, n_columns)
        Encoded rows: the generated ones, real ones of the same kind, and all real rows that the
        generator saw (for the distance to the closest record).
    columns : sequence of Column
    compared_with : str
        What `real` is, for the reader.

    Returns
    -------
    QualityReport

    Raises
    ------
    UsageError
        If nothing was generated.
    """
    if len(generated) == 0:
        raise UsageError("no row was generated, so there is no quality to report")
    drift = tuple(
        sorted(
            (
                one
                for i, column in enumerate(columns)
                if (one := _drift(generated[:, i], real[:, i], column)) is not None
            ),
            key=lambda d: -d.statistic,
        )
    )
    enough = min(len(generated), len(real)) >= MIN_ROWS
    points = _points(generated, real, table, columns)
    made, compared, seen = points
    return QualityReport(
        n_generated=len(generated),
        n_compared=len(real),
        compared_with=compared_with,
        kl=_mean_kl(generated, real, columns) if enough else None,
        drift=drift,
        n_drifted=sum(d.p_value < DRIFT_P / len(drift) for d in drift),
        correlation_difference=_correlation_difference(made, compared) if enough else None,
        discriminator_auc=_auc(made, compared, is_forest=False),
        discriminator_auc_forest=_auc(made, compared, is_forest=True),
        closest_record=_median_distance(made, seen, 1),
        closest_record_real=_median_distance(np.unique(seen, axis=0), np.unique(seen, axis=0), 2),
        coverage=_coverage(made, compared) if enough else None,
    )


def _points(
    generated: FloatArray, real: FloatArray, table: FloatArray, columns: Sequence[Column]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Bring rows into one frame, standardised by the table; missing values to its mean."""
    matrices = [analysis_matrix(rows, columns)[0] for rows in (generated, real, table)]
    reference = matrices[2]
    missing = np.isnan(reference)
    counts = np.maximum((~missing).sum(axis=0), 1)
    means = np.where(missing, 0.0, reference).sum(axis=0) / counts
    spread = np.sqrt(np.where(missing, 0.0, (reference - means) ** 2).sum(axis=0) / counts)
    scales = np.where(spread > 0, spread, 1.0)
    made, compared, seen = (np.nan_to_num((m - means) / scales, nan=0.0) for m in matrices)
    return made, compared, seen


def _drift(generated: FloatArray, real: FloatArray, column: Column) -> Drift | None:
    a, b = generated[~np.isnan(generated)], real[~np.isnan(real)]
    if min(len(a), len(b)) < MIN_ROWS:
        return None
    if not column.has_levels:
        result = ks_2samp(a, b, method="auto")
        return Drift(
            column=column.name,
            test="ks",
            statistic=float(result.statistic),
            p_value=float(result.pvalue),
        )
    levels = np.unique(np.concatenate([a, b]))
    if len(levels) < 2:
        return Drift(column=column.name, test="chi2", statistic=0.0, p_value=1.0)
    counts = np.array([[(part == level).sum() for level in levels] for part in (a, b)])
    chi2, p_value, _, _ = chi2_contingency(counts, correction=False)
    v = float(np.sqrt(chi2 / counts.sum()))  # Cramer's V; the smaller side has two rows
    return Drift(column=column.name, test="chi2", statistic=v, p_value=float(p_value))


def _mean_kl(generated: FloatArray, real: FloatArray, columns: Sequence[Column]) -> float | None:
    """Average the columns' divergences over histograms in quantile bins of both.

    One row is added to every bin, so that an empty one costs something finite (Laplace).
    """
    found = []
    for i, column in enumerate(columns):
        a, b = generated[:, i], real[:, i]
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
        if min(len(a), len(b)) < MIN_ROWS:
            continue
        both = np.concatenate([a, b])
        if column.has_levels:
            edges = np.append(np.unique(both), np.inf)
        else:
            edges = np.unique(np.quantile(both, np.linspace(0, 1, _KL_BINS + 1)))
            edges[-1] = np.inf
        if len(edges) < 2:
            continue
        p = np.histogram(b, edges)[0] + 1.0
        q = np.histogram(a, edges)[0] + 1.0
        p, q = p / p.sum(), q / q.sum()
        found.append(float(np.sum(p * np.log2(p / q))))
    return float(np.mean(found)) if found else None


def _correlation_difference(a: FloatArray, b: FloatArray) -> float | None:
    varies = (a.std(axis=0) > 1e-9) & (b.std(axis=0) > 1e-9)
    if varies.sum() < 2:
        return None
    left, right = np.corrcoef(a[:, varies].T), np.corrcoef(b[:, varies].T)
    above = np.triu_indices(int(varies.sum()), 1)
    return float(np.abs(np.asarray(left)[above] - np.asarray(right)[above]).mean())


def _auc(a: FloatArray, b: FloatArray, *, is_forest: bool) -> float | None:
    if min(len(a), len(b)) < 2 * _MIN_FOLD:
        return None
    rows = np.vstack([a, b])
    is_generated = np.concatenate([np.ones(len(a)), np.zeros(len(b))])
    model = (
        RandomForestClassifier(100, class_weight="balanced", random_state=0)
        if is_forest
        else LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
    )
    folds = StratifiedKFold(_MIN_FOLD, shuffle=True, random_state=0)
    scores = cross_val_predict(model, rows, is_generated, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_generated, scores))


def _median_distance(rows: FloatArray, reference: FloatArray, k: int) -> float | None:
    if len(reference) < k or len(rows) == 0:
        return None
    distances, _ = cKDTree(reference).query(rows, k=[k])
    return float(np.median(distances))


def _coverage(made: FloatArray, compared: FloatArray) -> float:
    """Share of real rows whose neighbourhood holds a generated one (Naeem et al. 2020, eq. 9)."""
    k = min(3, len(compared) - 1)
    distances, _ = cKDTree(compared).query(compared, k=[k + 1])
    radius = np.asarray(distances)[:, 0]
    closest = cKDTree(made).query(compared)[0]
    return float(np.mean(closest <= radius + 1e-12))
