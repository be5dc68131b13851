"""Sealed bytes in and out: chunks to and from the spool, for as long as the site may.

Rules
-----
* Whose stream it is, and whether the transfer still wants it, is looked up again every quarter second: a site that
  was suspended stores and reads nothing more, though it may send nothing that would wake the stream.
* What `GetUpload` answers is on disk.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from sqlalchemy import Row

from synthedge_protocols.errors import (
    DeadlineError,
    LifecycleError,
    LimitExceededError,
    MalformedError,
    VerificationError,
)
from synthedge_protocols.lifecycle import Party
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server.broker import Broker
from synthedge_server.callers import Callers, Context
from synthedge_server.ledger import Ledger
from synthedge_server.log import log
from synthedge_server.rates import Rates
from synthedge_server.relay import spool_key
from synthedge_server.transfer_records import transfer_of, upload_of, waiting_for

LOOK_S: Final = 0.25


class Streams:
    """Uploads and downloads.

    Parameters
    ----------
    callers : Callers
        Whose stream it is.
    broker : Broker
    ledger : Ledger
    limits : Limits
    """

    def __init__(self, callers: Callers, broker: Broker, ledger: Ledger, limits: Limits) -> None:
        self._callers = callers
        self._broker = broker
        self._ledger = ledger
        self._limits = limits
        self._rates = Rates(limits.bytes_per_s, limits.bytes_per_s)

    async def upload(
        self, chunks: AsyncIterator[wire.UploadChunk], context: Context
    ) -> wire.UploadProgress:
        """Append the chunks of one shipment; see `CoordinatorServicer.Upload`."""
        clock = asyncio.get_running_loop().time
        transfer_id: bytes | None = None
        upload: Row[Any] | None = None
        site, look_at = "", 0.0
        while (chunk := await self._next_chunk(chunks, context)) is not None:
            if transfer_id not in (None, chunk.transfer_id):
                raise MalformedError("one upload stream carries one transfer")
            # Each look at `data` copies it, and the message would stay until the next one is here.
            transfer_id, offset, data = chunk.transfer_id, chunk.offset, chunk.data
            del chunk
            if not 0 < len(data) <= self._limits.chunk_bytes:
                raise LimitExceededError(
                    f"a chunk of {len(data)} bytes; expected 1 to {self._limits.chunk_bytes}"
                )
            if upload is None or clock() >= look_at:
                site = self._callers.site_of(context)
                upload = self.announced(transfer_id, site)
                look_at = clock() + LOOK_S
            await asyncio.to_thread(
                self._ledger.spool.append,
                spool_key(transfer_id, upload.ciphertext_digest),
                offset,
                data,
                upload.ciphertext_bytes,
            )
            wait_s = self._rates.owe(site, len(data))
            del data
            await asyncio.sleep(wait_s)
        if transfer_id is None:
            raise MalformedError("the upload stream carried no chunk")
        return await self.progress(
            transfer_id, self.announced(transfer_id, self._callers.site_of(context))
        )

    async def download(
        self, request: wire.DownloadRequest, context: Context
    ) -> AsyncIterator[wire.DownloadChunk]:
        """Send a shipment's bytes from an offset on; see `CoordinatorServicer.Download`."""
        clock = asyncio.get_running_loop().time
        site, offset, look_at = self._callers.calling(context), request.offset, 0.0
        key = b""
        while True:
            if not key or clock() >= look_at:
                key = self._waiting(request.transfer_id, offset, context)
                look_at = clock() + LOOK_S
            data = await asyncio.to_thread(self._ledger.spool.read, key, offset)
            if not data:
                return
            await asyncio.sleep(self._rates.owe(site, len(data)))
            yield wire.DownloadChunk(offset=offset, data=data)
            offset += len(data)

    def _waiting(self, transfer_id: bytes, offset: int, context: Context) -> bytes:
        site = self._callers.site_of(context)
        with self._ledger.reading as connection:
            waiting_for(connection, transfer_id, site)
            upload = upload_of(connection, transfer_id)
        if upload is None or offset > upload.ciphertext_bytes:
            raise LifecycleError(f"nothing of this transfer lies at byte {offset}")
        return spool_key(transfer_id, upload.ciphertext_digest)

    async def _next_chunk(
        self, chunks: AsyncIterator[wire.UploadChunk], context: Context
    ) -> wire.UploadChunk | None:
        reading = asyncio.ensure_future(_next(chunks))
        waited_s = 0.0
        try:
            while not (await asyncio.wait({reading}, timeout=LOOK_S))[0]:
                self._callers.site_of(context)
                waited_s += LOOK_S
                if waited_s >= self._limits.stream_idle_s:
                    raise DeadlineError(
                        f"no chunk came for {self._limits.stream_idle_s:g} s; "
                        "ask GetUpload and go on there"
                    )
            return reading.result()
        finally:
            reading.cancel()

    def announced(self, transfer_id: bytes, site: str) -> Row[Any]:
        """The shipment that a donor announced.

        Raises
        ------
        LifecycleError
            If there is none, or the site is not the transfer's donor.
        """
        with self._ledger.reading as connection:
            transfer_of(connection, transfer_id, site, Party.DONOR)
            upload = upload_of(connection, transfer_id)
        if upload is None:
            raise LifecycleError(
                f"transfer {transfer_id.hex()[:8]} has no shipment yet; submit it before its bytes"
            )
        return upload

    async def progress(self, transfer_id: bytes, upload: Row[Any]) -> wire.UploadProgress:
        """Say what is stored; if that is everything, check it and tell the recipient.

        Raises
        ------
        VerificationError
            If it is not what was announced; it is deleted then.
        """
        spool = self._ledger.spool
        key = spool_key(transfer_id, upload.ciphertext_digest)
        stored = await asyncio.to_thread(spool.sync, key)
        if stored < upload.ciphertext_bytes:
            return wire.UploadProgress(stored_bytes=stored)
        try:
            digest = await asyncio.to_thread(spool.digest, key)
        except MalformedError:
            digest = b""
        if digest != upload.ciphertext_digest:
            await asyncio.to_thread(spool.delete, key)
            raise VerificationError(
                f"the bytes uploaded for transfer {transfer_id.hex()[:8]} are not those its shipment "
                "announced and were deleted; upload again from byte 0"
            )
        await self._ledger.write(lambda t: self._broker.relayed(t, transfer_id, digest))
        log("relayed", transfer=transfer_id.hex(), bytes=stored)
        return wire.UploadProgress(stored_bytes=stored, complete=True)


async def _next(chunks: AsyncIterator[wire.UploadChunk]) -> wire.UploadChunk | None:
    return await anext(chunks, None)
