"""How long `synthedge --help` takes against bare Python, and against importing its two command-line libraries.

The commands are started in turns, so that a busy machine slows all of them; medians are compared.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench import Bar, run_benchmark

ROUNDS = 20
QUICK_ROUNDS = 7
HELP_S = 0.5

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer, rich'": [sys.executable, "-c", "import typer, rich"],
    "synthedge --help": [str(Path(sys.executable).parent / "synthedge"), "--help"],
}


def measure(*, quick: bool) -> list[Bar]:
    """Time every command in turns.

    Parameters
    ----------
    quick : bool
        Fewer rounds.

    Returns
    -------
    list of Bar
        Seconds and ratios; only the help's own time has a bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    bare, libraries, helped = (statistics.median(taken) for taken in seconds.values())
    return [
        Bar("synthedge --help, seconds", helped, at_most=HELP_S),
        Bar("python -c pass, seconds", bare),
        Bar("python -c 'import typer, rich', seconds", libraries),
        Bar("synthedge --help over bare Python, times", helped / bare),
        Bar("synthedge --help over importing typer and rich, times", helped / libraries),
    ]


if __name__ == "__main__":
    run_benchmark("start-up", measure)
