"""`synthedge rebalance`: bring the classes of a table, and other columns, to the shares asked for."""

import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client import console
from synthedge_client import local_table as lt
from synthedge_core.errors import TableError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from synthedge_core.evaluation import Evaluation
    from synthedge_core.rebalance import RebalanceReport
    from synthedge_core.rebalance_plan import RebalancePlan

# A bin may hold a comma, a value may not: "age: [0,50)=0.4,[50,100)=0.6".
_SHARE = re.compile(r"\s*([\[(][^\])]*[\])]|[^=,]+?)\s*=\s*([^,\s]+)\s*(?:,|$)")


def rebalance(
    data: lt.DataArgument,
    target: Annotated[str, typer.Option(help="Label column: two classes, or several.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write: .csv, .csv.gz or .parquet.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(help="oversample (only add), undersample (only leave out), hybrid (both)."),
    ] = "oversample",
    ratio: Annotated[
        float | None, typer.Option(help="Smaller classes as a share of the largest; default 1.")
    ] = None,
    target_count: Annotated[
        list[str] | None,
        typer.Option(help="CLASS=ROWS afterwards, instead of a ratio; repeatable."),
    ] = None,
    discrete_columns: Annotated[
        str | None, typer.Option(help="Columns that hold codes, separated by commas.")
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            help="Rule for new rows: 'age in [0,120]', 'chol > 0', 'diaBP < sysBP', "
            "'fixed: sex, pregnant'; repeatable."
        ),
    ] = None,
    marginal: Annotated[
        list[str] | None,
        typer.Option(
            help="Distribution a column shall have: 'sex: F=0.5,M=0.5', "
            "'age: [0,50)=0.4,[50,100)=0.6'; repeatable."
        ),
    ] = None,
    quality_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Reject generated rows below this quality.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="copula (default), ctgan, gaussian or smote-nc.")
    ] = "copula",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the ctgan engine.")
    ] = None,
    evaluate: Annotated[
        int,
        typer.Option(
            min=0, help="Seeds of a downstream check: models trained without and with rebalancing."
        ),
    ] = 0,
    report: Annotated[Path | None, typer.Option(help="HTML file to write about it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen to each class.")
    ] = False,
    seed: lt.SeedOption = 0,
    query: lt.QueryOption = None,
    missing: lt.MissingOption = None,
    json: lt.JsonOption = False,
) -> None:
    """Change how many rows each class has: exactly so many, or an error that says why not."""
    from synthedge_core.rebalance import OverAugmentationWarning, augment_imbalanced
    from synthedge_core.rebalance_mix import DroppedMinorityWarning

    arguments = lt.TableArguments(data=data, target=target, query=query, missing=missing)
    table, _ = lt.load(arguments)
    discrete = _names(discrete_columns)
    settings: dict[str, Any] = {
        "strategy": strategy,
        "ratio": ratio,
        "target_counts": _counts(target_count),
        "discrete_columns": discrete,
        "constraints": constraint or (),
        "explicit_marginals": _marginals(marginal),
        "quality_threshold": quality_threshold,
        "engine": engine,
        "engine_settings": None if steps is None else {"steps": steps},
    }
    if dry_run:
        plan = augment_imbalanced(table, target, **settings, seed=seed, dry_run=True)
        data_out: dict[str, Any] = {"plan": plan, "n_rows": plan.n_rows}
        console.emit(data_out, as_json=json, render=lambda c: _render_plan(c, plan))
        return
    if output is None:
        raise UsageError("--output is missing: name the file to write, or give --dry-run")
    lt.check_output(arguments, output, report)
    started = time.perf_counter()
    with (
        lt.progress_of(f"{strategy} with {engine}") as show,
        # They are in the report, and shown below.
        warnings.catch_warnings(),
    ):
        for category in (OverAugmentationWarning, DroppedMinorityWarning):
            warnings.simplefilter("ignore", category)
        result, done = augment_imbalanced(table, target, **settings, seed=seed, return_report=True)
        show(1.0)
        checked = _check(table, target, settings, discrete, evaluate, seed)
    seconds = time.perf_counter() - started
    lt.write_table(result, output)
    if report is not None:
        _write_report(report, result, done, checked, arguments.name)
    for text in done.warnings:
        console.note(f"warning: {text}")
    data_out = _data(result, done, checked, output, report, seconds)
    console.emit(data_out, as_json=json, render=lambda c: _render(c, data_out, done, checked))


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _counts(pairs: list[str] | None) -> dict[str, int] | None:
    if not pairs:
        return None
    counts = {}
    for pair in pairs:
        level, separator, number = pair.rpartition("=")
        if not separator or not level or not number.strip().isdigit():
            raise UsageError(f"--target-count '{pair}' cannot be read; write CLASS=ROWS, as 1=500")
        counts[level.strip()] = int(number)
    return counts


def _marginals(texts: list[str] | None) -> dict[str, dict[str, float]] | None:
    if not texts:
        return None
    marginals: dict[str, dict[str, float]] = {}
    for text in texts:
        column, separator, rest = text.partition(":")
        pairs = _SHARE.findall(rest)
        # What the pattern skipped would be silently dropped.
        is_whole = bool(pairs) and not _SHARE.sub("", rest).strip()
        if not separator or not column.strip() or not is_whole or column.strip() in marginals:
            raise UsageError(
                f"--marginal '{text}' cannot be read; write 'COLUMN: VALUE=SHARE,...' once per "
                "column, as 'sex: F=0.5,M=0.5'"
            )
        try:
            shares = {value: float(share) for value, share in pairs}
        except ValueError:
            raise UsageError(f"--marginal '{text}' has a share that is no number") from None
        if len(shares) < len(pairs):
            raise UsageError(f"--marginal '{text}' names a value twice")
        marginals[column.strip()] = shares
    return marginals


def _check(
    table: "pd.DataFrame",
    target: str,
    settings: dict[str, Any],
    discrete: list[str],
    n_seeds: int,
    seed: int,
) -> "Evaluation | None":
    """Train with and without the same rebalancing of each seed's training rows."""
    if n_seeds == 0:
        return None
    from synthedge_core.evaluation import evaluate
    from synthedge_core.rebalance import augment_imbalanced

    if settings["target_counts"] is not None:
        raise UsageError(
            "--evaluate rebalances a part of the rows, for which --target-count means nothing; "
            "give --ratio"
        )

    def altered(train: "pd.DataFrame", one_seed: int) -> "pd.DataFrame":
        rebalanced: pd.DataFrame = augment_imbalanced(
            train, target, **settings, seed=one_seed, measure=False
        )
        return rebalanced

    return evaluate(
        table,
        target,
        {"altered": altered},
        discrete_columns=discrete,
        n_seeds=n_seeds,
        seed=seed,
    )


def _write_report(
    path: Path,
    result: "pd.DataFrame",
    done: "RebalanceReport",
    checked: "Evaluation | None",
    title: str,
) -> None:
    from synthedge_core import __version__
    from synthedge_core.rebalance_html import rebalance_html

    page = rebalance_html(result, done, title=title, version=__version__, evaluation=checked)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TableError(f"'{path}' cannot be written: {error.strerror}") from None


def _data(
    result: "pd.DataFrame",
    done: "RebalanceReport",
    checked: "Evaluation | None",
    output: Path,
    report: Path | None,
    seconds: float,
) -> dict[str, Any]:
    return {
        "output": str(output),
        "report": None if report is None else str(report),
        "n_rows": len(result),
        "n_generated": done.n_generated,
        "n_accepted": done.n_accepted,
        "rejected": done.rejected,
        "quality_score": done.quality_score,
        "probe": done.probe,
        "classes": done.classes,
        "groups": done.groups,
        "n_outside": done.n_outside,
        "observed_breaking": done.observed_breaking,
        "warnings": done.warnings,
        "columns": lt.columns_data(done.columns),
        "evaluation": None if checked is None else checked.scores,
        "seconds": round(seconds, 3),
    }


def _render_plan(out: "Console", plan: "RebalancePlan") -> None:
    from rich.table import Table

    table = Table("class", "observed", "kept", "left out", "generated", "afterwards", title="Plan")
    for one in plan.classes:
        numbers = (one.n_observed, one.n_kept, one.n_dropped, one.n_new, one.n_wanted)
        table.add_row(str(one.level), *map(str, numbers))
    out.print(table)
    for note in plan.notes:
        out.print(note, soft_wrap=True)
    out.print(f"{plan.n_rows} rows afterwards; nothing was written.")


def _render(
    out: "Console", data: dict[str, Any], done: "RebalanceReport", checked: "Evaluation | None"
) -> None:
    from rich.table import Table

    out.print(lt.columns_table(done.columns))
    table = Table(
        "class", "observed", "kept", "generated", "afterwards", "quality", title="Classes"
    )
    for one in done.classes:
        score = None if one.quality is None else one.quality.score
        numbers = (one.rows.n_observed, one.rows.n_kept, one.rows.n_accepted, one.rows.n_rows)
        table.add_row(str(one.level), *map(str, numbers), "-" if score is None else f"{score:.2f}")
    out.print(table)
    stopped = ", ".join(f"{reason} {n}" for reason, n in done.rejected.items() if n)
    out.print(
        f"{done.n_generated} candidates, {done.n_accepted} kept; not kept: {stopped or 'none'}.",
        soft_wrap=True,
    )
    if checked is not None:
        for found in checked.scores:
            out.print(
                f"{found.model} trained on {found.trained_on}: ROC-AUC {found.roc_auc:.3f}, ratio "
                f"{found.ratio:.3f} ({found.ratio_low:.3f} to {found.ratio_high:.3f})",
                soft_wrap=True,
            )
    out.print(
        f"{data['n_rows']} rows written to {data['output']}. Columns _origin and _synthetic mark the "
        "new ones; never put them into a test split.",
        soft_wrap=True,
    )
