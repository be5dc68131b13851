"""Fill engines beside each other, and CTGAN's critic step beside the stock one.

Rows are carved from a gap and held out; every engine fills the same gap from what is left. The
rules broken are counted over every generated row. CTGAN is trained twice in one run, as the package
does it and with the detached critic step: the samples' hashes must agree.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from synthedge_core.columns import encode
from synthedge_core.fill_constraints import parse_constraints
from synthedge_core.synthedge import SynthEdge

RULES = ("diaBP < sysBP", "positive: totChol", "30 <= age <= 80", "fixed: prevalentHyp, BPMeds")
MIN_SPEED_UP = 1.15


def clinical_table(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give Framingham without the positive men from BMI 28, and those men."""
    table = pd.read_csv(folder / "framingham.csv")
    carved = (table.male == 1) & (table.BMI >= 28) & (table.TenYearCHD == 1)
    return table[~carved], table[carved]


def engine_figures(
    table: pd.DataFrame, held: pd.DataFrame, name: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Fill with one engine and measure."""
    engine = SynthEdge(table, "TenYearCHD", constraints=RULES)
    started = time.perf_counter()
    filled = engine.fill(40, 1, name, seed=1, engine_settings=settings)
    seconds = time.perf_counter() - started
    made = filled[filled["_origin"] != "observed"]
    rules = parse_constraints(RULES, engine.analysed, engine.values)
    values = encode(made, engine.analysed)
    broken = int((~np.logical_and.reduce([rule.holds(values) for rule in rules])).sum())
    broken += int((~engine.analysis().schema.holds(values)).sum())
    report = engine.fill_report[0]
    quality = engine.quality_report(held) if len(made) else {}
    return {
        "engine": name,
        "seconds": seconds,
        "generated": report.generated,
        "accepted": report.accepted,
        "broken_rules": broken,
        **{k: quality.get(k) for k in ("kl", "discriminator_auc", "coverage", "closest_record")},
    }


def ctgan_figures(table: pd.DataFrame, steps: int) -> dict[str, Any]:
    """Train both ways, alternating, and compare time and samples."""
    from synthedge_core import fill_ctgan

    # Alternating runs, best of each: other work on the machine falls on both alike.
    times: dict[bool, list[float]] = {True: [], False: []}
    hashes = set()
    for is_fast in (False, True, False, True):
        fill_ctgan.FastCtgan.is_fast = is_fast
        engine = SynthEdge(table, "TenYearCHD")
        analysis = engine.analysis()
        ctgan = fill_ctgan.CtganEngine(steps=steps)
        started = time.perf_counter()
        ctgan.fit(analysis.fill_table, 7)
        times[is_fast].append(time.perf_counter() - started)
        drawn = ctgan.draw(analysis.plan(1)[0][0], 500, 11)
        hashes.add(hashlib.sha256(drawn.tobytes()).hexdigest())
    fill_ctgan.FastCtgan.is_fast = True
    return {
        "stock_s": min(times[False]),
        "detached_s": min(times[True]),
        "speed_up": min(times[False]) / min(times[True]),
        "same_samples": len(hashes) == 1,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer training steps")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(os.environ.get("SYNTHEDGE_DATA", "../shared/data"))
    if not folder.is_dir():
        raise SystemExit("the clinical files are not here; set SYNTHEDGE_DATA to their folder")
    table, held = clinical_table(folder)
    steps = 60 if options.quick else 300
    engines = [
        engine_figures(table, held, name, {"steps": steps} if name == "ctgan" else {})
        for name in ("copula", "gaussian", "smote-nc", "ctgan")
    ]
    ctgan = ctgan_figures(table, steps)
    broken = sum(figures["broken_rules"] for figures in engines)
    bars = [
        {"what": "rules broken by generated rows", "value": broken, "bar": 0, "ok": broken == 0},
        {
            "what": f"CTGAN times faster, same samples: {ctgan['same_samples']}",
            "value": ctgan["speed_up"],
            "bar": MIN_SPEED_UP,
            "ok": ctgan["same_samples"] and ctgan["speed_up"] >= MIN_SPEED_UP,
        },
    ]
    if options.json:
        print(json.dumps({"bars": bars, "engines": engines, "ctgan": ctgan}))
        return
    for figures in engines:
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
        print("  ".join(f"{k} {v}" for k, v in shown.items()))
    for bar in bars:
        print(f"{'ok ' if bar['ok'] else 'NO '} {bar['what']}: {bar['value']:.2f} ({bar['bar']})")


if __name__ == "__main__":
    main()
