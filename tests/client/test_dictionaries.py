"""A new dictionary at a site: told, looked at, accepted or not, and what goes on under the older one meanwhile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enrolled import exchange
from server_fixtures import DICTIONARY, DICTIONARY_TOML, Consortium
from sites import (
    accept_dictionary,
    approved,
    arrives,
    asked,
    events,
    make_site,
    patients,
    queued,
    sites,
    steward,
    transfer_at,
    with_hole,
)
from synthedge_client import dictionaries, store
from synthedge_client.asking import request
from synthedge_client.cli import app
from synthedge_client.console import run_app
from synthedge_client.dictionaries import accept
from synthedge_client.donating import approve, prepare
from synthedge_client.releases import publish
from synthedge_client.shipping import seal_approved
from synthedge_client.site import Site, open_site
from synthedge_client.stewards import add_steward
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import RefusedError, SynthEdgeError, UsageError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server.dictionaries import add as add_dictionary
from synthedge_server.operations import change

# Sex is written otherwise, and blood pressure in another unit: what is read under one makes no sense under the other.
SECOND_TOML = (
    DICTIONARY_TOML.replace('unit = "mm[Hg]"', 'unit = "kPa"')
    .replace("[30, 200]", "[4, 27]")
    .replace("center = 94.0", "center = 12.5")
    .replace("scale = 14.0", "scale = 1.9")
    .replace("[80, 90, 100]", "[10.5, 12, 13.5]")
    .replace("decimals = 0", "decimals = 1")
    .replace("made up for tests", "made up for tests, second reading")
)
SECOND = parse_dictionary(SECOND_TOML)
THIRD_TOML = SECOND_TOML.replace("rows_per_transfer = 20", "rows_per_transfer = 15")


def document(toml: str, version: int) -> wire.DictionaryDocument:
    digest = bytes.fromhex(parse_dictionary(toml).digest)
    return wire.DictionaryDocument(digest=digest, toml=toml, version=version)


def states_its_unit(site: Site) -> None:
    """What the data manager writes when the consortium's unit is no longer the hospital's."""
    file = site.settings.folder / "site.toml"
    file.write_text(file.read_text() + '[columns.bp]\nunit = "mm[Hg]"\n')


def statement_in(signed: pb.SignedStatement) -> pb.Statement:
    return pb.Statement.FromString(signed.statement)


@pytest.fixture
def north(tmp_path: Path) -> Any:
    with sites(tmp_path, DICTIONARY_TOML, north=patients("n", with_hole())) as (site,):
        yield site


def test_a_dictionary_that_arrives_changes_nothing_before_a_steward_accepts_it(north: Site) -> None:
    assert arrives(north, dictionary=document(SECOND_TOML, 2)) is None

    assert north.refreshed().dictionary == DICTIONARY
    with pytest.raises(RefusedError, match=r"version 2 .* not accepted here; look at it with"):
        publish(north.refreshed(), steward())
    assert queued(north) == []


def test_after_its_acceptance_a_site_works_and_signs_under_the_new_dictionary(north: Site) -> None:
    arrives(north, dictionary=document(SECOND_TOML, 2))
    states_its_unit(north)

    result = accept(north, steward())
    publish(north.refreshed(), steward())

    accepted, report = (statement_in(signed) for signed in queued(north))
    assert accepted.dictionary_digest.hex() == report.dictionary_digest.hex() == SECOND.digest
    acknowledged = pb.DictionaryAcceptance.FromString(accepted.payload)
    assert (acknowledged.version, result["version"]) == (2, 2)
    assert acknowledged.outcome_digest.hex() == SECOND.target.outcome_digest
    assert result["outcome"][0].endswith("made up for tests, second reading")
    assert len(events(north, "dictionary accepted")) == 1


def test_a_site_that_missed_a_version_accepts_the_newest_and_never_goes_back(north: Site) -> None:
    for version, toml in ((2, SECOND_TOML), (3, THIRD_TOML)):
        arrives(north, dictionary=document(toml, version))

    accept(north, steward())

    assert north.refreshed().dictionary == parse_dictionary(THIRD_TOML)
    with pytest.raises(RefusedError, match="version 3 of the dictionary is accepted already"):
        accept(north, steward(), 2)
    with pytest.raises(UsageError, match="no version 7 of the dictionary; it has 1, 2, 3"):
        accept(north, steward(), 7)


def test_accepting_says_what_was_spent_on_the_same_patients_before(tmp_path: Path) -> None:
    dp = DICTIONARY_TOML.replace('"threshold"', '"dp"')
    with sites(tmp_path, dp, north=patients("n")) as (north,):
        publish(north, steward())
        arrives(north, dictionary=document(dp.replace("made up", "thought up"), 2))

        result = accept(north, steward())

    assert result["budget"] == (
        "its own privacy budget: epsilon 0 of 4 is spent; under other dictionaries 1 was spent on the same patients"
    )


def test_a_dictionary_that_is_not_what_it_says_is_refused(north: Site) -> None:
    wrong_digest = document(SECOND_TOML, 2)
    wrong_digest.digest = bytes(32)
    broken = wire.DictionaryDocument(digest=bytes(32), toml="name = 1", version=2)
    same_version, no_version = document(SECOND_TOML, 1), document(SECOND_TOML, 0)

    assert "does not have the digest it names" in str(arrives(north, dictionary=wrong_digest))
    assert "not valid" in str(arrives(north, dictionary=broken))
    assert "without a version" in str(arrives(north, dictionary=no_version))
    assert "two dictionaries as version 1" in str(arrives(north, dictionary=same_version))
    assert arrives(north, dictionary=document(DICTIONARY_TOML, 1)) is None
    with north.store.read() as connection:
        assert [known.version for known in dictionaries.list_known(connection)] == [1]


def test_a_transfer_under_way_is_prepared_approved_and_sealed_under_its_own_dictionary(
    tmp_path: Path,
) -> None:
    tables = {"north": patients("n", with_hole()), "south": patients("s")}
    with sites(tmp_path, DICTIONARY_TOML, **tables) as (north, south):
        transfer = approved(north, south)
        for site in (north, south):
            arrives(site, dictionary=document(SECOND_TOML, 2))
            states_its_unit(site)
            accept(site, steward())
        south = south.refreshed()

        assert south.dictionary == SECOND
        assert transfer.dictionary_digest.hex() == DICTIONARY.digest
        seal_approved(south.under(transfer.dictionary_digest), transfer)

        shipment = statement_in(queued(south)[-1])
        assert (shipment.type, shipment.dictionary_digest.hex()) == ("shipment", DICTIONARY.digest)
        assert transfer_at(south, transfer.id).state is State.SEALED


def test_what_was_asked_under_the_older_dictionary_is_prepared_in_its_units(tmp_path: Path) -> None:

    tables = {"north": patients("n", with_hole()), "south": patients("s")}
    with sites(tmp_path, DICTIONARY_TOML, **tables) as (north, south):
        transfer = asked(north, south)
        arrives(south, dictionary=document(SECOND_TOML, 2))
        states_its_unit(south)
        accept(south, steward())

        payload = prepare(south.refreshed(), transfer, "ada")

        manifest = pb.Manifest.FromString(payload.manifest)
        bp = list(manifest.features).index("bp")
        samples = pb.SampleBatch.FromString(payload.samples).samples
        assert manifest.dictionary_digest.hex() == DICTIONARY.digest
        assert all(sample.values[bp] >= 100 for sample in samples)


async def test_a_transfer_under_way_arrives_while_both_sites_move_to_a_new_dictionary(
    pair: list[Site], consortium: Consortium
) -> None:
    north, south = pair

    grid = north.grid("sex x bp")
    identifier = request(
        north,
        steward(),
        donor="south",
        grid=grid,
        voxel=7,
        rows=5,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )
    await exchange(north, south)
    prepare(south, transfer_at(south, identifier), "ada")
    change(consortium.folder, lambda t: add_dictionary(t, SECOND_TOML))
    await exchange(north, south)
    for site in (north, south):
        states_its_unit(site)
        accept(site, steward())
    north, south = north.refreshed(), south.refreshed()
    assert north.dictionary == south.dictionary == SECOND

    approve(south, transfer_at(south, identifier), steward())
    publish(south, steward())
    # The agents opened their sites before anybody accepted anything.
    await exchange(pair[1], pair[0], pair[1])

    assert transfer_at(north, identifier).state is State.ACTIVE
    assert transfer_at(south, identifier).state is State.ACTIVE
    with south.store.read() as connection:
        unsent = connection.execute(
            store.outbox.select().where(store.outbox.c.refusal.is_not(None))
        ).all()
    assert unsent == []


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `synthedge site ...`; exit code, stdout, stderr."""

    def once(*arguments: object) -> tuple[int, str, str]:
        code = run_app(app, ["site", *map(str, arguments)], program="synthedge")
        return code, *capsys.readouterr()

    return once


def data_of(out: str) -> Any:
    return json.loads(out)["data"]


def test_show_and_diff_tell_a_steward_what_to_accept(north: Site, run: Run, tmp_path: Path) -> None:
    folder = north.settings.folder
    arrives(north, dictionary=document(SECOND_TOML, 2))
    add_steward(folder / "keys", "ada", b"correct horse")
    (tmp_path / "right").write_text("correct horse")
    (tmp_path / "right").chmod(0o600)

    _, out, _ = run("dictionary", "show", "--dir", folder)
    assert "version 2" in out
    assert "NOT accepted here" in out
    assert "made up for tests, second reading" in out
    assert "none: never leaves" in out
    _, out, _ = run("dictionary", "diff", "--dir", folder, "--json")
    differences = data_of(out)["differences"]
    _, out, _ = run("status", "--dir", folder, "--json")
    assert data_of(out)["dictionary"] == (
        "version 1, accepted by ada; version 2 waits for our steward: dictionary accept"
    )
    assert "feature 'bp': unit mm[Hg] -> kPa" in differences
    assert differences[0].startswith("target: definition made up for tests -> ")
    _, out, _ = run("doctor", "--dir", folder, "--json")
    waiting = [f for f in data_of(out)["findings"] if f["about"].startswith("dictionary version 2")]
    assert [f["rows"] for f in waiting] == [None, 120]
    assert "in mm[Hg] the values would be plausible" in waiting[1]["found"]

    code, out, err = run(
        "dictionary", "accept", "--steward", "ada", "--passphrase-file", tmp_path / "right",
        "--dir", folder,
    )  # fmt: skip
    assert (code, "Accepted version 2" in out) == (0, True), err
    _, out, _ = run("dictionary", "show", "--dir", folder, "--json")
    assert (data_of(out)["accepted_by"], data_of(out)["versions"]) == ("ada", [1, 2])
    assert run("dictionary", "show", "--version", 5, "--dir", folder)[0] == 4


def test_the_first_dictionary_waits_for_a_steward_too(tmp_path: Path, run: Run) -> None:

    folder = make_site(tmp_path, "north", patients("n"))
    accept_dictionary(folder, DICTIONARY_TOML)
    with open_site(folder) as site, site.store.write() as connection:
        connection.execute(store.dictionaries.update().values(accepted_at_ms=None))

    assert run("gaps", "preview", "--dir", folder)[0] == 0
    with open_site(folder) as site:
        with pytest.raises(RefusedError, match="version 1 of the consortium's dictionary is not"):
            publish(site, steward())
        accept(site, steward())
        publish(site, steward())


def test_commands_before_enrolment_say_what_to_do(tmp_path: Path, run: Run) -> None:
    folder = make_site(tmp_path, "north", patients("n"))

    for command in ("show", "diff"):
        code, _, err = run("dictionary", command, "--dir", folder)
        assert (code, "run 'synthedge site enrol" in err) == (1, True)
    with open_site(folder) as site, pytest.raises(SynthEdgeError, match="not enrolled yet"):
        publish(site, steward())
