"""A consortium simulated before there is one: what is said of it is what the product did."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto

from server_fixtures import DICTIONARY_TOML
from synthedge_core.errors import DisclosureRefusedError, SynthEdgeError, UsageError
from synthedge_deploy import engines, planning
from synthedge_deploy.generated import Plan, hospital, hospitals
from synthedge_deploy.local_grid import LocalGrid
from synthedge_deploy.planning import run
from synthedge_deploy.planning_figures import Figures
from synthedge_deploy.virtual_coordinator import VirtualCoordinator
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import cli_simulation
from synthedge_server.inbox import messages_after

# Threshold mode draws no noise: one seed, one outcome.
PLAN = Plan(dictionary_text=DICTIONARY_TOML, n_sites=10, patients=300, holes=1.0, seed=3)


def published(answers: list[bytes]) -> dict[str, bytes]:
    """What each site published, by site, without the release's random id."""
    found = {}
    for data in answers:
        statement = pb.Statement.FromString(pb.SignedStatement.FromString(data).statement)
        answer = pb.DiscoveryAnswer.FromString(statement.payload)
        inner = pb.Statement.FromString(answer.report.statement)
        report = pb.GapReport.FromString(inner.payload)
        report.ClearField("release_id")
        found[statement.signer_site] = report.SerializeToString(deterministic=True)
    return found


@pytest.fixture(scope="module")
def figures() -> Figures:
    return run(PLAN, "grid")


def test_a_hospital_is_the_same_whoever_generates_it() -> None:
    many = list(hospitals(PLAN))
    alone = hospital(replace(PLAN, n_sites=500), 7)
    assert np.array_equal(alone.samples.values, many[7].samples.values)
    assert alone.hole == many[7].hole
    assert hospital(replace(PLAN, seed=4), 7).hole != alone.hole


def test_a_made_hole_holds_no_positive_and_the_rest_of_the_table_some() -> None:
    for made in hospitals(PLAN):
        assert made.hole is not None
        voxels = PLAN.grids[made.hole.grid].assign(made.samples.values)
        assert made.samples.positive.sum() > 0
        assert not made.samples.positive[voxels == made.hole.voxel].any()
        assert made.hole.n_removed >= 8


def test_hospitals_differ_by_the_shift() -> None:
    def spread(shift: float) -> float:
        plan = replace(PLAN, shift=shift, holes=0.0, n_sites=20)
        return float(np.std([made.samples.values[:, 0].mean() for made in hospitals(plan)]))

    assert spread(0.0) < spread(0.3) < spread(1.0)


def test_made_holes_are_found_far_beyond_chance_and_filled(figures: Figures) -> None:
    assert (figures.sites, figures.reports, figures.holes_made) == (10, 10, 10)
    # One of twelve voxels would come first by chance.
    assert figures.made_first >= 6
    assert figures.precision is not None
    assert figures.precision > 0.5
    assert figures.rows_to_made > 20
    assert figures.rows_to_made <= figures.rows
    assert figures.proposals > 0


def test_the_figures_are_printed_for_people_and_for_programs(figures: Figures) -> None:
    data = json.loads(json.dumps(figures.as_dict()))
    assert data["wire_bytes"]["sealed"] > data["rows"] > 0
    tables = cli_simulation._in_words([data, {**data, "precision": None}])
    found = next(line for line in tables.splitlines() if line.startswith("10 "))
    assert found.split()[:3] == ["10", "10", str(figures.holes_confirmed)]
    assert found.split()[7] == str(figures.asks)


def test_bytes_are_those_that_were_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"asked": 0, "answered": 0}
    push, pull = LocalGrid.push_messages, LocalGrid.pull_messages

    def pushing(grid: LocalGrid, messages: list[Message]) -> Any:
        identifiers = push(grid, messages)
        sent["asked"] += sum(len(message_to_proto(m).SerializeToString()) for m in messages)
        return identifiers

    def pulling(grid: LocalGrid, identifiers: list[str]) -> Any:
        replies = list(pull(grid, identifiers))
        sent["answered"] += sum(len(message_to_proto(m).SerializeToString()) for m in replies)
        return replies

    monkeypatch.setattr(LocalGrid, "push_messages", pushing)
    monkeypatch.setattr(LocalGrid, "pull_messages", pulling)
    figures = Figures(sites=4)
    plan = replace(PLAN, n_sites=4)
    with VirtualCoordinator(tmp_path / "coordinator", plan) as coordinator:
        asked = coordinator.open_round()
        for data in planning.collect(plan, "grid", asked, figures, str(tmp_path)):
            coordinator.take(data)
        coordinator.tell()
        coordinator.told(figures)
        with coordinator._engine.connect() as connection:
            inboxes = [
                message
                for i in range(4)
                for message in messages_after(connection, plan.site(i), 0, Limits())[0]
            ]
    assert figures.wire_bytes["rounds"] == sent["asked"] > 0
    assert figures.wire_bytes["reports"] == sent["answered"] > 0
    for kind, name in (("profile", "profiles"), ("proposals", "proposals")):
        told = [message for message in inboxes if message.WhichOneof("body") == kind]
        assert figures.wire_bytes[name] == sum(len(m.SerializeToString()) for m in told) > 0


def test_a_site_that_fails_ends_the_simulation_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(plan: Plan, i: int, scratch: str) -> None:
        raise DisclosureRefusedError("nothing is released")

    monkeypatch.setattr(planning, "open_published", refuses)
    with pytest.raises(SynthEdgeError, match=r"3 of 3 virtual sites .*: .*nothing is released"):
        run(replace(PLAN, n_sites=3), "grid")


@pytest.mark.parametrize(
    ("asked", "n_sites", "says"),
    [("grid", 201, "take '--engine ray'"), ("spark", 10, "take grid or ray")],
)
def test_an_engine_that_does_not_fit_is_refused(asked: str, n_sites: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        planning.engine_for(asked, n_sites)


def test_the_engine_is_the_simplest_that_is_enough() -> None:
    assert [planning.engine_for(None, n) for n in (10, 200, 201)] == ["grid", "grid", "ray"]
    assert planning.steps(1000) == [10, 100, 1000]
    assert planning.steps(30) == [10, 30]


@pytest.mark.parametrize(
    "wrong", [{"n_sites": 2}, {"shift": -0.1}, {"holes": 1.5}, {"patients": 1}, {"seed": -1}]
)
def test_a_plan_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="it must be from"):
        replace(PLAN, **wrong)


def test_what_is_not_installed_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs Ray: pip install 'synthedge-federation\[sim"):
        planning.engine_for(None, 1000)

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="flwr")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(UsageError, match="'flwr' is not installed: pip install"):
        cli_simulation._planning()


RAY_ROUND = """
import sys
from pathlib import Path
from synthedge_deploy import planning
from synthedge_deploy.generated import Plan
from synthedge_deploy.planning_figures import Figures
from synthedge_deploy.virtual_coordinator import VirtualCoordinator
text, out = Path(sys.argv[1]).read_text(), Path(sys.argv[2])
plan = Plan(dictionary_text=text, n_sites=3, patients=300, holes=1.0, seed=3)
with VirtualCoordinator(out / "coordinator", plan) as coordinator:
    asked = coordinator.open_round()
    answers = planning.collect(plan, "ray", asked, Figures(sites=3), sys.argv[2])
for i, data in enumerate(answers):
    (out / f"{i}.answer").write_bytes(data)
"""


def run_watched(command: list[str]) -> tuple[set[str], set[str]]:
    """Run a program to its end: addresses that what it started listened on, and folders of a Ray."""
    addresses: set[str] = set()
    folders: set[str] = set()
    started: dict[int, psutil.Process] = {}
    with subprocess.Popen(command) as program:
        while program.poll() is None:
            for process in psutil.Process(program.pid).children(recursive=True):
                started[process.pid] = process
                with suppress(psutil.Error):
                    folders.update(re.findall(r"/\w+/ray-\w+", " ".join(process.cmdline())))
                    listening = (c for c in process.net_connections() if c.status == "LISTEN")
                    addresses |= {connection.laddr.ip for connection in listening}
            time.sleep(0.3)
    assert program.returncode == 0
    assert len(started) > 3
    _, alive = psutil.wait_procs(started.values(), timeout=10)
    assert not alive
    return addresses, folders


@pytest.mark.slow
def test_ray_and_the_grid_give_the_same_reports_and_nothing_of_ray_stays(tmp_path: Path) -> None:
    (tmp_path / "consortium.toml").write_text(DICTIONARY_TOML)
    (tmp_path / "ray").mkdir()
    arguments = [str(tmp_path / "consortium.toml"), str(tmp_path / "ray")]

    listened, folders = run_watched([sys.executable, "-c", RAY_ROUND, *arguments])

    plan = replace(PLAN, n_sites=3)
    with VirtualCoordinator(tmp_path / "grid", plan) as coordinator:
        asked = coordinator.open_round()
        here = planning.collect(plan, "grid", asked, Figures(sites=3), str(tmp_path))
    on_ray = published([path.read_bytes() for path in (tmp_path / "ray").glob("*.answer")])
    assert on_ray == published(here)
    assert sorted(on_ray) == [plan.site(i) for i in range(3)]
    assert {address.removeprefix("::ffff:") for address in listened} <= {"127.0.0.1", "::1"}
    assert len(folders) == 1
    assert not any(map(os.path.exists, folders))
