"""The local report as one HTML file that makes no network request.

Every text that comes from the table (names of columns, levels, the file) is escaped; the page's own
policy forbids it to load anything.
"""

import html
from pathlib import Path
from typing import Any

from synthedge_client.report_figures import distributions, gap_map, region_ranking
from synthedge_core import __version__
from synthedge_core.errors import TableError
from synthedge_core.severity import Severity
from synthedge_core.synthedge import SynthEdge

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; worker-src blob:"
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1c2430; background: #fff; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #d5dbe3; padding: .3rem .8rem; text-align: left; }
.verdict { border-left: .5rem solid #888; padding: .5rem 1rem; background: #f4f6f9; }
.NONE { border-color: #2e7d4f; } .MILD { border-color: #c9a227; }
.MODERATE { border-color: #d9772b; } .SEVERE { border-color: #b3261e; }
.quiet { color: #5a6675; }
"""


def write_report(synthedge: SynthEdge, path: Path, *, title: str, refusal: str = "") -> None:
    """Write the report of an analysed table.

    Parameters
    ----------
    synthedge : SynthEdge
        Analysed, and filled unless `refusal` says why not.
    path : Path
        File to write.
    title : str
        Name of the table.
    refusal : str
        Why nothing was filled.

    Raises
    ------
    TableError
        If the file cannot be written.
    """
    try:
        path.write_text(report_page(synthedge, title=title, refusal=refusal), encoding="utf-8")
    except OSError as error:
        raise TableError(f"'{path}' cannot be written: {error.strerror}") from None


def report_page(synthedge: SynthEdge, *, title: str, refusal: str = "") -> str:
    """Give the report's HTML; see `write_report`."""
    from plotly.offline import get_plotlyjs

    sections = [_verdict(cls.name, synthedge.verdict(i)) for i, cls in enumerate(synthedge.classes)]
    sections.append("<h2>The gap map</h2>")
    sections.append(
        "<p class='quiet'>Every point is a voxel of the grid over the first three principal "
        "components, at its geometric centre; drag to turn. Size: rows; colour: gap score.</p>"
    )
    sections.append(gap_map(synthedge.analysis().scan))
    sections.append("<h2>Named regions that lack positive rows</h2>")
    sections.append(region_ranking(synthedge.analysis().gap_test))
    sections.append("<h2>Before and after filling</h2>")
    sections.append(_filled(synthedge) if not refusal else f"<p>{html.escape(refusal)}</p>")
    sections.append(_columns(synthedge))
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            "<meta name='viewport' content='width=device-width'>",
            # An icon of its own: a browser would ask the server for one otherwise.
            "<link rel='icon' href='data:,'>",
            f"<title>{html.escape(title)} - SynthEdge</title><style>{_STYLE}</style>",
            f"<script>{get_plotlyjs()}</script></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f"<p class='quiet'>{_size(synthedge)} synthedge {html.escape(__version__)}</p>",
            *sections,
            "</body></html>",
        ]
    )


def _size(synthedge: SynthEdge) -> str:
    positive = int(synthedge.classes[0].positive.sum())
    label = html.escape(synthedge.labels.column)
    name = html.escape(synthedge.classes[0].name)
    return (
        f"{len(synthedge.values)} rows, {positive} positive ({label} = {name}), "
        f"{synthedge.labels.n_unlabelled} rows without a label."
    )


def _verdict(name: str, verdict: Severity) -> str:
    benefit = verdict.benefit
    effect = (
        ""
        if benefit is None
        else (
            f"<p>Expected change of the held-out AUROC: {benefit.estimate:+.3f} "
            f"({benefit.low:+.3f} to {benefit.high:+.3f}).</p>"
        )
    )
    answer = "yes" if verdict.will_help else "no"
    return (
        f"<h2>Class {html.escape(name)}</h2>"
        f"<div class='verdict {verdict.level}'><p><strong>{verdict.level}</strong> "
        f"(score {verdict.score}, chance {verdict.p_value:.3f}). Will filling help: "
        f"<strong>{answer}</strong>.</p><p>{html.escape(verdict.recommendation)}</p>{effect}"
        f"<p class='quiet'>The published package's score, for comparison only: "
        f"{verdict.seed_score} ({verdict.seed_level}).</p></div>"
    )


def _table(header: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _filled(synthedge: SynthEdge) -> str:
    reports = synthedge.fill_report
    rows = [
        [
            r.voxel,
            r.engine,
            r.requested,
            r.generated,
            ", ".join(f"{gate} {n}" for gate, n in r.rejected.items() if n) or "-",
            r.accepted,
            r.note,
        ]
        for r in reports
    ]
    header = ["gap", "engine", "requested", "generated", "rejected by", "accepted", "note"]
    parts = [_table(header, rows)]
    if sum(r.accepted for r in reports):
        quality = synthedge.quality_report()
        shown = {
            "compared with": quality["compared_with"],
            "Kullback-Leibler divergence (bits)": quality["kl"],
            "columns that drift": quality["n_drifted"],
            "correlation difference": quality["correlation_difference"],
            "discriminator AUC (logistic regression)": quality["discriminator_auc"],
            "discriminator AUC (forest)": quality["discriminator_auc_forest"],
            "distance to the closest record": quality["closest_record"],
            "the same between real rows": quality["closest_record_real"],
            "coverage": quality["coverage"],
        }
        cells = [[k, f"{v:.3f}" if isinstance(v, float) else v] for k, v in shown.items()]
        parts.append(_table(["quality", ""], cells))
        parts.append(distributions(synthedge))
    return "".join(parts)


def _columns(synthedge: SynthEdge) -> str:
    rows = [
        [c.name, c.kind or "not used", c.reason, c.n_missing or "", c.n_refused or ""]
        for c in synthedge.columns
    ]
    return "<h2>Columns</h2>" + _table(["column", "kind", "why", "missing", "refused"], rows)
