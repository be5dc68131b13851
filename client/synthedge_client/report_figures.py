"""The report's figures: the voxel grid in 3-D, the ranked regions, distributions before and after."""

from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from synthedge_core.columns import Column
from synthedge_core.gap_test import GapTest
from synthedge_core.scan import Scan
from synthedge_core.synthedge import SynthEdge

FloatArray = npt.NDArray[np.float64]

_MAX_DISTRIBUTIONS = 12
_COLUMNS_OF_FIGURES = 3
_BINS = 20


def _div(figure: go.Figure, name: str) -> str:
    # The logo would be a link to the plotting library's site.
    config = {"displaylogo": False, "responsive": True}
    text: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config=config, div_id=f"figure-{name}"
    )
    return text


def gap_map(scan: Scan) -> str:
    """Draw the voxels that hold a positive sample at their geometric centres."""
    middles = (scan.edges[:, :-1] + scan.edges[:, 1:]) / 2
    points = np.array([[middles[a][v.index[a]] for a in range(3)] for v in scan.voxels])
    if len(points) == 0:
        return "<p>No voxel holds a positive row.</p>"
    counts = np.array([v.n_observed for v in scan.voxels])
    texts = [
        f"voxel {v.label}<br>{v.n_observed} rows, {v.n_positive} positive<br>"
        f"expected {v.expected:.1f}<br>gap score {v.gap_score}"
        for v in scan.voxels
    ]
    figure = go.Figure(
        go.Scatter3d(
            x=points[:, 0],
            y=points[:, 1],
            z=points[:, 2],
            mode="markers",
            text=texts,
            hoverinfo="text",
            marker={
                "size": 5 + 20 * np.sqrt(counts / counts.max()),
                "color": [v.gap_score for v in scan.voxels],
                "colorscale": "YlOrRd",
                "cmin": 0.0,
                "cmax": 1.0,
                "colorbar": {"title": {"text": "gap score"}},
                "opacity": 0.8,
            },
        )
    )
    titles = [f"axis {i + 1} ({share:.0%})" for i, share in enumerate(scan.explained)]
    figure.update_layout(
        height=600,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "xaxis": {"title": {"text": titles[0]}},
            "yaxis": {"title": {"text": titles[1]}},
            "zaxis": {"title": {"text": titles[2]}},
        },
    )
    return _div(figure, "map")


def region_ranking(test: GapTest) -> str:
    """Draw the regions that lack most: positives found and expected, worst on top."""
    if not test.regions:
        return "<p>No region should have enough positive rows to lack any.</p>"
    regions = test.regions[::-1]
    names = [escape(f"{r.name} (chance {r.p_value:.3f})") for r in regions]
    figure = go.Figure(
        [
            go.Bar(
                y=names,
                x=[r.n_positive for r in regions],
                orientation="h",
                name="found",
                marker={"color": "#33658a"},
            ),
            go.Bar(
                y=names,
                x=[r.n_lacking for r in regions],
                orientation="h",
                name="missing",
                marker={"color": "#d9772b"},
            ),
        ]
    )
    figure.update_layout(
        barmode="stack",
        height=120 + 40 * len(regions),
        margin={"l": 10, "r": 10, "t": 10, "b": 40},
        xaxis={"title": {"text": "positive rows"}},
        yaxis={"automargin": True},
    )
    return _div(figure, "regions")


def distributions(synthedge: SynthEdge) -> str:
    """Draw the positives' distributions before and after the last fill, most changed first."""
    positive = synthedge.values[synthedge.classes[0].positive]
    made = synthedge.filled_values
    after = np.vstack([positive, made])
    pairs = [
        (_histogram(positive[:, i], after[:, i], column), column)
        for i, column in enumerate(synthedge.analysed)
    ]
    shown = sorted(
        ((h, c) for h, c in pairs if h is not None),
        key=lambda pair: -float(np.abs(pair[0][1] - pair[0][2]).sum()),
    )[:_MAX_DISTRIBUTIONS]
    if not shown:
        return ""
    n_rows = -(-len(shown) // _COLUMNS_OF_FIGURES)
    figure = make_subplots(
        rows=n_rows,
        cols=_COLUMNS_OF_FIGURES,
        subplot_titles=[escape(column.name) for _, column in shown],
        vertical_spacing=0.3 / max(1, n_rows),
    )
    for i, ((labels, before, later), _) in enumerate(shown):
        for name, heights, colour in (("before", before, "#33658a"), ("after", later, "#d9772b")):
            bar = go.Bar(
                x=labels,
                y=heights,
                name=name,
                marker={"color": colour},
                legendgroup=name,
                showlegend=i == 0,
            )
            figure.add_trace(bar, row=i // _COLUMNS_OF_FIGURES + 1, col=i % _COLUMNS_OF_FIGURES + 1)
    figure.update_layout(height=100 + 260 * n_rows, barmode="group")
    figure.update_yaxes(tickformat=".0%")
    return _div(figure, "distributions")


def _histogram(
    before: FloatArray, after: FloatArray, column: Column
) -> tuple[list[Any], FloatArray, FloatArray] | None:
    """Give bin labels and the shares of the values before and after in them."""
    a, b = before[~np.isnan(before)], after[~np.isnan(after)]
    if len(a) == 0 or len(b) == 0:
        return None
    if column.has_levels:
        edges = np.arange(len(column.levels) + 1) - 0.5
        labels: list[Any] = [escape(str(level)) for level in column.levels]
    else:
        low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        labels = [round(float(m), 6) for m in (edges[:-1] + edges[1:]) / 2]
    heights = [np.histogram(part, edges)[0] / len(part) for part in (a, b)]
    return labels, heights[0], heights[1]
