"""`synthedge report`: one HTML file with the verdict, the gap map and what filling would change."""

from pathlib import Path
from typing import Annotated

import typer

from synthedge_client import console
from synthedge_client import local_table as lt


def report(
    data: lt.DataArgument,
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("synthedge.html"),
    target: lt.TargetOption = None,
    positive: lt.PositiveOption = None,
    n_top: Annotated[int, typer.Option(min=1, help="Gaps to fill.")] = 3,
    engine: Annotated[
        str, typer.Option(help="copula (default), ctgan, gaussian or smote-nc.")
    ] = "copula",
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
    """Write one self-contained HTML file: severity, gaps, and distributions before and after.

    It makes no network request and holds no row of the table; it does hold counts of small voxels,
    so treat it as you treat the table.
    """
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
    from synthedge_client.report_html import write_report
    from synthedge_core.errors import RefusedError

    synthedge.analyze()
    refusal = ""
    with lt.progress_of(f"filling with {engine}") as progress:
        try:
            synthedge.fill(None, n_top, engine, seed=seed, report_progress=progress)
        except RefusedError as refused:
            # A report on a table that cannot be filled is still a report.
            refusal = str(refused)
    write_report(synthedge, output, title=arguments.name, refusal=refusal)
    out = {"output": str(output), "bytes": output.stat().st_size, "refusal": refusal}
    console.emit(out, as_json=json, render=lambda c: c.print(f"written to {output}"))
