"""Sealing against bare AES-GCM, the relay against bare TLS, its memory under a slow reader, and what a kill costs.

The coordinator is the real program in a process of its own; the sites' side is the site's own connection. "AES-GCM
alone" reads the same bytes from the same memory into one reused buffer and encrypts or decrypts them into another.
"Raw TLS" copies the same bytes through two Python TLS connections, one after the other. CPU is that of all processes
together.
"""

import asyncio
import contextlib
import hashlib
import io
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import psutil
from bench import Bar, run_benchmark
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# The tests' hospitals, which sign whatever they are told to.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from server_fixtures import DIGEST, Clock, Consortium, Hospital, new_folder, request_of
from synthedge_client.connection import Connection
from synthedge_protocols.certificates import (
    create_ca,
    issue_server_certificate,
    load_certificate,
    pem,
)
from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.keys import HpkeKeyPair, TlsKey
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import Sealed, SealingContext, open_sealed, seal
from synthedge_protocols.statements import transfer_id
from synthedge_protocols.v1 import statements_pb2 as pb

MIB = 2**20
LIMITS = Limits()
CHUNK = LIMITS.chunk_bytes
TAG = 16
MIN_SEAL, MIN_OPEN = 0.9, 0.75
MAX_CPU_RATIO = 3.0
MAX_MEMORY_MB = 96.0
MAX_RESENT = 0.05
REPEATS = 5


class _Sink:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        """Drop what is written."""
        return len(data)

    def tell(self) -> int:
        """Say where it stands."""
        return 0

    def seek(self, at: int) -> int:
        """Go there."""
        return at

    def truncate(self) -> int:
        """Cut it."""
        return 0


NOWHERE = cast(BinaryIO, _Sink())


def sealing(n_bytes: int) -> list[Bar]:
    """Compare sealing and opening with AES-GCM alone; the best of some runs each, in turns."""
    pair = HpkeKeyPair.generate()
    context = SealingContext(
        transfer_id=b"i" * 32,
        request_digest=b"r" * 32,
        manifest_commitment=b"m" * 32,
        donor_key_id=b"n" * 32,
        recipient_key_id=b"s" * 32,
        recipient_hpke_key_id=pair.key_id,
        dictionary_digest=DIGEST,
    )
    # With its length behind it, the content fills its size class: both sides handle as many bytes.
    plain, stream = io.BytesIO(bytes(n_bytes - 8)), io.BytesIO()
    sealed = seal(plain, stream, recipient=pair.public_key, context=context, limits=LIMITS)

    def sealing_s() -> float:
        plain.seek(0)
        return _cpu_s(
            lambda: seal(plain, NOWHERE, recipient=pair.public_key, context=context, limits=LIMITS)
        )

    def opening_s() -> float:
        stream.seek(0)
        return _cpu_s(
            lambda: open_sealed(
                stream, NOWHERE, sealed=sealed, key_pair=pair, context=context, limits=LIMITS
            )
        )

    times = [
        (
            sealing_s(),
            _cpu_s(lambda: _encrypt(plain)),
            opening_s(),
            _cpu_s(lambda: _decrypt(stream)),
        )
        for _ in range(REPEATS)
    ]
    seal_s, encrypt_s, open_s, decrypt_s = (min(column) for column in zip(*times, strict=True))
    return [
        Bar("AES-GCM alone over sealing, rate", seal_s / encrypt_s, 1 / MIN_SEAL),
        Bar("AES-GCM alone over opening, rate", open_s / decrypt_s, 1 / MIN_OPEN),
        Bar("sealing, GB a CPU second", n_bytes / seal_s / 1e9),
        Bar("opening, GB a CPU second", n_bytes / open_s / 1e9),
    ]


def _cpu_s(work: Callable[[], object]) -> float:
    before = time.thread_time()
    work()
    return time.thread_time() - before


def _encrypt(source: io.BytesIO) -> None:
    aead, buffer = AESGCM(bytes(32)), memoryview(bytearray(CHUNK))
    out = memoryview(bytearray(CHUNK + TAG))
    source.seek(0)
    while source.readinto(buffer):
        aead.encrypt_into(bytes(12), buffer, b"", out)


def _decrypt(source: io.BytesIO) -> None:
    aead, buffer = AESGCM(bytes(32)), memoryview(bytearray(CHUNK + TAG))
    out = memoryview(bytearray(CHUNK))
    source.seek(0)
    while source.readinto(buffer):
        try:
            aead.decrypt_into(bytes(12), buffer, b"", out)
        except InvalidTag:  # the work is done before the tag is compared
            continue


@dataclass
class Transfer:
    """A shipment that was announced, and its sealed bytes."""

    identifier: bytes
    stream: Path
    sealed: Sealed


class Relay:
    """A coordinator in its own process, and two sites that relay sealed bytes through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = [_free_port(), _free_port()]
        self.consortium = Consortium(
            new_folder(folder / "coordinator", sites_port=ports[0], enrolment_port=ports[1]),
            Clock(),
        )
        self.consortium.sites_port, self.consortium.enrolment_port = ports
        self.process = self.start()
        self.north: Hospital
        self.south: Hospital

    def start(self) -> psutil.Popen:
        """Start the coordinator, and wait until it is ready."""
        command = [sys.executable, "-c", "from synthedge_server.cli import main; main()", "serve"]
        with (self.folder / "coordinator.log").open("ab") as log:
            process = psutil.Popen(
                [*command, f"--dir={self.consortium.folder.path}"],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        _require(process.stdout.readline().startswith(b"ready"), "the coordinator did not start")
        return process

    async def enrol(self) -> None:
        """Enrol three sites that report; two of them are used."""
        self.north, self.south, _ = await self.consortium.reporting("north", "south", "west")

    async def announce(self, n_bytes: int) -> Transfer:
        """Request, approve and seal a transfer of so many bytes."""
        request = request_of(self.north, "south")
        asked = self.north.sign_as_steward(request)
        await self.north.submit(asked)
        identifier = transfer_id(request.SerializeToString(deterministic=True))
        approval = pb.Approval(
            transfer_id=identifier,
            request_digest=hashlib.sha256(asked.statement).digest(),
            manifest_commitment=secrets.token_bytes(32),
            rows=5,
        )
        await self.south.submit(self.south.sign_as_steward(approval))
        context = SealingContext(
            transfer_id=identifier,
            request_digest=approval.request_digest,
            manifest_commitment=approval.manifest_commitment,
            donor_key_id=self.south.statement.key_id,
            recipient_key_id=self.north.statement.key_id,
            recipient_hpke_key_id=self.north.hpke.key_id,
            dictionary_digest=DIGEST,
        )
        plain, path = self.folder / "plain", self.folder / identifier.hex()
        with plain.open("wb") as file:
            file.truncate(n_bytes)
        with plain.open("rb") as source, path.open("wb") as out:
            sealed = seal(
                source, out, recipient=self.north.hpke.public_key, context=context, limits=LIMITS
            )
        await self.south.submit(self.south.sign(sealed.shipment(identifier)))
        return Transfer(identifier, path, sealed)

    def connect(self, hospital: Hospital) -> Connection:
        """Connect as the site's own program does."""
        certificate = self.folder / f"{hospital.name}.pem"
        certificate.write_bytes(pem(load_certificate(hospital.certificate)))
        return Connection(
            f"127.0.0.1:{self.consortium.sites_port}",
            ca=self.consortium.folder.ca_certificate,
            certificate=certificate,
            key_pem=hospital.tls.pem(),
        )

    def cpu_s(self) -> float:
        """CPU seconds of the coordinator and of this process."""
        times = [self.process.cpu_times(), psutil.Process().cpu_times()]
        return float(sum(t.user + t.system for t in times))

    def peak_mb(self) -> float:
        """Peak resident memory of the coordinator, in MB of a million bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6

    def stop(self) -> None:
        """End the coordinator."""
        self.process.kill()
        self.process.wait()


def _chunks(path: Path, offset: int, sent: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(LIMITS.sent_bytes):
            sent(len(data))
            yield offset, data
            offset += len(data)


def relay_cpu(relay: Relay, transfer: Transfer) -> float:
    """CPU seconds of one upload and one download of a transfer."""
    before = relay.cpu_s()
    south, north = relay.connect(relay.south), relay.connect(relay.north)
    done = south.upload(transfer.identifier, _chunks(transfer.stream, 0, lambda n: None))
    _require(done.complete, "the upload did not complete")
    n_bytes = sum(len(chunk.data) for chunk in north.download(transfer.identifier, 0))
    _require(n_bytes == transfer.sealed.ciphertext_bytes, "bytes were lost")
    south.close()
    north.close()
    return relay.cpu_s() - before


def raw_tls_cpu(folder: Path, path: Path, n_hops: int = 2) -> float:
    """CPU seconds of copying a file through TLS connections, one after the other."""
    now = datetime.now(UTC)
    ca_key, ca = create_ca("raw", now=now)
    key = TlsKey.generate()
    certificate = issue_server_certificate(ca_key, ca, key, names=["127.0.0.1"], now=now)
    (folder / "raw.pem").write_bytes(key.pem() + pem(certificate))
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(folder / "raw.pem")
    client_context = ssl.create_default_context(cadata=pem(ca).decode())
    before = psutil.Process().cpu_times()
    for _ in range(n_hops):
        _raw_hop(path, server_context, client_context)
    after = psutil.Process().cpu_times()
    return float(after.user + after.system - before.user - before.system)


def _raw_hop(path: Path, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def receive() -> None:
        plain, _ = listening.accept()
        buffer = bytearray(CHUNK)
        with server.wrap_socket(plain, server_side=True) as secured:
            while secured.recv_into(buffer):
                pass

    receiver = threading.Thread(target=receive)
    receiver.start()
    plain = socket.create_connection(listening.getsockname())
    with client.wrap_socket(plain, server_hostname="127.0.0.1") as secured, path.open("rb") as file:
        while data := file.read(CHUNK):
            secured.sendall(data)
        with contextlib.suppress(ssl.SSLError, OSError):  # the receiver closes without a word
            secured.unwrap()
    receiver.join()
    listening.close()


def slow_reader(relay: Relay, transfer: Transfer) -> float:
    """Download with a pause every 16 MiB; return the coordinator's peak memory so far, in MB."""
    connection = relay.connect(relay.north)
    n_bytes = 0
    for chunk in connection.download(transfer.identifier, 0):
        n_bytes += len(chunk.data)
        if chunk.offset % (16 * MIB) < CHUNK:
            time.sleep(0.1)
    _require(n_bytes == transfer.sealed.ciphertext_bytes, "bytes were lost")
    connection.close()
    return relay.peak_mb()


def resent_share(relay: Relay, transfer: Transfer, n_kills: int = 3) -> float:
    """Upload while the coordinator is killed; return the bytes sent twice over the stream's."""
    size = transfer.sealed.ciphertext_bytes
    sent, kills = 0, 0

    def count(n_bytes: int) -> None:
        nonlocal sent, kills
        sent += n_bytes
        if kills < n_kills and sent > (kills + 1) * size / (n_kills + 1):
            kills += 1
            relay.stop()

    while True:
        connection = relay.connect(relay.south)
        try:
            stored = connection.upload_progress(transfer.identifier).stored_bytes
            chunks = _chunks(transfer.stream, stored, count)
            if connection.upload(transfer.identifier, chunks).complete:
                return sent / size - 1
        except ProtocolError:
            relay.process = relay.start()
        finally:
            connection.close()


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def relaying(quick: bool) -> list[Bar]:
    """Measure everything that needs a coordinator."""
    n_bytes = (128 if quick else 1024) * MIB
    with tempfile.TemporaryDirectory() as name:
        relay = Relay(Path(name))
        try:
            await relay.enrol()
            large = await relay.announce(n_bytes)
            # The machine is shared: raw TLS is measured on both sides of the relay.
            raw = raw_tls_cpu(relay.folder, large.stream)
            cpu = relay_cpu(relay, large)
            raw = (raw + raw_tls_cpu(relay.folder, large.stream)) / 2
            peak_mb = slow_reader(relay, large)
            large.stream.unlink()
            resent = resent_share(relay, await relay.announce(n_bytes))
            await relay.consortium.close()
        finally:
            relay.stop()
    return [
        Bar("CPU of the spool relay over two raw TLS hops", cpu / raw, MAX_CPU_RATIO),
        Bar(f"coordinator's peak MB, {n_bytes // MIB} MiB, slow reader", peak_mb, MAX_MEMORY_MB),
        Bar("share sent again after three SIGKILLs", resent, MAX_RESENT),
    ]


def measure(*, quick: bool) -> list[Bar]:
    """Measure; in under a minute if `quick`."""
    return [
        *sealing(256 * MIB),
        *asyncio.run(relaying(quick)),
    ]


if __name__ == "__main__":
    # gRPC would log its own lines about the killed coordinator.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    run_benchmark("relay", measure)
