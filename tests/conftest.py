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
_DEMONSTRATION = "demonstration"

# Before anything imports a library that reads them.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

settings.register_profile(
    "busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Like `--dist loadfile`, with the files that use the fixture `finished` as one, and what takes long first."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid.split("::", 1)[0])

    def _assign_work_unit(self, node: Any) -> None:
        if not any(self.assigned_work.values()):
            # Stable: among their like those of many tests stay first.
            for scope in sorted(self.workqueue, key=_rank):
                self.workqueue.move_to_end(scope)
        super()._assign_work_unit(node)


@cache
def _text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def _scope(file: str) -> str:
    return _DEMONSTRATION if "finished: Finished" in _text(file) else file


def _rank(scope: str) -> tuple[bool, ...]:
    """The demonstration comes first, then processes, then files with slow tests: quick ones fill what time is left."""
    if scope == _DEMONSTRATION:
        return (False,)
    return (True, "tests/system/" not in scope, "mark.slow" not in _text(scope))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Take it where `--dist loadfile` was asked for."""
    return _ByFile(config, log) if config.getoption("dist") == "loadfile" else None
