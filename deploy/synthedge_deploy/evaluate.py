"""How well models find a starved subgroup: two models, one weighting, the same measures for all.

Rules
-----
* Held-out rows are real and in no training set; imputation and scaling are fitted on training rows.
* Both classes weigh the same in every training set, so that no rival wins or loses by its share of
  positives; recall is read at one false-positive rate, so that over-predicting buys nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from synthedge_core.dictionary import Dictionary
from synthedge_deploy.samples import BoolArray, FloatArray, Samples

Model = Literal["logistic regression", "gradient boosting"]
MODELS: Final[tuple[Model, ...]] = ("logistic regression", "gradient boosting")

Resample = Callable[[FloatArray, BoolArray], tuple[FloatArray, BoolArray]]

FALSE_POSITIVE_RATE: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Measures:
    """One model on the held-out rows; all in [0, 1], larger is better but for `brier`.

    Attributes
    ----------
    subgroup_recall : float
        Share of the subgroup's positives found at a false-positive rate of 0.2 over all negatives.
    recall : float
        Share of all positives found there.
    subgroup_auprc : float
        Average precision among the subgroup's rows.
    auprc, auroc : float
        Over all rows.
    brier : float
        Mean squared difference of predicted probability and label; balanced weights shift the
        probabilities of rare outcomes upwards, for all training sets alike.
    """

    subgroup_recall: float
    recall: float
    subgroup_auprc: float
    auprc: float
    auroc: float
    brier: float


def evaluate(
    training: Mapping[str, Samples], held_out: Samples, members: BoolArray, dictionary: Dictionary
) -> dict[str, dict[Model, Measures]]:
    """Train both models on every training set and measure them on the held-out rows.

    Parameters
    ----------
    training : mapping of name to Samples
        Each with both labels.
    held_out : Samples
        With positives inside the subgroup and negatives.
    members : ndarray of bool, shape (len(held_out),)
        The subgroup.
    dictionary : Dictionary

    Returns
    -------
    dict
        Measures by training set and model.
    """
    return {
        name: {
            model: measure(
                fit_predict(model, samples, held_out.values, dictionary), held_out, members
            )
            for model in MODELS
        }
        for name, samples in training.items()
    }


def recall_at_false_positive_rate(
    scores: FloatArray, negatives: FloatArray, false_positive_rate: float = FALSE_POSITIVE_RATE
) -> float:
    """Share of positives found where a given share of the negatives is called positive too.

    Parameters
    ----------
    scores : ndarray of shape (n_positives,)
        Of the positives looked at; larger means more likely positive.
    negatives : ndarray of shape (n_negatives,)
        Scores of all negatives.
    false_positive_rate : float
        In [0, 1].

    Returns
    -------
    float
        In [0, 1]; between two thresholds the classifier that tosses a coin between them, which is
        the straight line between two points of the ROC curve (Fawcett 2006, section 5).
    """
    thresholds = np.unique(np.concatenate([scores, negatives]))[::-1]
    recall = [0.0, *((scores >= t).mean() for t in thresholds)]
    rate = [0.0, *((negatives >= t).mean() for t in thresholds)]
    # Of several points at one rate np.interp takes the last, the one with the highest recall.
    return float(np.interp(false_positive_rate, rate, recall))


def measure(scores: FloatArray, held_out: Samples, members: BoolArray) -> Measures:
    """Measure one model's predicted probabilities of the held-out rows; arguments as for `evaluate`."""
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

    positive = held_out.positive
    return Measures(
        subgroup_recall=recall_at_false_positive_rate(
            scores[positive & members], scores[~positive]
        ),
        recall=recall_at_false_positive_rate(scores[positive], scores[~positive]),
        subgroup_auprc=float(average_precision_score(positive[members], scores[members])),
        auprc=float(average_precision_score(positive, scores)),
        auroc=float(roc_auc_score(positive, scores)),
        brier=float(brier_score_loss(positive, scores)),
    )


def fit_predict(
    model: Model,
    training: Samples,
    rows: FloatArray,
    dictionary: Dictionary,
    *,
    weights: Literal["balanced"] | None = "balanced",
    resample: Resample | None = None,
) -> FloatArray:
    """Train one model and predict.

    Parameters
    ----------
    model : Model
    training : Samples
        With both labels.
    rows : ndarray of shape (n_rows, n_features)
        Dictionary units, NaN = missing.
    dictionary : Dictionary
    weights : {"balanced"} or None
        Both classes the same total weight, or every row the same.
    resample : callable or None
        Makes another design matrix and labels of the encoded training rows (for SMOTE and its like).

    Returns
    -------
    ndarray of shape (n_rows,)
        Probability of the positive class.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils.class_weight import compute_sample_weight
    from threadpoolctl import threadpool_limits

    encoder = _Encoder(training.values, dictionary)
    design, positive = encoder.encode(training.values), training.positive
    scaler = StandardScaler().fit(design)
    design, asked = scaler.transform(design), scaler.transform(encoder.encode(rows))
    if resample is not None:
        design, positive = resample(design, positive)
    if model == "logistic regression":
        classifier = LogisticRegression(max_iter=5_000)
    else:
        # The leaves of the default, 20 rows, are larger than the groups looked for here.
        classifier = HistGradientBoostingClassifier(
            max_depth=3, min_samples_leaf=5, early_stopping=False, random_state=0
        )
    # One thread: a small fit on busy cores is many times slower with two.
    with threadpool_limits(1):
        classifier.fit(design, positive, sample_weight=compute_sample_weight(weights, positive))
        probability: FloatArray = classifier.predict_proba(asked)[:, 1]
    return probability


class _Encoder:
    """Median or mode for what is missing, one column a level for categorical features."""

    def __init__(self, values: FloatArray, dictionary: Dictionary) -> None:
        self._levels = [f.n_levels if f.kind == "categorical" else 0 for f in dictionary.features]
        self._typical = np.zeros(values.shape[1])
        for i, feature in enumerate(dictionary.features):
            known = values[:, i][~np.isnan(values[:, i])]
            if not len(known):
                # No training row has the feature: any constant says the same, nothing.
                continue
            if feature.has_levels:
                self._typical[i] = np.bincount(known.astype(np.int64)).argmax()
            else:
                self._typical[i] = np.median(known)

    def encode(self, values: FloatArray) -> FloatArray:
        complete = np.where(np.isnan(values), self._typical, values)
        columns = [
            np.eye(n_levels)[column.astype(np.int64)] if n_levels else column[:, np.newaxis]
            for n_levels, column in zip(self._levels, complete.T, strict=True)
        ]
        return np.hstack(columns)
