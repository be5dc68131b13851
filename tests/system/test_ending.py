"""However the demonstration ends, no process stays behind; and a process that dies is named with the end of its log."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from system_consortium import processes_of

PROGRAM = str(Path(sys.executable).parent / "synthedge")
AGENTS = ("north", "east", "south", "west")


class RunningDemo:
    """`synthedge demo` in a process group of its own, as a terminal starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "demo", "--keep", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def running(self, *words: str) -> list[psutil.Process]:
        """Processes of this consortium whose command line has all of these words."""
        return processes_of(self.folder, *words)

    def wait_for_coordinator(self) -> psutil.Process:
        log = self.folder / "logs" / "coordinator.log"
        self._wait(lambda: log.is_file() and "ready" in log.read_text())
        return self.running("serve")[0]

    def wait_for_agents(self) -> None:
        self._wait(lambda: len(self.running("site", "run")) == len(AGENTS))

    def _wait(self, reached: Callable[[], bool], timeout_s: float = 40.0) -> None:
        end = time.monotonic() + timeout_s
        while not reached():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def left_behind(self, timeout_s: float = 20.0) -> list[psutil.Process]:
        """Wait until the demonstration has ended; whatever still runs then."""
        self.process.wait(timeout=timeout_s)
        return processes_of(self.folder)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[RunningDemo]:
    running = RunningDemo(tmp_path / "kept")
    yield running
    for process in (running.process, *processes_of(running.folder)):
        process.kill()
    running.process.wait()


def test_ctrl_c_leaves_no_process_behind(demo: RunningDemo) -> None:
    demo.wait_for_coordinator()
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.left_behind() == []
    assert demo.process.returncode == 130
    assert "Traceback" not in demo.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_demonstration_alone_leaves_no_process_behind(
    demo: RunningDemo, number: signal.Signals
) -> None:
    demo.wait_for_agents()
    demo.process.send_signal(number)
    assert demo.left_behind() == []
    assert demo.process.returncode == 130


def test_a_coordinator_that_dies_is_named_with_the_end_of_its_log(demo: RunningDemo) -> None:
    demo.wait_for_coordinator().kill()
    assert demo.left_behind() == []
    assert demo.process.returncode not in (0, None)
    text = demo.log.read_text()
    assert "process 'coordinator' ended with code -9; the end of its log:" in text
    assert "ready: sites at 127.0.0.1:" in text.partition("the end of its log:")[2]
    assert "Traceback" not in text


@pytest.mark.slow
def test_an_agent_that_dies_is_named_with_the_end_of_its_log(demo: RunningDemo) -> None:
    demo.wait_for_agents()
    demo.running("site", "run", str(demo.folder / "east"))[0].kill()
    assert demo.left_behind() == []
    assert "process 'east' ended with code -9; the end of its log:" in demo.log.read_text()
