"""The README's and the site handbook's commands are run as written, by an operator and two hospitals."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from synthedge_client.outbound import deidentify
from synthedge_deploy.cohorts import Hospital
from synthedge_deploy.consortium import free_port
from synthedge_deploy.diabetes import diabetes_cohort

README = Path(__file__).parents[2] / "README.md"
HANDBOOK = README.parent / "docs" / "site-handbook.md"
BLOCK = re.compile(r"<!-- (operator|north|south) -->\n```console\n(.*?)```", re.DOTALL)
BIN = Path(sys.executable).parent


class Person:
    """Somebody who types the README's commands into a shell of their own."""

    def __init__(self, folder: Path, passphrase_file: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.passphrase_file = passphrase_file
        self.running: list[subprocess.Popen[bytes]] = []

    def type(self, line: str) -> str:
        if line.startswith("cd "):
            self.folder /= line.removeprefix("cd ")
            return ""
        if line.startswith("synthedge site steward add") or "--steward" in line:
            # The only liberty taken: a prompt cannot be typed at here.
            line += f" --passphrase-file {shlex.quote(str(self.passphrase_file))}"
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        if line.endswith(" &"):
            with (self.folder / "background.log").open("wb") as log:
                self.running.append(
                    subprocess.Popen(
                        shlex.split(line.removesuffix(" &")),
                        cwd=self.folder,
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )
            return ""
        done = subprocess.run(
            ["/bin/bash", "-c", line],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, line: str) -> Any:
        return json.loads(self.type(line + " --json"))["data"]

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(timeout=10)


def plain_table(hospital: Hospital, site: str) -> pd.DataFrame:
    """The hospital's patients in the dictionary's own columns, units and codes."""
    dictionary = diabetes_cohort(0).dictionary
    table = pd.DataFrame({"mrn": [f"{site}-{i:08d}" for i in range(len(hospital.samples))]})
    for i, feature in enumerate(dictionary.features):
        column = hospital.samples.values[:, i]
        coded = [feature.levels[int(v)] for v in column] if feature.levels else column
        table[feature.name] = coded
    table[dictionary.target.column] = np.where(hospital.samples.positive, "1", "0")
    return table.assign(consent="active")


def rows_of(values: NDArray[np.float64]) -> set[tuple[float, ...]]:
    return {tuple(row) for row in values.tolist()}


def wait_until(what: str, reached: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.3)


@pytest.fixture
def people(tmp_path: Path) -> Iterator[dict[str, Person]]:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery")
    passphrase.chmod(0o600)
    people = {
        "operator": Person(tmp_path / "operator", passphrase),
        "north": Person(tmp_path / "north", passphrase),
        "south": Person(tmp_path / "south", passphrase),
    }
    cohort = diabetes_cohort(0)
    (people["operator"].folder / "consortium.toml").write_text(cohort.dictionary_text)
    for site, hospital in (("north", cohort.recipient), ("south", cohort.donors[0])):
        plain_table(hospital, site).to_csv(people[site].folder / "patients.csv", index=False)
    yield people
    for person in people.values():
        person.stop()


class Telling:
    """The README's story, told line by line, with what each person reads off the other's screen."""

    def __init__(self, people: dict[str, Person], folder: Path) -> None:
        self.people = people
        self.folder = folder
        self.fingerprints: dict[str, str] = {}
        self.ports = {f"127.0.0.1:{port}": f"127.0.0.1:{free_port()}" for port in ("7443", "7444")}

    def tell(self, who: str, line: str) -> None:
        for written, real in self.ports.items():
            line = line.replace(written, real)
        if "FINGERPRINT" in line:
            peer = line.split()[4]
            wait_until(f"{peer} to be known at {who}", lambda: self._knows(who, peer))
            line = line.replace("FINGERPRINT", self.fingerprints[peer])
        if line.startswith("synthedge site requests new"):
            # The coordinator takes a request only when the donor has published.
            wait_until("both reports to arrive", self._both_published)
        if re.search(r" ID\b", line):
            wait_until("the request to arrive", lambda: bool(self._requests()))
            line = re.sub(r" ID\b", f" {self._requests()[0]['transfer_id'][:12]}", line)
        if line.startswith("synthedge site requests show") and who == "north":
            wait_until("the gate to let the rows pass", self._waits_for_acceptance)
        if line == "synthedge site received":
            wait_until("the rows to arrive", lambda: "ACTIVE" in self.people[who].type(line))
        output = self.people[who].type(line)
        if line == "synthedge site fingerprint":
            self.fingerprints[who] = output.strip()
        if line.startswith("synthedge-coordinator serve"):
            log = self.people[who].folder / "background.log"
            wait_until("the coordinator", lambda: "ready" in log.read_text())
        if line.startswith("synthedge-coordinator invite"):
            token = line.split()[-1]
            site = token.removesuffix(".token")
            (self.folder / site / token).write_text((self.people[who].folder / token).read_text())

    def _knows(self, who: str, peer: str) -> bool:
        return peer in {p["site"] for p in self.people[who].json("synthedge site peers list")}

    def _both_published(self) -> bool:
        return all(
            self.people[site].json("synthedge site status")["reports_sent"]
            for site in ("north", "south")
        )

    def _waits_for_acceptance(self) -> bool:
        listed = self.people["north"].json("synthedge site requests list")
        return any("requests accept" in request["waits_for"] for request in listed)

    def _requests(self) -> Any:
        return self.people["south"].json("synthedge site requests list")


@pytest.mark.slow
def test_two_hospitals_get_from_readme_and_handbook_to_a_received_transfer(
    people: dict[str, Person], tmp_path: Path
) -> None:
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert len(blocks) == 8
    telling = Telling(people, tmp_path)

    for who, block in blocks:
        for line in block.strip().splitlines():
            telling.tell(who, line)

    # What the site handbook adds to the same first minutes, most of it for the auditor.
    told = {line for _, block in blocks for line in block.splitlines()}
    handbook = BLOCK.findall(HANDBOOK.read_text(encoding="utf-8"))
    more = [line for _, block in handbook for line in block.strip().splitlines()]
    for line in more:
        if line not in told:
            telling.tell("north", line)
    assert "synthedge audit verify log.jsonl" in more
    assert "<html" in (people["north"].folder / "audit.html").read_text(encoding="utf-8")

    filled = pd.read_csv(people["north"].folder / "filled.csv")
    received = filled[filled["_origin"] == "received"]
    given = pd.read_csv(tmp_path / "south" / "patients.csv")
    dictionary = diabetes_cohort(0).dictionary
    names = dictionary.feature_names
    positives = given[given["progressed"] == 1]
    leaving = deidentify(positives[list(names)].to_numpy(dtype=float), dictionary, names)
    assert 0 < len(received) <= 20
    assert (received["bp"] >= 100).all()
    assert rows_of(received[list(names)].to_numpy(dtype=float)) <= rows_of(leaving)


def test_a_first_gap_report_needs_one_command(people: dict[str, Person]) -> None:
    text = README.read_text(encoding="utf-8")
    command = "synthedge analyze patients.csv --target progressed"
    assert command in text
    assert "Severity" in people["north"].type(command)


def test_every_command_the_readme_names_exists() -> None:
    named = set(
        re.findall(
            r"`(synthedge(?:-coordinator)?(?: [a-z]+)+)`", README.read_text(encoding="utf-8")
        )
    )
    assert named
    for command in sorted(named):
        done = subprocess.run(
            [str(BIN / command.split()[0]), *command.split()[1:], "--help"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, command
