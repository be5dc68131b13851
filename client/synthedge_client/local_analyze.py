"""`synthedge analyze`: what the columns are, where the gaps are, and whether filling would help."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client import console
from synthedge_client import local_table as lt

if TYPE_CHECKING:
    from rich.console import Console

    from synthedge_core.severity import Severity
    from synthedge_core.synthedge import SynthEdge


def analyze(
    data: lt.DataArgument,
    target: lt.TargetOption = None,
    positive: lt.PositiveOption = None,
    n_bins: Annotated[
        int | None, typer.Option(min=2, max=32, help="Voxels per axis; default 3-6 by size.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Voxels to list.")] = 10,
    benefit: Annotated[
        bool, typer.Option(help="Estimate by cross-validation whether filling helps (seconds).")
    ] = True,
    query: lt.QueryOption = None,
    dictionary: lt.DictionaryOption = None,
    discrete: lt.DiscreteOption = None,
    continuous: lt.ContinuousOption = None,
    ignore: lt.IgnoreOption = None,
    missing: lt.MissingOption = None,
    json: lt.JsonOption = False,
) -> None:
    """Find the gaps of a table and say whether filling them would help."""
    arguments = lt.TableArguments(
        data=data,
        target=target,
        positive=positive,
        query=query,
        dictionary=dictionary,
        discrete=discrete,
        continuous=continuous,
        ignore=ignore,
        missing=missing,
    )
    if lt.is_large_parquet(arguments):
        from synthedge_client.local_large import analyze_large

        analyze_large(Path(data), arguments, n_bins=n_bins, top_k=top_k, as_json=json)
        return
    synthedge = lt.open_table(arguments)
    result = synthedge.analyze(n_bins=n_bins, top_k=top_k, with_benefit=benefit)
    out = {
        "table": arguments.name,
        "rows": len(synthedge.values),
        "rows_without_label": synthedge.labels.n_unlabelled,
        "rows_duplicated": synthedge.n_duplicated,
        "positive": synthedge.classes[0].name,
        "n_positive": synthedge.classes[0].n_positive,
        "columns": lt.columns_data(synthedge.columns),
        **{k: v for k, v in result.items() if k not in {"top_voxels", "all_voxels", "columns"}},
        "grids": synthedge.named_grids,
        "gaps": synthedge.gap_map.to_dict(orient="records"),
    }
    console.emit(out, as_json=json, render=lambda c: _render(c, out, synthedge))


def _render(out: "Console", data: dict[str, Any], synthedge: "SynthEdge") -> None:
    from rich.table import Table

    out.print(lt.columns_table(synthedge.columns))
    for count, what in (
        (data["rows_without_label"], "rows without a label are left out"),
        (data["rows_duplicated"], "rows repeat another row exactly"),
    ):
        if count:
            out.print(f"{count} {what}.")
    for grid in data["grids"]:
        table = Table("voxel", "rows", "positive", "gap score", title=f"Grid {grid['grid']}")
        for voxel in grid["voxels"]:
            table.add_row(*(str(voxel[k]) for k in ("voxel", "observed", "n_pos", "gap_score")))
        out.print(table)
    table = Table("voxel", "rows", "expected", "positive", "gap score", title="Sparse voxels")
    for gap in data["gaps"]:
        keys = ("voxel", "observed", "expected", "n_pos", "gap_score")
        table.add_row(*(str(gap[key]) for key in keys))
    out.print(table)
    for i, cls in enumerate(synthedge.classes):
        _render_verdict(out, cls.name, synthedge.verdict(i))


def _render_verdict(out: "Console", name: str, verdict: "Severity") -> None:
    from rich.table import Table

    table = Table("region", "rows", "positive", "expected", "chance", title=f"Class {name}")
    for region in verdict.signals["regions"]:
        table.add_row(
            region["region"],
            str(region["rows"]),
            str(region["positive"]),
            str(region["expected"]),
            f"{region['p_value']:.3f}",
        )
    out.print(table)
    benefit = verdict.benefit
    expected = (
        f"; expected change of AUROC {benefit.estimate:+.3f} "
        f"({benefit.low:+.3f} to {benefit.high:+.3f})"
        if benefit is not None
        else ""
    )
    out.print(
        f"Severity {verdict.level} ({verdict.score}); chance {verdict.p_value:.3f}. "
        f"Will filling help: {'yes' if verdict.will_help else 'no'}{expected}.",
        soft_wrap=True,
    )
    out.print(verdict.recommendation, soft_wrap=True)
    out.print(
        f"(The published package would say {verdict.seed_level}, {verdict.seed_score}.)",
    )
