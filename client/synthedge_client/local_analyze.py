"""`synthedge analyze`: what the columns are, where the gaps are, and whether filling would help."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client import console
from synthedge_client import local_table as lt

if TYPE_CHECKING:
    from rich.console import Console

    from synthedge_core.synthedge import SynthEdge


def analyze(
    data: lt.DataArgument,
    target: lt.TargetOption = None,
    positive: lt.PositiveOption = None,
    n_bins: Annotated[
        int | None, typer.Option(min=2, max=32, help="Voxels per axis; default 3-6 by size.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Gaps to list.")] = 10,
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
    synthedge = lt.open_table(arguments)
    result = synthedge.analyze(n_bins=n_bins, top_k=top_k)
    out = {
        "table": arguments.name,
        "rows": len(synthedge.values),
        "rows_without_label": synthedge.labels.n_unlabelled,
        "positive": synthedge.classes[0].name,
        "n_positive": synthedge.classes[0].n_positive,
        "columns": lt.columns_data(synthedge.columns),
        **{k: v for k, v in result.items() if k not in {"top_voxels", "all_voxels", "columns"}},
        "gaps": synthedge.gap_map.to_dict(orient="records"),
    }
    console.emit(out, as_json=json, render=lambda c: _render(c, out, synthedge))


def _render(out: "Console", data: dict[str, Any], synthedge: "SynthEdge") -> None:
    from rich.table import Table

    out.print(lt.columns_table(synthedge.columns))
    table = Table("voxel", "rows", "expected", "positive", "gap score", title="Gaps")
    for gap in data["gaps"]:
        table.add_row(
            *(str(gap[k]) for k in ("voxel", "observed", "expected", "n_pos", "gap_score"))
        )
    out.print(table)
    out.print(
        f"Severity: {data['severity']}. {data['recommendation']}", markup=False, soft_wrap=True
    )
