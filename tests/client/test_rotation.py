"""New keys at a site, between real agents and a real coordinator."""

import asyncio

import pytest
from typer.testing import CliRunner

from asked_and_given import Pair, ask, asked_and_given, give, states
from enrolled import exchange
from sites import events, steward, transfer_at
from synthedge_client import rotation, store
from synthedge_client.cli_site import app
from synthedge_client.doctor import examine
from synthedge_client.keystore import load_keys
from synthedge_client.policies import add_policy, countersign, list_policies
from synthedge_client.purging import purge_transfer
from synthedge_client.received import load_samples
from synthedge_client.site import Site
from synthedge_client.stewards import Steward, add_steward, open_steward
from synthedge_core.errors import RefusedError, UsageError
from synthedge_protocols.errors import VerificationError
from synthedge_protocols.keys import HpkeKeyPair, StatementKey
from synthedge_protocols.lifecycle import State
from synthedge_protocols.rotation import hpke_statement
from synthedge_protocols.v1 import statements_pb2 as pb


def rotated(site: Site, *, sealing_only: bool = False) -> str:
    return str(rotation.rotate(site, steward(), sealing_only=sealing_only)["fingerprint"])


async def test_a_running_transfer_finishes_under_the_keys_it_was_requested_with(pair: Pair) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    rotated(north)
    rotated(south)
    await exchange(north, south, north, south, north, south)

    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]
    assert len(load_samples(north)) == 5


async def test_a_new_key_waits_until_a_person_compared_it(pair: Pair) -> None:
    north, south = pair
    old, new = south.fingerprint, rotated(south)
    assert south.fingerprint == new != old
    await exchange(south, north)

    (shown,) = north.list_peers()
    assert (shown["fingerprint"], shown["pending"]) == (old, new)
    with pytest.raises(RefusedError, match=rf"announced a new key.*{new}.*telephone"):
        ask(north)
    with pytest.raises(RefusedError, match="not what was typed"):
        north.verify_peer("south", old)
    # South, in the other direction, asks with its new key; north does not listen to it yet.
    await exchange(south)
    asked = ask(south, donor="north", voxel=0)
    await exchange(south, north)
    assert "announced a new key" in events(north, "message refused")[-1]

    north.verify_peer("south", new)
    (shown,) = north.list_peers()
    assert (shown["fingerprint"], shown["pending"], shown["problem"]) == (new, "", "")
    identifier = ask(north)
    await exchange(north, south)
    give(south, identifier)
    await exchange(south, north, south)
    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]
    assert transfer_at(south, asked).state is State.REQUESTED


async def test_a_request_under_a_replaced_key_is_refused_with_what_to_do(pair: Pair) -> None:
    north, south = pair
    rotated(south)
    await exchange(south)  # north has not heard of it

    identifier = ask(north)
    await exchange(north)

    record = transfer_at(north, identifier)
    assert record.state is State.CANCELLED
    assert "names another key of site 'south'" in (record.reason or "")


async def test_a_new_sealing_key_needs_no_telephone_and_the_old_one_is_destroyed(
    pair: Pair,
) -> None:
    north, south = pair
    first = await asked_and_given(north, south)
    fingerprint = north.fingerprint
    rotated(north, sealing_only=True)
    second_key = north.hpke_key.key_id
    assert north.fingerprint == fingerprint
    await exchange(north, south, north, south)
    assert states(first, north, south) == ["ACTIVE", "ACTIVE"]

    rotated(north, sealing_only=True)
    await exchange(north, south)
    rotated(north, sealing_only=True)
    await exchange(north, south)
    # As long as rows are here, a withdrawal of them may be on its way, sealed to any key since.
    assert north.keys._file("hpke", second_key).exists()
    purge_transfer(north, transfer_at(north, first), steward(), "study ended")
    assert rotation.forget_hpke_keys(north) == 1
    assert not north.keys._file("hpke", second_key).exists()


async def test_the_agent_replaces_a_sealing_key_in_its_last_month(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    first, fingerprint = north.hpke_key.key_id, north.fingerprint
    with north.store.write() as connection:
        store.set_fact(connection, store.HPKE_UNTIL, str(store.now_ms() + 29 * 86_400_000))
    await exchange(north, south)

    assert north.hpke_key.key_id != first
    assert north.fingerprint == fingerprint
    identifier = await asked_and_given(north, south)
    await exchange(south, north, south)
    assert states(identifier, north, south) == ["ACTIVE", "ACTIVE"]


async def test_a_policy_that_lapsed_with_the_keys_is_named_and_signed_anew(pair: Pair) -> None:
    north, _ = pair
    body = pb.StandingPolicy(
        acts=["accept"],
        peers=["south"],
        purposes=["DUO:0000007"],
        features=[f.name for f in north.dictionary.features if f.is_shareable],
        rows=20,
        period_days=30,
        valid_until_ms=store.now_ms() + 86_400_000,
    )
    identifier, _ = add_policy(north, steward(), body)
    with pytest.raises(UsageError, match="needs no further signature"):
        countersign(north, steward(), identifier.hex())
    rotated(north)

    # In a thread: the coordinator that it asks runs in this one.
    points = await asyncio.to_thread(examine, north.settings.folder)
    (named,) = [p for p in points if "standing policy" in p.about]
    assert f"policies sign {identifier.hex()[:12]} --steward" in named.found
    countersign(north, steward(), identifier.hex()[:12])
    (policy,) = list_policies(north)
    assert (policy["policy"], policy["problem"]) == (identifier.hex(), "")


async def test_a_coordinator_that_swaps_keys_is_refused_and_shown(pair: Pair) -> None:
    north, south = pair
    thief, sealing = StatementKey.generate(), HpkeKeyPair.generate()
    shown = await _entry_of(north, "south")
    now = store.now_ms()

    def swapped(signer: StatementKey, public_key: bytes) -> pb.SiteKeys:
        hpke = hpke_statement(
            signer, sealing, consortium=north.consortium, site="south", now_ms=now
        )
        return pb.SiteKeys(site="south", statement_public_key=public_key, hpke_key=hpke)

    for keys in (
        swapped(thief, thief.public_bytes),
        swapped(thief, south.statement_key.public_bytes),
    ):
        with north.store.write() as connection, pytest.raises(Exception) as refused:
            rotation.pin(connection, keys, north.consortium)
        assert "another" in str(refused.value)
    # An older sealing key that was once right: its owner may have had a reason to replace it.
    rotated(south, sealing_only=True)
    await exchange(south, north)
    with north.store.write() as connection, pytest.raises(VerificationError, match="older sealing"):
        rotation.pin(connection, shown, north.consortium)
    assert north.list_peers()[0]["fingerprint"] == south.fingerprint


async def _entry_of(site: Site, peer: str) -> pb.SiteKeys:
    connection = site.connect()
    try:
        parts = await asyncio.to_thread(lambda: list(connection.directory()))
    finally:
        connection.close()
    return next(keys for part in parts for keys in part.sites if keys.site == peer)


def test_a_sealing_key_that_ends_soon_is_announced_with_what_to_do(pair: Pair) -> None:
    north, _ = pair
    now = store.now_ms()
    with north.store.read() as connection:
        assert rotation.ends_soon(connection, now) == ""
        soon = rotation.ends_soon(connection, now + 360 * 86_400_000)
    assert "ends in 4 days" in soon
    assert "keys rotate --sealing-only" in soon


def test_keys_under_a_passphrase_open_only_with_it(pair: Pair) -> None:
    north, _ = pair
    keys = north.settings.keys
    passphrase = north.settings.folder.parent / "north.passphrase"
    passphrase.write_text("a long passphrase\n")
    arguments = ["keys", "protect", "--passphrase-file", str(passphrase)]
    runner, folder = CliRunner(), ["--dir", str(north.settings.folder)]
    readable = runner.invoke(app, [*arguments, *folder])
    assert "chmod 600" in str(readable.exception)
    passphrase.chmod(0o600)
    assert runner.invoke(app, [*arguments, *folder]).exit_code == 0

    assert not (keys / "site.secret").exists()
    assert load_keys(keys).secret == north.keys.secret
    passphrase.write_text("another passphrase\n")
    with pytest.raises(Exception, match="passphrase is wrong"):
        load_keys(keys)


def test_the_command_names_the_new_fingerprint(pair: Pair) -> None:
    north, _ = pair
    passphrase = north.settings.folder.parent / "passphrase"
    passphrase.write_text("correct horse")
    passphrase.chmod(0o640)
    add_steward(north.settings.keys, "ada", b"correct horse")
    command = [
        *("keys", "rotate", "--steward", "ada", "--passphrase-file", str(passphrase)),
        *("--dir", str(north.settings.folder)),
    ]
    readable = CliRunner().invoke(app, command)
    assert "mode 0640, so others than its owner can reach it" in str(readable.exception)
    passphrase.chmod(0o600)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    assert north.fingerprint in done.output


def test_a_decision_carries_the_same_certificate_until_the_keys_change(pair: Pair) -> None:
    north, _ = pair
    ada = steward()

    def certificate(name: str = "ada") -> bytes:
        signed = Steward(name, ada.key).sign(north, pb.SiteLeaving(action="suspend"))
        return signed.certificate.SerializeToString()

    first = certificate()
    assert certificate() == first
    (kept,) = (north.settings.keys / "stewards").glob("*.certificate")
    kept.write_bytes(b"not what was written")
    second = certificate()
    assert second != first
    assert certificate() == second
    rotated(north)
    assert certificate() not in (first, second)
    assert certificate("eve") != certificate()


def test_a_steward_is_removed_but_never_the_last(pair: Pair) -> None:
    north, _ = pair
    keys, folder = north.settings.keys, ["--dir", str(north.settings.folder)]
    add_steward(keys, "ada", b"correct horse")
    last = CliRunner().invoke(app, ["steward", "remove", "ada", *folder])
    assert "only steward" in str(last.exception)
    add_steward(keys, "eve", b"correct horse")
    open_steward(keys, "ada", b"correct horse").sign(north, pb.SiteLeaving(action="suspend"))

    removed = CliRunner().invoke(app, ["steward", "remove", "ada", *folder])

    assert "keys rotate --steward eve" in removed.output
    assert [path.name for path in (keys / "stewards").iterdir()] == ["eve.key"]
    assert events(north, "steward removed")[-1] == '{"steward": "ada"}'
    unknown = CliRunner().invoke(app, ["steward", "remove", "ada", *folder])
    assert "there is no steward 'ada'" in str(unknown.exception)
