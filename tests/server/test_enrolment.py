"""Who gets in, and who does not."""

import asyncio

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import func, select

from raw_calls import all_methods
from server_fixtures import (
    DAY_MS,
    DIGEST,
    TIMEOUT_S,
    Consortium,
    Hospital,
    as_protocol_error,
    new_folder,
)
from synthedge_protocols.certificates import load_certificate, pem, site_csr, site_of
from synthedge_protocols.errors import (
    IdentityError,
    ProtocolError,
    UnavailableError,
    VerificationError,
)
from synthedge_protocols.keys import TlsKey
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import coordinator_pb2_grpc as rpc
from synthedge_server import store
from synthedge_server.authority import certify_site
from synthedge_server.doctor import examine
from synthedge_server.operations import reading, set_site_state


def n_sites(consortium: Consortium) -> int:
    with reading(consortium.folder) as engine, engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(store.sites)).scalar_one()


async def test_a_token_turns_keys_into_a_certificate_the_dictionary_and_a_directory_entry(
    coordinator: Consortium,
) -> None:
    hospital = Hospital("north")

    response = await coordinator.ask_to_enrol(hospital.enrol_request(coordinator.invite("north")))

    ca = load_certificate(coordinator.ca_pem)
    moment = load_certificate(response.certificate).not_valid_before_utc
    assert site_of(response.certificate, ca, "test-consortium", now=moment) == "north"
    assert response.dictionary.digest == DIGEST
    hospital.certificate = response.certificate
    coordinator.connect(hospital)
    directory = await hospital.stub.GetDirectory(wire.DirectoryRequest(), timeout=TIMEOUT_S)
    assert [keys.statement_public_key for keys in directory.sites] == [
        hospital.statement.public_bytes
    ]


async def test_the_same_request_again_gets_the_same_certificate(coordinator: Consortium) -> None:
    hospital = Hospital("north")
    request = hospital.enrol_request(coordinator.invite("north"))

    first = await coordinator.ask_to_enrol(request)
    again = await coordinator.ask_to_enrol(request)

    assert again.certificate == first.certificate
    assert n_sites(coordinator) == 1


@pytest.mark.parametrize("case", ["wrong", "used", "expired", "replaced", "another site's"])
async def test_a_token_that_is_not_good_enrols_nobody(coordinator: Consortium, case: str) -> None:
    token = coordinator.invite("south" if case == "another site's" else "north")
    n_before = 0
    if case == "wrong":
        token = EnrolmentToken(
            consortium=token.consortium,
            site="north",
            address=token.address,
            enrolment_address=token.enrolment_address,
            ca_certificate=token.ca_certificate,
            secret=bytes(32),
            expires_at_ms=token.expires_at_ms,
        )
    if case == "used":
        await coordinator.ask_to_enrol(Hospital("north").enrol_request(token))
        n_before = 1
    if case == "expired":
        coordinator.clock.ahead_ms = 2 * DAY_MS
    if case == "replaced":
        coordinator.invite("north")
    text = {
        "replaced": "does not know this enrolment token",
        "wrong": "does not know this enrolment token",
        "used": "was used before",
        "expired": "has expired",
        "another site's": "not one of site 'north'",
    }[case]

    with pytest.raises(IdentityError, match=text):
        await coordinator.ask_to_enrol(Hospital("north").enrol_request(token))

    assert n_sites(coordinator) == n_before


async def test_keys_that_somebody_else_signed_or_requested_leave_the_token_good(
    coordinator: Consortium,
) -> None:
    token, hospital, thief = coordinator.invite("north"), Hospital("north"), Hospital("north")
    stolen = hospital.enrol_request(token)
    stolen.keys.hpke_key.CopyFrom(thief.keys().hpke_key)
    unowned = hospital.enrol_request(token)
    unowned.certificate_request = site_csr(TlsKey.generate(), "north")[:-1] + b"\0"

    for request, error in ((stolen, IdentityError), (unowned, IdentityError)):
        with pytest.raises(error):
            await coordinator.ask_to_enrol(request)

    assert n_sites(coordinator) == 0
    await coordinator.ask_to_enrol(hospital.enrol_request(token))


async def test_a_forged_key_statement_is_refused(coordinator: Consortium) -> None:
    request = Hospital("north").enrol_request(coordinator.invite("north"))
    request.keys.hpke_key.signature = bytes(64)

    with pytest.raises(VerificationError):
        await coordinator.ask_to_enrol(request)


# An empty message to every RPC of the service, found by reflection.
CALLS: dict[str, Message] = {
    m.name: GetMessageClass(m.input_type)() for m in all_methods("Coordinator")
}


async def call(stub: rpc.CoordinatorStub, method: str) -> None:
    behaviour = getattr(stub, method)
    async with as_protocol_error():
        if method == "Upload":
            await behaviour(iter([CALLS[method]]), timeout=TIMEOUT_S)
        elif method in ("Inbox", "Download"):
            async for _ in behaviour(CALLS[method], timeout=TIMEOUT_S):
                pass
        else:
            await behaviour(CALLS[method], timeout=TIMEOUT_S)


async def test_a_stranger_without_a_certificate_cannot_call_anything(
    coordinator: Consortium,
) -> None:
    channel = coordinator.channel(
        coordinator.sites_port, grpc.ssl_channel_credentials(coordinator.ca_pem)
    )
    for method in CALLS:
        with pytest.raises(UnavailableError):
            await call(rpc.CoordinatorStub(channel), method)


async def test_a_certificate_of_another_consortium_cannot_call_anything(
    coordinator: Consortium, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = new_folder(tmp_path_factory.mktemp("other") / "coordinator")
    hospital = Hospital("north")
    certificate = await certify_site(other, "north", site_csr(hospital.tls, "north"))
    credentials = grpc.ssl_channel_credentials(
        coordinator.ca_pem, hospital.tls.pem(), pem(certificate)
    )
    stub = rpc.CoordinatorStub(coordinator.channel(coordinator.sites_port, credentials))

    with pytest.raises(UnavailableError):
        await call(stub, "GetDirectory")


async def test_a_suspended_site_cannot_call_anything_until_it_is_resumed(
    coordinator: Consortium,
) -> None:
    hospital = await coordinator.enrol("north")
    set_site_state(coordinator.folder, "north", "suspended", "a look")

    for method in CALLS:
        with pytest.raises(IdentityError, match="suspended"):
            await call(hospital.stub, method)
    problems = await asyncio.to_thread(examine, coordinator.folder)
    steps = {problem.what: problem.next_step for problem in problems}
    assert "'synthedge-coordinator sites resume north'" in steps["suspended: a look"]

    set_site_state(coordinator.folder, "north", "active")
    await call(hospital.stub, "GetDirectory")


async def test_a_certificate_that_was_never_enrolled_is_refused(coordinator: Consortium) -> None:
    await coordinator.enrol("north")
    twin = Hospital("north")
    certificate = await certify_site(coordinator.folder, "north", site_csr(twin.tls, "north"))
    credentials = grpc.ssl_channel_credentials(coordinator.ca_pem, twin.tls.pem(), pem(certificate))
    stub = rpc.CoordinatorStub(coordinator.channel(coordinator.sites_port, credentials))

    with pytest.raises(IdentityError, match="not the one site 'north' enrolled with"):
        await call(stub, "GetDirectory")


async def test_suspending_a_site_ends_its_open_inbox_within_a_second(
    coordinator: Consortium,
) -> None:
    hospital = await coordinator.enrol("north")
    stream = hospital.stub.Inbox(wire.InboxRequest(follow=True), timeout=TIMEOUT_S)
    await stream.wait_for_connection()

    set_site_state(coordinator.folder, "north", "suspended")

    with pytest.raises(IdentityError, match="suspended"):
        async with asyncio.timeout(1.5), as_protocol_error():
            await stream.read()


async def test_a_bug_is_answered_with_a_fixed_text(
    coordinator: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = await coordinator.enrol("north")

    def broken(*_: object) -> None:
        raise KeyError("something a peer must not read")

    monkeypatch.setattr("synthedge_server.servicer.messages_after", broken)

    with pytest.raises(ProtocolError) as caught:
        await hospital.inbox()

    assert type(caught.value) is ProtocolError
    assert "must not read" not in str(caught.value)
