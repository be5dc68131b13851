"""Who could help whom: by either strategy for the operator, and never a site itself."""

import json

import pytest
from typer.testing import CliRunner

from server_fixtures import Consortium, request_of
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import PolicyError
from synthedge_server.cli import app
from synthedge_server.match_list import matches_by, proposed_matches


async def test_a_site_cannot_request_from_itself(coordinator: Consortium) -> None:
    north, _, _ = await coordinator.reporting("north", "south", "west")
    with pytest.raises(PolicyError, match="names its own site as donor"):
        await north.submit(north.sign_as_steward(request_of(north, "north")))


async def test_the_strategies_are_shown_side_by_side(coordinator: Consortium) -> None:
    await coordinator.reporting("north", "south", "west")

    proposed = proposed_matches(coordinator.folder)
    ours = matches_by(coordinator.folder, "share")
    seed = matches_by(coordinator.folder, "seed")

    keys = ("recipient", "grid", "voxel", "rank", "donor", "donor_voxel")
    assert [[m[k] for k in keys] for m in ours] == [[m[k] for k in keys] for m in proposed]
    hole = [m for m in ours if m["recipient"] == "north" and m["voxel"] == [1, 3]]
    assert hole[0]["donor"] == "south"
    assert all(m["recipient"] != m["donor"] for m in (*ours, *seed))
    # North has no positives among many negatives there: the published score calls that no gap.
    assert not [m for m in seed if m["recipient"] == "north" and m["voxel"] == [1, 3]]
    # Two shareable features are fewer than the three that the published rule wants in common.
    assert seed == []


async def test_the_command_takes_a_strategy_and_no_other_word(coordinator: Consortium) -> None:
    await coordinator.reporting("north", "south", "west")
    folder = ["--dir", str(coordinator.folder.path), "--json"]

    done = CliRunner().invoke(app, ["matches", "--strategy", "share", *folder])

    data = json.loads(done.stdout)["data"]
    assert {match["recipient"] for match in data} <= {"north", "south", "west"}
    assert data[0]["reason"]
    wrong = CliRunner().invoke(app, ["matches", "--strategy", "best", *folder])
    assert isinstance(wrong.exception, UsageError)
