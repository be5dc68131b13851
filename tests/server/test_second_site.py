"""Sites written from docs/protocol.md alone go through whole transfers at a real coordinator."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

import second_log
import second_sealing as sealing
from second_client import SecondConnection, ask_to_enrol, enrolment, refusal_of
from second_reports import dictionary_digest, gap_report, outcome_digest
from second_statements import SecondSite, decode_token, sha256, verify
from server_fixtures import CONSORTIUM, Consortium
from synthedge_protocols.certificates import load_certificate
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server.operations import change, reading
from synthedge_server.rounds import open_round, outcomes

# Positives and negatives over sex x bp, in flat order; multiples of 5, so that the sums over sex are honest too.
COUNTS = [(10, 30), (15, 30), (20, 25), (25, 20), (10, 30), (15, 30), (20, 25), (25, 20)]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Member:
    """An enrolled second site."""

    keys: SecondSite
    connection: SecondConnection
    toml: str
    digest: bytes
    log_key: bytes
    report: pb.SignedStatement = field(default_factory=pb.SignedStatement)
    unread: list[wire.InboxMessage] = field(default_factory=list)

    def sign(self, payload: Message, *, steward: str = "") -> pb.SignedStatement:
        return self.keys.sign(payload, now_ms(), self.digest, steward=steward)

    async def hears(self, kind: str, chosen: Callable[[Any], bool] = bool) -> Any:
        """The next inbox message of a kind; the coordinator writes some of them when it gets to it."""
        for _ in range(100):
            self.unread += await self.connection.inbox()
            for i, message in enumerate(self.unread):
                if message.WhichOneof("body") == kind and chosen(getattr(message, kind)):
                    del self.unread[i]
                    return getattr(message, kind)
            await asyncio.sleep(0.1)
        raise AssertionError(f"no {kind} came")

    async def hears_from(self, other: "Member", kind: str) -> Any:
        """The payload of another site's statement of a type, verified."""

        def is_it(signed: pb.SignedStatement) -> bool:
            return pb.Statement.FromString(signed.statement).type == kind

        signed = await self.hears("statement", is_it)
        return self.verified(signed, other, kind), signed

    def verified(self, signed: pb.SignedStatement, other: "Member", kind: str) -> Any:
        return verify(
            signed,
            expected=kind,
            consortium=CONSORTIUM,
            site=other.keys.name,
            public_key=other.keys.public_key,
            digest=self.digest,
            now_ms=now_ms(),
        )


async def join(consortium: Consortium, name: str) -> Member:
    token = decode_token(invitation(consortium, name))
    keys = SecondSite(str(token["consortium"]), name)
    request = enrolment(keys, token, now_ms())
    answer = await ask_to_enrol(request, token)
    # An answer may get lost: the same request is answered the same, any other is refused.
    assert (await ask_to_enrol(request, token)).certificate == answer.certificate
    other = enrolment(SecondSite(keys.consortium, name), token, now_ms())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask_to_enrol(other, token)
    assert refusal_of(refused.value) == (grpc.StatusCode.UNAUTHENTICATED, "IdentityError")
    toml = answer.dictionary.toml
    digest = dictionary_digest(toml)
    assert digest == answer.dictionary.digest
    connection = SecondConnection(keys, token, answer.certificate)
    member = Member(keys, connection, toml, digest, answer.log_public_key)
    accepted = pb.DictionaryAcceptance(
        version=answer.dictionary.version, outcome_digest=outcome_digest(toml)
    )
    await connection.submit(member.sign(accepted, steward="ada"))
    return member


def invitation(consortium: Consortium, name: str) -> str:
    ca = load_certificate(consortium.ca_pem).public_bytes(Encoding.DER)
    return replace(consortium.invite(name), ca_certificate=ca).encode()


pytestmark = pytest.mark.slow


@pytest_asyncio.fixture
async def members(coordinator: Consortium) -> AsyncIterator[list[Member]]:
    joined = [await join(coordinator, name) for name in ("north", "south", "west")]
    for i, member in enumerate(joined):
        voxels = [(p + 5 * i, n) for p, n in COUNTS]
        if i == 0:
            voxels[7] = (0, 20)
        by_bp = [
            (voxels[j][0] + voxels[j + 4][0], voxels[j][1] + voxels[j + 4][1]) for j in range(4)
        ]
        counts: Any = {"bp": by_bp, "sex x bp": voxels}
        report = gap_report(member.toml, secrets.token_bytes(16), ["bp", "sex"], counts)
        member.report = member.sign(report, steward="ada")
        await member.connection.submit(member.report)
    yield joined
    for member in joined:
        await member.connection.channel.close()


async def asked(recipient: Member, donor: Member) -> tuple[bytes, pb.SignedStatement]:
    request = pb.TransferRequest(
        recipient=recipient.keys.name,
        donor=donor.keys.name,
        grid="sex x bp",
        voxel=[1, 3],
        purpose="DUO:0000007",
        features=["bp", "sex"],
        rows=2,
        retention_days=30,
        hpke_key_id=sha256(recipient.keys.hpke_public_key),
        nonce=secrets.token_bytes(32),
        donor_key_id=sha256(donor.keys.public_key),
        accept_if_gate_passes=True,
    )
    signed = recipient.sign(request, steward="ada")
    await recipient.connection.submit(signed)
    return sha256(pb.Statement.FromString(signed.statement).payload), signed


def payload_for(transfer_id: bytes, donor: Member) -> pb.TransferPayload:
    tokens = [secrets.token_bytes(16) for _ in range(2)]
    rows = [
        pb.Sample(token=t, values=[104.0 + i, 1.0], positive=True) for i, t in enumerate(tokens)
    ]
    samples = pb.SampleBatch(samples=rows).SerializeToString()
    manifest = pb.Manifest(
        transfer_id=transfer_id,
        donor=donor.keys.name,
        dictionary_digest=donor.digest,
        features=["bp", "sex"],
        rows=2,
        rows_digest=sha256(samples),
    )
    return pb.TransferPayload(
        salt=secrets.token_bytes(32), manifest=manifest.SerializeToString(), samples=samples
    )


def info(
    transfer_id: bytes, request: pb.SignedStatement, commitment: bytes, r: Member, d: Member
) -> bytes:
    return sealing.info_of_transfer(
        transfer_id,
        sha256(request.statement),
        commitment,
        sha256(d.keys.public_key),
        sha256(r.keys.public_key),
        sha256(r.keys.hpke_public_key),
        r.digest,
    )


async def test_a_second_implementation_asks_gives_opens_withdraws_and_purges(
    members: list[Member],
) -> None:
    recipient, donor, _ = members
    proposals = await recipient.hears("proposals")
    assert ("sex x bp", [1, 3]) in [(p.grid, list(p.voxel)) for p in proposals.proposals]

    transfer_id, signed_request = await asked(recipient, donor)
    request, arrived = await donor.hears_from(recipient, "transfer-request")
    assert arrived == signed_request
    assert request.rows == 2

    payload = payload_for(transfer_id, donor)
    commitment = sealing.commitment(payload)
    approval = pb.Approval(
        transfer_id=transfer_id,
        request_digest=sha256(arrived.statement),
        manifest_commitment=commitment,
        rows=2,
    )
    await donor.connection.submit(donor.sign(approval, steward="bob"))
    sealed = sealing.seal(
        sealing.compress(payload),
        transfer_id,
        recipient.keys.hpke_public_key,
        info(transfer_id, arrived, commitment, recipient, donor),
    )
    await donor.connection.submit(donor.sign(sealed.shipment))
    assert not await donor.connection.upload(transfer_id, sealed.stream, at_most=9_000)
    assert await donor.connection.upload(transfer_id, sealed.stream, at_most=2**20)

    agreed, _ = await recipient.hears_from(donor, "approval")
    notice = await recipient.hears("shipment")
    assert notice.ciphertext_bytes == len(sealed.stream)
    stream = await recipient.connection.download(transfer_id)
    assert stream[70:] == await recipient.connection.download(transfer_id, 70)
    wants = recipient.sign(pb.ReleaseRequest(transfer_id=transfer_id))
    key_request = wire.KeyRequest(transfer_id=transfer_id, request=wants)
    released = await recipient.connection.stub.ReleaseKey(key_request, timeout=10)
    shipment = recipient.verified(released, donor, "shipment")
    context = info(transfer_id, signed_request, agreed.manifest_commitment, recipient, donor)
    opened = sealing.decompress(
        sealing.open_stream(stream, shipment, recipient.keys.hpke_seeds, context)
    )
    assert opened == payload
    assert sealing.commitment(opened) == agreed.manifest_commitment
    rows = pb.SampleBatch.FromString(opened.samples).samples
    assert [list(row.values) for row in rows] == [[104.0, 1.0], [105.0, 1.0]]
    receipt = pb.Receipt(
        transfer_id=transfer_id,
        ciphertext_digest=shipment.ciphertext_digest,
        rows=2,
        accepted=True,
        reason="the gate passed",
    )
    await recipient.connection.submit(recipient.sign(receipt))
    assert (await donor.hears_from(recipient, "receipt"))[0] == receipt

    await withdraws_one_row(recipient, donor, transfer_id, rows[0].token)
    report = pb.PurgeReport(rows_purged=1)
    ids = (
        transfer_id,
        transfer_id,
        sha256(recipient.keys.public_key),
        sha256(donor.keys.public_key),
    )
    ending = pb.Ending(
        transfer_id=transfer_id,
        state="PURGED",
        reason="no longer needed",
        report=sealing.seal_note(
            report.SerializeToString(), donor.keys.hpke_public_key, "ending", *ids
        ),
    )
    await recipient.connection.submit(recipient.sign(ending))
    purged, _ = await donor.hears_from(recipient, "ending")
    content = sealing.open_note(purged.report, donor.keys.hpke_seeds, "ending", *ids)
    assert pb.PurgeReport.FromString(content) == report


async def withdraws_one_row(
    recipient: Member, donor: Member, transfer_id: bytes, token: bytes
) -> None:
    notice_id = secrets.token_bytes(16)
    body = pb.WithdrawalBody(
        rows=[pb.WithdrawnRow(token=token, action="purge")], reason="a patient withdrew"
    )
    keys = sha256(donor.keys.public_key), sha256(recipient.keys.public_key)
    note = sealing.seal_note(
        body.SerializeToString(),
        recipient.keys.hpke_public_key,
        "withdrawal-notice",
        notice_id,
        transfer_id,
        *keys,
        padded=sealing.note_bytes(4 + 2_048 + 2 * (64 + 8 * 2)),
    )
    notice = pb.WithdrawalNotice(notice_id=notice_id, transfer_id=transfer_id, note=note)
    await donor.connection.submit(donor.sign(notice))
    for _ in range(2):  # on every stream, until the receipt is there
        arrived = await recipient.hears("withdrawal")
        told = recipient.verified(arrived, donor, "withdrawal-notice")
        content = sealing.open_note(
            told.note, recipient.keys.hpke_seeds, "withdrawal-notice", notice_id, transfer_id, *keys
        )
        assert pb.WithdrawalBody.FromString(content) == body
    back = tuple(reversed(keys))
    receipt = pb.WithdrawalReceipt(
        notice_id=notice_id,
        transfer_id=transfer_id,
        note=sealing.seal_note(
            pb.PurgeReport(rows_purged=1).SerializeToString(),
            donor.keys.hpke_public_key,
            "withdrawal-receipt",
            notice_id,
            transfer_id,
            *back,
        ),
    )
    await recipient.connection.submit(recipient.sign(receipt))
    settled, _ = await donor.hears_from(recipient, "withdrawal-receipt")
    content = sealing.open_note(
        settled.note, donor.keys.hpke_seeds, "withdrawal-receipt", notice_id, transfer_id, *back
    )
    assert pb.PurgeReport.FromString(content).rows_purged == 1
    assert not [m for m in await recipient.connection.inbox() if m.HasField("withdrawal")]


async def test_a_second_implementation_is_refused_answers_rounds_watches_the_log_and_changes_its_keys(
    coordinator: Consortium, members: list[Member]
) -> None:
    north, south, west = members
    await refusals_carry_the_status_and_kind_the_document_says(north, south)
    await answers_a_round_with_what_was_published(coordinator, north)
    stub = north.connection.stub
    origin = f"{CONSORTIUM}/coordinator"
    first = await stub.GetLogHead(wire.LogHeadRequest(), timeout=10)
    old_size, old_root = second_log.verify_note(first.note, origin, north.log_key)
    await south.connection.submit(south.sign(pb.SiteLeaving(action="suspend"), steward="bob"))
    newer = await stub.GetLogHead(wire.LogHeadRequest(old_size=old_size), timeout=10)
    size, root = second_log.verify_note(newer.note, origin, north.log_key)
    told = second_log.roots_by_consistency(old_size, size, list(newer.consistency), old_root)
    assert size > old_size
    assert told == (old_root, root)

    own, name = [second_log.leaf(b"enrolled")], f"{CONSORTIUM}/site/north"
    text = second_log.checkpoint(name, 1, second_log.root(own))
    witnessed = pb.WitnessedHead(
        coordinator_head=second_log.cosigned(newer.note, name, north.keys.key, now_ms() // 1000),
        own_head=second_log.signed_note(text, name, north.keys.key),
    )
    await north.connection.submit(north.keys.sign(witnessed, now_ms()))
    seen, _ = await west.hears_from(north, "witnessed-head")
    assert second_log.verify_note(seen.coordinator_head, origin, west.log_key) == (size, root)
    assert second_log.verify_cosignature(seen.coordinator_head, name, north.keys.public_key)

    new = replace(SecondSite(CONSORTIUM, "north"), tls=north.keys.tls)
    await north.connection.submit(north.keys.rotation_to(new, "ada", now_ms()))
    directory = await west.connection.stub.GetDirectory(wire.DirectoryRequest(), timeout=10)
    shown = next(entry for entry in directory.sites if entry.site == "north")
    assert shown.statement_public_key == new.public_key
    assert west.verified(shown.rotations[0], north, "key-rotation").steward == "ada"
    north.keys = new
    leaving = north.sign(pb.SiteLeaving(action="suspend"), steward="ada")
    receipt = await north.connection.submit(leaving)
    assert receipt.statement_digest == sha256(leaving.statement)
    await compares_and_asks_what_is_known(north)


async def compares_and_asks_what_is_known(site: Member) -> None:
    stub, connection = site.connection.stub, site.connection
    remembered = wire.CompareRequest(inbox_after=connection.after, sent=connection.sent)
    agreed = await stub.Compare(remembered, timeout=10)
    assert not agreed.reason
    assert not agreed.challenge
    # A site that remembers nothing is asked once more before it is frozen.
    doubted = await stub.Compare(wire.CompareRequest(inbox_after=connection.after), timeout=10)
    assert doubted.challenge
    assert not doubted.reason
    known = await stub.GetReleases(wire.ReleasesRequest(dictionary_digest=site.digest), timeout=10)
    report = pb.Statement.FromString(site.report.statement).payload
    assert [release.report_digest for release in known.releases] == [sha256(report)]
    renewal = pb.Renewal(certificate_request=site.keys.certificate_request())
    request = wire.RenewRequest(request=site.keys.sign(renewal, now_ms()))
    with pytest.raises(grpc.aio.AioRpcError, match="within the hour") as refused:
        await stub.Renew(request, timeout=10)
    assert refusal_of(refused.value) == (grpc.StatusCode.PERMISSION_DENIED, "PolicyError")


async def answers_a_round_with_what_was_published(coordinator: Consortium, site: Member) -> None:
    asked = change(coordinator.folder, lambda t: open_round(t, "channel", [site.keys.name], 60.0))
    heard = await site.hears("round")
    assert heard == asked
    answer = pb.DiscoveryAnswer(
        round_id=heard.round_id, dictionary_digest=heard.dictionary_digest, report=site.report
    )
    await site.connection.submit(site.keys.sign(answer, now_ms()))
    with reading(coordinator.folder) as engine, engine.connect() as connection:
        (outcome,) = outcomes(connection, asked.round_id)
    assert (outcome["site"], outcome["outcome"]) == (site.keys.name, "ok")


async def refusals_carry_the_status_and_kind_the_document_says(
    north: Member, south: Member
) -> None:
    transfer_id, _ = await asked(north, south)
    release = pb.ReleaseRequest(transfer_id=transfer_id)
    cancelled = pb.Ending(transfer_id=transfer_id, state="CANCELLED", reason="by mistake")
    codes = grpc.StatusCode
    cases: list[tuple[pb.SignedStatement, grpc.StatusCode, str]] = [
        (
            south.sign(cancelled),
            codes.UNAUTHENTICATED,
            "IdentityError",
        ),
        (north.sign(release), codes.PERMISSION_DENIED, "PolicyError"),
        (
            north.sign(
                pb.Ending(transfer_id=transfer_id, state="CANCELLED", reason="x" * 2_001),
                steward="ada",
            ),
            codes.RESOURCE_EXHAUSTED,
            "LimitExceededError",
        ),
        (
            north.sign(pb.Ending(transfer_id=transfer_id, state="ACTIVE"), steward="ada"),
            codes.FAILED_PRECONDITION,
            "LifecycleError",
        ),
        (pb.SignedStatement(statement=b"\xff"), codes.INVALID_ARGUMENT, "MalformedError"),
        (
            north.sign(pb.Receipt(transfer_id=transfer_id, accepted=True), steward="ada"),
            codes.FAILED_PRECONDITION,
            "LifecycleError",
        ),
    ]
    forged = north.sign(cancelled, steward="ada")
    forged.signature = bytes(64)
    cases.append((forged, codes.DATA_LOSS, "VerificationError"))
    for signed, code, kind in cases:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await north.connection.submit(signed)
        assert refusal_of(refused.value) == (code, kind), kind
