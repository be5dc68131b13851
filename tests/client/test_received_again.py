"""Nobody gives samples to himself, and no sample is taken a second time."""

import pytest
import sqlalchemy as sa

from enrolled import exchange
from sites import MALE_HIGH, arrives, edit, steward, transfer_at
from synthedge_client import outbound, store
from synthedge_client.asking import request
from synthedge_client.donating import approve, prepare
from synthedge_client.received import load_samples
from synthedge_client.site import Site
from synthedge_client.status import describe_transfers
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.v1 import statements_pb2 as pb

Pair = list[Site]


def ask(north: Site, donor: str = "south") -> bytes:
    return request(
        north,
        steward(),
        donor=donor,
        grid=north.grid("sex x bp"),
        voxel=MALE_HIGH,
        rows=8,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )


async def delivered(north: Site, south: Site) -> bytes:
    identifier = ask(north)
    await exchange(north, south)
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())
    await exchange(south, north, south)
    return identifier


def test_a_site_cannot_ask_itself(pair: Pair) -> None:
    north, _ = pair
    with pytest.raises(SynthEdgeError):
        ask(north, donor="north")
    assert describe_transfers(north) == []


def test_a_site_does_not_hear_a_request_of_its_own(pair: Pair) -> None:
    _, south = pair
    body = pb.TransferRequest(
        recipient="south",
        donor="south",
        grid="sex x bp",
        voxel=[1, 3],
        purpose="DUO:0000007",
        features=["bp", "sex"],
        rows=5,
        retention_days=30,
        nonce=bytes(32),
    )
    signed = steward().sign(south, body)
    assert arrives(south, statement=signed) is not None
    assert describe_transfers(south) == []


async def test_a_row_that_was_received_is_refused_when_it_comes_again(pair: Pair) -> None:
    north, south = pair
    first = await delivered(north, south)
    assert transfer_at(north, first).state is State.ACTIVE
    # A donor that lost its ledger, or does not keep to it, gives the same patients again.
    with south.store.write() as connection:
        connection.execute(sa.delete(store.disclosed))

    again = await delivered(north, south)

    record = transfer_at(north, again)
    assert record.state is State.REFUSED
    assert record.reason == "8 of 8 rows or tokens were received before"
    assert len(load_samples(north)) == 8


async def test_a_token_that_was_received_is_refused_with_another_row(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = pair
    await delivered(north, south)
    with south.store.write() as connection:
        tokens = list(connection.execute(sa.select(store.disclosed.c.token)).scalars())
        connection.execute(sa.delete(store.disclosed))
    edit(south, bp=[120.0 + i % 60 for i in range(128)])
    honest = outbound.build_payload

    def replayed(*arguments: object, **more: object) -> object:
        payload = honest(*arguments, **more)  # type: ignore[arg-type]
        batch = pb.SampleBatch.FromString(payload.samples)
        for sample, token in zip(batch.samples, tokens, strict=False):
            sample.token = token
        payload.samples = batch.SerializeToString(deterministic=True)
        manifest = pb.Manifest.FromString(payload.manifest)
        manifest.rows_digest = outbound.sha256(payload.samples)
        payload.manifest = manifest.SerializeToString(deterministic=True)
        return payload

    monkeypatch.setattr(outbound, "build_payload", replayed)
    again = await delivered(north, south)

    assert "rows or tokens were received before" in (transfer_at(north, again).reason or "")
    assert len(load_samples(north)) == 8
