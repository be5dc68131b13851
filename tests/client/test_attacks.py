"""A coordinator, a donor or a stranger that cheats: refused, on record, and shown to the people of the site."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from asked_and_given import Pair, asked_and_given, states
from enrolled import exchange
from sites import approved, arrives, events, prepared, queued, steward, transfer_at
from synthedge_client import outbound, shipping, store
from synthedge_client.agent import Agent
from synthedge_client.audit import collect
from synthedge_client.connection import Connection
from synthedge_client.donating import prepared_payload
from synthedge_client.inbox import MAX_GAP, keep_message
from synthedge_client.received import load_samples
from synthedge_client.site import Site
from synthedge_client.status import describe_transfers
from synthedge_protocols.errors import VerificationError
from synthedge_protocols.keys import HpkeKeyPair, StatementKey
from synthedge_protocols.sealing import seal
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

NOT_AUTHENTIC = "transfer could not be authenticated"


def shown(site: Site) -> str:
    """Everything a person at a site sees: status of the transfers and the audit report."""
    return json.dumps([describe_transfers(site), vars(collect(site))], default=str)


async def delivered(pair: Pair, monkeypatch: pytest.MonkeyPatch, **cheats: Any) -> bytes:
    """A transfer whose sealed bytes or key go through a cheating coordinator."""
    north, south = pair
    identifier = await asked_and_given(north, south)
    await exchange(south)
    for method, cheat in cheats.items():
        monkeypatch.setattr(Connection, method, cheat(getattr(Connection, method)))
    await exchange(north)
    return identifier


def assert_refused(site: Site, identifier: bytes) -> None:
    record = transfer_at(site, identifier)
    assert (record.state.value, record.reason) == ("REFUSED", NOT_AUTHENTIC)
    assert len(load_samples(site)) == 0
    assert NOT_AUTHENTIC in shown(site)


async def test_a_truncated_stream_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def truncated(honest: Any) -> Any:
        def download(self: Connection, identifier: bytes, offset: int) -> Iterator[Any]:
            for chunk in honest(self, identifier, offset):
                chunk.data = chunk.data[:-16]
                yield chunk

        return download

    assert_refused(pair[0], await delivered(pair, monkeypatch, download=truncated))


async def test_changed_bytes_are_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(honest: Any) -> Any:
        def download(self: Connection, identifier: bytes, offset: int) -> Iterator[Any]:
            for chunk in honest(self, identifier, offset):
                chunk.data = chunk.data[:-1] + bytes([chunk.data[-1] ^ 1])
                yield chunk

        return download

    assert_refused(pair[0], await delivered(pair, monkeypatch, download=changed))


@pytest.mark.parametrize("field", ["encapsulated", "transfer_id", "info_digest"])
async def test_an_envelope_that_a_thief_signed_anew_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    thief = StatementKey.generate()

    def forged(honest: Any) -> Any:
        def release_key(self: Connection, request: pb.SignedStatement) -> pb.SignedStatement:
            signed: pb.SignedStatement = honest(self, request)
            statement = pb.Statement.FromString(signed.statement)
            shipment = pb.Shipment.FromString(statement.payload)
            setattr(shipment, field, bytes(len(getattr(shipment, field))))
            statement.payload = shipment.SerializeToString(deterministic=True)
            statement.signer_key_id = thief.key_id
            raw = statement.SerializeToString(deterministic=True)
            signature = thief.sign(b"synthedge/v1/statement\0" + raw)
            return pb.SignedStatement(statement=raw, signature=signature)

        return release_key

    assert_refused(pair[0], await delivered(pair, monkeypatch, release_key=forged))


async def test_a_replayed_envelope_opens_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The donor's genuine shipment of an earlier transfer, handed out for a later one."""
    north, south = pair
    earlier = pb.Shipment(transfer_id=b"e" * 32, ciphertext_bytes=1, ciphertext_digest=bytes(32))
    genuine = south.sign(earlier)

    def replayed(honest: Any) -> Any:
        def release_key(self: Connection, request: pb.SignedStatement) -> pb.SignedStatement:
            honest(self, request)
            return genuine

        return release_key

    assert_refused(north, await delivered(pair, monkeypatch, release_key=replayed))


async def test_bytes_sealed_to_another_recipient_do_not_open(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    other = HpkeKeyPair.generate()

    def swapped(*files: Any, **arguments: Any) -> Any:
        context = replace(arguments["context"], recipient_hpke_key_id=other.key_id)
        return seal(*files, **{**arguments, "recipient": other.public_key, "context": context})

    with monkeypatch.context() as patched:
        patched.setattr(shipping, "seal", swapped)
        await exchange(south)
    await exchange(north)
    assert_refused(north, identifier)


async def test_more_bytes_than_the_rows_asked_for_can_have_are_neither_fetched_nor_opened(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)
    fetched: list[int] = []

    def swollen(source: Any, *files: Any, **arguments: Any) -> Any:
        return seal(io.BytesIO(source.read() + bytes(4_000_000)), *files, **arguments)

    def counted(self: Connection, identifier: bytes, offset: int) -> Iterator[Any]:
        for chunk in honest(self, identifier, offset):
            fetched.append(len(chunk.data))
            yield chunk

    with monkeypatch.context() as patched:
        patched.setattr(shipping, "seal", swollen)
        patched.setattr(shipping, "LIMITS", replace(shipping.LIMITS, sent_bytes=32_768))
        await exchange(south)
    honest = Connection.download
    monkeypatch.setattr(Connection, "download", counted)
    await exchange(north)
    assert_refused(north, identifier)
    assert 0 < sum(fetched) < 3_000_000


async def test_bytes_sealed_under_another_agreement_do_not_open(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    identifier = await asked_and_given(north, south)

    def elsewhere(*files: Any, **arguments: Any) -> Any:
        context = replace(arguments["context"], manifest_commitment=b"?" * 32)
        return seal(*files, **{**arguments, "context": context})

    with monkeypatch.context() as patched:
        patched.setattr(shipping, "seal", elsewhere)
        await exchange(south)
    await exchange(north)
    assert_refused(north, identifier)


def test_an_altered_agreement_is_refused_and_shown(pair: Pair) -> None:
    north, south = pair
    transfer = prepared(north, south)
    altered = steward().sign(
        south,
        pb.Approval(
            transfer_id=transfer.id,
            request_digest=b"x" * 32,
            manifest_commitment=b"m" * 32,
            rows=5,
        ),
    )
    refused = arrives(north, statement=altered) or ""
    assert "names another request than the one this site signed" in refused
    assert "names another request" in shown(north)


def test_a_forged_sender_is_refused_and_shown(pair: Pair) -> None:
    north, south = pair
    transfer = approved(north, south)
    forged = queued(south)[-1]
    forged.signature = bytes(64)
    assert "does not verify" in (arrives(north, statement=forged) or "")
    stolen = north.sign(pb.Ending(transfer_id=transfer.id, state="REVOKED", reason="x"))
    claimed = pb.Statement.FromString(stolen.statement)
    claimed.signer_site = "south"
    stolen.statement = claimed.SerializeToString(deterministic=True)
    assert arrives(north, statement=stolen) is not None
    assert "message refused" in shown(north)


def test_who_guesses_the_rows_cannot_tell_them_from_the_commitment(pair: Pair) -> None:
    """Few rows of few values could be tried out, were the digest that the coordinator sees not salted."""
    north, south = pair
    transfer = prepared(north, south)
    with south.store.read() as connection:
        payload = prepared_payload(south, connection, transfer)
    commitment = outbound.commitment(payload)
    guessed = pb.TransferPayload(manifest=payload.manifest, samples=payload.samples)
    assert outbound.commitment(guessed) != commitment
    assert outbound.sha256(payload.manifest) != commitment
    assert len(payload.salt) == 32
    again = pb.TransferPayload.FromString(payload.SerializeToString())
    again.salt = bytes(32)
    assert outbound.commitment(again) != commitment


@pytest.mark.parametrize("jump", [MAX_GAP + 1, 2**40, 2**63 - 1, 2**64 - 1])
async def test_a_huge_inbox_number_cannot_silence_a_site(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    north, south = pair
    connection = north.connect()
    agent = Agent(north, connection)
    last = agent._last_sequence()
    number = min(last + jump, 2**64 - 1)

    with pytest.raises(VerificationError, match="tell the operator"):
        agent._keep(wire.InboxMessage(sequence=number))
    with pytest.raises(VerificationError):
        agent._keep(wire.InboxMessage(sequence=number))
    connection.close()

    assert agent._last_sequence() == last
    assert len([e for e in events(north, "message refused") if "inbox message" in e]) == 1
    assert "inbox message" in shown(north)
    identifier = await asked_and_given(north, south)
    await exchange(south, north)
    assert states(identifier, north) == ["ACTIVE"]


def test_messages_are_stored_once_and_only_forward(pair: Pair) -> None:
    north, _ = pair
    with north.store.write() as connection:
        last = max(row.sequence for row in connection.execute(store.inbox.select()))
        keep_message(connection, wire.InboxMessage(sequence=last + 5))
        keep_message(connection, wire.InboxMessage(sequence=last + 5))
        with pytest.raises(VerificationError, match="expected"):
            keep_message(connection, wire.InboxMessage(sequence=last + 3))
