"""docs/protocol.md suffices: an implementation written from it and the product read each other's bytes."""

import ast
import hashlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st

import second_log
import second_reports
import second_sealing
import second_statements
import write_golden
from identities import DAY_MS, Identities
from second_statements import TYPES, RefusedError, SecondSite, decode_token, sha256, verify
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.public_dictionaries import PUBLIC_DICTIONARIES, public_dictionary
from synthedge_protocols import checkpoints, compression, merkle, rotation, statements
from synthedge_protocols.errors import STATUS, ProtocolError
from synthedge_protocols.event_log import leaf_of
from synthedge_protocols.keys import HpkePublicKey, StatementKey, fingerprint
from synthedge_protocols.limits import Limits
from synthedge_protocols.padding import size_class
from synthedge_protocols.sealed_notes import NoteContext, open_note, seal_note
from synthedge_protocols.sealing import Sealed, open_sealed, seal
from synthedge_protocols.v1 import statements_pb2 as pb

SUPPORT = Path(second_statements.__file__).parent
SIGNED = json.loads((write_golden.GOLDEN / "signed.json").read_text())
SEALED = json.loads((write_golden.GOLDEN / "sealed.json").read_text())


@pytest.fixture
def site(ids: Identities) -> SecondSite:
    return SecondSite(ids.consortium, ids.site, b"s" * 32, b"t" * 32, b"h" * 96)


def product_context(ids: Identities) -> bytes:
    """The info of the golden transfer, as the document lays it out."""
    return second_sealing.info_of_transfer(
        b"i" * 32,
        b"r" * 32,
        b"m" * 32,
        ids.site_key.key_id,
        ids.steward_key.key_id,
        ids.hpke.key_id,
        ids.dictionary_digest,
    )


def read(signed: pb.SignedStatement, kind: str, ids: Identities, *, follow: bool = True) -> object:
    return verify(
        signed,
        expected=kind,
        consortium=ids.consortium,
        site=ids.site,
        public_key=ids.site_key.public_bytes,
        digest=ids.dictionary_digest,
        now_ms=ids.now_ms,
        follow=follow,
    )


def read_by_product(signed: pb.SignedStatement, kind: str, ids: Identities) -> object:
    under = statements.STATEMENT_TYPES[kind].under_dictionary
    return statements.verify(
        signed,
        expected_type=statements.STATEMENT_TYPES[kind].message,
        consortium=ids.consortium,
        site=ids.site,
        site_public_key=ids.site_key.public_bytes,
        dictionary_digest=ids.dictionary_digest if under else None,
        now_ms=ids.now_ms,
        limits=Limits(),
    ).payload


def test_the_second_implementation_uses_nothing_of_the_product_but_its_messages() -> None:
    for path in SUPPORT.glob("second_*.py"):
        tree = ast.parse(path.read_text())
        names = {
            name
            for node in ast.walk(tree)
            for name in (
                [f"{node.module}.{a.name}" for a in node.names]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        }
        own = {name for name in names if name.startswith("synthedge")}
        assert own <= {
            f"synthedge_protocols.v1.{stub}"
            for stub in ("statements_pb2", "coordinator_pb2", "coordinator_pb2_grpc")
        }, path.name
        others = {name.split(".")[0] for name in names - own}
        allowed = {"cryptography", "zstandard", "google", "grpc"} | set(sys.stdlib_module_names)
        assert {name for name in others if not name.startswith("second_")} <= allowed, path.name


def test_both_know_the_same_types_of_statement() -> None:
    assert {
        name: (entry.message, entry.signed_by, entry.under_dictionary)
        for name, entry in statements.STATEMENT_TYPES.items()
    } == TYPES


def test_the_document_has_every_error_type_and_limit_as_they_are() -> None:
    text = (write_golden.GOLDEN.parents[2] / "docs" / "protocol.md").read_text()
    told = dict(re.findall(r"^\| `(\w+Error)` \| (\w+) \|", text, re.MULTILINE))
    assert told == {kind.__name__: code.name for kind, (code, _) in STATUS.items()}
    kinds = set(re.findall(r"^\| `([a-z-]+)` \| `\w+` \| (?:site|steward)", text, re.MULTILINE))
    assert kinds == set(TYPES)
    limits, section = Limits(), text[text.index("## 15. Limits") : text.index("## 16. ")]
    for name in (
        "message",
        "stranger",
        "statement",
        "chunk",
        "ciphertext",
        "waiting",
        "payload",
        "text",
    ):
        assert f" {getattr(limits, f'{name}_bytes'):,} bytes" in section, name
    rates = (limits.calls_per_s, limits.calls_burst, limits.statements_per_s, limits.bytes_per_s)
    counts = (
        limits.statements_burst,
        limits.sites,
        limits.digests_compared,
        limits.releases,
        limits.kept_bytes_per_s,
        limits.kept_bytes_burst,
    )
    for number in (*rates, *counts, limits.clock_skew_s):
        assert f" {number:,.0f} " in section, number


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_golden_statement_is_read(kind: str, ids: Identities) -> None:
    signed = pb.SignedStatement.FromString(bytes.fromhex(SIGNED[kind]))
    # Golden payloads have something in every field; what is nested in them is signed by nobody.
    payload = read(signed, kind, ids, follow=False)
    assert payload == write_golden.filled(TYPES[kind][0])
    changed = pb.SignedStatement.FromString(bytes.fromhex(SIGNED[kind]))
    changed.signature = bytes([changed.signature[0] ^ 1]) + changed.signature[1:]
    with pytest.raises(InvalidSignature):
        read(changed, kind, ids, follow=False)


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_golden_statements_are_made_byte_by_byte(
    kind: str, site: SecondSite, ids: Identities
) -> None:
    _, who, under = TYPES[kind]
    made = site.sign(
        write_golden.filled(TYPES[kind][0]),
        ids.now_ms,
        ids.dictionary_digest if under else b"",
        steward="ada" if who == "steward" else "",
    )
    assert made.SerializeToString(deterministic=True).hex() == SIGNED[kind]


def policy_for(site: SecondSite, ids: Identities) -> pb.SignedStatement:
    policy = pb.StandingPolicy(
        policy_id=b"p" * 16,
        acts=["approve"],
        peers=["east"],
        purposes=["DUO:0000006"],
        features=["bp"],
        rows=20,
        period_days=30,
        valid_until_ms=ids.now_ms + DAY_MS,
    )
    return site.sign(policy, ids.now_ms, ids.dictionary_digest, steward="ada")


def test_the_product_takes_what_the_second_implementation_signs(
    site: SecondSite, ids: Identities
) -> None:
    digest = ids.dictionary_digest
    approval = pb.Approval(
        transfer_id=b"i" * 32, request_digest=b"r" * 32, manifest_commitment=b"m" * 32, rows=5
    )
    by_steward = site.sign(approval, ids.now_ms, digest, steward="ada")
    assert read_by_product(by_steward, "approval", ids) == approval
    under_policy = pb.Approval()
    under_policy.CopyFrom(approval)
    under_policy.policy.CopyFrom(policy_for(site, ids))
    by_site = site.sign(under_policy, ids.now_ms, digest)
    assert (
        read_by_product(by_site, "approval", ids) == under_policy == read(by_site, "approval", ids)
    )
    second = SecondSite(site.consortium, site.name, site.site_seed, b"u" * 32, site.hpke_seeds)
    by_two = pb.Approval()
    by_two.CopyFrom(approval)
    by_two.first.CopyFrom(by_steward)
    signed = second.sign(by_two, ids.now_ms, digest, steward="eve")
    assert read_by_product(signed, "approval", ids) == by_two == read(signed, "approval", ids)
    twice = site.sign(by_two, ids.now_ms, digest, steward="ada")
    with pytest.raises(ProtocolError, match="signed twice"):
        read_by_product(twice, "approval", ids)
    with pytest.raises(RefusedError, match="same steward"):
        read(twice, "approval", ids)


def test_both_refuse_the_same_statements(site: SecondSite, ids: Identities) -> None:
    digest, notice = ids.dictionary_digest, pb.ReleaseRequest(transfer_id=b"i" * 32)
    unknown = pb.ReleaseRequest.FromString(notice.SerializeToString() + b"\x78\x01")
    other_site = SecondSite(site.consortium, "south", site.site_seed, hpke_seeds=b"h" * 96)
    other_key = SecondSite(site.consortium, site.name, b"x" * 32, hpke_seeds=b"h" * 96)
    refused = [
        site.sign(unknown, ids.now_ms, digest),
        site.sign(notice, ids.now_ms + 300_001, digest),
        site.sign(notice, 0, digest),
        site.sign(notice, ids.now_ms, b"e" * 32),
        site.sign(notice, ids.now_ms),
        site.sign(notice, ids.now_ms, digest, steward="ada"),
        site.sign(pb.SiteLeaving(action="leave"), ids.now_ms, digest),
        other_site.sign(notice, ids.now_ms, digest),
        other_key.sign(notice, ids.now_ms, digest),
    ]
    for signed in refused:
        with pytest.raises((RefusedError, InvalidSignature)):
            read(signed, "key-request", ids)
        with pytest.raises(ProtocolError):
            read_by_product(signed, "key-request", ids)
    good = site.sign(notice, ids.now_ms + 300_000, digest)
    assert read(good, "key-request", ids) == read_by_product(good, "key-request", ids) == notice


def test_a_token_fingerprints_and_rotations_agree(site: SecondSite, ids: Identities) -> None:
    token = decode_token("\n ".join([SIGNED["token"][:40], SIGNED["token"][40:]]))
    assert token == {
        "consortium": "demo",
        "site": "north",
        "address": "127.0.0.1:7443",
        "enrolment_address": "127.0.0.1:7444",
        "ca_certificate": b"certificate",
        "secret": b"x" * 32,
        "expires_at_ms": ids.now_ms + DAY_MS,
    }
    with pytest.raises(RefusedError):
        decode_token(SIGNED["token"][:-9] + "AAAAAAAAA")
    assert second_statements.fingerprint(site.public_key) == fingerprint(ids.site_key.public_bytes)
    assert sha256(site.hpke_public_key) == ids.hpke.key_id
    new = SecondSite(site.consortium, site.name, b"n" * 32, hpke_seeds=b"g" * 96)
    _, keys = rotation.verify_rotation(
        site.rotation_to(new, "ada", ids.now_ms),
        consortium=ids.consortium,
        site=ids.site,
        old_public_key=site.public_key,
        now_ms=ids.now_ms,
        limits=Limits(),
    )
    assert keys.statement_public_key == new.public_key
    assert keys.hpke.public_bytes == new.hpke_public_key


def test_the_golden_stream_opens(site: SecondSite, ids: Identities) -> None:
    stream = bytes.fromhex(SEALED["stream"])
    shipment = pb.Shipment.FromString(bytes.fromhex(SEALED["shipment"]))
    info = product_context(ids)
    opened = second_sealing.open_stream(stream, shipment, site.hpke_seeds, info)
    assert opened == write_golden.PLAINTEXT
    for i in range(0, len(stream), 7):
        changed = stream[:i] + bytes([stream[i] ^ 1]) + stream[i + 1 :]
        with pytest.raises((RefusedError, InvalidTag)):
            second_sealing.open_stream(changed, shipment, site.hpke_seeds, info)
    with pytest.raises(RefusedError):
        second_sealing.open_stream(stream[:-1], shipment, site.hpke_seeds, info)


@pytest.mark.parametrize("n_bytes", [0, 1, 16_376, 16_377, 524_279, 524_288, 600_000, 1_048_568])
def test_streams_open_in_both_directions(n_bytes: int, ids: Identities) -> None:
    content, out = bytes(range(251)) * (n_bytes // 251 + 1), io.BytesIO()
    content = content[:n_bytes]
    sealed = second_sealing.seal(content, b"i" * 32, ids.hpke.public_bytes, product_context(ids))
    assert sealed.shipment.ciphertext_bytes == len(sealed.stream)
    n_opened = open_sealed(
        io.BytesIO(sealed.stream),
        out,
        sealed=Sealed.from_shipment(sealed.shipment),
        key_pair=ids.hpke,
        context=write_golden.context(ids),
        limits=Limits(),
    )
    assert (n_opened, out.getvalue()) == (n_bytes, content)
    by_product = io.BytesIO()
    shipment = seal(
        io.BytesIO(content),
        by_product,
        recipient=ids.hpke.public_key,
        context=write_golden.context(ids),
        limits=Limits(),
    ).shipment(b"i" * 32)
    stream = by_product.getvalue()
    assert len(stream) == len(sealed.stream)
    opened = second_sealing.open_stream(stream, shipment, b"h" * 96, product_context(ids))
    assert opened == content


def test_payloads_and_their_commitments_agree() -> None:
    payload = pb.TransferPayload(salt=b"s" * 32, manifest=b"m" * 90, samples=b"r" * 900)
    assert second_sealing.commitment(payload) == hashlib.sha256(b"s" * 32 + b"m" * 90).digest()
    packed = second_sealing.compress(payload)
    assert compression.decompress(packed, max_bytes=2_000) == payload.SerializeToString()
    assert second_sealing.decompress(compression.compress(payload.SerializeToString())) == payload
    with pytest.raises(RefusedError):
        second_sealing.decompress(packed + b"x")


@given(st.integers(min_value=1, max_value=2**34))
@settings(max_examples=200)
def test_size_classes_agree(n_bytes: int) -> None:
    assert second_sealing.size_class(n_bytes) == size_class(n_bytes, Limits().padding_bytes)


def test_notes_open_in_both_directions(ids: Identities) -> None:
    seeds, public = b"h" * 96, ids.hpke.public_bytes
    given_ids = (b"n" * 16, b"i" * 32, b"d" * 32, b"e" * 32)
    context = NoteContext(
        kind="withdrawal-notice",
        subject=given_ids[0],
        transfer_id=given_ids[1],
        sender_key_id=given_ids[2],
        receiver_key_id=given_ids[3],
    )
    made = second_sealing.seal_note(b"purge", public, "withdrawal-notice", *given_ids)
    assert open_note(made, ids.hpke, context) == b"purge"
    by_product = seal_note(b"purge", HpkePublicKey(public), context)
    assert len(by_product.sealed) == len(made.sealed)
    opened = second_sealing.open_note(by_product, seeds, "withdrawal-notice", *given_ids)
    assert opened == b"purge"
    with pytest.raises(InvalidTag):
        second_sealing.open_note(by_product, seeds, "withdrawal-receipt", *given_ids)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13, 64, 65])
def test_trees_and_proofs_agree(size: int) -> None:
    leaves = [second_log.leaf(bytes([i])) for i in range(size)]
    frontier, roots = merkle.EMPTY_FRONTIER, [second_log.root([])]
    subtrees: dict[tuple[int, int], bytes] = {}
    for i, leaf in enumerate(leaves):
        frontier, completed = frontier.append(leaf)
        subtrees |= {(level, i + 1): root for level, root in enumerate(completed)}
        roots.append(frontier.root)

    def subtree(level: int, end: int) -> bytes:
        return subtrees[level, end]

    assert roots == [second_log.root(leaves[:n]) for n in range(size + 1)]
    for i in range(size):
        proof = merkle.inclusion_proof(i, size, subtree)
        assert proof == second_log.inclusion(i, leaves)
        assert second_log.root_by_inclusion(leaves[i], i, size, proof) == roots[size]
        old = i + 1
        proof = merkle.consistency_proof(old, size, subtree)
        assert proof == second_log.consistency(old, leaves)
        told = second_log.roots_by_consistency(old, size, proof, roots[old])
        assert told == (roots[old], roots[size])


def test_entries_and_heads_agree() -> None:
    entry: dict[str, object] = {"id": 1, "at_ms": 5, "actor": "Zoë", "action": "invited"}
    data = second_log.entry_bytes(entry)
    assert data == b'{"action":"invited","actor":"Zo\\u00eb","at_ms":5,"id":1}'
    assert second_log.leaf_of_entry(data, b"s" * 32) == leaf_of(data, b"s" * 32)
    log, witness = SecondSite("demo", "log", b"l" * 32), SecondSite("demo", "north", b"s" * 32)
    text = second_log.checkpoint("demo/coordinator", 7, b"r" * 32)
    note = second_log.signed_note(text, "demo/coordinator", log.key)
    note = second_log.cosigned(note, "demo/site/north", witness.key, 1_790_000_000)
    made = (
        checkpoints.Checkpoint("demo/coordinator", 7, b"r" * 32)
        .sign(StatementKey.from_seed(b"l" * 32))
        .cosign(StatementKey.from_seed(b"s" * 32), "demo/site/north", 1_790_000_000)
    )
    assert note == made.note
    head = second_log.verify_note(note, "demo/coordinator", log.public_key)
    assert head == (7, b"r" * 32)
    at_s = second_log.verify_cosignature(note, "demo/site/north", witness.public_key)
    assert at_s == 1_790_000_000
    with pytest.raises((RefusedError, InvalidSignature)):
        second_log.verify_note(note.replace("\n7\n", "\n8\n"), "demo/coordinator", log.public_key)


@pytest.mark.parametrize("name", PUBLIC_DICTIONARIES)
def test_digests_of_the_shipped_dictionaries_agree(name: str) -> None:
    toml = public_dictionary(name)
    parsed = parse_dictionary(toml)
    assert second_reports.dictionary_digest(toml).hex() == parsed.digest
    assert second_reports.outcome_digest(toml).hex() == parsed.target.outcome_digest
