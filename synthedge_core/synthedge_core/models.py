"""The two models that effects are measured with, and the measures.

A logistic regression and gradient boosting: what helps the one often hurts the other, so every
effect is given for both.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ModelName = Literal["logistic regression", "gradient boosting"]
MODELS: tuple[ModelName, ...] = ("logistic regression", "gradient boosting")
# Recall at 0.5 measures class weighting; recall at one false-positive rate measures the model.
MATCHED_FALSE_POSITIVE_RATE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How well a model does on held-out rows; all but `brier`: larger is better.

    Attributes
    ----------
    auprc, auroc, brier : float
        Area under the precision-recall and the ROC curve; mean squared error of the probability.
    recall_at_fpr : float
        Recall at a false-positive rate of 0.2.
    recall_at_half : float
        Recall at a probability of 0.5, for comparison with others' tables only.
    """

    auprc: float
    auroc: float
    brier: float
    recall_at_fpr: float
    recall_at_half: float


def class_weights(positive: BoolArray) -> tuple[float, float]:
    """Give the balanced weights of negatives and positives of real training rows."""
    n, n_positive = len(positive), int(positive.sum())
    return n / (2.0 * (n - n_positive)), n / (2.0 * n_positive)


def fit_predict(
    name: ModelName,
    train: FloatArray,
    positive: BoolArray,
    weights: tuple[float, float] | None,
    test: FloatArray,
) -> FloatArray:
    """Train a model and give the held-out rows' probabilities of being positive.

    Parameters
    ----------
    name : ModelName
    train, test : ndarrays of shape (n, n_axes)
        Analysis matrices in own units; NaN is missing.
    positive : ndarray of bool, shape (n_train,)
    weights : tuple of float or None
        Weight of a negative and of a positive row; None weighs all alike. Given rather than
        recomputed: a method that adds positives must not change the weights of the others.

    Returns
    -------
    ndarray of shape (n_test,)
    """
    sample_weight = None if weights is None else np.where(positive, weights[1], weights[0])
    model: Any
    # A table of hospital size fits in milliseconds; two threads on busy cores wait for each other at every split
    # (measured: 2.6 s a fit instead of 0.05).
    with threadpool_limits(limits=1):
        if name == "logistic regression":
            model = make_pipeline(
                SimpleImputer(keep_empty_features=True),
                StandardScaler(),
                LogisticRegression(max_iter=500),
            )
            model.fit(train, positive, logisticregression__sample_weight=sample_weight)
        else:
            model = HistGradientBoostingClassifier(
                max_iter=60, max_depth=4, early_stopping=False, random_state=0
            )
            model.fit(train, positive, sample_weight=sample_weight)
        return np.asarray(model.predict_proba(test)[:, 1])


def score(positive: BoolArray, probability: FloatArray) -> Scores:
    """Measure probabilities against held-out labels; both classes must occur."""
    false_rate, recall, _ = roc_curve(positive, probability)
    return Scores(
        auprc=float(average_precision_score(positive, probability)),
        auroc=float(roc_auc_score(positive, probability)),
        brier=float(brier_score_loss(positive, probability)),
        recall_at_fpr=float(np.interp(MATCHED_FALSE_POSITIVE_RATE, false_rate, recall)),
        recall_at_half=float((probability[positive] >= 0.5).mean()),
    )
