"""A database that is restored from an earlier backup: the difference is found, the site frozen, a person decides."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_consortium import COORDINATOR, MemoryConsortium, copied, new_consortium
from sites import MALE_HIGH, events, patients, steward, transfer_at, with_hole
from synthedge_client import divergence
from synthedge_client.asking import request
from synthedge_client.donating import approve, prepare
from synthedge_client.received import load_samples
from synthedge_client.status import summarise
from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import IdentityError
from synthedge_server import operations
from synthedge_server.doctor import examine


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
    identifier = request(
        north,
        steward(),
        donor="south",
        grid=north.grid("sex x bp"),
        voxel=MALE_HIGH,
        rows=5,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )
    exchange(consortium, "north", "south")
    return identifier


def give(consortium: MemoryConsortium, identifier: bytes) -> None:
    south = consortium.sites["south"]
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())
    exchange(consortium, "south", "north", "south")


def exchange(consortium: MemoryConsortium, *names: str) -> None:
    for name in names:
        consortium.exchange(name)


def back_up(consortium: MemoryConsortium, name: str) -> None:
    """Copy a party's folder while nothing is written to it."""
    shutil.copytree(consortium.folder / name, consortium.folder.parent / f"backup of {name}")


def restore(consortium: MemoryConsortium, name: str) -> None:
    backup = consortium.folder.parent / f"backup of {name}"

    def replace() -> None:
        shutil.rmtree(consortium.folder / name)
        shutil.copytree(backup, consortium.folder / name)

    if name == COORDINATOR:
        consortium.restart_coordinator(replace)
    else:
        consortium.sites[name].store.close()
        replace()
        consortium.open(name)


def states(consortium: MemoryConsortium, identifier: bytes) -> list[str]:
    return [
        transfer_at(consortium.sites[name], identifier).state.value for name in ("north", "south")
    ]


def test_a_donor_restored_from_a_backup_is_frozen_and_what_it_forgot_is_revoked(
    consortium: MemoryConsortium,
) -> None:
    identifier = ask(consortium)
    back_up(consortium, "south")
    give(consortium, identifier)
    assert states(consortium, identifier) == ["ACTIVE", "ACTIVE"]
    restore(consortium, "south")

    with pytest.raises(RefusedError, match=r"site's database is older.*does not know 2 statements"):
        exchange(consortium, "south")
    south = consortium.sites["south"]
    assert summarise(south)["frozen"].startswith("frozen, the site's database is older")
    with pytest.raises(RefusedError, match="synthedge site recover"):
        exchange(consortium, "south")
    found = examine(consortium.coordinator_folder)
    assert [p.what for p in found if "sites recover south" in p.next_step]
    with pytest.raises(RefusedError, match="sites recover south"):
        operations.set_site_state(consortium.coordinator_folder, "south", "active")

    lost = operations.recover_site(consortium.coordinator_folder, "south")
    divergence.recover(south, steward())
    exchange(consortium, "south", "north", "south")

    assert lost["transfers_revoked"] == [identifier.hex()]
    assert states(consortium, identifier) == ["REVOKED", "REVOKED"]
    assert len(load_samples(consortium.sites["north"])) == 0
    assert summarise(south)["frozen"] == "no"
    again = ask(consortium)
    give(consortium, again)
    assert states(consortium, again) == ["ACTIVE", "ACTIVE"]


def test_a_recipient_restored_before_it_asked_does_not_leave_a_transfer_behind(
    consortium: MemoryConsortium,
) -> None:
    back_up(consortium, "north")
    identifier = ask(consortium)
    restore(consortium, "north")
    with pytest.raises(RefusedError, match="does not know 1 statements"):
        exchange(consortium, "north")

    operations.recover_site(consortium.coordinator_folder, "north")
    divergence.recover(consortium.sites["north"], steward())
    exchange(consortium, "north", "south")

    assert transfer_at(consortium.sites["south"], identifier).state.value == "REVOKED"


def test_a_site_restored_that_forgot_nothing_it_signed_reads_its_inbox_again(
    consortium: MemoryConsortium,
) -> None:
    back_up(consortium, "south")
    identifier = ask(consortium)
    restore(consortium, "south")
    exchange(consortium, "south")
    give(consortium, identifier)
    assert states(consortium, identifier) == ["ACTIVE", "ACTIVE"]


def test_a_coordinator_restored_from_a_backup_freezes_sites_and_gets_what_it_lost_again(
    consortium: MemoryConsortium,
) -> None:
    back_up(consortium, COORDINATOR)
    identifier = ask(consortium)
    restore(consortium, COORDINATOR)

    with pytest.raises(RefusedError, match=r"coordinator's database is older.*are not on the"):
        exchange(consortium, "north")
    with pytest.raises(RefusedError, match="read its inbox to number"):
        exchange(consortium, "south")
    with pytest.raises(IdentityError, match="suspended"):
        consortium.connect("north").dictionary()
    for name in ("north", "south"):
        operations.recover_site(consortium.coordinator_folder, name)
    sent_again = [
        divergence.recover(consortium.sites[name], steward())["sent_again"]
        for name in ("north", "south")
    ]

    exchange(consortium, "north", "south")
    assert sent_again[0] == 1
    give(consortium, identifier)
    assert states(consortium, identifier) == ["ACTIVE", "ACTIVE"]
    assert len(load_samples(consortium.sites["north"])) == 5


def test_a_restored_coordinator_that_wrote_on_is_found_out_by_its_messages(
    consortium: MemoryConsortium,
) -> None:
    """It froze the recipient and told the donor so, under a number the donor had read already."""
    identifier = ask(consortium)
    south = consortium.sites["south"]
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())
    exchange(consortium, "south")
    back_up(consortium, COORDINATOR)
    exchange(consortium, "north", "south")
    restore(consortium, COORDINATOR)
    with pytest.raises(RefusedError, match="are not on the coordinator's record"):
        exchange(consortium, "north")
    with pytest.raises(RefusedError, match="1 messages the site has read are others"):
        exchange(consortium, "south")

    for name in ("north", "south"):
        operations.recover_site(consortium.coordinator_folder, name)
        divergence.recover(consortium.sites[name], steward())
    exchange(consortium, "north", "south")

    # The message under the number it had read is not lost: south heard that north was frozen.
    assert any("frozen" in told for told in events(south, "peer stands"))
    # The coordinator does not know that the rows arrived, so no withdrawal would reach them: they are gone.
    assert len(load_samples(consortium.sites["north"])) == 0
    assert states(consortium, identifier) == ["PURGED", "ACTIVE"]
    consortium.wait(25 * 7)
    consortium.keep_house()
    exchange(consortium, "north", "south")
    assert states(consortium, identifier) == ["EXPIRED", "EXPIRED"]


def test_only_a_frozen_site_is_recovered(consortium: MemoryConsortium) -> None:
    with pytest.raises(RefusedError, match="is not frozen"):
        divergence.recover(consortium.sites["north"], steward())
    with pytest.raises(RefusedError, match="is not frozen"):
        operations.recover_site(consortium.coordinator_folder, "north")
