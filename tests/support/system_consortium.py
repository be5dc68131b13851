"""The demonstration's consortium under observation: what was typed, what ran, what the coordinator was sent."""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from synthedge_deploy import demo
from synthedge_deploy.cohorts import Cohort
from synthedge_deploy.consortium import Consortium
from synthedge_deploy.recorder import Message, read_messages
from synthedge_protocols.v1 import statements_pb2 as pb

SUPPORT = Path(__file__).parent
COMMAND_TIMEOUT_S = 60.0


class ObservedConsortium(Consortium):
    """Runs everything as the demonstration does, but the coordinator under a recorder, and takes notes.

    Attributes
    ----------
    record : Path
        Every message the coordinator was sent; outside every process's folder.
    answers : list of (command, data)
        What each command answered.
    programs : dict
        Process id and command line of every program that kept running, by name.
    """

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        super().__init__(folder, show)
        self.record = folder / "recorded" / "messages"
        self.record.parent.mkdir(exist_ok=True)
        self.answers: list[tuple[tuple[str, ...], Any]] = []
        self.programs: dict[str, tuple[int, str]] = {}
        latest.append(self)

    def start(self, name: str, *command: str) -> None:
        if name == "coordinator":
            command = recorded(self.record, *command[1:])
        super().start(name, *command)

    def command(self, *command: str) -> Any:
        answer = super().command(*command)
        self.answers.append((command, answer))
        return answer

    def stop(self) -> None:
        if self._processes and not self.programs:
            self.programs = {
                name: (process.pid, " ".join(psutil.Process(process.pid).cmdline()))
                for name, process in self._processes.items()
            }
        super().stop()


# The one that a running demonstration made.
latest: list[ObservedConsortium] = []


def recorded(record: Path, *arguments: str, death: str = "never") -> tuple[str, ...]:
    """The command of a recording coordinator."""
    program = str(SUPPORT / "recording_coordinator.py")
    return (sys.executable, program, str(record), death, *arguments)


def dying(death: str, *arguments: str) -> tuple[str, ...]:
    """The command of an agent that is killed at a call."""
    return (sys.executable, str(SUPPORT / "dying_agent.py"), death, *arguments)


@dataclass(frozen=True)
class Finished:
    """A demonstration that ran to its end.

    Attributes
    ----------
    folder : Path
        What it left.
    cohort : Cohort
    summary : dict
        Its summary.json.
    observed : ObservedConsortium
    """

    folder: Path
    cohort: Cohort
    summary: dict[str, Any]
    observed: ObservedConsortium

    @property
    def sites(self) -> list[str]:
        return [hospital.site for hospital in self.cohort.hospitals]

    @property
    def messages(self) -> list[Message]:
        return read_messages(self.observed.record)

    def statements(self) -> list[pb.Statement]:
        """Every statement that was submitted to the coordinator."""
        return [
            pb.Statement.FromString(pb.SignedStatement.FromString(message.data).statement)
            for message in self.messages
            if message.method == "Submit" and not message.is_answer
        ]

    def reports(self) -> dict[str, dict[str, Any]]:
        """The audit report that each site printed."""
        return {
            answer["site"]: answer
            for command, answer in self.observed.answers
            if command[2:4] == ("audit", "report")
        }


def run_demo(folder: Path, data: Path | None = None) -> Finished:
    """Run `synthedge demo --keep`, observed; its consortium is real processes all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "Consortium", ObservedConsortium)
        demo.run(keep=folder, data=data, seeds=1, as_json=True)
    summary = json.loads((folder / "summary.json").read_text())
    return Finished(folder, demo.make_cohort(data, demo.SEED), summary, latest.pop())


def synthedge(
    *arguments: str | Path, program: str = "synthedge"
) -> "subprocess.CompletedProcess[str]":
    """Type one command."""
    return subprocess.run(
        [str(Path(sys.executable).parent / program), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def answer(*arguments: str | Path, program: str = "synthedge") -> Any:
    """Type one command that must succeed; return the data of its ``--json`` answer."""
    done = synthedge(*arguments, "--json", program=program)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return json.loads(done.stdout)["data"]


def addresses(coordinator: Path) -> tuple[str, str]:
    """Where sites connect and where they enrol, from coordinator.toml."""
    text = (coordinator / "coordinator.toml").read_text()
    found = re.findall(r"127\.0\.0\.1:\d+", text)
    assert len(found) == 2, tomllib.loads(text)
    return found[0], found[1]


@contextmanager
def serving(coordinator: Path, logs: Path) -> Iterator[Consortium]:
    """Run a coordinator on its folder for as long as the body runs."""
    with Consortium(logs, lambda line: None) as consortium:
        start_coordinator(consortium, "synthedge-coordinator", "serve", "--dir", str(coordinator))
        yield consortium


def start_coordinator(consortium: Consortium, *command: str) -> None:
    """Start a coordinator, perhaps once more, and wait until it is ready."""
    log = consortium.log("coordinator")
    before = log.read_text().count("ready:") if log.exists() else 0
    consortium.start("coordinator", *command)
    consortium.wait_for("the coordinator", lambda: log.read_text().count("ready:") > before)


def copy_of(finished: Finished, folder: Path) -> Path:
    """A copy of a finished consortium, to go on with; it listens where the first one did."""
    shutil.copytree(finished.folder, folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Every file below a site's folder with what is in it.

    Two things are no state: an enrolment request that waits for its answer, kept so that it can be sent again as it
    was, and the empty file an agent locks.
    """
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "agent.lock" and not path.name.startswith("site.db-")
    }


def _content(path: Path) -> str:
    if path.name != "site.db":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with closing(sqlite3.connect(path)) as database:
        return "\n".join(line for line in database.iterdump() if "'enrolment request'" not in line)


def processes_of(folder: Path, *words: str) -> list[psutil.Process]:
    """Running processes whose command line names a folder, and has all of some words."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        is_named = any(str(folder) in word for word in line) and set(words) <= set(line)
        if process.pid != os.getpid() and is_named:
            found.append(process)
    return found


def was_killed(process: "subprocess.Popen[bytes]", timeout_s: float = 20.0) -> bool:
    """Wait for a process to end; whether it was by SIGKILL."""
    return process.wait(timeout=timeout_s) == -signal.SIGKILL
