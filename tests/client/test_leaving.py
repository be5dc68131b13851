"""People at several hospitals, sites that leave, keys that are lost: over a real coordinator, as commands."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from enrolled import coordinating, enrolled, exchange, token_for, write_token
from server_fixtures import Consortium, new_folder
from sites import MALE_HIGH, events, patients, steward, transfer_at, with_hole
from synthedge_client import store
from synthedge_client.asking import request
from synthedge_client.cli import app
from synthedge_client.console import run_app
from synthedge_client.donating import approve, prepare
from synthedge_client.enrolment import enrol_site
from synthedge_client.leaving import change_standing
from synthedge_client.received import load_with_tokens
from synthedge_client.recovery import forget_peer
from synthedge_client.releases import publish
from synthedge_client.site import Site, create_site, open_site
from synthedge_client.status import summarise
from synthedge_client.stewards import add_steward
from synthedge_client.withdrawal_status import describe_withdrawals
from synthedge_client.withdrawals import withdraw_patient
from synthedge_core.errors import RefusedError
from synthedge_server.operations import set_site_state

Pair = list[Site]
Command = Callable[..., Any]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `synthedge site ... --json` that must succeed; its data."""

    def once(*arguments: object) -> Any:
        code = run_app(app, ["site", *map(str, arguments), "--json"], program="synthedge")
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)["data"]

    return once


def ask(north: Site, donor: str, rows: int = 5) -> bytes:
    return request(
        north,
        steward(),
        donor=donor,
        grid=north.grid("sex x bp"),
        voxel=MALE_HIGH,
        rows=rows,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )


async def delivered(north: Site, donor: Site, rows: int = 5) -> bytes:
    identifier = ask(north, donor.settings.id, rows)
    await exchange(north, donor)
    prepare(donor, transfer_at(donor, identifier), "ada")
    approve(donor, transfer_at(donor, identifier), steward())
    await exchange(donor, north, donor)
    assert transfer_at(north, identifier).state == "ACTIVE"
    return identifier


def patient_of(donor: Site, token: bytes) -> str:
    with donor.store.read() as connection:
        blob = connection.execute(
            sa.select(store.disclosed.c.patient).where(store.disclosed.c.token == token)
        ).scalar_one()
    return donor.keys.decrypt(blob, b"patient" + token).decode()


async def test_a_persons_row_of_another_donor_stays_and_this_is_said(
    tmp_path: Path, command: Command
) -> None:
    south = patients("s")
    # The same people, known to both hospitals under the same ids, measured twice.
    west = south.assign(bp=south["bp"].where(south["bp"] < 101, south["bp"] + 30))
    tables = {"north": patients("n", with_hole()), "south": south, "west": west}
    async with (
        coordinating(new_folder(tmp_path / "coordinator")) as consortium,
        enrolled(consortium, tmp_path, **tables) as opened,
    ):
        north, souths, wests = opened
        for donor in (souths, wests):
            await delivered(north, donor, rows=8)
        rows, tokens = load_with_tokens(north)
        of_south = tokens[list(rows["_donor"]).index("south")]
        patient = patient_of(souths, of_south)

        told = command("consent", "withdraw", "--patient", patient, "--dir", souths.settings.folder)
        await exchange(souths, north, souths)

        assert (told["rows"], told["recipients"]) == (1, ["north"])
        assert "other hospitals gave of the same person stay" in told["note"]
        rows, tokens = load_with_tokens(north)
        assert of_south not in tokens
        assert rows["_donor"].value_counts().to_dict() == {"west": 8, "south": 7}
        kept = [
            patient_of(wests, t) for t, d in zip(tokens, rows["_donor"], strict=True) if d == "west"
        ]
        assert patient in kept


async def test_withdrawals_purges_and_exports_as_commands(
    pair: Pair, tmp_path: Path, command: Command
) -> None:
    north, south = pair
    identifier = (await delivered(north, south)).hex()
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("correct horse battery")
    for site in pair:
        add_steward(site.settings.keys, "ada", b"correct horse battery")
    signed = ("--steward", "ada", "--passphrase-file", secret)
    at_north, at_south = ("--dir", north.settings.folder), ("--dir", south.settings.folder)

    exported = command("received", "export", "--output", tmp_path / "rows.csv", *at_north)
    assert exported["received"] == 5
    assert (tmp_path / "rows.csv").stat().st_mode & 0o777 == 0o600
    taken = command("withdraw", identifier[:12], "--reason", "error in coding", *signed, *at_south)
    assert (taken["rows"], taken["recipients"]) == (5, ["north"])
    await exchange(south, north, south)
    (entry,) = command("withdrawals", *at_south)
    assert (entry["state"], entry["report"]["copies"][0]["name"]) == ("PURGED", "rows.csv")
    assert command("withdrawals", *at_north)[0]["reason"] == "error in coding"
    assert command("received", *at_north)[0]["state"] == "PURGED"

    nothing = ["received", "export", "--output", str(tmp_path / "none.csv"), *map(str, at_north)]
    assert run_app(app, ["site", *nothing], program="synthedge") == 1
    assert not (tmp_path / "none.csv").exists()


async def test_a_site_that_leaves_is_told_what_it_owes_and_its_peers_hear_why(pair: Pair) -> None:
    north, south = pair
    await delivered(north, south, rows=5)
    pending = ask(north, "south")
    await exchange(north, south)

    paused = change_standing(south, "suspend", steward(), "audit of our consents")
    assert paused == {"standing": "paused", "holds_rows_of": {}, "rows_held_by": {"north": 1}}
    await exchange(south, north)
    assert summarise(north)["peers_standing"] == {"south": "paused: audit of our consents"}
    assert north.list_peers()[0]["problem"] == "paused: audit of our consents"
    with pytest.raises(RefusedError, match=r"this site is paused.*'synthedge site resume'"):
        ask(south, "north")
    with pytest.raises(RefusedError, match=r"this site is paused.*'synthedge site resume'"):
        publish(south, steward())
    with pytest.raises(RefusedError, match="this site is paused already"):
        change_standing(south, "suspend", steward(), "again")
    change_standing(south, "resume", steward(), "audit over")
    await exchange(south, north)
    assert summarise(north)["peers_standing"] == {}

    change_standing(south, "leave", steward(), "funding ended")
    await exchange(south, north, south)
    assert transfer_at(north, pending).state == transfer_at(south, pending).state == "REVOKED"
    assert "funding ended" in (transfer_at(north, pending).reason or "")
    assert len(load_with_tokens(north)[1]) == 5
    with pytest.raises(RefusedError, match="its operator can let it enrol anew"):
        change_standing(south, "resume", steward(), "changed our mind")
    # What it gave can still be withdrawn.
    token = load_with_tokens(north)[1][0]
    withdraw_patient(south, patient_of(south, token))
    await exchange(south, north, south)
    assert token not in load_with_tokens(north)[1]


async def test_a_site_that_lost_its_keys_begins_anew_and_is_compared_anew(
    pair: Pair, consortium: Consortium, tmp_path: Path
) -> None:
    north, south = pair
    identifier = await delivered(north, south)
    with pytest.raises(RefusedError, match=r"are not ended .*resets its keys"):
        forget_peer(north, "south", steward(), "it says so")

    set_site_state(consortium.folder, "south", "reset", "its disk was lost")
    await exchange(north)
    assert transfer_at(north, identifier).state == "REVOKED"
    assert load_with_tokens(north)[1] == []

    folder = tmp_path / "south-again"
    create_site(folder, id="south", data=south.settings.data, patient_id="mrn", consent="consent")
    token = write_token(folder, token_for(consortium, "south"))
    await asyncio.to_thread(enrol_site, folder, token)
    with open_site(folder) as again:
        await exchange(again, north)
        assert "another statement key for site 'south'" in north.list_peers()[0]["problem"]
        forget_peer(north, "south", steward(), "telephoned: new machine")
        await exchange(north)
        (peer,) = north.list_peers()
        assert (peer["fingerprint"], peer["verified"]) == (again.fingerprint, False)
        north.verify_peer("south", again.fingerprint)
    assert "telephoned" in events(north, "peer forgotten")[0]


async def test_a_withdrawal_finds_a_recipient_that_began_anew_without_its_rows(
    pair: Pair, consortium: Consortium, tmp_path: Path
) -> None:
    north, south = pair
    await delivered(north, south)
    patient = patient_of(south, load_with_tokens(north)[1][0])
    set_site_state(consortium.folder, "north", "reset", "its disk was lost")
    await exchange(south)
    forget_peer(south, "north", steward(), "telephoned: new machine")
    # Nothing can be sealed to a peer whose key nobody compared; that is said, and tried again.
    done = withdraw_patient(south, patient)
    assert (done.notices, len(done.not_told)) == ((), 1)

    folder = tmp_path / "north-again"
    create_site(folder, id="north", data=north.settings.data, patient_id="mrn", consent="consent")
    token = write_token(folder, token_for(consortium, "north"))
    await asyncio.to_thread(enrol_site, folder, token)
    with open_site(folder) as again:
        await exchange(again, south)
        south.verify_peer("north", again.fingerprint)
        again.verify_peer("south", south.fingerprint)
        assert withdraw_patient(south, patient).recipients == ("north",)
        await exchange(south, again, south)
        assert [entry["state"] for entry in describe_withdrawals(again)] == ["PURGED"]
    (entry,) = describe_withdrawals(south)
    assert (entry["state"], entry["report"]["unreadable"]) == ("PURGED", True)


def test_a_patient_withdraws_without_naming_the_site(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    south = pair[1]
    at = ["--dir", str(south.settings.folder)]
    assert (
        run_app(app, ["consent", "withdraw", "--patient", "s-1130", *at], program="synthedge") == 0
    )
    out, _ = capsys.readouterr()
    assert "told as soon as the agent runs: nobody: nothing was delivered" in out
    assert (
        run_app(app, ["consent", "withdraw", "--patient", "s-9999", *at], program="synthedge") == 4
    )
    assert "s-9999" not in capsys.readouterr().err
