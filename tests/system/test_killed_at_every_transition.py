"""`kill -9` of coordinator, donor and recipient just before and just after every commit that moves a transfer.

Each walk is walked once without a kill, which tells the commits; then again, with every process killed at each of them
and started once more. The end must be the same. Where walks begin alike, the way there is gone once and copied.
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
from synthedge_protocols.lifecycle import TRANSITIONS, Party, State

pytestmark = pytest.mark.slow

R, D, C = "north", "south", COORDINATOR
REFUSED, KILLED = -1, 9
PARTY = {R: Party.RECIPIENT, D: Party.DONOR, C: Party.COORDINATOR}

Step = tuple[str, str]
TOLD: list[Step] = [(R, "exchange"), (D, "exchange")]
NORTH_LAST: list[Step] = [(D, "exchange"), (R, "exchange")]

# Name to the beginning before it, and the steps from there.
BEGINNINGS: dict[str, tuple[str, list[Step]]] = {
    "nothing": ("", []),
    "asked": ("nothing", [(R, "ask"), *TOLD]),
    "prepared": ("asked", [(D, "prepare")]),
    "approved": ("prepared", [(D, "approve")]),
    "approval sent": ("approved", [(D, "exchange, killed APPROVED>SEALED:before")]),
    "sealed": ("approved", [(D, "exchange, killed APPROVED>SEALED:after")]),
    "uploaded": ("approved", [(D, "exchange, killed SEALED>RELAYED:before")]),
    "relayed": ("approved", [(D, "exchange")]),
    "delivered": ("relayed", [(R, "exchange")]),
    "accepted": ("delivered", [(R, "accept")]),
    "active": ("accepted", TOLD),
}

WALKS: dict[str, tuple[str, list[Step]]] = {
    "to the end": (
        "nothing",
        [
            *((R, what) for what in ("ask", "exchange")),
            *((D, what) for what in ("exchange", "prepare", "approve", "exchange")),
            *((R, what) for what in ("exchange", "accept")),
            *TOLD,
            (R, "purge"),
            *TOLD,
        ],
    ),
    # Before anything left.
    "declined": ("asked", [(D, "decline"), *NORTH_LAST]),
    "declined when prepared": ("prepared", [(D, "decline"), *NORTH_LAST]),
    "lapsed": ("prepared", [(D, "exchange, 13 h ahead"), (D, "prepare")]),
    "cancelled": ("asked", [(R, "cancel"), *TOLD]),
    "cancelled when prepared": ("prepared", [(R, "cancel"), *TOLD]),
    "cancelled when approved": ("approved", [(R, "cancel"), *TOLD]),
    "cancelled by the donor": ("approved", [(D, "cancel"), *NORTH_LAST]),
    "cancelled by the donor when sealed": ("sealed", [(D, "cancel"), *NORTH_LAST]),
    "expired": ("asked", [(C, "49 h ahead"), *TOLD]),
    "expired when prepared": ("prepared", [(C, "49 h ahead"), *TOLD]),
    "expired when approved": ("approval sent", [(C, "25 h ahead"), *TOLD]),
    "expired when sealed": ("sealed", [(C, "25 h ahead"), *TOLD]),
    "donor revoked": ("asked", [(C, "revoke south"), (R, "exchange")]),
    "donor revoked when approved": ("approval sent", [(C, "revoke south"), (R, "exchange")]),
    "recipient revoked": ("asked", [(C, "revoke north"), (D, "exchange")]),
    "recipient revoked when prepared": ("prepared", [(C, "revoke north"), (D, "exchange")]),
    "recipient revoked when approved": ("approval sent", [(C, "revoke north"), (D, "exchange")]),
    "recipient revoked when sealed": ("sealed", [(C, "revoke north"), (D, "exchange")]),
    "consent lost": (
        "approved",
        [
            (D, "lose consents"),
            (D, "exchange"),
            (D, "consent again"),
            (D, "prepare"),
            (D, "approve"),
            *NORTH_LAST,
        ],
    ),
    "consent lost when sealed": (
        "sealed",
        [(D, "lose consents"), (D, "exchange"), (D, "decline"), *NORTH_LAST],
    ),
    # On its way, delivered, active.
    "cancelled when relayed": ("relayed", [(R, "cancel"), *TOLD]),
    "cancelled by the donor when relayed": ("relayed", [(D, "cancel"), *NORTH_LAST]),
    "expired when relayed": ("relayed", [(C, "25 h ahead"), *TOLD]),
    "donor revoked when relayed": ("relayed", [(C, "revoke south"), (R, "exchange")]),
    "recipient revoked when relayed": ("relayed", [(C, "revoke north"), (D, "exchange")]),
    "refused by the gate": ("relayed", [(R, "know the rows"), *TOLD]),
    "expired when delivered": ("delivered", [(C, "25 h ahead"), *TOLD]),
    "donor revoked when delivered": ("delivered", [(C, "revoke south"), (R, "exchange")]),
    "donor revoked when active": ("active", [(C, "revoke south"), (R, "exchange")]),
    "recipient revoked when active": ("active", [(C, "revoke north"), (D, "exchange")]),
    "accepted before the upload was noted": (
        "uploaded",
        [(R, "exchange"), (R, "accept"), *TOLD],
    ),
    "refused before the upload was noted": (
        "uploaded",
        [(R, "exchange"), (R, "refuse"), *TOLD],
    ),
    # Ends that cross: what the coordinator put on record first holds.
    "both cancel, the donor first": ("approved", [(R, "cancel"), (D, "cancel"), *NORTH_LAST]),
    "both cancel, the recipient first": ("approved", [(D, "cancel"), (R, "cancel"), *TOLD]),
    "cancelled, but declined before": ("asked", [(R, "cancel"), (D, "decline"), *NORTH_LAST]),
    "declined, but cancelled before": ("asked", [(D, "decline"), (R, "cancel"), *TOLD]),
    "declined, but expired before": ("asked", [(D, "decline"), (C, "49 h ahead"), *TOLD]),
    "cancelled, but expired before": ("asked", [(R, "cancel"), (C, "49 h ahead"), *TOLD]),
    "cancelled by the donor, but expired before": (
        "approved",
        [(D, "cancel"), (C, "49 h ahead"), *TOLD],
    ),
    "refused, but expired before": ("delivered", [(R, "refuse"), (C, "25 h ahead"), *TOLD]),
    "accepted, but expired before": ("accepted", [(C, "25 h ahead"), *TOLD]),
    "purged, but expired before": ("accepted", [(R, "purge"), (C, "25 h ahead"), *TOLD]),
    "declined, but the recipient revoked before": (
        "asked",
        [(D, "decline"), (C, "revoke north"), (D, "exchange")],
    ),
    "cancelled by the donor, but the recipient revoked before": (
        "approved",
        [(D, "cancel"), (C, "revoke north"), (D, "exchange")],
    ),
    "cancelled, but the donor revoked before": (
        "asked",
        [(R, "cancel"), (C, "revoke south"), (R, "exchange")],
    ),
    "refused, but the donor revoked before": (
        "delivered",
        [(R, "refuse"), (C, "revoke south"), (R, "exchange")],
    ),
    "purged, but the donor revoked before": (
        "accepted",
        [(R, "purge"), (C, "revoke south"), (R, "exchange")],
    ),
    "cancelled by the donor, but accepted before": (
        "relayed",
        [(D, "cancel"), (R, "exchange"), (R, "accept"), *TOLD],
    ),
    "cancelled by the donor, but refused before": (
        "relayed",
        [(D, "cancel"), (R, "exchange"), (R, "refuse"), *TOLD],
    ),
    # Its record of the delivery is gone, so the recipient deletes the rows; the donor hears when the time is over.
    "forgotten by the coordinator": (
        "relayed",
        [
            (C, "keep a backup"),
            (R, "exchange"),
            (R, "accept"),
            *TOLD,
            (C, "restore the backup"),
            (R, "exchange, refused"),
            (D, "exchange, refused"),
            (C, "recover north"),
            (C, "recover south"),
            (R, "recover"),
            (D, "recover"),
            *TOLD,
            (C, "25 h ahead"),
            *TOLD,
        ],
    ),
}


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
    """One consortium, a copy of another, whose parties are processes of the workshop."""

    def __init__(self, workshop: Workshop, source: Path, folder: Path) -> None:
        shutil.copytree(source, folder)
        for name in (R, D):
            settings = folder / name / "site.toml"
            settings.write_text(settings.read_text().replace(str(source), str(folder)))
        self._workshop = workshop
        self._folder = folder
        self._ahead_h = 0.0
        self._pid = 0
        self._death = ""

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

    def serve(self, death: str = "") -> None:
        """See that the coordinator runs, and is to die there; it may die before it is ready."""
        if self._death == death and not self.coordinator_is_dead:
            return
        self.stop()
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        self._death = death
        self._pid = self._task(C, "serve", death, ready=str(ready), ahead_h=self._ahead_h)

    def stop(self) -> None:
        if self._pid:
            self._workshop.ask(what="end", pid=self._pid)
            self._pid = 0

    @property
    def coordinator_is_dead(self) -> bool:
        """Whether it died of what it was told to, or was never started."""
        try:
            return not self._pid or psutil.Process(self._pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def do(self, step: Step, death: str = "") -> int:
        """One step in one process, which may die there; its exit status."""
        party, what = step
        if party == C:
            return self._operate(what, death)
        table = self._folder / f"{party}.csv"
        if what in ("lose consents", "consent again"):
            consent = "withdrawn" if what == "lose consents" else "active"
            pd.read_csv(table).assign(consent=consent).to_csv(table, index=False)
            return 0
        if what == "know the rows":
            both = [pd.read_csv(self._folder / f"{name}.csv") for name in (R, D)]
            pd.concat(both).to_csv(table, index=False)
            return 0
        what, _, how = what.partition(", ")
        if how.startswith("killed "):
            death = how.removeprefix("killed ")
        hours = float(how.split()[0]) if how.endswith("ahead") else 0.0
        return self._task(party, what, death, ahead_h=hours)

    def _operate(self, what: str, death: str) -> int:
        """What the coordinator's operator does, or time."""
        folder, backup = self._folder / C, self._folder / "backup"
        if what.endswith("ahead"):
            self._ahead_h = float(what.split()[0])
            self.stop()
            self.serve(death)
            return self._wait_until_expired(death)
        if what == "keep a backup":
            self.stop()
            shutil.copytree(folder, backup)
        elif what == "restore the backup":
            self.stop()
            shutil.rmtree(folder)
            shutil.copytree(backup, folder)
        else:
            return self._task(C, what, death)
        return 0

    def _wait_until_expired(self, death: str) -> int:
        """Wait for the coordinator's housekeeping, or its death."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self.coordinator_is_dead:
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

    def go(self, steps: list[Step]) -> list[list[tuple[str, ...]]]:
        """Take steps that end as they should; which moves each of them made."""
        moved = []
        for step in steps:
            n_before = len(self.moves())
            self.serve()
            status = self.do(step)
            expected = KILLED if "killed" in step[1] else REFUSED if "refused" in step[1] else 0
            assert status == expected, f"{step}: {status} {self.log}"
            moved.append(self.moves()[n_before:])
        return moved

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


class Beginnings:
    """Folders to begin a walk from; each is made when first asked for, from the one before it."""

    def __init__(self, workshop: Workshop, folder: Path) -> None:
        self._workshop = workshop
        self._folder = folder
        template = folder / "nothing"
        template.mkdir()
        new_consortium(
            template,
            ports=(free_port(), free_port()),
            north=patients("n", with_hole()),
            south=patients("s", np.full((2, 4), 12)),
        ).close()

    def folder_of(self, name: str) -> Path:
        folder = self._folder / name.replace(" ", "-")
        if not folder.exists():
            before, steps = BEGINNINGS[name]
            with running(self._workshop, self.folder_of(before), folder) as processes:
                processes.go(steps)
        return folder


@pytest.fixture(scope="module")
def beginnings(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Beginnings:
    """A consortium whose sites dial a port that is free, and its transfer at several states."""
    return Beginnings(workshop, tmp_path_factory.mktemp("beginnings"))


@pytest.mark.parametrize("name", WALKS)
def test_killed_at_every_commit_the_end_is_the_same(
    name: str, workshop: Workshop, beginnings: Beginnings, tmp_path: Path, walked: Walked
) -> None:
    beginning, steps = WALKS[name]
    n_before = len(walked.killed)
    begin = beginnings.folder_of(beginning)
    with running(workshop, begin, tmp_path / "plain") as plain:
        moved = plain.go(steps)
        assert all_agree(plain.end(), steps), plain.end()
    with running(workshop, begin, tmp_path / "killed") as killed:
        for step, moves in zip(steps, moved, strict=True):
            for move in moves:
                if move in walked.killed:
                    continue
                walked.killed.add(move)
                for when in ("before", "after"):
                    kill_once(killed, step, move, when)
            # Once more, undisturbed: what was done already may be refused now.
            killed.serve()
            killed.do(step)
    assert killed.end() == plain.end(), killed.log
    assert len(walked.killed) > n_before, "this walk passes nothing that those before it did not"
    walked.names.add(name)


def all_agree(end: dict[str, tuple[str, int]], steps: list[Step]) -> bool:
    """Whether a transfer that waits for nobody is the same in every record; a revoked site hears of nothing more."""
    shut_out = {
        what.split()[1] for party, what in steps if party == C and what.startswith("revoke")
    }
    states = {state for party, (state, _) in end.items() if party not in shut_out}
    return len(states) == 1 or State(end[C][0]) in (State.REQUESTED, State.DELIVERED)


@contextmanager
def running(workshop: Workshop, source: Path, folder: Path) -> Iterator[Processes]:
    """A copy of a consortium, whose coordinator ends with the body."""
    processes = Processes(workshop, source, folder)
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
        processes.serve(death)
        processes.do(step)
        # Its sockets close a moment before the process is gone.
        end = time.monotonic() + 10
        while not processes.coordinator_is_dead and time.monotonic() < end:
            time.sleep(0.01)
        assert processes.coordinator_is_dead, f"{step} {move} {when}: {processes.log}"
    else:
        processes.serve()
        status = processes.do(step, death)
        assert status == KILLED, f"{step} {move} {when}: {status} {processes.log}"


def test_every_transition_of_the_table_is_walked_by_everybody_who_records_it(
    walked: Walked,
) -> None:
    if walked.names != set(WALKS):
        pytest.skip("needs all walks before it")
    passed = {
        (PARTY[party], State(source), State(target)) for party, source, target in walked.killed
    }
    assert passed == {(party, t.source, t.target) for t in TRANSITIONS for party in t.where}
