"""A withdrawal between real processes: the recipient is away, and whoever carries it out is killed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from synthedge_client import store
from synthedge_client.received import load_with_tokens
from synthedge_client.site import open_site
from synthedge_deploy.consortium import Consortium
from synthedge_protocols.lifecycle import State
from system_consortium import (
    Finished,
    answer,
    copy_of,
    dying,
    recorded,
    start_coordinator,
    was_killed,
)

pytestmark = pytest.mark.slow


class Withdrawing:
    """A finished consortium in which one delivered patient withdraws."""

    def __init__(self, folder: Path, consortium: Consortium) -> None:
        self.folder = folder
        self.consortium = consortium
        self.donor, self.recipient, self.token, self.patient = self._delivered()

    def _delivered(self) -> tuple[str, str, bytes, str]:
        for path in sorted(self.folder.glob("*/site.db")):
            with open_site(path.parent) as site, site.store.read() as connection:
                given = sa.select(store.disclosed.c.patient_tag).group_by(
                    store.disclosed.c.patient_tag
                )
                row = connection.execute(
                    sa.select(store.disclosed)
                    .join(
                        store.transfers,
                        store.transfers.c.transfer_id == store.disclosed.c.transfer_id,
                    )
                    .where(store.transfers.c.state == State.ACTIVE.value)
                    # One whom one recipient has: one notice.
                    .where(store.disclosed.c.patient_tag.in_(given.having(sa.func.count() == 1)))
                    .order_by(store.disclosed.c.token)
                    .limit(1)
                ).first()
                if row is not None:
                    patient = site.keys.decrypt(row.patient, b"patient" + row.token).decode()
                    return site.settings.id, row.recipient, row.token, patient
        raise AssertionError("the demonstration delivered nothing")

    def start(self, name: str, death: str = "never") -> None:
        folder = str(self.folder / name)
        if name == "coordinator":
            record = self.folder / "recorded" / "again"
            start_coordinator(
                self.consortium, *recorded(record, "serve", "--dir", folder, death=death)
            )
        else:
            self.consortium.start(name, *dying(death, "site", "run", "--dir", folder))

    def at(self, site: str, *command: str) -> Any:
        return answer("site", *command, "--dir", self.folder / site)

    def status(self) -> Any:
        return answer(
            "status", "--dir", self.folder / "coordinator", program="synthedge-coordinator"
        )

    def held(self) -> list[bytes]:
        with open_site(self.folder / self.recipient) as site:
            return load_with_tokens(site)[1]

    def restart_when_killed(self, name: str) -> None:
        process = self.consortium.process(name)
        assert was_killed(process), self.consortium.log(name).read_text()
        self.start(name)

    def assert_settled_once(self, n_before: int) -> None:
        self.consortium.wait_for(
            "the receipt",
            lambda: [w["state"] for w in self.at(self.donor, "withdrawals")] == ["PURGED"],
        )
        assert self.token not in self.held()
        assert len(self.held()) == n_before - 1
        for site in (self.donor, self.recipient):
            (entry,) = self.at(site, "withdrawals")
            assert (entry["state"], entry["report"]["rows_purged"]) == ("PURGED", 1)
        # What the demonstration filled held the row.
        assert [c["kind"] for c in entry["report"]["copies"]] == ["fill"]
        status = self.status()
        assert status["withdrawals_open"] == status["withdrawals_overdue"] == []


@pytest.fixture
def withdrawing(finished: Finished, tmp_path: Path) -> Iterator[Withdrawing]:
    folder = copy_of(finished, tmp_path / "copy")
    with Consortium(folder, lambda line: None) as consortium:
        yield Withdrawing(folder, consortium)


def test_a_recipient_that_was_away_purges_before_anything_else(withdrawing: Withdrawing) -> None:
    n_before = len(withdrawing.held())
    withdrawing.start("coordinator")
    withdrawing.start(withdrawing.donor)
    told = withdrawing.at(
        withdrawing.donor, "consent", "withdraw", "--patient", withdrawing.patient
    )
    assert told["recipients"] == [withdrawing.recipient]
    withdrawing.consortium.wait_for(
        "the notice", lambda: len(withdrawing.status()["withdrawals_open"]) == 1
    )
    assert withdrawing.token in withdrawing.held()

    withdrawing.start(
        withdrawing.recipient, "Submit:before"
    )  # stored and purged, not yet signed for
    withdrawing.restart_when_killed(withdrawing.recipient)

    withdrawing.assert_settled_once(n_before)


def test_a_coordinator_killed_with_the_notice_and_the_receipt_loses_neither(
    withdrawing: Withdrawing,
) -> None:
    n_before = len(withdrawing.held())
    withdrawing.start("coordinator", "Submit:after")
    withdrawing.at(withdrawing.donor, "consent", "withdraw", "--patient", withdrawing.patient)
    withdrawing.start(withdrawing.donor)
    assert was_killed(withdrawing.consortium.process("coordinator"))
    withdrawing.start("coordinator", "Submit:after")
    withdrawing.start(withdrawing.recipient)
    withdrawing.restart_when_killed("coordinator")

    withdrawing.assert_settled_once(n_before)
