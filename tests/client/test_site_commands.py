"""The site's commands as a person types them: bad input, the exit code, one sentence, nothing half done."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding

from enrolled import exchange, token_for, write_token
from server_fixtures import DICTIONARY_TOML, Consortium
from sites import (
    accept_dictionary,
    make_site,
    patients,
    prepared,
    queued,
    sites,
    steward,
    transfer_at,
    with_hole,
)
from synthedge_client import connection as wire
from synthedge_client import enrolment, store
from synthedge_client.asking import request
from synthedge_client.cli import app
from synthedge_client.connection import LIMITS
from synthedge_client.console import run_app
from synthedge_client.settings import load_settings
from synthedge_client.site import Site, open_site
from synthedge_client.stewards import add_steward
from synthedge_client.transfers import list_transfers
from synthedge_protocols.certificates import create_ca
from synthedge_protocols.lifecycle import State
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_server.dictionaries import add as add_dictionary
from synthedge_server.operations import change as change_coordinator

Run = Callable[..., tuple[int, str, str]]
Say = Callable[..., tuple[int, str]]
T = TypeVar("T")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `synthedge site ...`; exit code, stdout and the one line on stderr."""

    def once(*arguments: object) -> tuple[int, str, str]:
        code = run_app(app, ["site", *map(str, arguments)], program="synthedge")
        out, err = capsys.readouterr()
        if code:
            assert err.startswith("error: "), err
            assert err.count("\n") == 1, err
            assert "bug" not in err
        return code, out, err

    return once


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command that answers on stdout whatever its exit code is."""

    def once(*arguments: object) -> tuple[int, str]:
        code = run_app(app, ["site", *map(str, arguments)], program="synthedge")
        return code, capsys.readouterr().out

    return once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site that is enrolled at a coordinator nobody started."""
    folder = make_site(tmp_path, "north", patients("n"))
    accept_dictionary(folder, DICTIONARY_TOML)
    add_steward(folder / "keys", "ada", b"correct horse")
    for name, text in (("right", "correct horse\n"), ("wrong", "wrong horse\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return folder


def signed_by(folder: Path, file: str = "right") -> list[str]:
    return ["--steward", "ada", "--passphrase-file", str(folder.parent / file)]


def is_enrolled(folder: Path) -> bool:
    database = store.Store(load_settings(folder).database)
    with database.read() as connection:
        consortium = store.get_fact(connection, "consortium")
    database.close()
    return consortium is not None or (folder / "keys" / "tls.pem").exists()


def change(folder: Path, **columns: Any) -> None:
    path = load_settings(folder).data
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


def test_a_missing_target_column_publishes_nothing(folder: Path, run: Run) -> None:
    path = load_settings(folder).data
    pd.read_csv(path).drop(columns="progressed").to_csv(path, index=False)

    code, _, err = run("gaps", "publish", "--dir", folder, *signed_by(folder))

    assert code == 4
    assert "column 'progressed': the table has no such column for the label" in err
    with open_site(folder) as site:
        assert queued(site) == []


def test_an_unknown_label_value_is_counted_and_not_shown(folder: Path, run: Run) -> None:
    change(folder, progressed=[7734, *pd.read_csv(load_settings(folder).data)["progressed"][1:]])

    code, _, err = run("gaps", "publish", "--dir", folder, *signed_by(folder))

    assert code == 4
    assert "several codes that are not the positive one" in err
    assert "7734" not in err


def test_a_wrong_passphrase_signs_nothing(folder: Path, run: Run) -> None:
    code, _, err = run("gaps", "publish", "--dir", folder, *signed_by(folder, "wrong"))

    assert (code, "the passphrase is wrong" in err) == (2, True)
    with open_site(folder) as site:
        assert queued(site) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gaps", "publish", "--steward", "bob"], 4, "no steward"),
        (["gaps", "publish", "--steward", "ada", "--passphrase-file", "{}/no"], 4, "no passphrase"),
        (["gaps", "publish"], 4, "Missing option '--steward'"),
        (["peers", "verify", "south", "0000"], 4, "'south' is not known here"),
        (["requests", "show", "abc"], 4, "0 transfers have an id"),
        (["fill", "--output", "{}/no/filled.csv"], 4, "there is no folder"),
        (["fill", "--output", "{}"], 4, "is no file; name one"),
        (["fill", "--output", "/proc/filled.csv"], 4, "cannot be written"),
        (["fill", "--output", "{}/north.csv"], 4, "is the site's own table"),
        (["enrol", "--token-file", "{}/no"], 4, "there is no token file"),
        (["steward", "add", "ada"], 4, "'ada' exists"),
        (["run", "--once"], 2, "was not reached"),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(
    folder: Path, run: Run, arguments: list[str], code: int, said: str
) -> None:
    filled = [argument.format(folder.parent) for argument in arguments]

    got, _, err = run(*filled, "--dir", folder)

    assert (got, said in err) == (code, True), err


def test_an_account_of_nobody_asks_for_the_spelling(folder: Path, run: Run) -> None:
    code, out, _ = run("audit", "disclosures", "--patient", "n0body", "--dir", folder)
    assert (code, "check its spelling): none" in out) == (0, True)


def test_a_request_for_what_is_not_there_is_told(folder: Path, run: Run) -> None:
    for gap, said in (
        ("shoe/1", "there is no voxel 'shoe/1'"),
        ("bp/99", "there is no voxel 'bp/99'"),
        ("bp/²", "there is no voxel 'bp/²'"),
        ("bp/1", "every site that was proposed"),
    ):
        code, _, err = run(
            "requests", "new", gap, "--rows", 5, "--purpose", "DUO:0000007", "--dir", folder,
            "--accept-if-gate-passes",
            *signed_by(folder),
        )  # fmt: skip
        assert (code, said in err) == (1 if gap == "bp/1" else 4, True), err


def test_a_coordinator_that_is_not_there_keeps_what_was_queued(folder: Path, run: Run) -> None:
    assert run("gaps", "publish", "--dir", folder, *signed_by(folder))[0] == 0
    code, out, err = run("run", "--once", "--dir", folder, "--json")

    assert code == 2
    assert "the coordinator at 127.0.0.1:1 was not reached" in err
    assert json.loads(out) == {
        "schema_version": 1,
        "status": "error",
        "data": {"code": 2, "message": err.removeprefix("error: ").rstrip("\n")},
    }
    _, out, _ = run("status", "--dir", folder, "--json")
    assert json.loads(out)["data"]["outbox_waiting"] == 1


def test_a_folder_without_a_site_and_a_site_that_is_not_enrolled_say_what_to_do(
    tmp_path: Path, run: Run
) -> None:
    code, _, err = run("status", "--dir", tmp_path)
    assert (code, "run 'synthedge site init'" in err) == (4, True)
    bare = make_site(tmp_path, "north", patients("n"))
    for command in (["status"], ["gaps", "budget"], ["doctor"], ["run", "--once"]):
        code, _, err = run(*command, "--dir", bare)
        assert (code, "run 'synthedge site enrol" in err) == (1, True)


def test_a_lost_certificate_is_told(folder: Path, run: Run) -> None:
    (folder / "keys" / "tls.pem").unlink()
    for command in (["status"], ["run", "--once"], ["audit", "report"]):
        code, _, err = run(*command, "--dir", folder)
        assert (code, "tls.pem' does not exist" in err) == (2, True)


def test_the_doctor_lists_everything_at_once_and_fails(folder: Path, say: Say) -> None:
    change(folder, bp=np.full(128, 7.0), sex=9)
    with (folder / "site.toml").open("a") as file:
        file.write("[disclosure]\nmin_count = 2\n")

    code, out = say("doctor", "--dir", folder, "--json")

    findings = json.loads(out)["data"]["findings"]
    assert code == 4
    assert {f["about"] for f in findings if f["stops"]} == {
        "feature 'bp'",
        "column 'sex'",
        "[disclosure]",
        "coordinator",
    }
    assert {f["about"] for f in findings if not f["stops"]} == {"feature 'note'"}


def test_a_site_may_not_ask_for_less_protection(folder: Path, run: Run) -> None:
    with (folder / "site.toml").open("a") as file:
        file.write("[disclosure]\nmin_count = 2\n")

    code, _, err = run("gaps", "publish", "--dir", folder, *signed_by(folder))

    assert (code, "a site may only raise it" in err) == (6, True)


def test_a_stored_manifest_that_was_tampered_with_is_not_signed(tmp_path: Path, run: Run) -> None:
    tables = {"north": patients("n", with_hole()), "south": patients("s")}
    with sites(tmp_path, DICTIONARY_TOML, **tables) as (north, south):
        transfer = prepared(north, south)
        with south.store.write() as connection:
            blob = connection.execute(sa.select(store.transfers.c.payload)).scalar_one()
            changed = blob[:-1] + bytes([blob[-1] ^ 1])
            connection.execute(store.transfers.update().values(payload=changed))
        add_steward(south.settings.keys, "ada", b"correct horse")
        (tmp_path / "right").write_text("correct horse")
        (tmp_path / "right").chmod(0o600)

        code, _, err = run(
            "requests", "approve", transfer.short_id, "--dir", south.settings.folder,
            *signed_by(south.settings.folder),
        )  # fmt: skip

        assert (code, "a stored record does not open" in err) == (7, True)
        assert transfer_at(south, transfer.id).state is State.PREPARED
        assert queued(south) == []


BAD_TOKENS: dict[str, tuple[Callable[[EnrolmentToken], str], str]] = {
    "mistyped": (lambda t: t.encode()[:-3] + "abc", "incomplete or mistyped"),
    "no token": (lambda t: "please enrol me", "this is no enrolment token"),
    "binary": (lambda t: "\udcff\udcfe", "this is no enrolment token"),
    "cut": (lambda t: t.encode()[:100], "incomplete or mistyped"),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_a_token_that_is_none_leaves_the_site_as_it_was(
    tmp_path: Path, run: Run, kind: str
) -> None:
    spoil, said = BAD_TOKENS[kind]
    site = make_site(tmp_path, "north", patients("n"))
    token = EnrolmentToken(
        consortium="test-consortium",
        site="north",
        address="127.0.0.1:1",
        enrolment_address="127.0.0.1:1",
        ca_certificate=b"x" * 300,
        secret=bytes(32),
        expires_at_ms=1,
    )
    file = tmp_path / "token"
    file.write_bytes(spoil(token).encode(errors="surrogateescape"))

    code, _, err = run("enrol", "--token-file", file, "--dir", site)

    assert (code, said in err) == (2, True), err
    assert not is_enrolled(site)


async def in_thread(command: Callable[..., T], *arguments: object) -> T:
    return await asyncio.to_thread(command, *arguments)


async def test_wrong_tokens_are_refused_and_the_right_one_still_enrols(
    consortium: Consortium, tmp_path: Path, run: Run
) -> None:
    site = make_site(tmp_path, "west", patients("w"))
    good = token_for(consortium, "west")
    for token, said in (
        (token_for(consortium, "east"), "invites site 'east', this folder is site 'west'"),
        (replace(good, secret=bytes(32)), "does not know this enrolment token"),
        (token_for(consortium, "west", valid_ms=-1), "has expired"),
        (replace(good, enrolment_address="127.0.0.1:1"), "was not reached"),
    ):
        code, _, err = await in_thread(
            run, "enrol", "--token-file", write_token(site, token), "--dir", site
        )
        assert (code, said in err) == (2, True), err
        assert not is_enrolled(site)

    # Inviting it again took the earlier invitation back.
    file = write_token(site, token_for(consortium, "west"))
    assert (await in_thread(run, "enrol", "--token-file", file, "--dir", site))[0] == 0
    assert is_enrolled(site)
    code, _, err = await in_thread(run, "enrol", "--token-file", file, "--dir", site)
    assert (code, "is enrolled in 'test-consortium' already" in err) == (1, True)


async def test_an_enrolment_whose_answer_got_lost_can_be_repeated(
    consortium: Consortium,
    tmp_path: Path,
    run: Run,
    say: Say,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = make_site(tmp_path, "west", patients("w"))
    file = write_token(site, token_for(consortium, "west"))

    def lost(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(enrolment, "check_certificate", lost)
        code, _ = await in_thread(say, "enrol", "--token-file", file, "--dir", site)
    assert code == 130
    assert not is_enrolled(site)

    assert (await in_thread(run, "enrol", "--token-file", file, "--dir", site))[0] == 0
    assert is_enrolled(site)


async def test_the_token_of_another_consortium_is_refused_by_tls(
    consortium: Consortium, tmp_path: Path, run: Run
) -> None:
    _, other = create_ca("other", now=datetime.now(tz=UTC))
    token = replace(token_for(consortium, "west"), ca_certificate=other.public_bytes(Encoding.DER))
    site = make_site(tmp_path, "west", patients("w"))

    code, _, err = await in_thread(
        run, "enrol", "--token-file", write_token(site, token), "--dir", site
    )

    assert (code, "or TLS failed" in err) == (2, True), err
    assert not is_enrolled(site)


async def test_a_certificate_of_another_consortium_is_refused(
    pair: list[Site], tmp_path: Path, run: Run
) -> None:
    stranger = make_site(tmp_path, "stranger", patients("x"))
    accept_dictionary(stranger, DICTIONARY_TOML)
    own = pair[0].keys
    (stranger / "keys" / "ca.pem").write_bytes(own.ca_file.read_bytes())
    with open_site(stranger) as site, site.store.write() as connection:
        store.set_fact(connection, "address", pair[0]._facts["address"])

    code, _, err = await in_thread(run, "run", "--once", "--dir", stranger)

    assert (code, "or TLS failed" in err) == (2, True), err


async def test_a_dictionary_that_has_not_arrived_is_told_by_the_doctor_and_requests_are_refused(
    pair: list[Site], consortium: Consortium, run: Run, say: Say
) -> None:
    north, _ = pair
    changed = DICTIONARY_TOML.replace("rows_per_transfer = 20", "rows_per_transfer = 19")
    change_coordinator(consortium.folder, lambda t: add_dictionary(t, changed))
    folder = north.settings.folder
    grid = north.grid("sex x bp")
    request(north, steward(), donor="south", grid=grid, voxel=1, rows=5, purpose="DUO:0000007")

    code, out = await in_thread(say, "doctor", "--dir", folder, "--json")
    assert code == 4
    (found,) = [f for f in json.loads(out)["data"]["findings"] if f["stops"]]
    assert found["about"] == "dictionary"
    assert "version 2, which has not arrived here" in found["found"]
    await exchange(north)
    _, out, _ = await in_thread(run, "status", "--dir", folder, "--json")
    (refused,) = json.loads(out)["data"]["outbox_refused"]
    assert "transfer-request: " in refused
    assert "was made under dictionary" in refused


async def test_a_coordinator_that_does_not_answer_ends_with_exit_code_3(
    pair: list[Site], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LIMITS", replace(LIMITS, call_timeout_s=1e-6))

    code, _, err = await in_thread(run, "run", "--once", "--dir", pair[0].settings.folder)

    assert (code, "did not answer in time" in err) == (3, True), err


async def test_a_steward_reads_what_was_refused_or_waits_in_the_list(
    pair: list[Site], run: Run
) -> None:
    north, south = pair
    identifier = request(
        north, steward(), donor="south", grid=north.grid("bp"), voxel=3, rows=5,
        purpose="DUO:0000007",
    )  # fmt: skip
    await exchange(north, south)

    _, out, _ = await in_thread(run, "requests", "list", "--dir", south.settings.folder)
    assert "our steward: requests prepare" in out
    _, out, _ = await in_thread(
        run, "requests", "show", identifier.hex()[:12], "--dir", south.settings.folder, "--json"
    )
    shown = json.loads(out)["data"]
    assert (shown["eligible_patients"], shown["keys_compared"]) == (16, "yes")
    _, out, _ = await in_thread(
        run, "requests", "prepare", identifier.hex()[:12], "--dir", south.settings.folder, "--json"
    )
    rows = json.loads(out)["data"]["rows"]
    assert len(rows) == 5
    _, out, _ = await in_thread(
        run, "requests", "prepare", identifier.hex()[:12], "--dir", south.settings.folder
    )
    # The dictionary's codes 1 and 2, not the numbers 0 and 1 that travel.
    assert {line.split()[1] for line in out.splitlines()[2:7]} == {"1", "2"}
    assert all(row[0] >= 100 for row in rows)
    with south.store.read() as connection:
        assert [t.state for t in list_transfers(connection)] == [State.PREPARED]
