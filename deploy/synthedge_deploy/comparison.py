"""What a transfer is compared with: as many rows from elsewhere, and everybody's rows."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from synthedge_deploy.cohorts import Cohort
from synthedge_deploy.evaluate import Measures, Model, evaluate
from synthedge_deploy.samples import FloatArray, Samples, join

BEFORE: Final = "before"
DUPLICATES: Final = "duplicates of own positives"
RANDOM_POSITIVES: Final = "random donor positives"
TRANSFER: Final = "transfer"
TRANSFER_AND_FILL: Final = "transfer and fill"
POOLED: Final = "all hospitals pooled"

N_RANDOM_POSITIVES: Final = 20

Comparison = Mapping[str, Mapping[Model, Measures]]


def training_sets(
    cohort: Cohort, received: Samples, synthetic: Samples | None, seed: int
) -> dict[str, Samples]:
    """Make the training sets of the carved hospital.

    Parameters
    ----------
    cohort : Cohort
    received : Samples
        What the hospital received, in dictionary units.
    synthetic : Samples or None
        What `fill` added around it; None leaves that line out.
    seed : int
        Picks duplicates and random donor positives.

    Returns
    -------
    dict
        By name, in the order of a table. ``all hospitals pooled`` is every row of every hospital as
        it is: the carved rows are in nobody's table, so they are not in it either. Consent limits
        what a donor may give, not the pool, which is only a yardstick.
    """
    generator = np.random.default_rng([seed, 100])
    own = cohort.recipient.samples
    others = [hospital.samples for hospital in cohort.donors]
    givable = join([h.samples.rows(h.samples.positive & h.has_consent) for h in cohort.donors])
    own_positives = np.flatnonzero(own.positive)
    duplicates = own.rows(generator.choice(own_positives, len(received)))
    random_rows = givable.rows(
        generator.choice(len(givable), min(N_RANDOM_POSITIVES, len(givable)), replace=False)
    )
    sets = {
        BEFORE: own,
        DUPLICATES: join([own, duplicates]),
        RANDOM_POSITIVES: join([own, random_rows]),
        TRANSFER: join([own, received]),
    }
    if synthetic is not None:
        sets[TRANSFER_AND_FILL] = join([own, received, synthetic])
    sets[POOLED] = join([own, *others])
    return {name: _as_recipient_has(samples, own.values) for name, samples in sets.items()}


def compare(
    cohort: Cohort, received: Samples, synthetic: Samples | None, seed: int
) -> dict[str, dict[Model, Measures]]:
    """Measure every training set of `training_sets` on the held-out rows.

    Returns
    -------
    dict
        Measures by training set and model.
    """
    members = cohort.subgroup.contains(cohort.held_out.values, cohort.dictionary)
    sets = training_sets(cohort, received, synthetic, seed)
    return evaluate(sets, cohort.held_out, members, cohort.dictionary)


def mean_and_spread(
    runs: Sequence[Comparison], training_set: str, model: Model, measure: str
) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1) of one measure over runs; the spread of one is 0."""
    values = [getattr(run[training_set][model], measure) for run in runs]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _as_recipient_has(samples: Samples, own: FloatArray) -> Samples:
    """Drop the features the recipient lacks: its models cannot use them."""
    lacks = np.isnan(own).all(axis=0)
    return Samples(np.where(lacks, np.nan, samples.values), samples.positive)
