"""A coordinator and its sites as real processes on this machine, and the commands their people type.

Rules
-----
* Every process writes its own log; a failure names the process and shows the end of its log.
* Whatever ends the block ends every process: first asked, then killed.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from synthedge_core.errors import SynthEdgeError

STOP_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 120.0
SAMPLE_S = 0.05
_LOG_LINES = 15


class ProcessError(SynthEdgeError):
    """A process of the consortium failed; the message shows the end of its log."""

    exit_code = 5


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Consortium:
    """The running processes.

    Parameters
    ----------
    folder : Path
        Holds a folder for the coordinator and one a site.
    show : callable
        Takes each command line before it runs, as a person would type it.
    """

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        self.folder = folder
        self._show = show
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: set[subprocess.Popen[bytes]] = set()
        self._peaks_mb: dict[str, float] = {}
        self._largest_mb = 0.0
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Consortium":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self, name: str) -> Path:
        """Where a process writes what it has to say."""
        return self.folder / "logs" / f"{name}.log"

    def process(self, name: str) -> "subprocess.Popen[bytes]":
        """The running process of a name."""
        return self._processes[name]

    def start(self, name: str, *command: str) -> None:
        """Start a program that keeps running; its name may be that of one that has ended."""
        self._show(f"{self._typed(command)} &")
        with self.log(name).open("ab") as log:
            # Its own session: Ctrl-C reaches this program, which ends the others in order.
            self._processes[name] = subprocess.Popen(  # noqa: S603
                _executable(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def command(self, *command: str) -> Any:
        """Run one command to its end and return the data of its ``--json`` answer.

        Raises
        ------
        ProcessError
            If it fails.
        CommandRefusedError
            If a rule refuses it (exit code 1).
        """
        self._show(self._typed(command))
        self.check()
        code, output, errors = self._run_to_its_end(command)
        if code == 0:
            return json.loads(output)["data"]
        message = errors.decode(errors="replace").strip()
        if code == SynthEdgeError.exit_code:
            raise CommandRefusedError(message)
        raise ProcessError(
            f"'{self._typed(command)}' ended with exit code {code}: {message[-2000:]}"
        )

    def _run_to_its_end(self, command: tuple[str, ...]) -> tuple[int, bytes, bytes]:
        with subprocess.Popen(  # noqa: S603
            [*_executable(command), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            self._commands.add(process)
            end = time.monotonic() + COMMAND_TIMEOUT_S
            while True:
                try:
                    output, errors = process.communicate(timeout=SAMPLE_S)
                except subprocess.TimeoutExpired:
                    # Looked at while it runs: what the system tells of ended children includes this very process,
                    # whose memory a child shares until it has become another program.
                    self._largest_mb = max(self._largest_mb, _peak_mb(process.pid))
                    if time.monotonic() > end:
                        process.kill()
                        raise ProcessError(
                            f"'{self._typed(command)}' did not end within {COMMAND_TIMEOUT_S:.0f} s"
                        ) from None
                else:
                    self._commands.discard(process)
                    return process.returncode, output, errors

    def _typed(self, command: tuple[str, ...]) -> str:
        """The command as somebody who stands in the consortium's folder would type it."""
        return shlex.join(command).replace(f"{self.folder}/", "")

    def check(self) -> None:
        """Raise if a process that should run has ended.

        Raises
        ------
        ProcessError
            Naming it, with the end of its log.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                lines = self.log(name).read_text(errors="replace").splitlines()[-_LOG_LINES:]
                raise ProcessError(
                    f"process '{name}' ended with code {process.returncode}; the end of its log:\n"
                    + "\n".join(f"  {line}" for line in lines)
                )
            self._peaks_mb[name] = _peak_mb(process.pid)

    def wait_for(self, what: str, reached: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until something is so.

        Raises
        ------
        ProcessError
            If a process ends meanwhile, or it takes too long.
        """
        end = time.monotonic() + timeout_s
        while not reached():
            self.check()
            if time.monotonic() > end:
                logs = ", ".join(str(self.log(name)) for name in self._processes)
                raise ProcessError(f"waited {timeout_s:.0f} s for: {what}; see {logs}")
            time.sleep(0.05)

    def peak_memory_mb(self) -> dict[str, float]:
        """Peak resident memory of each process, and of the largest command, in MB."""
        self.check()
        return {**self._peaks_mb, "largest command": self._largest_mb}

    def stop(self) -> None:
        """End every process; safe to call twice."""
        # Commands that other threads wait for: an interrupted one would outlive its consortium for a moment.
        for command in list(self._commands):
            command.kill()
            command.wait()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_TIMEOUT_S
        for process in self._processes.values():
            try:
                process.wait(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()


class CommandRefusedError(SynthEdgeError):
    """A command of the consortium was refused by a rule; the text is the command's own."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn a polite request to end into the same thing as Ctrl-C, so that every process is ended."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _executable(command: tuple[str, ...]) -> list[str]:
    """The command with the program of this very installation, whatever the PATH says."""
    return [str(Path(sys.executable).parent / command[0]), *command[1:]]


def _peak_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return 0.0
