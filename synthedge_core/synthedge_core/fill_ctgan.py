"""The CTGAN fill engine (Xu et al. 2019), from the `ctgan` package; needs the extra ``ctgan``.

Trained once, on the positive rows, for a number of steps rather than epochs (446 rows with the
package's batch of 500 are one step per epoch); gaps then take what falls into them from an
unconditional pool. The gap as a discrete condition column was measured: no more accepted rows, no
closer to the held-out ones, two to three times the time.

`ctgan` is under the Business Source License, not open source: this engine is never the default.
"""

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager

import ctgan
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from ctgan.synthesizers.ctgan import CTGAN

from synthedge_core.errors import RefusedError
from synthedge_core.fill_engines import FillTable, Gap
from synthedge_core.fill_schema import RowSchema

FloatArray = npt.NDArray[np.float64]

MIN_POSITIVES = 50
DEFAULT_STEPS = 300
# CTGAN judges rows in packs of ten (PacGAN, Lin et al. 2018) and wants an even number.
_PACK = 10
_BATCH = 500
# The version whose private hook `_apply_activate` was read and tested; another one trains as it is.
_HOOKED_VERSION = "0.12.1"
_MISSING_SUFFIX = "\x00missing"


class FastCtgan(CTGAN):  # type: ignore[misc]
    """CTGAN whose critic step does not back-propagate through the generator.

    The package throws those gradients away before the generator's own step, so the samples are the
    same bit for bit; only the time differs (measured: 1.26 times faster).
    """

    report_progress: Callable[[float], None] | None = None
    is_fast = ctgan.__version__ == _HOOKED_VERSION
    _n_activations: int | None = None
    _n_activations_in_all = 1

    def fit_steps(
        self, rows: pd.DataFrame, discrete: list[str], report: Callable[[float], None]
    ) -> None:
        """Train, reporting the share done."""
        per_epoch = max(len(rows) // self._batch_size, 1)
        self._n_activations_in_all = self._epochs * per_epoch * (self._discriminator_steps + 1)
        self._n_activations = 0
        self.report_progress = report
        try:
            self.fit(rows, discrete)
        finally:
            self._n_activations = None
            self.report_progress = None

    def _apply_activate(self, data: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = super()._apply_activate(data)
        if self._n_activations is None:
            return activated
        self._n_activations += 1
        is_generator_step = self._n_activations % (self._discriminator_steps + 1) == 0
        if is_generator_step and self.report_progress is not None:
            self.report_progress(self._n_activations / self._n_activations_in_all)
        if self.is_fast and not is_generator_step:
            # A leaf that wants a gradient: the gradient penalty differentiates by it.
            return activated.detach().requires_grad_()
        return activated


class CtganEngine:
    """CTGAN trained once on the positive rows.

    Parameters
    ----------
    steps : int
        Generator steps, at least 1.
    cache : mutable mapping of str to bytes, optional
        Where trained models are kept, by a digest of everything they depend on. A stored model
        holds what it learned from patients' rows and is unpickled: keep it where the rows are.
    """

    name = "ctgan"

    def __init__(
        self, steps: int = DEFAULT_STEPS, cache: MutableMapping[str, bytes] | None = None
    ) -> None:
        self._steps = steps
        self._cache = cache

    def fit(self, table: FillTable, seed: int) -> None:
        """Train on the table's positive rows, or take the trained model from the cache.

        Raises
        ------
        RefusedError
            If there are fewer than 50 positive rows.
        """
        rows = table.values[table.positive]
        if len(rows) < MIN_POSITIVES:
            raise RefusedError(
                f"the engine ctgan needs at least {MIN_POSITIVES} positive rows, the table has "
                f"{len(rows)}; use the engine copula"
            )
        self._schema = table.schema
        frame, discrete = _to_frame(rows, table.schema)
        key = self._key(rows, table.schema, seed)
        stored = None if self._cache is None else self._cache.get(key)
        with _one_thread():
            if stored is not None:
                self._model = torch.load(io.BytesIO(stored), weights_only=False)
                return
            self._model = self._train(frame, discrete, seed, table.report_progress)
            if self._cache is not None:
                buffer = io.BytesIO()
                torch.save(self._model, buffer)
                self._cache[key] = buffer.getvalue()

    def _train(
        self, frame: pd.DataFrame, discrete: list[str], seed: int, report: Callable[[float], None]
    ) -> FastCtgan:
        batch = min(_BATCH, max(2 * _PACK, len(frame) // (2 * _PACK) * 2 * _PACK))
        steps_per_epoch = max(len(frame) // batch, 1)
        model = FastCtgan(
            epochs=math.ceil(self._steps / steps_per_epoch),
            batch_size=batch,
            pac=_PACK,
            enable_gpu=False,
        )
        model.set_random_state(seed)
        with warnings.catch_warnings():
            # The mixture models of its columns, which may stop early, and pandas' notes on them.
            warnings.simplefilter("ignore")
            model.fit_steps(frame, discrete, report)
        return model

    def _key(self, rows: FloatArray, schema: RowSchema, seed: int) -> str:
        text = f"{ctgan.__version__}|{torch.__version__}|{self._steps}|{seed}|{schema.names}"
        text += f"|{schema.n_levels}|{rows.shape}|"
        return hashlib.sha256(text.encode() + np.ascontiguousarray(rows).tobytes()).hexdigest()

    def draw(self, gap: Gap, n_rows: int, seed: int) -> FloatArray:
        """Draw from the unconditional pool; the region gate keeps what falls into the gap."""
        self._model.set_random_state(seed)
        with _one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = self._model.sample(max(n_rows, _BATCH))
        return self._schema.fit(_from_frame(frame, self._schema))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hold torch to one thread.

    Their number changes the order of sums, hence the samples, and two threads on busy cores were
    measured up to ten times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _to_frame(rows: FloatArray, schema: RowSchema) -> tuple[pd.DataFrame, list[str]]:
    """Give CTGAN a table without missing values.

    A missing code is a code of its own, a missing measurement the median beside a flag column.
    """
    columns: dict[str, npt.NDArray[np.generic]] = {}
    discrete: list[str] = []
    for i, name in enumerate(schema.names):
        values = rows[:, i]
        missing = np.isnan(values)
        if schema.n_levels[i]:
            columns[name] = np.where(missing, -1, values).astype(int)
            discrete.append(name)
            continue
        median = float(np.median(values[~missing])) if not missing.all() else 0.0
        columns[name] = np.where(missing, median, values)
        if missing.any():
            columns[name + _MISSING_SUFFIX] = missing.astype(int)
            discrete.append(name + _MISSING_SUFFIX)
    return pd.DataFrame(columns), discrete


def _from_frame(frame: pd.DataFrame, schema: RowSchema) -> FloatArray:
    rows = np.empty((len(frame), schema.n_columns))
    for i, name in enumerate(schema.names):
        values = frame[name].to_numpy(float)
        if schema.n_levels[i]:
            rows[:, i] = np.where(values < 0, np.nan, values)
            continue
        flag = name + _MISSING_SUFFIX
        is_missing = frame[flag].to_numpy(float) == 1 if flag in frame else False
        rows[:, i] = np.where(is_missing, np.nan, values)
    return rows
