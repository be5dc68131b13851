"""Uploads and downloads: cut off with their site, resumed where they stopped, in memory that does not grow."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from server_fixtures import TIMEOUT_S, Consortium, as_protocol_error, ship
from synthedge_protocols.certificates import load_certificate, pem
from synthedge_protocols.errors import (
    IdentityError,
    LifecycleError,
    LimitExceededError,
    UnavailableError,
)
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_server import relay
from synthedge_server.operations import set_site_state
from synthedge_server.relay import Spool

PAYLOAD = bytes(3_000_000)
KEY = b"k" * 32
SYNC = 4 * 1024 * 1024


@pytest.mark.parametrize("state", ["suspended", "revoked"])
async def test_an_upload_that_waits_is_cut_within_a_second_of_its_sites_end(
    coordinator: Consortium, state: str
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)

    async def chunks() -> AsyncIterator[wire.UploadChunk]:
        yield wire.UploadChunk(
            transfer_id=shipped.identifier, offset=0, data=shipped.ciphertext[:4096]
        )
        await asyncio.sleep(30)

    call = asyncio.create_task(_uploading(south.stub, chunks()))
    await asyncio.sleep(0.5)
    assert not call.done()
    set_site_state(coordinator.folder, "south", state)
    cut_at = time.monotonic()
    with pytest.raises(IdentityError, match=state):
        await call
    assert time.monotonic() - cut_at < 1.0


async def _uploading(stub: object, chunks: AsyncIterator[wire.UploadChunk]) -> None:
    async with as_protocol_error():
        await stub.Upload(chunks, timeout=TIMEOUT_S)  # type: ignore[attr-defined]


async def test_a_slow_reader_is_cut_within_a_second_of_its_sites_end(
    coordinator: Consortium,
) -> None:
    north, south, _ = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, PAYLOAD)
    await south.upload(shipped.identifier, shipped.ciphertext)
    # A reader whose buffers are small, as a slow line's are.
    credentials = grpc.ssl_channel_credentials(
        coordinator.ca_pem, north.tls.pem(), pem(load_certificate(north.certificate))
    )
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{coordinator.sites_port}", credentials, options=options
    )
    coordinator.channels.append(channel)
    call: Any = rpc.CoordinatorStub(channel).Download(
        wire.DownloadRequest(transfer_id=shipped.identifier), timeout=TIMEOUT_S
    )
    first = await call.read()
    assert first.offset == 0
    set_site_state(coordinator.folder, "north", "suspended")
    await asyncio.sleep(1.0)

    sizes = [len(first.data)]
    with pytest.raises(IdentityError, match="suspended"):
        await _read_on(call, sizes)
    assert sum(sizes) < len(shipped.ciphertext)


async def _read_on(call: Any, sizes: list[int]) -> None:
    async with as_protocol_error():
        while chunk := await call.read():
            sizes.append(len(chunk.data))


def test_every_four_mebibytes_are_on_disk_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    spool, chunk = Spool(tmp_path / "spool"), bytes(1024 * 1024)
    for i in range(9):
        spool.append(KEY, i * len(chunk), chunk, 10 * len(chunk))
    assert synced == [SYNC, 2 * SYNC]
    assert spool.sync(KEY) == 9 * len(chunk)
    assert spool.sync(b"?" * 32) == 0


def test_what_a_power_loss_may_have_torn_is_cut_off_and_a_kill_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "spool"
    spool, whole = Spool(folder), b"w" * 32
    spool.cut_what_a_power_loss_tore(set())
    for key in (KEY, whole):
        spool.append(key, 0, bytes(SYNC + 10), 2 * SYNC)
    spool.cut_what_a_power_loss_tore(set())
    assert spool.sync(KEY) == SYNC + 10  # another process, the same boot

    boot, first = tmp_path / "boot", relay._BOOT_ID
    boot.write_text("another-boot\n")
    monkeypatch.setattr(relay, "_BOOT_ID", boot)
    spool.cut_what_a_power_loss_tore({whole})
    assert spool.sync(KEY) == SYNC
    # What a recipient was promised was on disk before.
    assert spool.sync(whole) == SYNC + 10
    monkeypatch.setattr(relay, "_BOOT_ID", first)
    spool.append(KEY, SYNC, b"mo", 2 * SYNC)
    spool.cut_what_a_power_loss_tore(set())  # the other of two machines, which ran on
    assert spool.sync(KEY) == SYNC + 2
    boot.write_text("third-boot\n")
    monkeypatch.setattr(relay, "_BOOT_ID", boot)
    spool.cut_what_a_power_loss_tore({whole})
    Spool(folder).append(KEY, SYNC, b"more", 2 * SYNC)
    assert Spool(folder).sync(KEY) == SYNC + 4


def test_a_chunk_that_does_not_go_on_where_the_file_ends_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append(KEY, 0, b"abc", 5)
    for offset in (0, 2, 4):
        with pytest.raises(LifecycleError, match="3 bytes are stored"):
            spool.append(KEY, offset, b"d", 5)
    with pytest.raises(LimitExceededError):
        spool.append(KEY, 3, b"def", 5)


def test_what_a_file_system_puts_beside_sealed_bytes_is_left_alone_and_a_broken_one_is_a_sentence(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder)
    spool.append(KEY, 0, b"abc", 5)
    (folder / "lost+found").mkdir()
    (folder / ".nfs000000000001").write_bytes(b"deleted while it was read")
    assert spool.keys() == {KEY}
    folder.rename(tmp_path / "elsewhere")
    for use in (
        spool.keys,
        partial(spool.append, KEY, 3, b"d", 5),
        partial(spool.delete, KEY),
    ):
        with pytest.raises(UnavailableError, match="cannot store or read sealed bytes now"):
            use()
