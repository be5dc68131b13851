"""Does it help? Models trained on the original, on synthetic and on altered rows, judged on observed ones.

Example
-------
>>> from synthedge_core import evaluate
>>> evaluate(table, "died", n_seeds=5).to_frame()
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.labels import read_labels
from synthedge_core.observed_rows import require_observed
from synthedge_core.preprocessing import Preprocessor
from synthedge_core.rebalance_quality import mean_auc

FloatArray = npt.NDArray[np.float64]
Builder: TypeAlias = Callable[[pd.DataFrame, int], pd.DataFrame]

MODELS = ("ridge", "forest", "boosting")
ORIGINAL = "original"
_TEST_SHARE = 0.3
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How models trained on one kind of rows do.

    Attributes
    ----------
    trained_on, model : str
    roc_auc : float
        Mean over the seeds, on observed rows held out; for several classes the mean over classes, each
        against the rest.
    ratio : float
        Mean ROC-AUC as a share of that of the original rows, same split and model.
    ratio_low, ratio_high : float
        95 % interval of that mean over the seeds; NaN with one seed.
    n_rows : int
        Training rows, mean over the seeds.
    """

    trained_on: str
    model: str
    roc_auc: float
    ratio: float
    ratio_low: float
    ratio_high: float
    n_rows: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of every kind of rows and model.

    Attributes
    ----------
    scores : tuple of Score
    n_seeds : int
    """

    scores: tuple[Score, ...]
    n_seeds: int

    def to_frame(self) -> pd.DataFrame:
        """Give one row per score."""
        names = Score.__slots__
        return pd.DataFrame([{n: getattr(s, n) for n in names} for s in self.scores], columns=names)

    def __str__(self) -> str:
        return self.to_frame().to_string(index=False, float_format=lambda x: f"{x:.3f}")


def evaluate(
    original: pd.DataFrame,
    target_column: str,
    tables: Mapping[str, pd.DataFrame | Builder] | None = None,
    *,
    test: pd.DataFrame | None = None,
    models: Sequence[str] = MODELS,
    discrete_columns: Collection[str] = (),
    n_seeds: int = 5,
    seed: int = 0,
) -> Evaluation:
    """Compare training rows by the models they make.

    Parameters
    ----------
    original : pandas.DataFrame
        Observed rows. Without `test` every seed splits them anew, 70 to 30 and stratified.
    target_column : str
    tables : mapping of name to table or function, optional
        What else to train on. A function of (training rows, seed) gives a table made from the training
        rows alone; a finished table needs `test`, for it may know any row of `original`. Default:
        ``"synthetic"``, as many generated rows as training rows, and ``"altered"``, the training rows
        with their classes balanced.
    test : pandas.DataFrame, optional
        Observed rows that no table was made from; every seed then draws a bootstrap sample of the
        training rows instead of splitting.
    models : sequence of str
        Of ``"ridge"`` (RidgeClassifier), ``"forest"`` (RandomForestClassifier) and ``"boosting"``
        (HistGradientBoostingClassifier).
    discrete_columns : collection of str
    n_seeds : int
        At least 1.
    seed : int
        The first seed.

    Returns
    -------
    Evaluation

    Raises
    ------
    UsageError
        If an argument makes no sense, or a finished table comes without `test`.
    RefusedError
        If `original` or `test` hold rows that were not observed, or a class is too small to split.

    Notes
    -----
    The interval is Student's t over the seeds, with the variance enlarged for overlapping training
    sets (Nadeau and Bengio 2003, eq. 4).
    """
    if n_seeds < 1 or seed < 0:
        raise UsageError("expected at least 1 seed, and seeds of 0 or more")
    unknown = [m for m in models if m not in MODELS]
    if unknown or not models:
        raise UsageError(f"models can be {', '.join(MODELS)}; given: {', '.join(models) or 'none'}")
    if tables is None:
        tables = {
            "synthetic": _synthetic(target_column, discrete_columns),
            "altered": _altered(target_column, discrete_columns),
        }
    if ORIGINAL in tables:
        raise UsageError(f"'{ORIGINAL}' stands for the original rows; call the table otherwise")
    if test is None and any(isinstance(t, pd.DataFrame) for t in tables.values()):
        raise UsageError(
            "a finished table may know the rows a split would test on; give test= with rows it was "
            "not made from, or a function of (training rows, seed)"
        )
    observed = require_observed(original)
    observed = observed[observed[target_column].notna()] if target_column in observed else observed
    read_labels(observed, target_column)
    held_out = None if test is None else require_observed(test)
    found: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, list[int]] = {}
    shares = []
    for one_seed in range(seed, seed + n_seeds):
        train, judged = _split(observed, held_out, target_column, one_seed)
        shares.append(len(judged) / len(train))
        for name in (ORIGINAL, *tables):
            given = train if name == ORIGINAL else _made(tables[name], train, one_seed, name)
            sizes.setdefault(name, []).append(len(given))
            preprocessor = Preprocessor(target_column, discrete_columns=discrete_columns).fit(given)
            x, y = preprocessor.transform(given)
            x_test, y_test = preprocessor.transform(judged)
            for model in models:
                auc = _auc(model, x, y, x_test, y_test, one_seed)
                found.setdefault((name, model), []).append(auc)
    scores = []
    for (name, model), values in found.items():
        ratios = np.array(values) / np.array(found[ORIGINAL, model])
        half = _half_interval(ratios, float(np.mean(shares)))
        scores.append(
            Score(
                trained_on=name,
                model=model,
                roc_auc=float(np.mean(values)),
                ratio=float(ratios.mean()),
                ratio_low=float(ratios.mean() - half),
                ratio_high=float(ratios.mean() + half),
                n_rows=round(np.mean(sizes[name])),
            )
        )
    return Evaluation(tuple(scores), n_seeds)


def _synthetic(target_column: str, discrete_columns: Collection[str]) -> Builder:
    def build(train: pd.DataFrame, seed: int) -> pd.DataFrame:
        from synthedge_core.conditional import ConditionalGenerator
        from synthedge_core.conditional_sampler import ConditionalSampler

        generator = ConditionalGenerator().fit(train, {*discrete_columns, target_column})
        shares = train[target_column].value_counts(normalize=True)
        marginals = {target_column: list(shares.items())}
        return ConditionalSampler(generator).sample(len(train), marginals, seed=seed)

    return build


def _altered(target_column: str, discrete_columns: Collection[str]) -> Builder:
    def build(train: pd.DataFrame, seed: int) -> pd.DataFrame:
        from synthedge_core.rebalance import augment_imbalanced

        return augment_imbalanced(
            train, target_column, discrete_columns=discrete_columns, seed=seed, measure=False
        )

    return build


def _split(
    observed: pd.DataFrame, test: pd.DataFrame | None, target_column: str, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    from sklearn.model_selection import train_test_split
    from sklearn.utils import resample

    if test is not None:
        again = resample(observed, stratify=observed[target_column], random_state=seed)
        return again.reset_index(drop=True), test
    if int(observed[target_column].value_counts().min()) < 2:
        raise RefusedError(f"a class of '{target_column}' has one row; it cannot be split")
    train, judged = train_test_split(
        observed, test_size=_TEST_SHARE, stratify=observed[target_column], random_state=seed
    )
    return train.reset_index(drop=True), judged.reset_index(drop=True)


def _made(table: pd.DataFrame | Builder, train: pd.DataFrame, seed: int, name: str) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        return table.sample(frac=1.0, replace=True, random_state=seed).reset_index(drop=True)
    made = table(train, seed)
    if not isinstance(made, pd.DataFrame):
        raise UsageError(f"the function '{name}' gave a {type(made).__name__}; expected a table")
    return made


def _auc(
    model: str,
    x: pd.DataFrame,
    y: "pd.Series[int]",
    x_test: pd.DataFrame,
    y_test: "pd.Series[int]",
    seed: int,
) -> float:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import RidgeClassifier
    from threadpoolctl import threadpool_limits

    makers: dict[str, Callable[[], Any]] = {
        "ridge": RidgeClassifier,
        "forest": lambda: RandomForestClassifier(100, random_state=seed),
        "boosting": lambda: HistGradientBoostingClassifier(max_iter=100, random_state=seed),
    }
    fitted = makers[model]()
    # Beside other work the boosting's threads wait for each other longer than they compute.
    with threadpool_limits(1):
        fitted.fit(x.to_numpy(), y.to_numpy())
        if model != "ridge":
            scores = np.asarray(fitted.predict_proba(x_test.to_numpy()))
        else:
            scores = np.asarray(fitted.decision_function(x_test.to_numpy()))
            if scores.ndim == 1:
                scores = np.column_stack([-scores, scores])
    return mean_auc(np.asarray(y_test, dtype=np.int64), scores)


def _half_interval(ratios: FloatArray, test_per_train: float) -> float:
    from scipy.stats import t

    if len(ratios) < 2:
        return float("nan")
    variance = float(ratios.var(ddof=1)) * (1 / len(ratios) + test_per_train)
    return float(t.ppf(0.5 + _CONFIDENCE / 2, len(ratios) - 1) * np.sqrt(variance))
