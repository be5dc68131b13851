"""Consent, decisions and policies as a steward types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server_fixtures import DICTIONARY_TOML
from sites import arrives, asked, delivered, patients, queued, sites, transfer_at, with_hole
from synthedge_client.cli import app
from synthedge_client.console import run_app
from synthedge_client.stewards import add_steward
from synthedge_protocols.lifecycle import State

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `synthedge site ... --json`; its data, and its error's message with the exit code."""

    def once(*arguments: object) -> Any:
        code = run_app(app, ["site", *map(str, arguments), "--json"], program="synthedge")
        data = json.loads(capsys.readouterr().out)["data"]
        return (code, data["message"]) if code else data

    return once


def test_stewards_of_both_sides_decide_at_the_terminal(tmp_path: Path, run: Run) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse")
    passphrase.chmod(0o600)
    signed = ["--steward", "ada", "--passphrase-file", passphrase]
    with sites(
        tmp_path, DICTIONARY_TOML, north=patients("n", with_hole()), south=patients("s")
    ) as (north, south):
        at_north, at_south = (["--dir", site.settings.folder] for site in (north, south))
        for site in (north, south):
            add_steward(site.settings.keys, "ada", b"correct horse")

        counts = run("consent", "status", *at_south)
        assert counts["status"]["active"] == counts["patients"] == 128

        asking = asked(north, south, voxel=0)
        shown = run("requests", "show", asking.short_id, *at_south)
        assert shown["purpose"] == "DUO:0000007 disease-specific research"
        assert (shown["eligible_patients"], shown["sent_before"]) == (8, [])
        prepared = run("requests", "prepare", asking.short_id, *at_south)
        assert prepared["unique"] == ["5 of 5 rows are unique on bp, sex"]
        reason = ["--reason", "the study was stopped"]
        code, message = run("requests", "cancel", asking.short_id, *reason, *at_south, *signed)
        assert (code, "cannot take 'cancel'" in message) == (1, True)
        run("requests", "cancel", asking.short_id, *reason, *at_north, *signed)
        assert arrives(south, statement=queued(north)[-1]) is None
        assert transfer_at(south, asking.id).state is State.CANCELLED

        waiting = delivered(north, south, accept_if_gate_passes=False)
        shown = run("requests", "show", waiting.short_id, *at_north)
        assert shown["gate"] == "schema, region and duplicates checked"
        run("requests", "accept", waiting.short_id, *at_north, *signed)
        assert transfer_at(north, waiting.id).state is State.ACTIVE
        code, message = run("requests", "refuse", waiting.short_id, *reason, *at_north, *signed)
        assert (code, "only a delivery that passed" in message) == (1, True)

        policy = ["--may", "approve", "--peer", "north", "--purpose", "DUO:0000006", "--rows", 20]
        code, message = run("policies", "add", *policy, "--valid-until", "soon", *at_south, *signed)
        assert (code, "write YYYY-MM-DD" in message) == (4, True)
        made = run(
            "policies", "add", *policy, "--valid-until", "2126-01-31", "--region", "sex x bp/7",
            *at_south, *signed,
        )  # fmt: skip
        listed = run("policies", "list", *at_south)
        assert [(p["policy"], p["regions"], p["features"], p["valid_until"], p["problem"])
                for p in listed] == [
            (made["policy"], ["sex x bp/1,3"], ["bp", "sex"], "2126-01-31", "")
        ]  # fmt: skip
        run("policies", "remove", made["policy"][:8], *at_south, *signed)
        assert run("policies", "list", *at_south) == []
