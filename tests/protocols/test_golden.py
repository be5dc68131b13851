"""Bytes of version 1, written once: they are made the same way and accepted for ever."""

import io
import json

import write_golden
from identities import Identities
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import Sealed, open_sealed
from synthedge_protocols.v1 import statements_pb2 as pb


def test_statements_and_tokens_are_still_the_same_bytes(ids: Identities) -> None:
    assert json.loads((write_golden.GOLDEN / "signed.json").read_text()) == write_golden.signed(ids)


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
