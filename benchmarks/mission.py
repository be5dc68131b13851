"""How much of what pooling all data would give does a blind transfer of at most 20 rows recover.

For every hospital, subgroup and seed of two data sets (`mission_data.py`) half of the rows are held out, and 0, 70 or
100 % of the subgroup's positive training rows are taken away. Then the product's own functions run (protected reports,
holes, matching, requests, selection, gate, fill), knowing nothing of the carve; `rivals.py` holds what they are
compared with. Headline: the recovered share, (transfer - local) / (pooled - local), means over all configurations.

Needs the clinical files: SYNTHEDGE_DATA, or ../shared/data beside the checkout; says so and stops where they are not.
`--partial FILE` keeps each configuration's figures as a line of JSON and goes on from what is there.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from mission_data import DATA_SETS, Configuration, configurations, data_folder, make_cohort
from rivals import LOCAL, ORACLE, POOLED, RIVALS, measure_rival, measured

from synthedge_client.outbound import deidentify
from synthedge_client.selection import choose, giveable
from synthedge_core.grids import NamedGrid
from synthedge_core.match_strategies import SiteReport
from synthedge_core.matching import Matcher
from synthedge_deploy.cohorts import Cohort
from synthedge_deploy.evaluate import MODELS
from synthedge_deploy.samples import Samples, join
from synthedge_deploy.simulate import Reports, move_rows, published_reports

TRANSFER: Final = "transfer"
FILLED: Final = "transfer and fill"
SUSPECTED: Final = "the same, on suspicion"
SEED: Final = "the published rule (seed)"
PRODUCT: Final = (TRANSFER, FILLED, SUSPECTED, SEED)

SHARES: Final = (1.0, 0.7, 0.0)
N_SEEDS: Final = 10
# Of these the trade-off is measured, on fewer seeds.
PROTECTIONS: Final = {
    f"{mode} {strength:g}": (mode, strength)
    for mode, strengths in {"dp": (0.25, 0.5, 1.0, 2.0, 4.0), "threshold": (5, 10)}.items()
    for strength in strengths
}
TRADE_OFF_SEEDS: Final = 3
# Average precision worse by more than this counts as hurt.
HURT: Final = 0.01
MEASURES: Final = ("subgroup_recall", "recall", "auprc", "auroc", "brier", "gap_kl")

Record = dict[str, Any]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, few rivals, under a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="splits, from seed 0 on")
    parser.add_argument("--partial", type=Path, help="file of finished configurations")
    options = parser.parse_args()
    folder = data_folder()
    if folder is None:
        reason = "the clinical files are not here; set SYNTHEDGE_DATA to their folder"
        print(json.dumps({"bars": [], "skipped": reason}) if options.json else reason)
        return
    seeds = range(1 if options.quick else options.seeds)
    shares = SHARES[::2] if options.quick else SHARES
    tasks = [
        (configuration, lines_of(configuration, is_quick=options.quick))
        for configuration in configurations(folder, shares, list(seeds))
    ]
    records = run(tasks, folder, options.jobs, options.partial)
    figures = summarise(records)
    figures["trade_off"] = trade_off(records)
    bars = bars_of(figures)
    if options.json:
        print(json.dumps({"bars": bars, **figures}))
    else:
        show(figures, bars)


def lines_of(configuration: Configuration, *, is_quick: bool) -> tuple[str, ...]:
    """Say which lines are measured: the placebo needs no rivals, the trade-off not every seed."""
    if is_quick:
        return (LOCAL, ORACLE, POOLED, *PRODUCT)
    rivals = RIVALS if configuration.share > 0 else (LOCAL, POOLED)
    protections = tuple(PROTECTIONS) if configuration.seed < TRADE_OFF_SEEDS else ()
    return (*rivals, *PRODUCT, *protections)


def run(
    tasks: Sequence[tuple[Configuration, tuple[str, ...]]],
    folder: Path,
    jobs: int,
    partial: Path | None,
) -> list[Record]:
    """Measure what `partial` does not hold yet; each finished configuration is written down at once."""
    records = {}
    if partial is not None and partial.is_file():
        for text in partial.read_text().splitlines():
            record = json.loads(text)
            records[tuple(record["configuration"])] = record
    left = []
    for configuration, lines in tasks:
        have = records.get(astuple(configuration), {"lines": {}})["lines"]
        if lacking := tuple(line for line in lines if line not in have):
            left.append((configuration, lacking, str(folder)))
    with multiprocessing.get_context("spawn").Pool(max(1, min(jobs, len(left) or 1))) as pool:
        for record in pool.imap_unordered(measure, left, chunksize=1):
            key = tuple(record["configuration"])
            if key in records:
                record["lines"] = records[key]["lines"] | record["lines"]
                record["moved"] = records[key].get("moved", {}) | record["moved"]
            records[key] = record
            if partial is not None:
                with partial.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    return [records[astuple(configuration)] for configuration, _ in tasks]


def measure(task: tuple[Configuration, tuple[str, ...], str]) -> Record:
    """Measure some lines of one configuration.

    Returns
    -------
    dict
        ``configuration``; ``lines``: measures by line and model; ``moved``: rows moved, rows of them in the true
        subgroup and regions asked for, by line.
    """
    configuration, lines, configuration_folder = task
    cohort = make_cohort(configuration, Path(configuration_folder))
    seed = configuration.seed
    record: Record = {"configuration": astuple(configuration), "lines": {}, "moved": {}}
    for rival in lines:
        if rival in RIVALS:
            record["lines"][rival] = measure_rival(cohort, rival, seed)
    local = record["lines"].get(LOCAL) or measure_rival(cohort, LOCAL, seed)
    own = cohort.recipient.samples
    reports = published_reports(cohort)
    nothing = own.rows(np.array([], dtype=np.int64))

    def note(line: str, received: Samples, synthetic: Samples, asks: Iterable[Any]) -> None:
        is_changed = len(received) + len(synthetic) > 0
        record["lines"][line] = (
            measured(cohort, join([own, received, synthetic])) if is_changed else local
        )
        in_group = cohort.subgroup.contains(received.values, cohort.dictionary)
        record["moved"][line] = {
            "rows": len(received),
            "hits": int(in_group.sum()),
            "asks": [asdict(ask) for ask in asks],
        }

    if TRANSFER in lines:
        moved = move_rows(cohort, reports, seed)
        note(TRANSFER, moved.received, nothing, moved.asks)
        note(FILLED, moved.received, moved.synthetic, moved.asks)
    if SUSPECTED in lines:
        moved = move_rows(cohort, reports, seed, suspected=True)
        note(SUSPECTED, moved.received, moved.synthetic, moved.asks)
    if SEED in lines:
        note(SEED, seed_rows(cohort, reports, seed), nothing, ())
    for line in lines:
        if line in PROTECTIONS:
            other = with_protection(cohort, *PROTECTIONS[line])
            moved = move_rows(other, published_reports(other), seed)
            note(line, moved.received, moved.synthetic, moved.asks)
    return record


def with_protection(cohort: Cohort, mode: str, strength: float) -> Cohort:
    """The same hospitals under another policy of disclosure."""
    policy = cohort.dictionary.policy
    text = cohort.dictionary_text
    text = text.replace(f'disclosure = "{policy.disclosure}"', f'disclosure = "{mode}"')
    if mode == "dp":
        text = text.replace(f"epsilon = {policy.epsilon}", f"epsilon = {strength}")
    else:
        text = text.replace(f"min_count = {policy.min_count}", f"min_count = {strength:g}")
    return replace(cohort, dictionary_text=text)


def seed_rows(cohort: Cohort, reports: Reports, seed: int) -> Samples:
    """What the published rule would move: the recipient's worst gap scores, matched gap against gap."""
    dictionary, policy = cohort.dictionary, cohort.dictionary.policy
    grids = {spec.name: NamedGrid(dictionary, spec) for spec in dictionary.grids}
    features = {
        h.site: tuple(n for n in dictionary.feature_names if not h.columns.get(n, {}).get("absent"))
        for h in cohort.hospitals
    }
    matcher = Matcher(
        list(grids.values()),
        similarity=policy.similarity,
        min_others=policy.min_sites - 1,
        strategy="seed",
    )
    matcher.update(
        {
            site: SiteReport(features=features[site], grids=report)
            for site, report in reports.items()
        }
    )
    generator = np.random.default_rng([seed, 400])
    donors = {h.site: h for h in cohort.donors}
    agreed = features[cohort.carved_site]
    parts = [cohort.recipient.samples.rows(np.array([], dtype=np.int64))]
    seen = set()
    for match in matcher.matches(cohort.carved_site):
        n_left = policy.rows_per_transfer - sum(len(part) for part in parts)
        region = (match.donor, match.donor_grid, match.donor_voxel)
        if n_left <= 0 or region in seen:
            continue
        seen.add(region)
        donor = donors[match.donor]
        rows = giveable(
            donor.samples.values,
            donor.samples.positive,
            donor.has_consent,
            dictionary,
            grids[match.donor_grid],
            match.donor_voxel,
        )
        chosen = choose(rows, n_left, generator)
        values = np.full((len(chosen), len(dictionary.features)), np.nan)
        values[:, [dictionary.index(name) for name in agreed]] = deidentify(
            donor.samples.values[chosen], dictionary, agreed
        )
        parts.append(Samples(values, np.ones(len(chosen), dtype=np.bool_)))
    return join(parts)


def recovered(records: Sequence[Record], line: str, model: str, name: str) -> float:
    """(line - local) / (pooled - local), of the means over configurations."""
    mean = {
        which: np.mean([record["lines"][which][model][name] for record in records])
        for which in (line, LOCAL, POOLED)
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((mean[line] - mean[LOCAL]) / (mean[POOLED] - mean[LOCAL]))


def change(records: Sequence[Record], line: str) -> list[float]:
    """Average precision against the local model's, both models of every configuration."""
    return [
        record["lines"][line][model]["auprc"] - record["lines"][LOCAL][model]["auprc"]
        for record in records
        for model in MODELS
    ]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Collect all tables.

    Returns
    -------
    dict
        ``tables``: by data set and share, by line: mean measures by model, recovered shares with their spread over
        seeds, share hurt, rows and hit rate. ``subgroups``: recovered subgroup recall at 100 % by subgroup.
    """
    tables: dict[str, Any] = {}
    subgroups: dict[str, Any] = {}
    for data in DATA_SETS.values():
        for share in SHARES:
            part = _of(records, data.name, share)
            if part:
                names = [line for line in part[0]["lines"] if line in (*RIVALS, *PRODUCT)]
                tables.setdefault(data.name, {})[f"{share:.0%}"] = {
                    line: _line(part, line, with_recovery=share > 0) for line in names
                }
        for i, subgroup in enumerate(data.subgroups):
            part = [r for r in _of(records, data.name, 1.0) if r["configuration"][2] == i]
            if part:
                subgroups.setdefault(data.name, {})[subgroup.description] = {
                    line: _known(
                        _mean(recovered(part, line, model, "subgroup_recall") for model in MODELS)
                    )
                    for line in (FILLED, SUSPECTED, ORACLE)
                }
    return {"configurations": len(records), "tables": tables, "subgroups": subgroups}


def _of(records: Sequence[Record], data: str, share: float) -> list[Record]:
    return [r for r in records if r["configuration"][0] == data and r["configuration"][3] == share]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _known(value: float) -> float | None:
    """The value, or None where nothing could be recovered because pooling brings nothing."""
    return value if np.isfinite(value) else None


def _line(records: Sequence[Record], line: str, *, with_recovery: bool) -> dict[str, Any]:
    models = [model for model in MODELS if model in records[0]["lines"][line]]
    figures: dict[str, Any] = {
        "measures": {
            model: {name: _mean_known(records, line, model, name) for name in MEASURES}
            for model in models
        }
    }
    if with_recovery:
        seeds = sorted({record["configuration"][4] for record in records})
        for name in ("subgroup_recall", "auprc"):
            by_seed = [
                _mean(
                    recovered(
                        [r for r in records if r["configuration"][4] == seed], line, model, name
                    )
                    for model in models
                )
                for seed in seeds
            ]
            by_model = {model: recovered(records, line, model, name) for model in models}
            figures[f"recovered_{name}"] = {
                "mean": _mean(by_model.values()),
                "models": by_model,
                "sd_over_seeds": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else 0.0,
            }
    if len(models) == len(MODELS):
        changes = change(records, line)
        figures["auprc_change"] = _mean(changes)
        figures["hurt"] = _mean(c < -HURT for c in changes)
    moved = [record["moved"][line] for record in records if line in record["moved"]]
    if moved:
        rows = sum(m["rows"] for m in moved)
        figures["rows"] = rows / len(moved)
        figures["moved"] = _mean(m["rows"] > 0 for m in moved)
        figures["hit_rate"] = sum(m["hits"] for m in moved) / rows if rows else None
    return figures


def _mean_known(records: Sequence[Record], line: str, model: str, name: str) -> float | None:
    values = [record["lines"][line][model].get(name) for record in records]
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def trade_off(records: Sequence[Record]) -> dict[str, Any]:
    """What each strength of disclosure control costs, on the seeds it was measured on."""
    table: dict[str, Any] = {}
    for line in PROTECTIONS:
        for data in DATA_SETS:
            row: dict[str, Any] = {}
            for share in SHARES:
                part = [r for r in _of(records, data, share) if line in r["lines"]]
                if part:
                    row[f"{share:.0%}"] = _line(part, line, with_recovery=share > 0)
            if row:
                table.setdefault(line, {})[data] = row
    return table


def bars_of(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bars, for the product's default: confirmed gaps only, filled."""
    bars: list[dict[str, Any]] = []

    def bar(what: str, value: float, least: float, holds: Callable[[float, float], bool]) -> None:
        bars.append(
            {"what": what, "value": round(value, 4), "bar": least, "ok": bool(holds(value, least))}
        )

    def at_least(value: float, least: float) -> bool:
        return value >= least

    for data, tables in figures["tables"].items():
        for share, recall, auprc in (("100%", 0.70, 0.50), ("70%", 0.50, 0.25)):
            if share in tables:
                line = tables[share][FILLED]
                bar(
                    f"{data}, {share} carve: recovered subgroup recall",
                    line["recovered_subgroup_recall"]["mean"],
                    recall,
                    at_least,
                )
                bar(
                    f"{data}, {share} carve: recovered AUPRC",
                    line["recovered_auprc"]["mean"],
                    auprc,
                    at_least,
                )
        placebo = tables["0%"][FILLED]
        bar(f"{data}, placebo: mean change of AUPRC", placebo["auprc_change"], -0.003, at_least)
        bar(f"{data}, placebo: share hurt", placebo["hurt"], 0.10, lambda v, most: v <= most)
    return bars


def show(figures: Mapping[str, Any], bars: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables for people."""
    for data, tables in figures["tables"].items():
        for share, lines in tables.items():
            print(f"\n{data}, {share} of a subgroup's positive training rows carved")
            print(
                f"  {'training rows':<28}{'recovered: recall':>19}{'AUPRC':>14}{'hurt':>7}{'rows':>6}{'hits':>6}"
                "   subgroup recall, recall, AUPRC, AUROC, Brier, gap KL (LR / GB)"
            )
            for name, line in lines.items():
                print(f"  {name:<28}{_in_words(line)}")
    for data, groups in figures["subgroups"].items():
        print(f"\n{data}: recovered subgroup recall at 100 % by subgroup")
        for group, by_line in groups.items():
            words = (f"{n} {'-' if v is None else f'{v:.2f}'}" for n, v in by_line.items())
            print(f"  {group:<32}{'  '.join(words)}")
    print(
        "\nTrade-off: recovered recall at 100 % and 70 %, placebo moved and hurt, hit rate at 100 %"
    )
    for protection, by_data in figures["trade_off"].items():
        for data, row in by_data.items():
            full, placebo = row.get("100%"), row.get("0%")
            if full and placebo:
                part = row.get("70%", full)
                print(
                    f"  {protection:<14}{data:<12}{full['recovered_subgroup_recall']['mean']:>7.2f}"
                    f"{part['recovered_subgroup_recall']['mean']:>7.2f}{placebo['moved']:>7.2f}"
                    f"{placebo['hurt']:>7.2f}{full['hit_rate'] or 0:>7.2f}"
                )
    print()
    for entry in bars:
        verdict = "ok" if entry["ok"] else "MISSED"
        print(f"  {entry['what']:<60}{entry['value']:>9.3f}  bar {entry['bar']:<7} {verdict}")


def _in_words(line: Mapping[str, Any]) -> str:
    words = ""
    for name in ("recovered_subgroup_recall", "recovered_auprc"):
        share = line.get(name)
        text = f"{share['mean']:.2f} +- {share['sd_over_seeds']:.2f}" if share else ""
        words += f"{text:>19}" if name.endswith("recall") else f"{text:>14}"
    words += f"{line['hurt']:>7.2f}" if "hurt" in line else " " * 7
    words += f"{line['rows']:>6.1f}" if "rows" in line else " " * 6
    words += f"{line['hit_rate']:>6.2f}" if line.get("hit_rate") is not None else " " * 6
    for name in MEASURES:
        values = [m[name] for m in line["measures"].values()]
        words += "   " + "/".join("-" if v is None else f"{v:.3f}" for v in values)
    return words


if __name__ == "__main__":
    main()
