"""`kill -9` of coordinator, donor and recipient just before and just after every commit that moves a transfer.

Each walk is walked once without a kill, which tells the commits; then again, with every process killed at each of them
and started once more. The end must be the same.
"""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from killed_processes import COORDINATOR, Workshop
from memory_consortium import new_consortium
from sites import patients, with_hole
from synthedge_deploy.consortium import free_port
from synthedge_protocols.lifecycle import TRANSITIONS, Party, State, is_final

pytestmark = pytest.mark.slow

R, D, C = "north", "south", COORDINATOR
KILLED = 9
PARTY = {R: Party.RECIPIENT, D: Party.DONOR, C: Party.COORDINATOR}

Step = tuple[str, str]
ASKED: list[Step] = [(R, "ask"), (R, "exchange"), (D, "exchange")]
PREPARED: list[Step] = [*ASKED, (D, "prepare")]
APPROVED: list[Step] = [*PREPARED, (D, "approve")]
RELAYED: list[Step] = [*APPROVED, (D, "exchange")]
DELIVERED: list[Step] = [*RELAYED, (R, "exchange")]
ACTIVE: list[Step] = [*DELIVERED, (R, "accept"), (R, "exchange"), (D, "exchange")]
TOLD: list[Step] = [(R, "exchange"), (D, "exchange")]
NORTH_LAST: list[Step] = [(D, "exchange"), (R, "exchange")]

WALKS: dict[str, list[Step]] = {
    "to the end": [*ACTIVE, (R, "purge"), *TOLD],
    "declined": [*ASKED, (D, "decline"), *NORTH_LAST],
    "declined when prepared": [*PREPARED, (D, "decline"), *NORTH_LAST],
    "cancelled by the recipient": [*ASKED, (R, "cancel"), *TOLD],
    "cancelled when prepared": [*PREPARED, (R, "cancel"), *TOLD],
    "cancelled when approved": [*APPROVED, (R, "cancel"), *TOLD],
    "cancelled when relayed": [*RELAYED, (R, "cancel"), *TOLD],
    "cancelled by the donor": [*APPROVED, (D, "cancel"), *NORTH_LAST],
    "cancelled by the donor when relayed": [*RELAYED, (D, "cancel"), *NORTH_LAST],
    "refused by the steward": [*DELIVERED, (R, "refuse"), *TOLD],
    "refused by the gate": [*RELAYED, (R, "know the rows"), *TOLD],
    "lapsed": [*PREPARED, (D, "exchange ahead 13"), (D, "prepare")],
    "consent lost": [
        *APPROVED,
        (D, "lose consents"),
        (D, "exchange"),
        (D, "consent again"),
        (D, "prepare"),
        (D, "approve"),
        *NORTH_LAST,
    ],
    "declined after a lost consent": [
        *APPROVED,
        (D, "lose consents"),
        (D, "exchange"),
        (R, "exchange"),
        (D, "decline"),
        *NORTH_LAST,
    ],
    "expired": [*ASKED, (C, "ahead 49"), *TOLD],
    "expired when prepared": [*PREPARED, (C, "ahead 49"), *TOLD],
    "expired when relayed": [*RELAYED, (C, "ahead 25"), *TOLD],
    "expired when delivered": [*DELIVERED, (C, "ahead 25"), *TOLD],
    "donor revoked": [*ASKED, (C, "stand south revoked"), (R, "exchange")],
    "donor revoked when delivered": [*DELIVERED, (C, "stand south revoked"), (R, "exchange")],
    "donor revoked when active": [*ACTIVE, (C, "stand south revoked"), (R, "exchange")],
    "recipient revoked": [*ASKED, (C, "stand north revoked"), (D, "exchange")],
    "recipient revoked when prepared": [*PREPARED, (C, "stand north revoked"), (D, "exchange")],
    "recipient revoked when relayed": [*RELAYED, (C, "stand north revoked"), (D, "exchange")],
    "recipient revoked when active": [*ACTIVE, (C, "stand north revoked"), (D, "exchange")],
}


def needs_a_meeting(party: Party, source: State, target: State) -> bool:
    """Whether a transition needs two processes to meet in between: those are the state machine's to pass.

    A proposal has no record before its request.
    """
    return (
        is_final(source)
        or (source is State.PROPOSED and target is not State.REQUESTED)
        or (source is State.SEALED and target is not State.RELAYED)
        or (source is State.APPROVED and target in (State.EXPIRED, State.REVOKED))
        or (source is not State.ACTIVE and target is State.PURGED)
        or (source, target) == (State.ACTIVE, State.EXPIRED)
        or (party, source, target) == (Party.RECIPIENT, State.RELAYED, State.REVOKED)
    )


@dataclass
class Walked:
    """What was walked so far.

    Attributes
    ----------
    killed : set of (party, source, target)
        Where processes were killed; once is enough.
    names : set of str
        Of the walks.
    """

    killed: set[tuple[str, ...]] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


class Processes:
    """One consortium, whose parties are processes of the workshop."""

    def __init__(self, workshop: Workshop, template: Path, folder: Path) -> None:
        shutil.copytree(template, folder)
        for name in (R, D):
            settings = folder / name / "site.toml"
            settings.write_text(settings.read_text().replace(str(template), str(folder)))
        self._workshop = workshop
        self._folder = folder
        self._ahead_h = 0.0
        self._pid = 0

    @property
    def log(self) -> str:
        path = self._folder / "log"
        return path.read_text() if path.exists() else ""

    def moves(self) -> list[tuple[str, ...]]:
        """Every move so far: party, source, target."""
        record = self._folder / "record"
        return (
            [tuple(line.split()) for line in record.read_text().split("\n") if line]
            if (record.exists())
            else []
        )

    def start(self, death: str = "") -> None:
        """Start the coordinator; it may die before it is ready."""
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        self._pid = self._task(C, "serve", death, ready=str(ready), ahead_h=self._ahead_h)

    def stop(self) -> None:
        if self._pid:
            self._workshop.ask(what="end", pid=self._pid)
            self._pid = 0

    @property
    def coordinator_was_killed(self) -> bool:
        """Whether it died of what it was told to."""
        try:
            return not self._pid or psutil.Process(self._pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def do(self, step: Step, death: str = "") -> int:
        """One step in one process; its exit status."""
        party, what = step
        table = self._folder / f"{party}.csv"
        if what in ("lose consents", "consent again"):
            consent = "withdrawn" if what == "lose consents" else "active"
            pd.read_csv(table).assign(consent=consent).to_csv(table, index=False)
        elif what == "know the rows":
            both = [pd.read_csv(self._folder / f"{name}.csv") for name in (R, D)]
            pd.concat(both).to_csv(table, index=False)
        elif party == C and what.startswith("ahead"):
            self._ahead_h = float(what.split()[1])
            self.stop()
            self.start(death)
            return self._wait_until_expired(death)
        else:
            what, _, hours = what.partition(" ahead ")
            return self._task(party, what, death, ahead_h=float(hours or 0))
        return 0

    def _wait_until_expired(self, death: str) -> int:
        """Wait for the coordinator's housekeeping, or its death."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self.coordinator_was_killed:
                self.stop()
                return KILLED
            if not death and self.end()[C][0] == State.EXPIRED:
                return 0
            time.sleep(0.02)
        return 1

    def _task(self, party: str, what: str, death: str, **more: object) -> int:
        return self._workshop.ask(
            party=party,
            what=what,
            death=death,
            folder=str(self._folder / party),
            record=str(self._folder / "record"),
            log=str(self._folder / "log"),
            **{"ahead_h": 0.0, **more},
        )

    def everybody_exchanges(self) -> None:
        """One more exchange each; a revoked site's is refused."""
        for site in (R, D):
            self.do((site, "exchange"))

    def end(self) -> dict[str, tuple[str, int]]:
        """State at every party, and how many rows it holds or gave."""
        found = {}
        for party, database, rows in (
            (C, "coordinator.db", "uploads"),
            (R, "site.db", "received"),
            (D, "site.db", "disclosed"),
        ):
            with closing(sqlite3.connect(self._folder / party / database)) as connection:
                ((state,),) = connection.execute("SELECT state FROM transfers").fetchall()
                ((n_rows,),) = connection.execute(f"SELECT count(*) FROM {rows}").fetchall()  # noqa: S608
            found[party] = (state, n_rows)
        return found


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    opened = Workshop()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def walked() -> Walked:
    return Walked()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium whose sites dial a port that is free."""
    folder = tmp_path_factory.mktemp("consortium") / "template"
    folder.mkdir()
    new_consortium(
        folder,
        ports=(free_port(), free_port()),
        north=patients("n", with_hole()),
        south=patients("s", np.full((2, 4), 12)),
    ).close()
    return folder


@pytest.mark.parametrize("name", WALKS)
def test_killed_at_every_commit_the_end_is_the_same(
    name: str, workshop: Workshop, template: Path, tmp_path: Path, walked: Walked
) -> None:
    with running(workshop, template, tmp_path / "plain") as plain:
        moved: list[list[tuple[str, ...]]] = []
        for step in WALKS[name]:
            n_before = len(plain.moves())
            status = plain.do(step)
            assert status == 0, f"{step}: {plain.log}"
            moved.append(plain.moves()[n_before:])
        plain.everybody_exchanges()
    with running(workshop, template, tmp_path / "killed") as killed:
        for step, moves in zip(WALKS[name], moved, strict=True):
            for move in moves:
                if move in walked.killed:
                    continue
                walked.killed.add(move)
                for when in ("before", "after"):
                    kill_once(killed, step, move, when)
            # Once more, undisturbed: what was done already may be refused now.
            killed.do(step)
        killed.everybody_exchanges()
    assert killed.end() == plain.end(), killed.log
    walked.names.add(name)


@contextmanager
def running(workshop: Workshop, template: Path, folder: Path) -> Iterator[Processes]:
    """A copy of the consortium with a coordinator that runs."""
    processes = Processes(workshop, template, folder)
    processes.start()
    try:
        yield processes
    finally:
        processes.stop()


def kill_once(processes: Processes, step: Step, move: tuple[str, ...], when: str) -> None:
    """Take a step that ends with the death of the process that was to make the move."""
    party, source, target = move
    death = f"{source}>{target}:{when}"
    is_served = party == C and step[0] != C
    if is_served:
        processes.stop()
        processes.start(death)
        processes.do(step)
        # Its sockets close a moment before the process is gone.
        end = time.monotonic() + 10
        while not processes.coordinator_was_killed and time.monotonic() < end:
            time.sleep(0.01)
        assert processes.coordinator_was_killed, f"{step} {move} {when}: {processes.log}"
        processes.stop()
        processes.start()
    else:
        status = processes.do(step, death)
        assert status == KILLED, f"{step} {move} {when}: {status} {processes.log}"


def test_the_walks_pass_every_transition_but_those_of_chance(walked: Walked) -> None:
    if walked.names != set(WALKS):
        pytest.skip("needs all walks before it")
    passed = {
        (PARTY[party], State(source), State(target)) for party, source, target in walked.killed
    }
    possible = {(party, t.source, t.target) for t in TRANSITIONS for party in t.where}
    assert passed <= possible
    assert possible - passed == {move for move in possible if needs_a_meeting(*move)}
