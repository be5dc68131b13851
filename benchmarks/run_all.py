"""Run every benchmark script of this folder, one after the other: what `make bench` calls.

Options are passed on. With ``--json`` one array with an object per script; else tables. The exit code is 1 if a
script crashes; a bar that is missed is shown, and does not change it.
"""

import json
import subprocess
import sys
from pathlib import Path

from bench import show

HERE = Path(__file__).parent


def benchmarks() -> list[Path]:
    """Name every script of this folder that can be run, but this one."""
    others = (path for path in HERE.glob("*.py") if path != Path(__file__))
    return sorted(path for path in others if "__main__" in path.read_text())


def main() -> int:
    """Run them all.

    Returns
    -------
    int
        The exit code.
    """
    options = sys.argv[1:]
    as_json = "--json" in options
    passed = [option for option in options if option != "--json"]
    results, crashed = [], []
    for script in benchmarks():
        command = [sys.executable, str(script), *passed, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            crashed.append(script.name)
            continue
        results.append({"benchmark": script.stem} | json.loads(done.stdout))
        if not as_json:
            show(script.stem, results[-1]["bars"], print)
    if as_json:
        print(json.dumps(results))
    for name in crashed:
        print(f"{name} crashed; its own lines above say why", file=sys.stderr)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
