"""`synthedge site gaps preview | publish | budget | repair`: what a person and a program read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from server_fixtures import DICTIONARY_TOML
from sites import accept_dictionary, make_site, patients, queued
from synthedge_client import store
from synthedge_client.cli import app
from synthedge_client.console import run_app
from synthedge_client.releases import FROZEN
from synthedge_client.settings import load_settings
from synthedge_client.site import open_site
from synthedge_client.stewards import add_steward
from synthedge_protocols.v1 import statements_pb2 as pb

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `synthedge site ...`, which must end with a given code, and return what it says on both streams."""

    def once(*arguments: object, code: int = 0) -> str:
        ended = run_app(app, ["site", *map(str, arguments)], program="synthedge")
        out, err = capsys.readouterr()
        assert ended == code, err
        return " ".join((out + err).split())

    return once


def made(parent: Path, settings: str = "") -> Path:
    folder = make_site(parent, "north", patients("n"), settings)
    accept_dictionary(folder, DICTIONARY_TOML.replace('re = "threshold"', 're = "dp"'))
    add_steward(folder / "keys", "ada", b"correct horse")
    secret = parent / "right"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    return folder


def signed_by(folder: Path) -> list[str]:
    return ["--steward", "ada", "--passphrase-file", str(folder.parent / "right")]


def add_patient(folder: Path) -> None:
    path = load_settings(folder).data
    table = pd.read_csv(path)
    pd.concat([table, table.iloc[[0]].assign(mrn="another", consent="active")]).to_csv(
        path, index=False
    )


def data(text: str) -> Any:
    return json.loads(text)["data"]


def test_the_bytes_of_a_preview_are_those_of_the_statement(tmp_path: Path, run: Run) -> None:
    folder = made(tmp_path)
    shown = data(run("gaps", "preview", "--dir", folder, "--json"))
    run("gaps", "publish", "--dir", folder, *signed_by(folder))

    with open_site(folder) as site:
        (signed,) = queued(site)
    assert pb.Statement.FromString(signed.statement).payload.hex() == shown["bytes"]
    assert set(shown["reasons"]) == {"bp", "sex x bp"}
    assert shown["bytes"] in run("gaps", "preview", "--dir", folder).replace(" ", "")


def test_a_preview_says_what_it_costs_and_what_it_promises(tmp_path: Path, run: Run) -> None:
    text = run("gaps", "preview", "--dir", made(tmp_path))

    assert "publishing it costs epsilon 1" in text
    assert "epsilon at 1 for one patient more or fewer, 2 for one patient exchanged" in text


def test_the_budget_lists_each_release_and_the_cost_of_a_refresh(tmp_path: Path, run: Run) -> None:
    folder = made(tmp_path)
    assert "No report is published under this dictionary" in run("gaps", "budget", "--dir", folder)
    run("gaps", "publish", "--dir", folder, *signed_by(folder))
    assert "describes the present data" in run("gaps", "budget", "--dir", folder)
    add_patient(folder)

    text = run("gaps", "budget", "--dir", folder)
    told = data(run("gaps", "budget", "--dir", folder, "--json"))

    assert "epsilon 1 of 4 spent, 3 left" in text
    assert "stale: the data changed since; 'gaps publish' costs epsilon 1" in text
    assert told["report"] == {"state": "stale", "refresh_cost": 1.0, "refreshes_left": 3}
    assert [r["epsilon"] for r in told["releases"]] == [1.0]
    assert told["releases"][0]["published"].startswith("20")


def test_status_and_the_list_of_gaps_say_that_a_report_is_stale(tmp_path: Path, run: Run) -> None:
    folder = made(tmp_path)
    run("gaps", "publish", "--dir", folder, *signed_by(folder))
    add_patient(folder)

    assert "is stale" in data(run("status", "--dir", folder, "--json"))["report"]
    listed = run("gaps", "list", "--dir", folder)
    assert "is stale" in listed
    assert "once 3 sites have published" in listed


def test_a_frozen_ledger_publishes_nothing_and_says_why(tmp_path: Path, run: Run) -> None:
    folder = made(tmp_path)
    database = store.Store(load_settings(folder).database)
    with database.write() as connection:
        store.set_fact(connection, FROZEN, "the ledger lacks a release")
    database.close()

    err = run("gaps", "publish", "--dir", folder, *signed_by(folder), code=6)

    assert err == "error: the ledger lacks a release"
    assert "lacks a release" in data(run("status", "--dir", folder, "--json"))["report"]


def test_there_is_nothing_to_repair_where_nothing_is_missing(tmp_path: Path, run: Run) -> None:
    folder = made(tmp_path)

    assert "nothing to repair" in run("gaps", "repair", "--dir", folder, *signed_by(folder), code=1)


def test_a_dictionary_of_finer_grids_than_allowed_previews_nothing(
    tmp_path: Path, run: Run
) -> None:
    folder = made(tmp_path, "\n[disclosure]\nmax_voxels = 6\n")

    assert "this site allows 6" in run("gaps", "preview", "--dir", folder, code=6)
    assert "this site allows 6" in run("doctor", "--dir", folder, code=4)
