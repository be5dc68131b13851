"""How long `synthedge demo` takes, stage by stage, and how much memory its processes need at most.

One run of the demonstration as a user starts it. On a busy machine its seconds say little: the processor's
seconds beside them tell whether it worked or waited.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import Bar, run_benchmark

TOTAL_S = 60.0
COORDINATOR_MB = 150.0
SITE_MB = 400.0


def measure(*, quick: bool) -> list[Bar]:
    """Run the demonstration once.

    Parameters
    ----------
    quick : bool
        Changes nothing: it is under a minute, which is one of its bars.

    Returns
    -------
    list of Bar
        Seconds and MB; the stages have no bar of their own.
    """
    with tempfile.TemporaryDirectory(prefix="synthedge-bench-") as temporary:
        folder = Path(temporary) / "demo"
        program = str(Path(sys.executable).parent / "synthedge")
        subprocess.run(
            [program, "demo", "--keep", str(folder)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        summary = json.loads((folder / "summary.json").read_text())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = summary["peak_memory_mb"]
    sites = [memory[site] for site in summary["sites"]]
    return [
        Bar("synthedge demo, seconds", summary["seconds"], at_most=TOTAL_S),
        Bar("coordinator, peak MB", memory["coordinator"], at_most=COORDINATOR_MB),
        Bar("largest site's agent, peak MB", max(sites), at_most=SITE_MB),
        Bar("largest site command, peak MB", memory["largest command"], at_most=SITE_MB),
        Bar("processor of all commands, seconds", used.ru_utime + used.ru_stime),
        *(Bar(f"stage '{name}', seconds", taken) for name, taken in summary["stages"].items()),
    ]


if __name__ == "__main__":
    run_benchmark("demo stages", measure)
