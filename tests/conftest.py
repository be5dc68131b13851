"""How tests are dealt out to processes: one demonstration for all that look at it, else one file to one process.

No property test fails because the machine is busy. A process computes with one thread, and so does what it starts: as
many tests run at once as there are cores, and threads that wait for a core in turn waste it.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]

# Before anything imports a library that reads them.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

settings.register_profile(
    "busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Like `--dist loadfile`, with the files that use the fixture `finished` as one."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid.split("::", 1)[0])


@cache
def _scope(file: str) -> str:
    return "demonstration" if "finished" in (ROOT / file).read_text(encoding="utf-8") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Take it where `--dist loadfile` was asked for."""
    return _ByFile(config, log) if config.getoption("dist") == "loadfile" else None
