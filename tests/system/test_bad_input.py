"""What a person can get wrong: one sentence on stderr, the right exit code, and everything as it was before."""

import dataclasses
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthedge_deploy.consortium import free_port
from synthedge_protocols.tokens import EnrolmentToken
from system_consortium import (
    Finished,
    answer,
    contents,
    copy_of,
    serving,
    synthedge,
)

OPERATOR = "synthedge-coordinator"


def refused(code: int, expected: str, *command: str | Path, unchanged: Path) -> str:
    """Type a command that must be refused; its sentence."""
    before = contents(unchanged)
    done = synthedge(*command, "--json")
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    sentence = lines[0].removeprefix("error: ")
    assert re.search(expected, sentence), sentence
    envelope = json.loads(done.stdout)
    assert envelope == {
        "schema_version": 1,
        "status": "error",
        "data": {"code": code, "message": sentence},
    }
    assert contents(unchanged) == before
    return sentence


@pytest.fixture(scope="module")
def consortium(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the finished consortium whose coordinator runs."""
    folder = copy_of(finished, tmp_path_factory.mktemp("bad") / "copy")
    with serving(folder / "coordinator", folder):
        yield folder


@pytest.fixture
def guest(consortium: Path, tmp_path: Path) -> Path:
    """A site that has not enrolled; its table is as the dictionary has it."""
    return make_guest(consortium, tmp_path / "guest")


def make_guest(consortium: Path, folder: Path, name: str = "guest") -> Path:
    folder.mkdir()
    table = shutil.copy(consortium / "west" / "patients.csv", folder)
    answer(
        "site", "init", folder, "--id", name, "--data", table,
        "--patient-id", "patient_id", "--consent", "consent",
    )  # fmt: skip
    return folder


def invite(consortium: Path, site: str = "guest", hours: str = "1") -> EnrolmentToken:
    made = answer(
        "invite", site, "--dir", consortium / "coordinator", "--valid-hours", hours,
        program=OPERATOR,
    )  # fmt: skip
    return EnrolmentToken.decode(made["token"])


def enrolling(site: Path, token: EnrolmentToken | str) -> tuple[str | Path, ...]:
    file = site / "token"
    file.write_text(token if isinstance(token, str) else token.encode())
    return ("site", "enrol", "--token-file", file, "--dir", site)


def test_a_token_with_a_wrong_secret_is_refused_and_the_right_one_still_enrols(
    consortium: Path, tmp_path: Path
) -> None:
    token = invite(consortium, "twice")
    twice = make_guest(consortium, tmp_path / "twice", "twice")
    wrong = dataclasses.replace(token, secret=secrets.token_bytes(32))
    refused(2, "token", *enrolling(twice, wrong), unchanged=twice)
    assert answer(*enrolling(twice, token))["site"] == "twice"


def test_a_mistyped_token_is_refused(consortium: Path, guest: Path) -> None:
    refused(
        2, "token is incomplete or mistyped",
        *enrolling(guest, invite(consortium).encode()[:-3]), unchanged=guest,
    )  # fmt: skip


def test_a_token_is_good_once(consortium: Path, tmp_path: Path) -> None:
    token = invite(consortium, "once")
    answer(*enrolling(make_guest(consortium, tmp_path / "once", "once"), token))
    again = make_guest(consortium, tmp_path / "again", "once")
    refused(2, "token", *enrolling(again, token), unchanged=again)


def test_an_expired_token_is_refused(consortium: Path, guest: Path) -> None:
    token = invite(consortium, hours="0.00001")
    refused(2, "token", *enrolling(guest, token), unchanged=guest)


def test_a_token_of_another_site_is_refused(consortium: Path, guest: Path) -> None:
    refused(
        2, "the token invites site 'other', this folder is site 'guest'",
        *enrolling(guest, invite(consortium, "other")), unchanged=guest,
    )  # fmt: skip


def test_a_coordinator_that_is_not_there_is_named_at_enrolment(
    consortium: Path, guest: Path
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    token = dataclasses.replace(invite(consortium), enrolment_address=nowhere)
    refused(2, f"coordinator at {nowhere}", *enrolling(guest, token), unchanged=guest)


@pytest.mark.parametrize(
    "command",
    [
        ("analyze", "TABLE", "--target", "recovered"),
        ("fill", "TABLE", "--target", "recovered", "--output", "FOLDER/filled.csv"),
    ],
)
def test_a_table_without_the_target_column_is_refused(
    finished: Finished, tmp_path: Path, command: tuple[str, ...]
) -> None:
    table = str(shutil.copy(finished.folder / "west" / "patients.csv", tmp_path))
    words = [word.replace("TABLE", table).replace("FOLDER", str(tmp_path)) for word in command]
    refused(4, "recovered", *words, unchanged=tmp_path)


@pytest.fixture
def west(finished: Finished, tmp_path: Path) -> Path:
    """An enrolled site with a table of its own, to be spoilt; no coordinator is needed."""
    folder = tmp_path / "west"
    shutil.copytree(finished.folder / "west", folder)
    settings = folder / "site.toml"
    was = str(finished.folder / "west" / "patients.csv")
    assert was in settings.read_text()
    settings.write_text(settings.read_text().replace(was, str(folder / "patients.csv")))
    return folder


def publishing(site: Path, passphrase: Path) -> tuple[str | Path, ...]:
    signed = ("--steward", "steward", "--passphrase-file", passphrase)
    return ("site", "gaps", "publish", "--dir", site, *signed)


def test_a_table_that_lost_its_target_column_publishes_nothing(
    finished: Finished, west: Path
) -> None:
    table = west / "patients.csv"
    table.write_text(table.read_text().replace("progressed", "outcome", 1))
    refused(4, "progressed", *publishing(west, finished.folder / "passphrase"), unchanged=west)


def test_an_unknown_label_value_publishes_nothing(finished: Finished, west: Path) -> None:
    table = west / "patients.csv"
    header, *lines = table.read_text().splitlines()
    label = header.split(",").index("progressed")
    cells = lines[0].split(",")
    cells[label] = "perhaps"
    table.write_text("\n".join([header, ",".join(cells), *lines[1:]]) + "\n")
    sentence = refused(
        4, r"label 'progressed'.* in 1 rows",
        *publishing(west, finished.folder / "passphrase"), unchanged=west,
    )  # fmt: skip
    assert "perhaps" not in sentence


def test_a_mapping_the_dictionary_disagrees_with_publishes_nothing(
    finished: Finished, west: Path
) -> None:
    with (west / "site.toml").open("a") as settings:
        settings.write('\n[columns.sex]\nlevels = { "1" = "female", "2" = "male" }\n')
    refused(
        4, r"'female' is none of the dictionary's",
        *publishing(west, finished.folder / "passphrase"), unchanged=west,
    )  # fmt: skip


def test_a_dictionary_that_leaves_a_threshold_out_makes_no_coordinator(
    finished: Finished, tmp_path: Path
) -> None:
    text = re.sub(r"(?m)^min_count.*\n", "", finished.cohort.dictionary_text)
    assert text != finished.cohort.dictionary_text
    (tmp_path / "consortium.toml").write_text(text)
    done = synthedge(
        "init", tmp_path / "new", "--name", "c", "--dictionary", tmp_path / "consortium.toml",
        program=OPERATOR,
    )  # fmt: skip
    assert done.returncode == 4
    assert "min_count is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_no_site_of_one_consortium_is_taken_for_one_of_another(
    finished: Finished, tmp_path: Path
) -> None:
    """The coordinator is made anew on the same address: the site's certificate is another consortium's."""
    dictionary = tmp_path / "consortium.toml"
    dictionary.write_text(finished.cohort.dictionary_text)
    listen = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    for name in ("first", "second"):
        answer(
            "init", tmp_path / name / "coordinator", "--name", name, "--dictionary", dictionary,
            "--listen", listen[0], "--enrolment-listen", listen[1], program=OPERATOR,
        )  # fmt: skip
    guest = make_guest(finished.folder, tmp_path / "guest")
    with serving(tmp_path / "first" / "coordinator", tmp_path):
        answer(*enrolling(guest, invite(tmp_path / "first")))
    command = ("site", "run", "--once", "--dir", guest)
    expected = f"coordinator at {listen[0]} was not reached, or TLS failed; .*its consortium"
    refused(2, expected, *command, unchanged=guest)  # nobody is there
    with serving(tmp_path / "second" / "coordinator", tmp_path):
        refused(2, expected, *command, unchanged=guest)  # somebody else is
