"""`synthedge compare`: what each way to treat the imbalance does to models on held-out rows."""

from typing import TYPE_CHECKING, Annotated

import typer

from synthedge_client import console
from synthedge_client import local_table as lt

if TYPE_CHECKING:
    from rich.console import Console

    from synthedge_core.compare import Comparison


def compare(
    data: lt.DataArgument,
    target: lt.TargetOption = None,
    positive: lt.PositiveOption = None,
    splits: Annotated[int, typer.Option(min=2, help="Random splits in training and test.")] = 10,
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
    json: lt.JsonOption = False,
) -> None:
    """Compare filling with class weights, SMOTE-NC, ADASYN and copies, on rows none of them saw."""
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
    from synthedge_core.compare import compare as run

    with lt.progress_of("comparing") as report:
        result = run(
            synthedge.analysis(),
            n_splits=splits,
            seed=seed,
            n_top=n_top,
            engine=engine,
            report_progress=report,
        )
    console.emit(result, as_json=json, render=lambda c: _render(c, result))


def _render(out: "Console", result: "Comparison") -> None:
    from rich.table import Table

    title = (
        f"{result.n_splits} splits, {result.n_train} training and {result.n_test} test rows; "
        "mean ± standard deviation; in brackets the paired difference to class weights"
    )
    table = Table("method", "model", "rows", "AUPRC", "AUROC", "recall at FPR 0.2", "Brier")
    for one in result.results:
        cells = [
            f"{one.mean[m]:.3f} ± {one.spread[m]:.3f} ({one.difference[m]:+.3f})"
            for m in ("auprc", "auroc", "recall_at_fpr", "brier")
        ]
        table.add_row(one.method, one.model, f"{one.rows_added:.0f}", *cells)
    out.print(title, soft_wrap=True)
    out.print(table)
    out.print(
        "Every method saw the training rows only; all but 'none' train with the same class weights."
    )
    for line in result.notes:
        out.print(line, soft_wrap=True)
