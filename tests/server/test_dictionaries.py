"""Versions of the dictionary: set, told, accepted, and what becomes of reports and transfers of earlier ones."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from server_fixtures import (
    DICTIONARY,
    DICTIONARY_TOML,
    DIGEST,
    TIMEOUT_S,
    Consortium,
    Hospital,
    acceptance,
    counts_of_site,
    gap_report,
    kinds,
    new_folder,
    request_of,
    ship,
)
from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_core.errors import DictionaryError, RefusedError
from synthedge_protocols.errors import PolicyError
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import dictionaries, store
from synthedge_server.cli import app
from synthedge_server.console import run as run_app
from synthedge_server.operations import change, reading
from synthedge_server.status import read_status

SECOND_TOML = DICTIONARY_TOML.replace(
    "rows_per_transfer = 20", "rows_per_transfer = 10\nsealed_h = 1\ndelivered_h = 1"
)
SECOND = parse_dictionary(SECOND_TOML)
THIRD_TOML = DICTIONARY_TOML.replace("made up for tests", "another outcome, made up for tests")


def set_dictionary(coordinator: Consortium, toml: str) -> Dictionary:
    """What the operator's command does beside the running coordinator."""
    change(coordinator.folder, lambda t: dictionaries.add(t, toml))
    return parse_dictionary(toml)


async def accept(hospital: Hospital, dictionary: Dictionary, version: int = 2) -> None:
    digest = bytes.fromhex(dictionary.digest)
    statement = acceptance(dictionary, version)
    await hospital.submit(hospital.sign_as_steward(statement, dictionary_digest=digest))


async def report(hospital: Hospital, i_site: int, dictionary: Dictionary) -> None:
    body = gap_report(*counts_of_site(i_site), dictionary)
    digest = bytes.fromhex(dictionary.digest)
    await hospital.submit(hospital.sign_as_steward(body, dictionary_digest=digest))


async def test_a_report_of_a_site_that_has_not_accepted_the_dictionary_is_refused(
    coordinator: Consortium,
) -> None:
    north = await coordinator.enrol("north", accepts=False)

    with pytest.raises(PolicyError, match="'north' has not accepted version 1 of the dictionary"):
        await report(north, 0, DICTIONARY)
    await accept(north, DICTIONARY, 1)
    await report(north, 0, DICTIONARY)


async def test_a_new_dictionary_reaches_every_site_and_one_that_enrols_later(
    coordinator: Consortium,
) -> None:
    north = await coordinator.enrol("north")
    stream = north.stub.Inbox(wire.InboxRequest(follow=True), timeout=TIMEOUT_S)
    first = asyncio.create_task(stream.read())

    set_dictionary(coordinator, SECOND_TOML)

    told = (await first).dictionary
    stream.cancel()
    assert (told.version, told.digest.hex(), told.toml) == (2, SECOND.digest, SECOND_TOML)
    south = await coordinator.ask_to_enrol(
        Hospital("south").enrol_request(coordinator.invite("south"))
    )
    assert (south.dictionary.version, south.dictionary.digest.hex()) == (2, SECOND.digest)
    named = await north.stub.GetDictionary(wire.DictionaryRequest(digest=DIGEST))
    assert (named.version, named.toml) == (1, DICTIONARY_TOML)


async def test_reports_of_an_earlier_dictionary_are_neither_used_nor_taken(
    coordinator: Consortium,
) -> None:
    north, south, west = await coordinator.reporting("north", "south", "west")
    last = (await north.inbox())[-1].sequence

    set_dictionary(coordinator, SECOND_TOML)

    with reading(coordinator.folder) as engine, engine.connect() as connection:
        current = select(store.reports.c.site).where(store.reports.c.is_current)
        assert connection.execute(current).all() == []
        assert connection.execute(select(store.proposals.c.site)).all() == []
    with pytest.raises(PolicyError, match="dictionary"):
        await report(north, 1, DICTIONARY)
    with pytest.raises(PolicyError, match="dictionary"):
        await north.submit(north.sign_as_steward(request_of(north, "south")))
    for i, hospital in enumerate((north, south)):
        await accept(hospital, SECOND)
        await report(hospital, i, SECOND)
    await coordinator.everybody_is_told()
    # A third report is there, but of the first dictionary.
    assert kinds(await north.inbox(last)) == ["dictionary"]
    with pytest.raises(PolicyError, match="'west' has not accepted version 2"):
        await report(west, 2, SECOND)

    await accept(west, SECOND)
    await report(west, 2, SECOND)
    await coordinator.everybody_is_told()

    messages = await north.inbox(last)
    assert kinds(messages) == ["dictionary", "profile", "proposals"]
    assert messages[1].profile.dictionary_digest.hex() == SECOND.digest


async def test_a_transfer_under_way_finishes_under_the_dictionary_it_was_requested_with(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, b"rows" * 100)

    set_dictionary(coordinator, SECOND_TOML)
    for hospital in (north, south):
        await accept(hospital, SECOND)
    await south.upload(shipped.identifier, shipped.ciphertext)
    with reading(coordinator.folder) as engine, engine.connect() as connection:
        (row,) = connection.execute(select(store.transfers)).all()
        hours = DICTIONARY.policy.sealed_h
        assert (row.state, row.expires_at_ms - row.since_ms) == ("RELAYED", hours * 3_600_000)
    assert await north.download(shipped.identifier) == shipped.ciphertext
    assert (await north.release_key(shipped.identifier)) == shipped.shipment
    receipt = pb.Receipt(
        transfer_id=shipped.identifier,
        ciphertext_digest=shipped.sealed.ciphertext_digest,
        rows=5,
        accepted=True,
    )
    with pytest.raises(PolicyError, match="finishes under it; this statement names another"):
        await north.submit(north.sign(receipt, dictionary_digest=bytes.fromhex(SECOND.digest)))
    await north.submit(north.sign(receipt))

    with reading(coordinator.folder) as engine, engine.connect() as connection:
        (row,) = connection.execute(select(store.transfers)).all()
        assert (row.state, row.dictionary_digest) == ("ACTIVE", DIGEST)


async def test_only_the_outcome_definition_of_the_version_can_be_acknowledged(
    coordinator: Consortium,
) -> None:
    north = await coordinator.enrol("north")
    third = set_dictionary(coordinator, THIRD_TOML)

    of_the_first = north.sign_as_steward(
        acceptance(DICTIONARY, 2), dictionary_digest=bytes.fromhex(third.digest)
    )
    with pytest.raises(PolicyError, match="another outcome definition than that of version 2"):
        await north.submit(of_the_first)
    with pytest.raises(PolicyError, match="as version 3; this coordinator has set none such"):
        await accept(north, third, version=3)
    await accept(north, third)
    await accept(north, third)  # in another statement: once more is no harm


def test_a_dictionary_is_set_once_and_an_invalid_one_never(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "coordinator")

    second = change(folder, lambda t: dictionaries.add(t, SECOND_TOML))
    third = change(folder, lambda t: dictionaries.add(t, THIRD_TOML))
    with pytest.raises(RefusedError, match="this is version 1 of the dictionary, set before"):
        change(folder, lambda t: dictionaries.add(t, "# once more\n" + DICTIONARY_TOML))
    with pytest.raises(DictionaryError, match="not valid"):
        change(folder, lambda t: dictionaries.add(t, "name = 1"))
    with pytest.raises(DictionaryError, match="at most 262144"):
        change(folder, lambda t: dictionaries.add(t, SECOND_TOML + "#" * 300_000))

    with reading(folder) as engine, engine.connect() as connection:
        assert [v.version for v in dictionaries.history(connection)] == [1, 2, 3]
        assert dictionaries.newest(connection) == third != second


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Type a `synthedge-coordinator dictionary` command; exit code, stdout, stderr."""

    def once(*arguments: object) -> tuple[int, str, str]:
        line = ["synthedge-coordinator", "dictionary", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        code = run_app(app, "synthedge-coordinator")
        out, err = capsys.readouterr()
        return code, out, err

    return once


def data_of(out: str) -> Any:
    return json.loads(out)["data"]


def test_check_lists_every_problem_at_once(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "consortium.toml"
    file.write_text(DICTIONARY_TOML.replace("epsilon = 1.0\n", "").replace("mm[Hg]", "mmHg"))

    code, _, err = run("check", file)

    assert code == 4
    assert "policy: epsilon is missing" in err
    assert "feature 'bp': unit must be UCUM text: mm[Hg], not mmHg" in err
    file.write_text(DICTIONARY_TOML)
    code, out, _ = run("check", file)
    assert (code, f"digest {DICTIONARY.digest}" in out) == (0, True)
    assert "hint: feature 'note' has no privacy class" in out


def test_a_public_dictionary_can_be_written_checked_and_set(run: Run, tmp_path: Path) -> None:
    folder, file = new_folder(tmp_path / "coordinator").path, tmp_path / "heart.toml"

    assert run("init", "--from-public", "heart", "--output", file)[0] == 0
    assert run("check", file)[0] == 0
    code, out, _ = run("set", file, "--dir", folder, "--json")

    assert (code, data_of(out)["version"]) == (0, 2)
    assert "dictionary: name test -> uci-heart-disease" in data_of(out)["differences"]
    assert run("set", file, "--dir", folder)[0] == 1
    assert run("init", "--from-public", "heart", "--output", file)[0] == 4


def test_a_draft_from_a_table_warns_and_keeps_results_apart_from_warnings(
    run: Run, tmp_path: Path
) -> None:
    table = tmp_path / "public.csv"
    rows = [f'{40 + i % 30};{120 + i % 40},5;"{i % 2}\n"' for i in range(60)]
    table.write_text("age;sbp;ill\n" + "\n".join(rows))

    code, out, err = run("init", "--from", table, "--target", "ill")

    assert code == 0
    assert "never from one member's patients" in err
    assert 'unit = "mm[Hg]"' in out
    assert out.startswith("# A draft.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a table with --from"),
        (["--from-public", "moon"], "there are cardiovascular, diabetes, heart"),
        (["--from-public", "heart", "--target", "ill"], "--target belongs to --from"),
        (["--from", "{}/none.csv"], "cannot be read"),
        (["--from", "{}/ragged.csv"], "1 lines of"),
        (["--from", "{}/empty.csv"], "no rows below its first line"),
        (["--from", "{}/twice.csv"], "must name every column, each differently"),
        (["--from", "{}/long.csv"], "is no CSV file: field larger than field limit"),
    ],
)
def test_what_cannot_be_drafted_is_told(
    run: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "empty.csv").write_text("a,b\n")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    (tmp_path / "long.csv").write_text("a,b\n" + "x" * 200_000)

    code, _, err = run("init", *(argument.format(tmp_path) for argument in arguments))

    assert (code, said in err) == (4, True), err


async def test_show_tells_who_has_accepted_which_version(coordinator: Consortium, run: Run) -> None:
    north, _ = await coordinator.enrol("north"), await coordinator.enrol("south", accepts=False)
    set_dictionary(coordinator, SECOND_TOML)
    folder = coordinator.folder.path
    await accept(north, SECOND)

    _, out, _ = await asyncio.to_thread(run, "show", "--dir", folder, "--json")
    accepted = {row["site"]: row["steward"] for row in data_of(out)["accepted"]}
    assert (data_of(out)["version"], accepted) == (2, {"north": "ada", "south": None})
    _, out, _ = await asyncio.to_thread(run, "show", "--version", 1, "--dir", folder)
    assert out.startswith(DICTIONARY_TOML.rstrip())
    assert "# site 'south' has not accepted it" in out
    _, out, _ = await asyncio.to_thread(run, "show", "--history", "--dir", folder, "--json")
    assert [row["accepted_by"] for row in data_of(out)] == [["north"], ["north"]]
    status = read_status(coordinator.folder)
    assert (status["dictionary_version"], status["dictionary_not_accepted_by"]) == (2, ["south"])
    assert (await asyncio.to_thread(run, "show", "--version", 9, "--dir", folder))[0] == 4
