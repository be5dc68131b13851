"""Bytes of version 1, written once: they are made the same way and accepted for ever."""

import hashlib
import io
import json

import pytest
from google.protobuf.message import DecodeError

import write_golden
from identities import Identities
from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import Sealed, open_sealed
from synthedge_protocols.statements import STATEMENT_TYPES, verify
from synthedge_protocols.v1 import statements_pb2 as pb


def test_statements_and_tokens_are_still_the_same_bytes(ids: Identities) -> None:
    assert json.loads((write_golden.GOLDEN / "signed.json").read_text()) == write_golden.signed(ids)


def test_the_header_is_what_the_format_says(ids: Identities) -> None:
    """Built here a second time, from the description at the head of `sealing` and of `framing`."""
    golden = json.loads((write_golden.GOLDEN / "sealed.json").read_text())
    stream = bytes.fromhex(golden["stream"])
    shipment = pb.Shipment.FromString(bytes.fromhex(golden["shipment"]))
    fields = [b"synthedge/v1/transfer", b"i" * 32, b"r" * 32, b"m" * 32]
    fields += [ids.site_key.key_id, ids.steward_key.key_id, ids.hpke.key_id, b"d" * 32]
    info = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    prefix = stream[25:32]
    header = (
        b"SynthEdge transfer 1\0" + (64).to_bytes(4, "big") + prefix + hashlib.sha256(info).digest()
    )
    assert stream[:64] == header
    assert shipment.header_digest == hashlib.sha256(header).digest()
    assert shipment.info_digest == hashlib.sha256(info).digest()
    tags = [stream[at + 64 : at + 80] for at in range(64, len(stream), 80)]
    assert shipment.ciphertext_digest == hashlib.sha256(header + b"".join(tags)).digest()
    assert len(shipment.encapsulated) == 1_120 + 32 + 16


@pytest.mark.parametrize("name", ["key-request", "approval"])
def test_every_flipped_bit_of_a_signed_statement_is_refused(ids: Identities, name: str) -> None:
    golden = json.loads((write_golden.GOLDEN / "signed.json").read_text())
    whole = bytes.fromhex(golden[name])
    for i_bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[i_bit // 8] ^= 1 << (i_bit % 8)
        with pytest.raises((ProtocolError, DecodeError)):
            verify(
                pb.SignedStatement.FromString(bytes(flipped)),
                expected_type=STATEMENT_TYPES[name].message,
                consortium=ids.consortium,
                site=ids.site,
                site_public_key=ids.site_key.public_bytes,
                dictionary_digest=ids.dictionary_digest,
                now_ms=ids.now_ms,
                limits=ids.limits,
            )


def test_a_transfer_sealed_by_version_1_still_opens(ids: Identities) -> None:
    golden = json.loads((write_golden.GOLDEN / "sealed.json").read_text())
    shipment = pb.Shipment.FromString(bytes.fromhex(golden["shipment"]))
    out = io.BytesIO()
    open_sealed(
        io.BytesIO(bytes.fromhex(golden["stream"])),
        out,
        sealed=Sealed.from_shipment(shipment),
        key_pair=ids.hpke,
        context=write_golden.context(ids),
        limits=Limits(),
    )
    assert out.getvalue() == write_golden.PLAINTEXT
