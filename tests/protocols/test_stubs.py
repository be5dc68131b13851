import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_checked_in_stubs_are_what_the_pinned_compiler_writes() -> None:
    script = ROOT / "protocols" / "compile_stubs.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
