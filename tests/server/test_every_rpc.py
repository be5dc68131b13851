"""Every RPC of every service, found by reflection: as nobody, as another site, shut out, too large and malformed."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from raw_calls import all_methods, call_raw
from server_fixtures import DIGEST, Consortium, Hospital, Shipped, as_protocol_error, ship
from synthedge_protocols.certificates import load_certificate, pem, site_csr
from synthedge_protocols.errors import IdentityError, LimitExceededError, ProtocolError, from_status
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server.operations import set_site_state

REFLECTION = True
SERVICES = ("Enrolment", "Coordinator", "Health", "ServerReflection")
METHODS = {m.name: m for service in SERVICES for m in all_methods(service)}
WITHOUT_CERTIFICATE = {m.name for m in all_methods("Enrolment")}
# What every member may read, and nothing else: these answer another site too.
FOR_ALL_MEMBERS = {
    "GetDirectory",
    "GetDictionary",
    "GetLogHead",
    "Check",
    "Watch",
    "ServerReflectionInfo",
}
# These answer everybody about themselves.
ABOUT_THE_CALLER = {"Inbox", "GetReleases", "Compare"}


@dataclass
class Scene:
    """South ships to north; west is a member that has no part in it."""

    consortium: Consortium
    north: Hospital
    south: Hospital
    west: Hospital
    shipped: Shipped

    def channel(self, method: str, hospital: Hospital | None) -> grpc.aio.Channel:
        if method in WITHOUT_CERTIFICATE:
            port, credentials = (
                self.consortium.enrolment_port,
                grpc.ssl_channel_credentials(self.consortium.ca_pem),
            )
        elif hospital is None:
            port, credentials = (
                self.consortium.sites_port,
                grpc.ssl_channel_credentials(self.consortium.ca_pem),
            )
        else:
            port = self.consortium.sites_port
            credentials = grpc.ssl_channel_credentials(
                self.consortium.ca_pem,
                hospital.tls.pem(),
                pem(load_certificate(hospital.certificate)),
            )
        return self.consortium.channel(port, credentials)


@pytest_asyncio.fixture
async def scene(coordinator: Consortium) -> AsyncIterator[Scene]:
    north, south, west = await coordinator.reporting("north", "south", "west")
    shipped = await ship(north, south, bytes(5_000))
    yield Scene(coordinator, north, south, west, shipped)


def _upload(scene: Scene) -> wire.UploadChunk:
    return wire.UploadChunk(
        transfer_id=scene.shipped.identifier, offset=0, data=scene.shipped.ciphertext[:100]
    )


def _renewal(of: Hospital, site: str) -> wire.RenewRequest:
    csr = site_csr(of.tls, site)
    return wire.RenewRequest(
        request=of.sign(pb.Renewal(certificate_request=csr), dictionary_digest=b"")
    )


def _enrolment(scene: Scene) -> wire.EnrolRequest:
    token = scene.consortium.invite("east")
    return Hospital("thief").enrol_request(token)


# What would be right if its rightful site asked; west asks instead.
CASES: dict[str, Callable[[Scene], Any]] = {
    "Enrol": _enrolment,
    "RenewExpired": lambda s: wire.RenewRequest(
        request=Hospital("north").sign(
            pb.Renewal(certificate_request=site_csr(s.west.tls, "north")), dictionary_digest=b""
        )
    ),
    "Submit": lambda s: s.south.sign_as_steward(
        pb.Ending(transfer_id=s.shipped.identifier, state="CANCELLED", reason="x")
    ),
    "Inbox": lambda s: wire.InboxRequest(),
    "GetDirectory": lambda s: wire.DirectoryRequest(),
    "GetDictionary": lambda s: wire.DictionaryRequest(),
    "GetUpload": lambda s: wire.UploadQuery(transfer_id=s.shipped.identifier),
    "Upload": _upload,
    "Download": lambda s: wire.DownloadRequest(transfer_id=s.shipped.identifier),
    "ReleaseKey": lambda s: s.north.key_request(s.shipped.identifier),
    "Renew": lambda s: _renewal(s.north, "north"),
    "GetLogHead": lambda s: wire.LogHeadRequest(),
    "GetReleases": lambda s: wire.ReleasesRequest(dictionary_digest=DIGEST),
    "Compare": lambda s: wire.CompareRequest(),
    "Check": lambda s: health_pb2.HealthCheckRequest(),
    "Watch": lambda s: health_pb2.HealthCheckRequest(),
    "ServerReflectionInfo": lambda s: reflection_pb2.ServerReflectionRequest(list_services="*"),
}


def test_every_rpc_has_a_case() -> None:
    assert set(CASES) == set(METHODS)


async def refused(
    channel: grpc.aio.Channel, method: MethodDescriptor, data: bytes
) -> ProtocolError:
    """Call; it must fail, and not by a bug of the coordinator."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_raw(channel, method, data)
    error = caught.value
    assert error.code() is not grpc.StatusCode.UNKNOWN, (method.name, error.details())
    named = from_status(error.code(), error.details(), error.trailing_metadata())
    assert "failed internally" not in str(named), method.name
    return named


async def test_another_site_gets_and_changes_nothing(scene: Scene) -> None:
    for name, method in METHODS.items():
        request = CASES[name](scene).SerializeToString()
        channel = scene.channel(name, scene.west)
        if name in FOR_ALL_MEMBERS:
            await call_raw(channel, method, request)
        elif name in ABOUT_THE_CALLER:
            mine = set(await call_raw(channel, method, request))
            if name != "Compare":  # which freezes whoever sends it untrue
                theirs = await call_raw(scene.channel(name, scene.north), method, request)
                assert not mine & set(theirs)
        else:
            await refused(channel, method, request)
    progress = await scene.south.upload(scene.shipped.identifier, scene.shipped.ciphertext)
    assert progress.complete
    assert await scene.north.download(scene.shipped.identifier) == scene.shipped.ciphertext


async def test_nobody_and_a_revoked_site_get_nothing(scene: Scene) -> None:
    set_site_state(scene.consortium.folder, "south", "revoked")
    rightful = {"Upload": scene.south, "GetUpload": scene.south}
    for name, method in METHODS.items():
        if name in WITHOUT_CERTIFICATE:
            continue
        request = CASES[name](scene).SerializeToString()
        nobody = await refused(scene.channel(name, None), method, request)
        assert not isinstance(nobody, IdentityError)  # no handshake, so nobody to tell
        error = await refused(scene.channel(name, rightful.get(name, scene.south)), method, request)
        assert isinstance(error, IdentityError), name
        assert "revoked" in str(error)
    renewal = _renewal(scene.south, "south").SerializeToString()
    error = await refused(scene.channel("RenewExpired", None), METHODS["RenewExpired"], renewal)
    assert "revoked" in str(error)


async def test_a_message_that_is_too_large_is_refused_everywhere(scene: Scene) -> None:
    for name, method in METHODS.items():
        large = bytes(65_537 if name in WITHOUT_CERTIFICATE else 1_048_577)
        error = await refused(scene.channel(name, scene.west), method, large)
        assert "larger than max" in str(error), name


async def test_malformed_bytes_are_refused_and_break_nothing(scene: Scene) -> None:
    for name, method in METHODS.items():
        channel = scene.channel(name, scene.west)
        n_refused = 0
        for data in _samples(CASES[name](scene).SerializeToString()):
            try:
                await call_raw(channel, method, data)
            except grpc.aio.AioRpcError as error:
                _require_no_bug(name, data, error)
                n_refused += 1
        assert n_refused
    async with as_protocol_error():
        await scene.north.stub.GetDirectory(wire.DirectoryRequest(), timeout=10)


async def test_numbers_that_no_database_holds_are_refused_and_break_nothing(scene: Scene) -> None:
    for name, method in METHODS.items():
        right = CASES[name](scene)
        for request in _with_large_numbers(type(right)):
            try:
                await call_raw(scene.channel(name, scene.west), method, request.SerializeToString())
            except grpc.aio.AioRpcError as error:
                _require_no_bug(name, request.SerializeToString(), error)


async def test_more_digests_than_a_site_remembers_are_not_compared(scene: Scene) -> None:
    digests = [b""] * 4_097
    for request in (
        wire.CompareRequest(sent=digests),
        wire.CompareRequest(unsent=digests),
        wire.CompareRequest(marks=[wire.InboxMark()] * 4_097),
    ):
        with pytest.raises(LimitExceededError, match="names 4097 digests"):
            async with as_protocol_error():
                await scene.west.stub.Compare(request, timeout=10)


def _with_large_numbers(kind: type[Message]) -> Iterator[Message]:
    """One message for each of its numbers of 64 bits, but of those inside signed bytes."""
    for field in kind.DESCRIPTOR.fields:
        values: list[Any] = []
        if field.message_type is wire.InboxMark.DESCRIPTOR:
            values = list(_with_large_numbers(wire.InboxMark))
        elif field.type == FieldDescriptor.TYPE_UINT64:
            values = [2**63 - 1, 2**63, 2**64 - 1]
        for value in values:
            yield kind(**{field.name: [value] if field.is_repeated else value})


def _require_no_bug(name: str, data: bytes, error: grpc.aio.AioRpcError) -> None:
    text = error.details() or ""
    is_bug = error.code() is grpc.StatusCode.UNKNOWN or "failed internally" in text
    if is_bug or "Unexpected" in text:
        raise AssertionError(f"{name} broke on {data!r}: {error.code()}, {text}")


def _samples(right: bytes) -> list[bytes]:
    """Bytes that hypothesis makes: none of a message, and variations of the right one."""
    samples: list[bytes] = []

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.one_of(st.binary(max_size=200), _mutations(right)))
    def collect(data: bytes) -> None:
        samples.append(data)

    collect()
    return samples


def _mutations(right: bytes) -> st.SearchStrategy[bytes]:
    """The right message with a byte changed, cut short, or with something behind it."""
    at = st.integers(0, max(0, len(right) - 1))
    return st.one_of(
        st.builds(lambda i, b: right[:i] + bytes([b]) + right[i + 1 :], at, st.integers(0, 255)),
        st.builds(lambda i: right[:i], at),
        st.builds(lambda tail: right + tail, st.binary(min_size=1, max_size=20)),
    )
