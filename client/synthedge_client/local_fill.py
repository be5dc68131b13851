"""`synthedge fill`: add generated rows in the worst gaps of a table."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client import console
from synthedge_client import local_table as lt
from synthedge_client.model_folder import ModelFolder
from synthedge_core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from synthedge_core.fill import VoxelReport


def fill(
    data: lt.DataArgument,
    output: Annotated[Path, typer.Option(help="File to write: .csv, .csv.gz or .parquet.")],
    target: lt.TargetOption = None,
    positive: lt.PositiveOption = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows to add in all; default by the gaps' sizes.")
    ] = None,
    n_top: Annotated[int, typer.Option(min=1, help="Gaps to fill.")] = 3,
    engine: Annotated[
        str, typer.Option(help="copula (default), ctgan, gaussian or smote-nc.")
    ] = "copula",
    where: Annotated[
        str,
        typer.Option(
            help="regions (named, where positives are missing) or voxels (sparse ones of the grid)."
        ),
    ] = "regions",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the ctgan engine.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps trained ctgan models. They hold what was learned from your "
            "rows and are run when loaded: keep it where the rows are, and yours alone."
        ),
    ] = None,
    seed: lt.SeedOption = 0,
    query: lt.QueryOption = None,
    dictionary: lt.DictionaryOption = None,
    discrete: lt.DiscreteOption = None,
    continuous: lt.ContinuousOption = None,
    ignore: lt.IgnoreOption = None,
    missing: lt.MissingOption = None,
    constraint: lt.ConstraintOption = None,
    json: lt.JsonOption = False,
) -> None:
    """Add synthetic positive rows in the worst gaps; the table's own rows stay as they are."""
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
        constraint=constraint,
    )
    lt.check_output(arguments, output)
    synthedge = lt.open_table(arguments)
    settings: dict[str, Any] = {}
    if engine != "ctgan" and (steps is not None or models is not None):
        raise UsageError(f"--steps and --models belong to the engine ctgan, not to {engine}")
    if steps is not None:
        settings["steps"] = steps
    if models is not None:
        settings["cache"] = ModelFolder(models)
    started = time.perf_counter()
    with lt.progress_of(f"filling with {engine}") as report:
        filled = synthedge.fill(
            rows,
            n_top,
            engine,
            target=where,  # type: ignore[arg-type]  # the engine checks it
            seed=seed,
            engine_settings=settings,
            report_progress=report,
        )
    seconds = time.perf_counter() - started
    lt.write_table(filled, output)
    reports = synthedge.fill_report
    data_out = {
        "output": str(output),
        "rows_before": len(filled) - sum(r.accepted for r in reports),
        "rows_added": sum(r.accepted for r in reports),
        "seconds": round(seconds, 3),
        "voxels": reports,
    }
    console.emit(data_out, as_json=json, render=lambda c: _render(c, data_out, reports))


def _render(out: "Console", data: dict[str, Any], reports: "tuple[VoxelReport, ...]") -> None:
    from rich.table import Table

    table = Table(
        "voxel", "engine", "requested", "generated", "rejected by", "accepted", title="Filled gaps"
    )
    for report in reports:
        stopped = ", ".join(f"{gate} {n}" for gate, n in report.rejected.items() if n)
        table.add_row(
            report.voxel,
            report.engine,
            str(report.requested),
            str(report.generated),
            stopped or "-",
            str(report.accepted),
        )
    out.print(table)
    for report in reports:
        if report.note:
            out.print(f"voxel {report.voxel}: {report.note}")
    out.print(
        f"{data['rows_added']} rows added to {data['rows_before']}; written to {data['output']}. "
        "Column _origin marks the new ones; never put them into a test split.",
        soft_wrap=True,
    )
