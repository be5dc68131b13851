"""`kill -9` of an agent or of the coordinator in the middle of a transfer loses nothing and doubles nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.received import load_samples
from synthedge_client.site import open_site
from synthedge_deploy.consortium import Consortium
from synthedge_deploy.demo import PURPOSE, STEWARD
from system_consortium import (
    Finished,
    answer,
    copy_of,
    dying,
    recorded,
    start_coordinator,
    was_killed,
)

# Twelve consented patients and one who withdrew; fewer than a transfer may hold, so all twelve go.
DONOR, RECIPIENT, REGION = "east", "west", "sex x age/2"
NEVER = "never"


class Crashes:
    """A finished consortium that goes on: one more transfer, with processes that are killed and started again."""

    def __init__(self, folder: Path, consortium: Consortium) -> None:
        self.folder = folder
        self.consortium = consortium

    def start(self, name: str, death: str = NEVER) -> None:
        folder = str(self.folder / name)
        if name == "coordinator":
            record = self.folder / "recorded" / "again"
            command = recorded(record, "serve", "--dir", folder, death=death)
            start_coordinator(self.consortium, *command)
        else:
            self.consortium.start(name, *dying(death, "site", "run", "--dir", folder))

    def restart_when_killed(self, name: str, death: str = NEVER) -> None:
        """Wait until it was killed where it was to be, then start it as it should be, or to be killed once more."""
        process = self.consortium.process(name)
        assert was_killed(process), self.consortium.log(name).read_text()
        self.start(name, death)

    def stop(self, name: str) -> None:
        process = self.consortium.process(name)
        process.terminate()
        assert process.wait(timeout=10) == 0, self.consortium.log(name).read_text()

    def _at(self, site: str, *command: str, signed: bool = False) -> Any:
        sign = ("--steward", STEWARD, "--passphrase-file", str(self.folder / "passphrase"))
        return answer("site", *command, "--dir", self.folder / site, *(sign if signed else ()))

    def ask(self) -> str:
        asked = self._at(
            RECIPIENT, "requests", "new", REGION, "--rows", "20", "--purpose", PURPOSE,
            "--accept-if-gate-passes",
            "--donor", DONOR, signed=True,
        )  # fmt: skip
        return str(asked["transfer_id"])

    def prepare(self, identifier: str) -> list[list[float]]:
        self.wait(DONOR, identifier, "REQUESTED")
        rows: list[list[float]] = self._at(DONOR, "requests", "prepare", identifier)["rows"]
        return rows

    def approve(self, identifier: str) -> None:
        self._at(DONOR, "requests", "approve", identifier, signed=True)

    def state(self, site: str, identifier: str) -> str | None:
        with open_site(self.folder / site) as opened, opened.store.read() as connection:
            found: str | None = connection.execute(
                sa.select(store.transfers.c.state).where(
                    store.transfers.c.transfer_id == bytes.fromhex(identifier)
                )
            ).scalar_one_or_none()
        return found

    def wait(self, site: str, identifier: str, state: str) -> None:
        self.consortium.wait_for(
            f"'{site}' to see {state}", lambda: self.state(site, identifier) == state
        )

    def rows(self, site: str, table: sa.Table, identifier: str) -> int:
        with open_site(self.folder / site) as opened, opened.store.read() as connection:
            return int(
                connection.execute(
                    sa.select(sa.func.count())
                    .select_from(table)
                    .where(table.c.transfer_id == bytes.fromhex(identifier))
                ).scalar_one()
            )

    def received(self) -> list[list[float]]:
        """All rows of the donor, in the recipient's units: west keeps its table as the dictionary has it."""
        with open_site(self.folder / RECIPIENT) as opened:
            samples = load_samples(opened)
            features = list(opened.dictionary.feature_names)
        if samples.empty:
            return []
        chosen = samples[samples["_donor"] == DONOR][features].astype(float)
        rows: list[list[float]] = chosen.to_numpy().tolist()
        return rows


@pytest.fixture
def crashes(finished: Finished, tmp_path: Path) -> Iterator[Crashes]:
    folder = copy_of(finished, tmp_path / "copy")
    with Consortium(folder, lambda line: None) as consortium:
        yield Crashes(folder, consortium)


def assert_arrived_once(
    crashes: Crashes, identifier: str, prepared: list[list[float]], before: list[list[float]]
) -> None:
    for site in (RECIPIENT, DONOR):
        crashes.wait(site, identifier, "ACTIVE")
    # 'prepare' shows level indices; west's codes are 1 and 2.
    sex = 1
    shown = [[v + 1 if i == sex else v for i, v in enumerate(row)] for row in prepared]
    arrived = crashes.received()
    assert sorted(arrived) == sorted([*before, *shown])
    assert crashes.rows(RECIPIENT, store.received, identifier) == len(prepared)
    assert crashes.rows(DONOR, store.disclosed, identifier) == len(prepared)
    at_coordinator = {
        t["transfer_id"]: t["state"]
        for t in answer(
            "transfers", "--dir", crashes.folder / "coordinator", program="synthedge-coordinator"
        )
    }
    assert at_coordinator[identifier] == "ACTIVE"


def test_three_processes_killed_in_one_transfer_lose_and_double_nothing(crashes: Crashes) -> None:
    before = crashes.received()
    crashes.start("coordinator", "ReleaseKey:after")
    crashes.start(RECIPIENT)
    crashes.start(DONOR, "Upload:after")
    identifier = crashes.ask()
    prepared = crashes.prepare(identifier)
    assert len(prepared) >= 5
    crashes.stop(RECIPIENT)
    crashes.start(RECIPIENT, "Submit:after")  # the receipt
    crashes.approve(identifier)
    for name in (DONOR, "coordinator", RECIPIENT):
        crashes.restart_when_killed(name)
    assert_arrived_once(crashes, identifier, prepared, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "deaths"),
    [
        (DONOR, ("Submit:after", "Upload:before")),
        (RECIPIENT, ("Download:after", "ReleaseKey:after", "Submit:after")),
        (
            "coordinator",
            (
                "Submit:after",
                "Upload:before",
                "Upload:after",
                "Download:after",
                "ReleaseKey:before",
            ),
        ),
    ],
)
def test_killed_at_every_call_a_transfer_still_arrives_once(
    crashes: Crashes, victim: str, deaths: tuple[str, ...]
) -> None:
    before = crashes.received()
    for name in ("coordinator", RECIPIENT, DONOR):
        crashes.start(name)
    identifier = crashes.ask()
    prepared = crashes.prepare(identifier)
    # From here on: what was asked for is known to both, nothing is approved.
    crashes.stop(victim)
    crashes.start(victim, deaths[0])
    crashes.approve(identifier)
    for next_death in (*deaths[1:], NEVER):
        crashes.restart_when_killed(victim, death=next_death)
    assert_arrived_once(crashes, identifier, prepared, before)
