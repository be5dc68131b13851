"""What arrives at a site: verified, checked against the agreement, applied once, or refused and shown."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server_fixtures import DICTIONARY_TOML
from sites import (
    approved,
    arrives,
    asked,
    events,
    learn,
    patients,
    prepared,
    queued,
    sealed,
    selected,
    site_keys,
    sites,
    steward,
    transfer_at,
    with_hole,
)
from synthedge_client.asking import request
from synthedge_client.audit import collect
from synthedge_client.outbound import sha256
from synthedge_client.site import Site
from synthedge_client.status import describe_transfers
from synthedge_client.transfers import move
from synthedge_protocols.lifecycle import Event, Party, State
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


def test_a_recipient_cannot_approve_what_the_donor_only_prepared(pair: Pair) -> None:
    north, south = pair
    transfer = prepared(north, south)
    digest = sha256(transfer.signed_request.statement)
    forged = steward("eve").sign(
        north,
        pb.Approval(
            transfer_id=transfer.id,
            request_digest=digest,
            manifest_commitment=bytes(32),
            rows=5,
        ),
    )

    refused = arrives(south, statement=forged)

    assert "of which this site is the donor" in (refused or "")
    assert transfer_at(south, transfer.id).state is State.PREPARED


def test_a_request_that_arrives_twice_counts_once(pair: Pair) -> None:
    north, south = pair
    asked(north, south)

    refused = arrives(south, statement=queued(north)[-1])

    assert "was requested before" in (refused or "")
    assert len(describe_transfers(south)) == 1


def test_a_statement_nobody_known_signed_is_refused_and_shown(pair: Pair, tmp_path: Path) -> None:
    _, south = pair
    (tmp_path / "more").mkdir()
    with sites(tmp_path / "more", DICTIONARY_TOML, west=patients("w"), south=patients("x")) as (
        west,
        _,
    ):
        request(
            west,
            steward(),
            donor="south",
            grid=west.grid("bp"),
            voxel=3,
            rows=5,
            purpose="DUO:0000007",
        )
        refused = arrives(south, statement=queued(west)[0])

    assert "'west' is not known here" in (refused or "")
    shown = collect(south).refused_messages
    assert [(m["what"], m["kind"]) for m in shown] == [("message refused", "statement")]


def test_one_flipped_bit_is_refused(pair: Pair) -> None:
    north, south = pair
    request(
        north,
        steward(),
        donor="south",
        grid=north.grid("bp"),
        voxel=3,
        rows=5,
        purpose="DUO:0000007",
    )
    (signed,) = queued(north)
    signed.signature = bytes([signed.signature[0] ^ 1]) + signed.signature[1:]

    assert "signature does not verify" in (arrives(south, statement=signed) or "")
    assert describe_transfers(south) == []


def test_a_statement_under_another_dictionary_is_refused(tmp_path: Path) -> None:
    changed = DICTIONARY_TOML.replace("min_sites = 3", "min_sites = 4")
    (tmp_path / "other").mkdir()
    with (
        sites(tmp_path, DICTIONARY_TOML, south=patients("s")) as (south,),
        sites(tmp_path / "other", changed, north=patients("n"), south=patients("x")) as (north, _),
    ):
        learn(south, wire.Directory(sites=[site_keys(north)]))
        request(
            north,
            steward(),
            donor="south",
            grid=north.grid("bp"),
            voxel=3,
            rows=5,
            purpose="DUO:0000007",
        )
        refused = arrives(south, statement=queued(north)[0])

    assert "is none that this site accepted" in (refused or "")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"donor": "west"}, "names other sites"),
        ({"recipient": "south"}, "names other sites"),
        ({"rows": 0}, "against the policy"),
        ({"rows": 21}, "against the policy"),
        ({"features": ["bp", "sex", "shoe"]}, "features the dictionary does not have"),
        ({"features": []}, "features the dictionary does not have"),
        ({"features": ["sex", "bp"]}, "or not in its order"),
        ({"features": ["bp", "sex", "sex"]}, "or not in its order"),
        ({"retention_days": 0}, "keep rows for 0 days"),
        ({"retention_days": 2**32 - 1}, "keep rows for 4294967295 days"),
        ({"purpose": "anything"}, "no DUO code"),
        ({"features": ["bp"]}, "leaves out features of its own region"),
        ({"grid": "shoe"}, "shoe"),
        ({"voxel": [9, 9]}, "voxel"),
    ],
)
def test_a_request_against_the_agreement_is_refused(
    pair: Pair, changes: dict[str, Any], match: str
) -> None:
    north, south = pair
    fields: dict[str, Any] = {
        "recipient": "north",
        "donor": "south",
        "grid": "sex x bp",
        "voxel": [1, 3],
        "purpose": "DUO:0000007",
        "features": ["bp", "sex"],
        "rows": 5,
        "retention_days": 30,
        "hpke_key_id": north.keys.hpke.key_id,
        "donor_key_id": south.keys.statement.key_id,
        "nonce": bytes(32),
    }
    signed = steward().sign(north, pb.TransferRequest(**{**fields, **changes}))

    assert match in (arrives(south, statement=signed) or "")
    assert describe_transfers(south) == []


def test_a_statement_about_a_transfer_with_another_peer_is_refused(tmp_path: Path) -> None:
    with sites(
        tmp_path,
        DICTIONARY_TOML,
        north=patients("n", with_hole()),
        south=patients("s"),
        west=patients("w"),
    ) as (north, south, west):
        transfer = asked(north, south)
        meddling = steward().sign(
            west, pb.Ending(transfer_id=transfer.id, state="CANCELLED", reason="spite")
        )
        prefix = steward().sign(
            north, pb.Ending(transfer_id=transfer.id[:4], state="CANCELLED", reason="short")
        )

        assert "a transfer with 'north'" in (arrives(south, statement=meddling) or "")
        assert "takes no part in a transfer" in (arrives(south, statement=prefix) or "")
        assert transfer_at(south, transfer.id).state is State.REQUESTED


def test_a_site_key_cannot_end_what_only_a_steward_may(pair: Pair) -> None:
    north, south = pair
    transfer = asked(north, south)
    signed = north.sign(pb.Ending(transfer_id=transfer.id, state="CANCELLED", reason="agent"))

    assert "the steward of site 'north' must sign" in (arrives(south, statement=signed) or "")
    assert transfer_at(south, transfer.id).state is State.REQUESTED


def test_a_changed_key_of_a_known_peer_is_refused_recorded_once_and_stops_nobody(
    pair: Pair, tmp_path: Path
) -> None:
    north, south = pair
    (tmp_path / "fake").mkdir()
    with sites(tmp_path / "fake", DICTIONARY_TOML, north=patients("x"), west=patients("w")) as (
        impostor,
        west,
    ):
        directory = wire.Directory(sites=[site_keys(impostor), site_keys(west)])
        first, again = learn(south, directory), learn(south, directory)

    assert len(first) == 1
    assert "another statement key for site 'north'" in first[0]
    assert again == []
    assert len(events(south, "peer refused")) == 1
    peers = {p["site"]: p for p in south.list_peers()}
    assert peers["north"]["fingerprint"] == north.fingerprint
    assert "telephone that site" in peers["north"]["problem"]
    assert (peers["west"]["problem"], peers["west"]["verified"]) == ("", False)

    learn(south, wire.Directory(sites=[site_keys(north)]))
    assert {p["problem"] for p in south.list_peers()} == {""}


def test_a_refusal_is_believed_and_a_false_receipt_is_not(pair: Pair) -> None:
    north, south = pair
    transfer = sealed(north, south)
    with south.store.write() as connection:
        move(connection, transfer, Event.RELAY, Party.DONOR, "agent")
    shipment = pb.Shipment.FromString(pb.Statement.FromString(queued(south)[-1].statement).payload)

    def receipt(**changes: Any) -> pb.SignedStatement:
        fields: dict[str, Any] = {
            "transfer_id": transfer.id,
            "ciphertext_digest": shipment.ciphertext_digest,
            "rows": 5,
            "accepted": True,
        }
        return north.sign(pb.Receipt(**{**fields, **changes}))

    for changes in ({"ciphertext_digest": bytes(32)}, {"rows": 6}, {"rows": 0}):
        refused = arrives(south, statement=receipt(**changes))
        assert "names other bytes or rows" in (refused or "")
        assert transfer_at(south, transfer.id).state is State.RELAYED
    refusal = receipt(
        accepted=False, rows=0, ciphertext_digest=bytes(32), reason="not authenticated"
    )
    assert arrives(south, statement=refusal) is None
    assert transfer_at(south, transfer.id).state is State.REFUSED


@pytest.mark.parametrize("state", ["EXPIRED", "REVOKED"])
def test_a_transfer_that_ends_by_rule_ends_on_both_sides(pair: Pair, state: str) -> None:
    north, south = pair
    transfer = approved(north, south)
    ended = wire.TransferEnded(transfer_id=transfer.id, state=state, reason="a\x1b[2Jrule\n\u202e")

    for site in pair:
        assert arrives(site, ended=ended) is None
        assert arrives(site, ended=ended) is None  # told twice, ended once
        record = transfer_at(site, transfer.id)
        assert (record.state.value, record.reason, record.has_manifest) == (
            state,
            "a [2Jrule  ",
            False,
        )
    assert selected(south) == set()


def test_the_coordinator_cannot_say_that_somebody_declined(pair: Pair) -> None:
    north, south = pair
    transfer = asked(north, south)
    ended = wire.TransferEnded(transfer_id=transfer.id, state="DECLINED", reason="no")

    assert "'decline' by the coordinator" in (arrives(north, ended=ended) or "")
    assert transfer_at(north, transfer.id).state is State.REQUESTED


def test_an_empty_or_unknown_message_is_refused_and_the_next_one_read(pair: Pair) -> None:
    north, south = pair

    assert "without a body" in (arrives(south) or "")
    assert "does not decode" in (arrives(south, statement=pb.SignedStatement(statement=b"x")) or "")
    profile = wire.HoleProfile(dictionary_digest=bytes(32))
    assert "a profile of dictionary" in (arrives(south, profile=profile) or "")
    asked(north, south)
