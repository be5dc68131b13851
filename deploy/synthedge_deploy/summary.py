"""The end of the demonstration: what was measured, what the coordinator held, and the table that shows it."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from synthedge_client.outbound import deidentify
from synthedge_client.settings import load_settings
from synthedge_client.site_table import load_site_table
from synthedge_client.tables import read_table
from synthedge_core.dictionary import Dictionary
from synthedge_deploy.cohorts import Cohort
from synthedge_deploy.comparison import BEFORE, TRANSFER_AND_FILL, compare, mean_and_spread
from synthedge_deploy.evaluate import MODELS
from synthedge_deploy.leak_patterns import PatientTable
from synthedge_deploy.leak_search import LeakSearch
from synthedge_deploy.samples import Samples
from synthedge_deploy.simulate import simulate

if TYPE_CHECKING:
    from rich.console import Console

MEASURES = {"subgroup_recall": "recall at a false-positive rate of 0.2", "subgroup_auprc": "AUPRC"}


def measure(folder: Path, cohort: Cohort, seed: int) -> dict[str, Any]:
    """Train on the carved site's table before and after, and measure on the patients held out.

    Returns
    -------
    dict
        ``heldout``: one entry a measure with before and after; ``comparison``: every rival's measures by model.
    """
    received, synthetic = _filled(folder / cohort.carved_site, cohort.dictionary)
    comparison = compare(cohort, received, synthetic, seed)
    heldout = [
        {
            "site": cohort.carved_site,
            "measure": f"subgroup {text}, {model}",
            "before": round(getattr(comparison[BEFORE][model], name), 3),
            "after": round(getattr(comparison[TRANSFER_AND_FILL][model], name), 3),
        }
        for model in MODELS
        for name, text in MEASURES.items()
    ]
    return {
        "heldout": heldout,
        "comparison": {
            name: {model: asdict(measures) for model, measures in by_model.items()}
            for name, by_model in comparison.items()
        },
    }


def _filled(folder: Path, dictionary: Dictionary) -> tuple[Samples, Samples]:
    """Received and synthetic rows of a site's filled table, mapped back to the dictionary."""
    filled = read_table(folder / "filled.csv")
    table = load_site_table(load_settings(folder), dictionary)

    def rows(origin: str) -> Samples:
        values = table.from_own_rows(filled[filled["_origin"] == origin])
        return Samples(values, np.ones(len(values), dtype=np.bool_))

    return rows("received"), rows("synthetic")


def search_coordinator(
    folder: Path, cohort: Cohort, transfers: list[dict[str, Any]]
) -> dict[str, int]:
    """Search the coordinator's files and log for the donors' patients, and the donors' files as a control.

    Returns
    -------
    dict
        ``coordinator`` and ``donors``: traces found; ``patterns`` searched for; ``files`` and ``bytes``
        of the coordinator.
    """
    donors = {t["donor"] for t in transfers}
    tables = [
        table
        for hospital in cohort.hospitals
        if hospital.site in donors
        for table in patient_tables(folder / hospital.site, cohort.dictionary)
    ]
    if not tables:
        return {"coordinator": 0, "donors": 0, "patterns": 0, "files": 0, "bytes": 0}
    search = LeakSearch(tables)
    held = search.in_folder(folder / "coordinator")
    log = folder / "logs" / "coordinator.log"
    logged = search.in_bytes(log.name, log.read_bytes())
    control = sum(search.in_folder(folder / site).n_patient_values for site in sorted(donors))
    return {
        "coordinator": held.n_patient_values + len(logged),
        "donors": control,
        "patterns": held.n_patterns,
        "files": held.n_files + 1,
        "bytes": held.n_bytes + log.stat().st_size,
    }


def patient_tables(folder: Path, dictionary: Dictionary) -> list[PatientTable]:
    """A site's patients in every form they have there: own units, dictionary units, as they leave."""
    settings = load_settings(folder)
    table = load_site_table(settings, dictionary)
    own = table.own.drop(columns=[settings.patient_id, settings.consent])
    forms = (
        own.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64),
        table.values,
        deidentify(table.values, dictionary, table.features),
    )
    return [
        PatientTable(site=settings.id, patient_ids=table.patient_ids, values=values)
        for values in forms
    ]


def repeat(make: Callable[[int], Cohort], seeds: Iterable[int]) -> dict[str, Any]:
    """Run the mission over several splits, and give mean and standard deviation of every measure.

    Returns
    -------
    dict
        ``seeds``, ``carved_region_first`` (in how many the first hole lay on the carved feature),
        ``rows`` (mean), ``measures`` by training set, model and measure as ``[mean, sd]``.
    """
    cohorts = {seed: make(seed) for seed in seeds}
    runs = {seed: simulate(cohort, seed) for seed, cohort in cohorts.items()}
    comparisons = [run.comparison for run in runs.values()]
    hits = sum(
        run.grid is not None
        and not set(cohorts[seed].subgroup.limits).isdisjoint(
            cohorts[seed].dictionary.grid(run.grid).features
        )
        for seed, run in runs.items()
    )
    return {
        "seeds": len(runs),
        "carved_region_first": hits,
        "rows": float(np.mean([sum(run.transfers.values()) for run in runs.values()])),
        "measures": {
            name: {
                model: {
                    text: [round(x, 3) for x in mean_and_spread(comparisons, name, model, text)]
                    for text in MEASURES
                }
                for model in MODELS
            }
            for name in comparisons[0]
        },
    }


def show_summary(summary: dict[str, Any], console: "Console") -> None:
    """Print the closing tables."""
    from rich.table import Table

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            made.add_column(column, justify="left" if i == 0 else "right")
        return made

    moved = table("\nWho had which gap, and who gave", "gap", "recipient", "donor", "rows", "state")
    for t in summary["transfers"]:
        moved.add_row(t["region"], t["recipient"], t["donor"], str(t["rows"]), t["state"])
    console.print(moved)

    carved = summary["carved"]
    held = table(
        f"\nHeld-out patients of '{carved['site']}' with {carved['subgroup']}",
        "measure",
        "before",
        "after",
    )
    for line in summary["heldout"]:
        held.add_row(
            line["measure"].removeprefix("subgroup "),
            f"{line['before']:.3f}",
            f"{line['after']:.3f}",
        )
    console.print(held)

    rivals = table("\nAgainst the rivals (subgroup recall, AUPRC)", "training rows", *MODELS)
    for name, by_model in summary["comparison"].items():
        cells = (
            f"{m['subgroup_recall']:.3f}  {m['subgroup_auprc']:.3f}" for m in by_model.values()
        )
        rivals.add_row(name, *cells)
    console.print(rivals)

    if summary["repeated"]:
        _show_repeated(summary["repeated"], console, table)
    console.print(
        f"\nPatient values the coordinator held: [bold]{summary['coordinator_patient_values']}[/bold]   "
        f"({summary['leak_search']['patterns']} traces searched for in {summary['leak_search']['files']} files)"
    )
    console.print(f"Time: {summary['seconds']:.0f} s")


def _show_repeated(repeated: dict[str, Any], console: "Console", table: Callable[..., Any]) -> None:
    lines = table(
        f"\nMean and spread over {repeated['seeds']} splits (subgroup recall, AUPRC); the carved region came first "
        f"in {repeated['carved_region_first']}, {repeated['rows']:.0f} rows moved",
        "training rows",
        *MODELS,
    )
    for name, by_model in repeated["measures"].items():
        cells = (
            "  ".join(f"{m[text][0]:.3f} ± {m[text][1]:.3f}" for text in MEASURES)
            for m in by_model.values()
        )
        lines.add_row(name, *cells)
    console.print(lines)
