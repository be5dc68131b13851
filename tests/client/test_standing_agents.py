"""Agents that carry a transfer from a confirmed hole to active rows under their stewards' policies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enrolled import enrolled, exchange
from server_fixtures import Consortium
from sites import events, patients, queued, steward, with_hole
from synthedge_client import policies, store
from synthedge_client.received import load_samples
from synthedge_client.site import Site
from synthedge_client.standing_work import StandingWork
from synthedge_client.status import describe_transfers
from synthedge_protocols.v1 import statements_pb2 as pb

HOUR_MS = 3_600_000


def allow(site: Site, acts: list[str], peers: list[str], **changes: Any) -> None:
    fields: dict[str, Any] = {
        "acts": acts,
        "peers": peers,
        "purposes": ["DUO:0000006"],
        "features": ["bp", "sex"],
        "rows": 20,
        "period_days": 30,
        "valid_until_ms": store.now_ms() + 30 * 24 * HOUR_MS,
    }
    policies.add_policy(site, steward(), pb.StandingPolicy(**{**fields, **changes}))


@pytest.mark.slow
async def test_a_confirmed_hole_is_filled_without_anybody_deciding_again(
    coordinator: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {
        "north": patients("n", with_hole(30), np.full((2, 4), 30)),
        "south": patients("s", np.full((2, 4), 30), np.full((2, 4), 30)),
        "west": patients("w", np.full((2, 4), 25), np.full((2, 4), 30)),
    }
    async with enrolled(coordinator, tmp_path, **tables) as (north, south, west):
        await exchange(north)
        assert describe_transfers(north) == []
        allow(west, ["request", "accept"], ["south"])  # has no confirmed hole: asks nobody
        allow(north, ["request", "accept"], ["south"], regions=["sex x bp"], rows=9)
        allow(south, ["approve"], ["north"])
        with monkeypatch.context() as patch:
            now = store.now_ms()
            patch.setattr(store, "now_ms", lambda: now + 337 * HOUR_MS)
            StandingWork().carry_out(north)
        assert describe_transfers(north) == []  # what was proposed is older than `proposed_h`

        await exchange(north, south, north, south, west)

        assert describe_transfers(west) == []
        [taken] = describe_transfers(north)
        [given] = describe_transfers(south)
        assert (taken["peer"], taken["state"], given["state"]) == ("south", "ACTIVE", "ACTIVE")
        assert taken["region"] == "male, bp at least 100 mm[Hg]"
        assert len(load_samples(north)) == 9  # what the policy allowed, of a deficit of about 30
        assert len(events(north, "transfer active")) == 1
        assert queued(north) == queued(south) == []
