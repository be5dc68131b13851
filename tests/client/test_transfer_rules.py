"""Who may ask whom, and which rows are given: two sites, no coordinator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server_fixtures import DICTIONARY, DICTIONARY_TOML
from sites import (
    MALE_HIGH,
    approved,
    arrives,
    asked,
    edit,
    patients,
    prepared,
    queued,
    sealed,
    selected,
    sites,
    steward,
    transfer_at,
    with_hole,
)
from synthedge_client import store
from synthedge_client.audit import collect
from synthedge_client.donating import approve, decline, eligible_rows, prepare, withdraw_approval
from synthedge_client.shipping import seal_approved
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_client.status import describe_transfers
from synthedge_client.transfers import find_transfer
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.errors import LifecycleError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

Pair = list[Site]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """North has no positives at male, 100 and above; south has eight."""
    with sites(
        tmp_path, DICTIONARY_TOML, north=patients("n", with_hole()), south=patients("s")
    ) as opened:
        yield opened


def test_only_shareable_features_are_asked_for(pair: Pair) -> None:
    north, south = pair

    assert list(asked(north, south).request.features) == ["bp", "sex"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rows": 0}, "0 rows were asked for, expected 1 to 20"),
        ({"rows": 21}, "21 rows were asked for, expected 1 to 20"),
        ({"purpose": "research"}, "is no DUO code"),
        ({"purpose": "DUO:" + "\u0660" * 7}, "is no DUO code"),
    ],
)
def test_a_request_that_makes_no_sense_leaves_nothing_behind(
    pair: Pair, changes: dict[str, Any], match: str
) -> None:
    north, south = pair
    with pytest.raises(UsageError, match=match):
        asked(north, south, **changes)

    assert queued(north) == []
    assert describe_transfers(north) == []


def test_a_peer_whose_key_nobody_compared_is_neither_asked_nor_given(tmp_path: Path) -> None:
    with sites(
        tmp_path, DICTIONARY_TOML, north=patients("n", with_hole()), south=patients("s")
    ) as (north, south):
        transfer = prepared(north, south)
        for site in (north, south):
            with site.store.write() as connection:
                connection.execute(store.peers.update().values(verified_at_ms=None))

        with pytest.raises(RefusedError, match="key of site 'south' was not compared"):
            asked(north, south)
        with pytest.raises(RefusedError, match="key of site 'north' was not compared"):
            approve(south, transfer, steward())
        assert queued(south) == []
        assert transfer_at(south, transfer.id).state is State.PREPARED


def test_a_wrong_fingerprint_verifies_nobody(pair: Pair) -> None:
    north, south = pair
    with north.store.write() as connection:
        connection.execute(store.peers.update().values(verified_at_ms=None))

    with pytest.raises(RefusedError, match="somebody may be in between"):
        north.verify_peer("south", north.fingerprint)
    with pytest.raises(UsageError, match="'FINGERPRINT' is no fingerprint"):
        north.verify_peer("south", "FINGERPRINT")
    with pytest.raises(UsageError, match="'west' is not known here"):
        north.verify_peer("west", south.fingerprint)
    assert [p["verified"] for p in north.list_peers()] == [False]


def test_only_positive_consenting_patients_of_the_region_are_prepared(pair: Pair) -> None:
    north, south = pair
    table = load_site_table(south.settings, south.dictionary)
    region = [f"s-113{i}" for i in range(8)]
    edit(south, consent=np.where(np.isin(table.patient_ids, region[:3]), "withdrawn", "active"))
    transfer = asked(north, south, rows=20)

    prepare(south, transfer, "ada")

    assert selected(south) == {south.keys.tag(patient) for patient in region[3:]}


def test_fewer_patients_than_the_minimum_count_are_not_available(pair: Pair) -> None:
    north, south = pair
    table = load_site_table(south.settings, south.dictionary)
    gone = [f"s-113{i}" for i in range(4)]
    edit(south, consent=np.where(np.isin(table.patient_ids, gone), "", "active"))
    transfer = asked(north, south)

    with pytest.raises(RefusedError, match="fewer than 5 patients"):
        prepare(south, transfer, "ada")
    assert selected(south) == set()
    assert transfer_at(south, transfer.id).state is State.REQUESTED


def test_the_same_patient_goes_to_one_recipient_once(tmp_path: Path) -> None:
    tables = {"north": patients("n", with_hole()), "south": patients("s", np.full((2, 4), 13))}
    with sites(tmp_path, DICTIONARY_TOML, **tables) as (north, south):
        sealed(north, south)
        first = selected(south)
        prepared(north, south)
        both = selected(south)
        assert (len(first), len(both)) == (5, 10)
        with pytest.raises(RefusedError, match="not yet sent to 'north'"):
            prepared(north, south)
        assert selected(south) == both


def test_patients_of_a_sealed_transfer_stay_on_the_ledger_when_it_ends(pair: Pair) -> None:
    north, south = pair
    sent = sealed(north, south)

    # Ended after sealing: the bytes may have been opened, so the patients stay on the ledger.
    ended = wire.TransferEnded(transfer_id=sent.id, state="REVOKED", reason="site revoked")
    assert arrives(south, ended=ended) is None
    assert len(selected(south)) == 5
    assert [t["state"] for t in collect(south).sent] == ["REVOKED"]


@given(st.lists(st.floats(99.0, 101.0), min_size=12, max_size=12))
@settings(max_examples=10, deadline=None)
def test_what_leaves_always_lies_in_the_region_that_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, pressures: list[float]
) -> None:
    tables = {"north": patients("n", with_hole()), "south": patients("s")}
    rows = tables["south"]
    rows.loc[rows["progressed"].eq(1) & rows["bp"].ge(91) & rows["sex"].eq(2), "bp"] = [
        *pressures,
        *[130.0] * 4,
    ]
    with sites(tmp_path_factory.mktemp("sites"), DICTIONARY_TOML, **tables) as (north, south):
        transfer = asked(north, south, rows=20)
        try:
            payload = prepare(south, transfer, "ada")
        except RefusedError:
            return
    samples = pb.SampleBatch.FromString(payload.samples).samples
    values = np.array([[*sample.values, np.nan] for sample in samples])
    grid = north.grid("sex x bp")

    assert (grid.assign(values) == MALE_HIGH).all()


def test_nothing_is_approved_that_was_not_prepared(pair: Pair) -> None:
    north, south = pair
    transfer = asked(north, south)

    with pytest.raises(RefusedError, match="holds no prepared manifest"):
        approve(south, transfer, steward())
    with pytest.raises(LifecycleError, match="this site its recipient"):
        approve(north, transfer_at(north, transfer.id), steward())
    with pytest.raises(LifecycleError, match="only a donor prepares"):
        prepare(north, transfer_at(north, transfer.id), "ada")


def test_a_consent_lost_before_the_approval_refuses_it(pair: Pair) -> None:
    north, south = pair
    transfer = prepared(north, south)
    edit(south, consent="withdrawn")

    with pytest.raises(RefusedError, match="5 of the prepared patients no longer consent"):
        approve(south, transfer, steward())
    assert transfer_at(south, transfer.id).state is State.PREPARED


@pytest.mark.parametrize("change", ["withdrawn", "left the table"])
def test_a_consent_lost_after_the_approval_goes_back_to_the_steward(
    pair: Pair, change: str
) -> None:
    north, south = pair
    transfer = approved(north, south)
    if change == "withdrawn":
        edit(south, consent="withdrawn")
    else:
        edit(south, mrn=[f"other-{i}" for i in range(128)])

    seal_approved(south, transfer)

    after = transfer_at(south, transfer.id)
    assert (after.state, after.has_manifest, after.rows) == (State.PREPARED, False, None)
    assert "5 of the approved patients no longer consent" in (after.reason or "")
    assert selected(south) == set()
    assert not (south.settings.folder / "outgoing").exists()
    assert describe_transfers(south)[0]["waits_for"] == "our steward: requests prepare"


def test_a_prepared_transfer_may_be_prepared_anew(pair: Pair) -> None:
    north, south = pair
    first = approved(north, south)
    with south.store.write() as connection:
        withdraw_approval(connection, first, "a consent was lost")

    for _ in range(2):
        prepare(south, transfer_at(south, first.id), "ada")
    approve(south, transfer_at(south, first.id), steward())

    assert len(selected(south)) == 5
    assert arrives(north, statement=queued(south)[-1]) is None  # replaces the first approval


def test_a_declined_request_frees_its_patients_and_tells_the_reason(pair: Pair) -> None:
    north, south = pair
    transfer = prepared(north, south)

    decline(south, transfer, steward(), "not available")
    assert arrives(north, statement=queued(south)[-1]) is None

    assert selected(south) == set()
    at_north = transfer_at(north, transfer.id)
    assert (at_north.state, at_north.reason) == (State.DECLINED, "not available")
    with pytest.raises(LifecycleError):
        decline(south, transfer, steward(), "again")


def test_sealed_bytes_and_their_folder_are_for_their_owner_alone(pair: Pair) -> None:
    north, south = pair
    sealed(north, south)
    (file,) = (south.settings.folder / "outgoing").iterdir()

    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_sealing_again_after_a_crash_gives_one_shipment(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    transfer = approved(north, south)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("synthedge_client.outbound.enqueue", killed)
        with pytest.raises(KeyboardInterrupt):
            seal_approved(south, transfer)
    assert transfer_at(south, transfer.id).state is State.APPROVED
    seal_approved(south, transfer)

    assert len(queued(south)) == 2  # approval and shipment
    shipment = pb.Shipment.FromString(pb.Statement.FromString(queued(south)[1].statement).payload)
    (file,) = (south.settings.folder / "outgoing").iterdir()
    assert file.stat().st_size == shipment.ciphertext_bytes


def test_a_typed_id_must_name_exactly_one_transfer(pair: Pair) -> None:
    north, south = pair
    transfer = asked(north, south)
    with south.store.read() as connection:
        assert find_transfer(connection, transfer.short_id.upper()).id == transfer.id
        for typed in ("", "zz"):
            with pytest.raises(UsageError, match="0 transfers have an id"):
                find_transfer(connection, typed)


def test_a_selection_of_the_same_transfer_does_not_count_as_sent(pair: Pair) -> None:
    north, south = pair
    transfer = prepared(north, south)
    table = load_site_table(south.settings, DICTIONARY)

    with south.store.read() as connection:
        assert len(eligible_rows(south, connection, table, transfer)) == 8
