"""Figures that compare generated with observed rows: distributions, and correlations.

Each function returns a matplotlib figure of its own (no global state, no window): show it in a
notebook, or save it with ``figure.savefig``.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from synthedge_core.columns import Column, analysis_matrix, encode, infer_columns
from synthedge_core.errors import TableError
from synthedge_core.rebalance_table import ORIGIN_COLUMN, SYNTHETIC_COLUMN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

# Okabe and Ito's blue and orange: told apart by colour-blind readers and in print.
_REAL, _SYNTHETIC = "#0072B2", "#E69F00"
_PER_ROW = 3
_MOST_PANELS = 24
_MOST_LEVELS = 12
_MOST_AXES = 30


def show_distributions(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    columns: Sequence[str] | None = None,
    discrete_columns: Collection[str] = (),
) -> "Figure":
    """Draw every column's distribution in both tables over each other.

    Parameters
    ----------
    real, synthetic : pandas.DataFrame
        Marks are ignored.
    columns : sequence of str, optional
        Columns to draw; default the first 24 that can be.
    discrete_columns : collection of str
        Columns that hold codes; the others are inferred from `real`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TableError
        If the tables share no column that can be drawn, or a named one does not exist.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, a, b = _encoded(real, synthetic, columns, discrete_columns)
    shown = shown[:_MOST_PANELS]
    n_rows = -(-len(shown) // _PER_ROW)
    figure = Figure(figsize=(4.2 * _PER_ROW, 2.8 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(n_rows, _PER_ROW, squeeze=False).ravel()
    for i, column in enumerate(shown):
        _panel(panels[i], column, a[:, i], b[:, i])
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _panel(panel: Any, column: Column, real: FloatArray, synthetic: FloatArray) -> None:
    names = (f"observed ({len(real)})", f"generated ({len(synthetic)})")
    panel.set_title(column.name, fontsize=10, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    missing = [float(np.isnan(v).mean()) for v in (real, synthetic)]
    if max(missing) > 0:
        panel.set_xlabel(f"missing: {missing[0]:.0%} and {missing[1]:.0%}", fontsize=8)
    if column.has_levels:
        levels = range(min(len(column.levels), _MOST_LEVELS))
        for values, colour, name, shift in (
            (real, _REAL, names[0], -0.2),
            (synthetic, _SYNTHETIC, names[1], 0.2),
        ):
            present = max(1, int((~np.isnan(values)).sum()))
            heights = [float((values == level).sum()) / present for level in levels]
            panel.bar(np.arange(len(heights)) + shift, heights, 0.4, color=colour, label=name)
        texts = [_short(str(column.levels[level])) for level in levels]
        panel.set_xticks(list(levels), texts, rotation=30 if len(texts) > 4 else 0)
        panel.set_ylabel("share", fontsize=8)
        return
    both = np.concatenate([real[~np.isnan(real)], synthetic[~np.isnan(synthetic)]])
    # The extreme percent on each side would flatten everything else.
    low, high = np.quantile(both, [0.005, 0.995]) if len(both) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 31)
    if column.kind == "integer":
        # Bins of as many whole numbers each: uneven ones would draw a comb.
        width = max(1, round((high - low) / 30))
        edges = np.arange(np.floor(low) - 0.5, np.ceil(high) + width, width)
    for values, colour, name in ((real, _REAL, names[0]), (synthetic, _SYNTHETIC, names[1])):
        counts = np.histogram(values[~np.isnan(values)], edges)[0].astype(float)
        density = counts / max(1.0, counts.sum()) / np.diff(edges)
        panel.stairs(density, edges, color=colour, label=name, fill=True, alpha=0.35)
        panel.stairs(density, edges, color=colour)
    panel.set_ylabel("density", fontsize=8)


def _short(text: str) -> str:
    return text if len(text) <= 12 else f"{text[:11]}…"


def compare_correlations(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    columns: Sequence[str] | None = None,
    discrete_columns: Collection[str] = (),
) -> "Figure":
    """Draw the correlations in both tables, and their difference, as three maps.

    Codes of words are one 0/1 axis per level; at most 30 axes are drawn. Spearman's rank correlation
    over the rows that have both values.

    Parameters
    ----------
    real, synthetic, columns, discrete_columns
        As for `show_distributions`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TableError
        As for `show_distributions`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, a, b = _encoded(real, synthetic, columns, discrete_columns)
    left, names = _correlations(a, shown)
    right, _ = _correlations(b, shown)
    n = len(names)
    figure = Figure(figsize=(15, 1.8 + 0.24 * n + 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    difference = right - left
    off = np.abs(difference[np.triu_indices(n, 1)])
    mean = float(np.nanmean(off)) if len(off) and not np.isnan(off).all() else 0.0
    titles = ("observed", "generated", f"difference (mean {mean:.3f})")
    image: Any = None
    for i, (panel, title, matrix) in enumerate(
        zip(panels, titles, (left, right, difference), strict=True)
    ):
        image = panel.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xticks(range(n), [_short(name) for name in names], rotation=90, fontsize=7)
        # The maps share their rows: named once.
        panel.set_yticks(range(n), [_short(name) for name in names] if i == 0 else [], fontsize=7)
    figure.colorbar(image, ax=list(panels), shrink=0.7)
    return figure


def _correlations(values: FloatArray, columns: Sequence[Column]) -> tuple[FloatArray, list[str]]:
    matrix, names = analysis_matrix(values, columns)
    matrix, names = matrix[:, :_MOST_AXES], names[:_MOST_AXES]
    frame = pd.DataFrame(matrix)
    return frame.corr(method="spearman", min_periods=3).to_numpy(float), names


def _encoded(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    wanted: Sequence[str] | None,
    discrete_columns: Collection[str],
) -> tuple[list[Column], FloatArray, FloatArray]:
    marks = [ORIGIN_COLUMN, SYNTHETIC_COLUMN]
    a, b = (t.rename(columns=str).drop(columns=marks, errors="ignore") for t in (real, synthetic))
    if wanted is not None:
        absent = [name for name in wanted if name not in a.columns or name not in b.columns]
        if absent:
            raise TableError(f"'{absent[0]}' is not a column of both tables")
        a = a[list(wanted)]
    a = a[[name for name in a.columns if name in b.columns]]
    columns = [c for c in infer_columns(a, discrete=discrete_columns) if c.kind is not None]
    if not columns or len(a) == 0 or len(b) == 0:
        raise TableError("the two tables share no column that can be drawn, or one has no row")
    return columns, encode(a, columns), encode(b, columns)
