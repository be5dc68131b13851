"""Federated averaging of a logistic regression over the sites of a cohort, with Flower's own strategy.

It moves no row. The sites' training runs in this process; what Flower does with its answers is Flower's code.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight

from synthedge_core.frame import Frame
from synthedge_deploy.cohorts import Cohort
from synthedge_deploy.samples import Samples

FloatArray = NDArray[np.float64]

ROUNDS: Final = 30
# Full-batch gradient steps a site takes in a round, their length and the penalty of scikit-learn's default C = 1.
LOCAL_STEPS: Final = 10
STEP: Final = 0.5


def federated_scores(cohort: Cohort, rows: FloatArray) -> FloatArray:
    """Train over all hospitals, the carved one among them; predict.

    Parameters
    ----------
    cohort : Cohort
    rows : ndarray of shape (n_rows, n_features)
        Dictionary units, NaN = missing.

    Returns
    -------
    ndarray of shape (n_rows,)
        Probability of the positive class, both classes weighing the same.
    """
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import FedAvg

    frame = Frame(cohort.dictionary)
    # The recipient's model cannot use what the recipient has not.
    usable = np.asarray(~np.isnan(frame.transform(cohort.recipient.samples.values)).all(axis=0))
    sites = [(_design(frame, h.samples.values, usable), h.samples) for h in cohort.hospitals]
    weights = np.zeros(sites[0][0].shape[1])
    strategy = FedAvg(
        min_fit_clients=len(sites),
        min_available_clients=len(sites),
        # Without one the strategy warns in every round that it has none.
        fit_metrics_aggregation_fn=lambda _: {},
    )
    for i_round in range(1, ROUNDS + 1):
        answers = [
            FitRes(
                status=Status(Code.OK, ""),
                parameters=ndarrays_to_parameters([_trained(weights, design, samples)]),
                num_examples=len(samples),
                metrics={},
            )
            for design, samples in sites
        ]
        # The strategy never looks at the first of a pair, the connection an answer came by.
        averaged, _ = strategy.aggregate_fit(i_round, [(None, a) for a in answers], [])  # type: ignore[misc]
        if averaged is None:
            raise RuntimeError(f"Flower averaged nothing in round {i_round}")
        (weights,) = parameters_to_ndarrays(averaged)
    return _probability(_design(frame, rows, usable), weights)


def _design(frame: Frame, values: FloatArray, usable: NDArray[np.bool_]) -> FloatArray:
    """Frame coordinates with an intercept; the frame's reference, 0 after centring, for what is missing."""
    coordinates = frame.transform(values)[:, usable] - frame.reference[usable]
    return np.column_stack([np.ones(len(values)), np.nan_to_num(coordinates)])


def _probability(design: FloatArray, weights: FloatArray) -> FloatArray:
    probability: FloatArray = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
    return probability


def _trained(weights: FloatArray, design: FloatArray, samples: Samples) -> FloatArray:
    row_weights = compute_sample_weight("balanced", samples.positive)
    trained = weights.copy()
    for _ in range(LOCAL_STEPS):
        residual = row_weights * (_probability(design, trained) - samples.positive)
        penalty = np.append(0.0, trained[1:])
        trained -= STEP * (design.T @ residual + penalty) / len(samples)
    return trained
