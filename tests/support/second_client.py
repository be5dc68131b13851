"""A second implementation of a site's connection, written from docs/protocol.md, sections 1, 3, 8 and 9."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from second_statements import SecondSite
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_protocols.v1 import statements_pb2 as pb

TIMEOUT_S = 10.0
CHUNK_BYTES = 4_096


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def enrolment(site: SecondSite, token: dict[str, Any], now_ms: int) -> wire.EnrolRequest:
    return wire.EnrolRequest(
        token_secret=token["secret"],
        site=site.name,
        certificate_request=site.certificate_request(),
        keys=site.keys(now_ms),
    )


async def ask_to_enrol(request: wire.EnrolRequest, token: dict[str, Any]) -> wire.EnrolResponse:
    credentials = grpc.ssl_channel_credentials(pem(token["ca_certificate"]))
    async with grpc.aio.secure_channel(token["enrolment_address"], credentials) as channel:
        response: wire.EnrolResponse = await rpc.EnrolmentStub(channel).Enrol(
            request, timeout=TIMEOUT_S
        )
        return response


class SecondConnection:
    """Calls of an enrolled site."""

    def __init__(self, site: SecondSite, token: dict[str, Any], certificate: bytes) -> None:
        credentials = grpc.ssl_channel_credentials(
            pem(token["ca_certificate"]), site.tls_pem(), pem(certificate)
        )
        self.channel = grpc.aio.secure_channel(token["address"], credentials)
        self.stub: Any = rpc.CoordinatorStub(self.channel)
        self.after = 0
        self.sent: list[bytes] = []

    async def submit(self, signed: pb.SignedStatement) -> wire.SubmitReceipt:
        receipt: wire.SubmitReceipt = await self.stub.Submit(signed, timeout=TIMEOUT_S)
        self.sent.append(receipt.statement_digest)
        return receipt

    async def inbox(self) -> list[wire.InboxMessage]:
        """What is new; asked behind the next time."""
        stream = self.stub.Inbox(wire.InboxRequest(after=self.after), timeout=TIMEOUT_S)
        messages = [message async for message in stream]
        self.after = max([self.after, *(message.sequence for message in messages)])
        return messages

    async def upload(self, transfer_id: bytes, stream: bytes, *, at_most: int) -> bool:
        """Send up to so many bytes from where the coordinator's end; True once it has them all."""
        query = wire.UploadQuery(transfer_id=transfer_id)
        stored = (await self.stub.GetUpload(query, timeout=TIMEOUT_S)).stored_bytes

        async def chunks() -> AsyncIterator[wire.UploadChunk]:
            end = min(len(stream), stored + at_most)
            for at in range(stored, end, CHUNK_BYTES):
                data = stream[at : min(at + CHUNK_BYTES, end)]
                yield wire.UploadChunk(transfer_id=transfer_id, offset=at, data=data)

        return bool((await self.stub.Upload(chunks(), timeout=TIMEOUT_S)).complete)

    async def download(self, transfer_id: bytes, offset: int = 0) -> bytes:
        request = wire.DownloadRequest(transfer_id=transfer_id, offset=offset)
        parts = self.stub.Download(request, timeout=TIMEOUT_S)
        return b"".join([part.data async for part in parts])


def refusal_of(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    """Status and kind of a refusal, section 1."""
    metadata = dict(error.trailing_metadata() or ())
    return error.code(), str(metadata.get("synthedge-error", ""))
