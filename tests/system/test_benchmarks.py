"""`make bench` runs every script, says what each measured, and fails when one crashes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GOOD = """
from bench import Bar, run_benchmark

def measure(*, quick):
    return [Bar("quick, yes or no", float(quick)), Bar("missed, seconds", 2.0, at_most=1.0)]

if __name__ == "__main__":
    run_benchmark("good", measure)
"""
CRASHING = "if __name__ == '__main__':\n    raise ValueError\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("bench.py", "run_all.py"):
        shutil.copy(BENCHMARKS / name, tmp_path)
    (tmp_path / "good.py").write_text(GOOD)
    return tmp_path


def run_all(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(folder / "run_all.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_script_is_run_and_a_missed_bar_is_no_crash(folder: Path) -> None:
    done = run_all(folder, "--quick", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == [
        {
            "benchmark": "good",
            "bars": [
                {"what": "quick, yes or no", "value": 1.0, "bar": None, "ok": True},
                {"what": "missed, seconds", "value": 2.0, "bar": 1.0, "ok": False},
            ],
        }
    ]
    table = run_all(folder).stdout
    assert table.splitlines()[0] == "good"
    assert "MISSED" in table


def test_a_crash_is_named_and_the_others_still_run(folder: Path) -> None:
    (folder / "broken.py").write_text(CRASHING)
    done = run_all(folder, "--json")
    assert done.returncode == 1
    assert [result["benchmark"] for result in json.loads(done.stdout)] == ["good"]
    assert "broken.py crashed" in done.stderr


def test_the_start_up_benchmark_answers_with_bars() -> None:
    command = [sys.executable, str(BENCHMARKS / "start_up.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    bars = json.loads(done.stdout)["bars"]
    assert [bar["bar"] for bar in bars] == [0.5, None, None, None, None]
    assert all(bar["value"] > 0 for bar in bars)
