"""A real coordinator on 127.0.0.1 and hospitals that talk to it with hand-made statements."""

import asyncio
import hashlib
import io
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from sqlalchemy import select

from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.grids import NamedGrid
from synthedge_protocols.certificates import load_certificate, pem, site_csr
from synthedge_protocols.errors import from_status
from synthedge_protocols.keys import HpkeKeyPair, StatementKey, TlsKey
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import Sealed, SealingContext, seal
from synthedge_protocols.statements import sign, transfer_id
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.enrolment import add_token
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.operations import change, create_coordinator, reading
from synthedge_server.serve import Coordinator, running
from synthedge_server.settings import Address, read_settings
from synthedge_server.telling import Telling

CONSORTIUM = "test-consortium"
DICTIONARY_TOML = """
schema_version = 1
name = "test"

[target]
column = "progressed"
positive = "1"
definition = "made up for tests"

[[features]]
name = "bp"
kind = "continuous"
unit = "mm[Hg]"
plausible = [30, 200]
center = 94.0
scale = 14.0
cut_points = [80, 90, 100]
privacy = "measurement"
decimals = 0

[[features]]
name = "sex"
kind = "binary"
levels = ["1", "2"]
level_names = ["female", "male"]
privacy = "measurement"

[[features]]
name = "note"
kind = "binary"
levels = ["0", "1"]

[[grids]]
name = "bp"
features = ["bp"]

[[grids]]
name = "sex x bp"
features = ["sex", "bp"]

[policy]
disclosure = "threshold"
epsilon = 1.0
epsilon_total = 4.0
min_count = 5
min_sites = 3
similarity = 0.7
rows_per_transfer = 20
"""
DICTIONARY = parse_dictionary(DICTIONARY_TOML)
DIGEST = bytes.fromhex(DICTIONARY.digest)
LIMITS = Limits(chunk_bytes=32_768)
TIMEOUT_S = 10.0
DAY_MS = 86_400_000


def acceptance(dictionary: Dictionary = DICTIONARY, version: int = 1) -> pb.DictionaryAcceptance:
    """What a steward signs to accept a dictionary."""
    return pb.DictionaryAcceptance(
        version=version, outcome_digest=bytes.fromhex(dictionary.target.outcome_digest)
    )


class Clock:
    """The system's time, moved by tests."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


def counts_of_site(i_site: int, *, hole: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative counts over sex x bp, shape (8,): no two sites alike, at most one hole."""
    positives = np.array([10, 15, 20, 25, 10, 15, 20, 25]) + 5 * i_site
    negatives = np.array([30, 30, 25, 20, 30, 30, 25, 20]) + 5 * i_site
    if hole is not None:
        positives[hole] = 0
    return positives, negatives


def gap_report(
    positives: np.ndarray, negatives: np.ndarray, dictionary: Dictionary = DICTIONARY
) -> pb.GapReport:
    """A truthful report of counts over sex x bp."""
    grids = []
    for spec in dictionary.grids:
        grid = NamedGrid(dictionary, spec)
        shape = (2, 4)
        axis = 0 if spec.name == "bp" else None
        p, n = (x.reshape(shape).sum(axis=axis) if axis == 0 else x for x in (positives, negatives))
        stats = voxel_statistics(p, n)
        grids.append(
            pb.GridReport(
                grid=grid.name,
                positive_rate=stats.grid_positive_rate,
                voxels=[
                    pb.VoxelReport(
                        index=grid.index_of(i),
                        centroid=grid.centroid(i).tolist(),
                        gap_score=stats.gap_score[i],
                        sparsity=stats.sparsity[i],
                        label_entropy=stats.label_entropy[i],
                        density=stats.density[i],
                        positive_rate=stats.positive_rate[i],
                    )
                    for i in range(grid.n_voxels)
                ],
            )
        )
    return pb.GapReport(
        release_id=secrets.token_bytes(16),
        disclosure="threshold",
        min_count=5,
        features=["bp", "sex"],
        grids=grids,
    )


@asynccontextmanager
async def as_protocol_error() -> AsyncIterator[None]:
    """Raise what the coordinator answered as the error a site's program would see."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_status(error.code(), error.details(), error.trailing_metadata()) from None


@dataclass
class Hospital:
    """A site's keys and its connection; it signs whatever a test tells it to."""

    name: str
    consortium: str = CONSORTIUM
    statement: StatementKey = field(default_factory=StatementKey.generate)
    steward: StatementKey = field(default_factory=StatementKey.generate)
    hpke: HpkeKeyPair = field(default_factory=HpkeKeyPair.generate)
    tls: TlsKey = field(default_factory=TlsKey.generate)
    certificate: bytes = b""
    # The steward's, by the keys it is of: made once, as by a site's program.
    steward_certificates: dict[bytes, pb.SignedStatement] = field(default_factory=dict)
    # Key ids of everybody who enrolled at the same coordinator.
    key_ids: dict[str, bytes] = field(default_factory=dict)
    channels: list[grpc.aio.Channel] = field(default_factory=list)
    stub: Any = None

    def enrol_request(self, token: EnrolmentToken) -> wire.EnrolRequest:
        return wire.EnrolRequest(
            token_secret=token.secret,
            site=self.name,
            certificate_request=site_csr(self.tls, self.name),
            keys=self.keys(),
        )

    def keys(self) -> pb.SiteKeys:
        now_ms = time.time_ns() // 1_000_000
        hpke = pb.HpkeKey(
            key_id=self.hpke.key_id,
            public_key=self.hpke.public_bytes,
            not_before_ms=now_ms,
            not_after_ms=now_ms + 365 * DAY_MS,
        )
        return pb.SiteKeys(
            site=self.name,
            statement_public_key=self.statement.public_bytes,
            hpke_key=self.sign(hpke, dictionary_digest=b""),
        )

    def sign(self, payload: Message, *, dictionary_digest: bytes = DIGEST) -> pb.SignedStatement:
        return sign(
            self.statement,
            payload,
            consortium=self.consortium,
            site=self.name,
            dictionary_digest=dictionary_digest,
            issued_at_ms=time.time_ns() // 1_000_000,
        )

    def sign_as_steward(
        self, payload: Message, *, dictionary_digest: bytes = DIGEST
    ) -> pb.SignedStatement:
        return sign(
            self.steward,
            payload,
            consortium=self.consortium,
            site=self.name,
            dictionary_digest=dictionary_digest,
            issued_at_ms=time.time_ns() // 1_000_000,
            certificate=self._steward_certificate(),
        )

    def _steward_certificate(self) -> pb.SignedStatement:
        keys = self.statement.key_id + self.steward.key_id
        if keys not in self.steward_certificates:
            now_ms = time.time_ns() // 1_000_000
            certificate = pb.StewardCertificate(
                steward="ada",
                public_key=self.steward.public_bytes,
                not_before_ms=now_ms,
                not_after_ms=now_ms + 365 * DAY_MS,
            )
            self.steward_certificates[keys] = self.sign(certificate, dictionary_digest=b"")
        return self.steward_certificates[keys]

    async def submit(self, signed: pb.SignedStatement) -> wire.SubmitReceipt:
        async with as_protocol_error():
            receipt: wire.SubmitReceipt = await self.stub.Submit(signed, timeout=TIMEOUT_S)
            return receipt

    async def inbox(self, after: int = 0) -> list[wire.InboxMessage]:
        async with as_protocol_error():
            stream = self.stub.Inbox(wire.InboxRequest(after=after), timeout=TIMEOUT_S)
            return [message async for message in stream]

    async def upload(
        self, identifier: bytes, data: bytes, offset: int = 0, *, until: int | None = None
    ) -> wire.UploadProgress:
        async def chunks() -> AsyncIterator[wire.UploadChunk]:
            end = len(data) if until is None else until
            for at in range(offset, end, 4096):
                part = data[at : min(at + 4096, end)]
                yield wire.UploadChunk(transfer_id=identifier, offset=at, data=part)

        async with as_protocol_error():
            progress: wire.UploadProgress = await self.stub.Upload(chunks(), timeout=TIMEOUT_S)
            return progress

    async def progress(self, identifier: bytes) -> wire.UploadProgress:
        async with as_protocol_error():
            progress: wire.UploadProgress = await self.stub.GetUpload(
                wire.UploadQuery(transfer_id=identifier), timeout=TIMEOUT_S
            )
            return progress

    async def download(self, identifier: bytes, offset: int = 0) -> bytes:
        async with as_protocol_error():
            request = wire.DownloadRequest(transfer_id=identifier, offset=offset)
            parts = [part.data async for part in self.stub.Download(request, timeout=TIMEOUT_S)]
            return b"".join(parts)

    def key_request(self, identifier: bytes) -> wire.KeyRequest:
        return wire.KeyRequest(
            transfer_id=identifier, request=self.sign(pb.ReleaseRequest(transfer_id=identifier))
        )

    async def release_key(self, identifier: bytes) -> pb.SignedStatement:
        async with as_protocol_error():
            signed: pb.SignedStatement = await self.stub.ReleaseKey(
                self.key_request(identifier), timeout=TIMEOUT_S
            )
            return signed

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


class Consortium:
    """A coordinator's folder, its ports and everybody who enrolled."""

    def __init__(self, folder: CoordinatorFolder, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.sites_port = self.enrolment_port = 0
        self.telling: Telling | None = None  # of the coordinator, if it runs in this process
        self.channels: list[grpc.aio.Channel] = []
        self.key_ids: dict[str, bytes] = {}

    def listens(self, coordinator: Coordinator) -> None:
        self.sites_port = coordinator.sites_port
        self.enrolment_port = coordinator.enrolment_port
        self.telling = coordinator._telling

    async def everybody_is_told(self) -> None:
        """Wait until the coordinator has told all sites what follows from the reports it has."""
        due = store.tellings.c.n_reported > store.tellings.c.n_told
        with reading(self.folder) as engine, engine.connect() as connection:
            while connection.execute(select(store.tellings).where(due)).first() is not None:
                connection.rollback()
                if self.telling is not None:
                    await self.telling.tell_if_due()
                await asyncio.sleep(0.005)

    @property
    def ca_pem(self) -> bytes:
        return self.folder.ca_certificate.read_bytes()

    def invite(self, site: str, *, valid_ms: int = DAY_MS) -> EnrolmentToken:
        token = EnrolmentToken(
            consortium=CONSORTIUM,
            site=site,
            address=f"127.0.0.1:{self.sites_port}",
            enrolment_address=f"127.0.0.1:{self.enrolment_port}",
            ca_certificate=b"only sites read it",
            secret=secrets.token_bytes(32),
            expires_at_ms=self.clock() + valid_ms,
        )
        change(self.folder, lambda t: add_token(t, token))
        return token

    def channel(self, port: int, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials)
        self.channels.append(channel)
        return channel

    async def ask_to_enrol(self, request: wire.EnrolRequest) -> wire.EnrolResponse:
        channel = self.channel(self.enrolment_port, grpc.ssl_channel_credentials(self.ca_pem))
        async with as_protocol_error():
            response: wire.EnrolResponse = await rpc.EnrolmentStub(channel).Enrol(
                request, timeout=TIMEOUT_S
            )
            return response

    async def enrol(self, name: str, *, accepts: bool = True) -> Hospital:
        hospital = Hospital(name, key_ids=self.key_ids)
        self.key_ids[name] = hospital.statement.key_id
        response = await self.ask_to_enrol(hospital.enrol_request(self.invite(name)))
        hospital.certificate = response.certificate
        self.connect(hospital)
        if accepts:
            await hospital.submit(hospital.sign_as_steward(acceptance()))
        return hospital

    def connect(self, hospital: Hospital) -> None:
        credentials = grpc.ssl_channel_credentials(
            self.ca_pem, hospital.tls.pem(), pem(load_certificate(hospital.certificate))
        )
        hospital.stub = rpc.CoordinatorStub(self.channel(self.sites_port, credentials))

    async def reporting(self, *names: str) -> list[Hospital]:
        """Enrol sites that publish truthful reports; the first one has a hole at male, 100 and above."""
        hospitals = [await self.enrol(name) for name in names]
        for i, hospital in enumerate(hospitals):
            counts = counts_of_site(i, hole=7 if i == 0 else None)
            await hospital.submit(hospital.sign_as_steward(gap_report(*counts)))
        await self.everybody_is_told()
        return hospitals

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


def new_folder(
    path: Path,
    *,
    sites_port: int = 0,
    enrolment_port: int = 0,
    database: str | None = None,
    password_file: str | None = None,
) -> CoordinatorFolder:
    folder = CoordinatorFolder(path)
    create_coordinator(
        folder,
        name=CONSORTIUM,
        dictionary_toml=DICTIONARY_TOML,
        listen=Address(host="127.0.0.1", port=sites_port),
        enrolment_listen=Address(host="127.0.0.1", port=enrolment_port),
        database=database,
        database_password_file=password_file,
    )
    return folder


@pytest_asyncio.fixture
async def coordinator(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Consortium]:
    """A coordinator in this process: real ports, real certificates, its own authority process."""
    clock, database = Clock(), None
    if getattr(request, "param", "sqlite") == "postgresql":
        database = request.getfixturevalue("postgres").new_database()
    consortium = Consortium(new_folder(tmp_path / "coordinator", database=database), clock)
    # A module that asks for reflection gets what an operator can switch on.
    settings = replace(
        read_settings(consortium.folder.settings),
        reflection=getattr(request.module, "REFLECTION", False),
    )
    async with running(consortium.folder, clock=clock, limits=LIMITS, settings=settings) as started:
        consortium.listens(started)
        yield consortium
        await consortium.close()


@dataclass
class Shipped:
    """A transfer as its donor sees it after sealing."""

    identifier: bytes
    request: pb.SignedStatement
    approval: pb.SignedStatement
    shipment: pb.SignedStatement
    ciphertext: bytes
    sealed: Sealed
    context: SealingContext


def request_of(asking: Hospital, asked: str, **changes: Any) -> pb.TransferRequest:
    fields: dict[str, Any] = {
        "recipient": asking.name,
        "donor": asked,
        "grid": "sex x bp",
        "voxel": [1, 3],
        "purpose": "DUO:0000007",
        "features": ["bp", "sex"],
        "rows": 5,
        "retention_days": 30,
        "hpke_key_id": asking.hpke.key_id,
        "nonce": secrets.token_bytes(32),
        "donor_key_id": asking.key_ids.get(asked, b""),
        "accept_if_gate_passes": True,
    }
    return pb.TransferRequest(**{**fields, **changes})


async def ship(recipient: Hospital, donor: Hospital, payload: bytes) -> Shipped:
    """Request, approve, seal and announce a transfer; nothing is uploaded yet."""
    request = request_of(recipient, donor.name)
    signed_request = recipient.sign_as_steward(request)
    await recipient.submit(signed_request)
    identifier = transfer_id(request.SerializeToString(deterministic=True))
    commitment = hashlib.sha256(b"salt and manifest").digest()
    request_digest = hashlib.sha256(signed_request.statement).digest()
    approval = donor.sign_as_steward(
        pb.Approval(
            transfer_id=identifier,
            request_digest=request_digest,
            manifest_commitment=commitment,
            rows=5,
        )
    )
    await donor.submit(approval)
    context = SealingContext(
        transfer_id=identifier,
        request_digest=request_digest,
        manifest_commitment=commitment,
        donor_key_id=donor.statement.key_id,
        recipient_key_id=recipient.statement.key_id,
        recipient_hpke_key_id=recipient.hpke.key_id,
        dictionary_digest=DIGEST,
    )
    out = io.BytesIO()
    sealed = seal(
        io.BytesIO(payload),
        out,
        recipient=recipient.hpke.public_key,
        context=context,
        limits=LIMITS,
    )
    shipment = donor.sign(sealed.shipment(identifier))
    await donor.submit(shipment)
    return Shipped(identifier, signed_request, approval, shipment, out.getvalue(), sealed, context)


def kinds(messages: Sequence[wire.InboxMessage]) -> list[str]:
    return [message.WhichOneof("body") or "" for message in messages]


async def eventually(condition: Any, *, within_s: float = 5.0) -> None:
    """Wait for something the coordinator does on its own."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)
