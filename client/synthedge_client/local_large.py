"""`synthedge analyze` for a table too large for memory: the voxel scan alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthedge_client import console
from synthedge_client.local_table import TableArguments

if TYPE_CHECKING:
    from rich.console import Console


def analyze_large(
    path: Path,
    arguments: TableArguments,
    *,
    n_bins: int | None,
    top_k: int,
    as_json: bool,
) -> None:
    """Scan a Parquet file by row groups and print its sparse voxels.

    Columns of words are left out, and the verdict, which needs the rows in memory, is not given:
    both are said. Errors as for `parquet_scan.scan_parquet`.
    """
    from synthedge_client.parquet_scan import scan_parquet

    positive = list(arguments.positive or ())
    found = scan_parquet(
        path,
        arguments.target or "target",
        positive=positive[0] if positive else None,
        ignore=tuple(arguments.ignore or ()),
        n_bins=n_bins,
        top_k=top_k,
    )
    data = {
        "table": arguments.name,
        "rows": found.scan.n_rows,
        "rows_without_label": found.n_unlabelled,
        "positive": str(found.positive),
        "n_positive": int(found.scan.positives.sum()),
        "columns_scanned": found.columns,
        "columns_left_out": found.left_out,
        "severity": None,
        "gaps": [
            {
                "voxel": voxel.label,
                "observed": voxel.n_observed,
                "expected": round(voxel.expected, 2),
                "n_pos": voxel.n_positive,
                "gap_score": voxel.gap_score,
            }
            for voxel in found.scan.top
        ],
    }
    console.emit(data, as_json=as_json, render=lambda out: _render(out, data))


def _render(out: "Console", data: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("voxel", "rows", "expected", "positive", "gap score", title="Sparse voxels")
    for gap in data["gaps"]:
        keys = ("voxel", "observed", "expected", "n_pos", "gap_score")
        table.add_row(*(str(gap[key]) for key in keys))
    out.print(table)
    if data["columns_left_out"]:
        out.print(f"Not scanned: {', '.join(data['columns_left_out'])}.")
    out.print(
        f"{data['rows']} rows were scanned by row groups. The table is too large for the verdict "
        "and the named regions: analyse a random part of it for those.",
        soft_wrap=True,
    )
