"""A disk that is full, and a clock that jumps: nothing is half done, and it goes on when they are mended."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_consortium import COORDINATOR, MemoryConsortium, copied, new_consortium, no_room
from sites import MALE_HIGH, patients, steward, transfer_at, with_hole
from synthedge_client.asking import request
from synthedge_client.donating import approve, prepare
from synthedge_client.received import load_samples
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.writer import sqlite_engine
from synthedge_server import operations, store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consortium") / "template"
    folder.mkdir()
    new_consortium(folder, north=patients("n", with_hole()), south=patients("s")).close()
    return folder


@pytest.fixture
def consortium(template: Path, tmp_path: Path) -> Iterator[MemoryConsortium]:
    opened = copied(template, tmp_path / "consortium")
    yield opened
    opened.close()


def ask(consortium: MemoryConsortium) -> bytes:
    north = consortium.sites["north"]
    return request(
        north,
        steward(),
        donor="south",
        grid=north.grid("sex x bp"),
        voxel=MALE_HIGH,
        rows=5,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )


def asked(consortium: MemoryConsortium) -> bytes:
    identifier = ask(consortium)
    consortium.exchange("north")
    consortium.exchange("south")
    return identifier


def given(consortium: MemoryConsortium) -> bytes:
    identifier = asked(consortium)
    give(consortium, identifier)
    return identifier


def give(consortium: MemoryConsortium, identifier: bytes) -> None:
    south = consortium.sites["south"]
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())


def finish(consortium: MemoryConsortium, identifier: bytes) -> None:
    for name in ("south", "north", "south"):
        consortium.exchange(name)
    assert states(consortium, identifier) == ["ACTIVE", "ACTIVE"]
    assert len(load_samples(consortium.sites["north"])) == 5


def states(consortium: MemoryConsortium, identifier: bytes) -> list[str]:
    return [
        transfer_at(consortium.sites[name], identifier).state.value for name in ("north", "south")
    ]


def at_coordinator(consortium: MemoryConsortium) -> list[str]:
    rows = operations.rows(consortium.coordinator_folder, store.transfers.select())
    return [row["state"] for row in rows]


def test_a_full_disk_at_a_site_is_named_and_nothing_is_half_written(
    consortium: MemoryConsortium,
) -> None:
    with (
        no_room(),
        pytest.raises(UnavailableError, match=r"site\.db' cannot be written.*make room"),
    ):
        ask(consortium)
    finish(consortium, given(consortium))


def test_a_full_disk_while_an_agent_ships_and_fetches_stops_nothing_for_good(
    consortium: MemoryConsortium,
) -> None:
    identifier = given(consortium)
    for name in ("south", "north"):
        with no_room(), pytest.raises(UnavailableError):
            consortium.exchange(name)
        consortium.open(name)
    finish(consortium, identifier)


def test_a_full_disk_at_the_coordinator_is_told_to_the_site_and_it_goes_on(
    consortium: MemoryConsortium,
) -> None:
    identifier = ask(consortium)
    consortium.commits[COORDINATOR].has_room = False
    with pytest.raises(
        UnavailableError, match=r"the store 'coordinator\.db' cannot be written now"
    ):
        consortium.exchange("north")
    consortium.commits[COORDINATOR].has_room = True
    assert at_coordinator(consortium) == []
    consortium.exchange("north")
    consortium.exchange("south")
    assert states(consortium, identifier) == ["REQUESTED", "REQUESTED"]


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"no database at all " * 100)
    engine = sqlite_engine(path)
    with pytest.raises(UnavailableError, match=r"a\.db' is damaged"), engine.connect():
        pass
    engine.dispose()


@pytest.mark.parametrize("hours", [-72, 9])
def test_a_clock_that_jumps_at_all_parties_and_back_ends_nothing(
    consortium: MemoryConsortium, hours: int
) -> None:
    identifier = given(consortium)
    consortium.wait(hours)
    consortium.keep_house()
    consortium.wait(-hours)
    consortium.keep_house()
    finish(consortium, identifier)


def test_a_coordinators_clock_that_ran_ahead_for_days_ends_what_waited_and_says_so(
    consortium: MemoryConsortium,
) -> None:
    identifier = asked(consortium)
    consortium.wait(49)
    consortium.keep_house()
    consortium.wait(-49)
    for name in ("north", "south"):
        consortium.exchange(name)
    assert states(consortium, identifier) == ["EXPIRED", "EXPIRED"]
    assert "time limit" in (transfer_at(consortium.sites["south"], identifier).reason or "")


def test_what_was_signed_before_the_clock_was_set_back_is_refused_in_words_and_can_be_signed_again(
    consortium: MemoryConsortium,
) -> None:
    identifier = given(consortium)
    consortium.wait(-72)
    consortium.exchange("south")
    record = transfer_at(consortium.sites["south"], identifier)
    assert record.state.value == "PREPARED"
    assert "set both clocks by NTP" in (record.reason or "")
    consortium.wait(72)
    give(consortium, identifier)
    finish(consortium, identifier)
