"""Write the golden files: what version 1 signed and sealed, for ever to be accepted.

    python tests/support/write_golden.py

Signed bytes are the same at every run. Sealing draws a fresh key, so `sealed.json` is only written
when it is missing; delete it only together with the version number in the sealing context.
"""

import io
import json
from pathlib import Path
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from identities import DAY_MS, Identities, fixed_identities
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import SealingContext, seal
from synthedge_protocols.statements import STATEMENT_TYPES, sign
from synthedge_protocols.tokens import EnrolmentToken

GOLDEN = Path(__file__).resolve().parents[1] / "protocols" / "golden"
PLAINTEXT = b"Twenty rows of the region, in dictionary units. " * 5


def signed(ids: Identities) -> dict[str, str]:
    """Return a statement of every type, signed by whom it must be, and a token: hexadecimal or text."""
    made = {}
    for name, entry in STATEMENT_TYPES.items():
        by_steward = entry.signed_by == "steward"
        statement = sign(
            ids.steward_key if by_steward else ids.site_key,
            filled(entry.message),
            consortium=ids.consortium,
            site=ids.site,
            dictionary_digest=ids.dictionary_digest if entry.under_dictionary else b"",
            issued_at_ms=ids.now_ms,
            certificate=ids.steward_certificate if by_steward else None,
        )
        made[name] = statement.SerializeToString(deterministic=True).hex()
    token = EnrolmentToken(
        consortium=ids.consortium,
        site=ids.site,
        address="127.0.0.1:7443",
        enrolment_address="127.0.0.1:7444",
        ca_certificate=b"certificate",
        secret=b"x" * 32,
        expires_at_ms=ids.now_ms + DAY_MS,
    )
    return {**made, "token": token.encode()}


def filled(message: type[Message], depth: int = 0) -> Message:
    """Make a message with something in every field; statements inside it end two levels down."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            if depth == 2:
                continue
            value: Any = filled(GetMessageClass(cast(Descriptor, field.message_type)), depth + 1)
        else:
            value = _OF_TYPE[field.type]
        values[field.name] = [value] if field.is_repeated else value
    return message(**values)


_OF_TYPE: dict[int, Any] = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BYTES: b"b" * 32,
    FieldDescriptor.TYPE_DOUBLE: 0.5,
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_UINT32: 7,
    FieldDescriptor.TYPE_UINT64: 7,
    FieldDescriptor.TYPE_INT32: 7,
    FieldDescriptor.TYPE_INT64: 7,
}


def context(ids: Identities) -> SealingContext:
    """Return the context of the golden transfer."""
    return SealingContext(
        transfer_id=b"i" * 32,
        request_digest=b"r" * 32,
        manifest_commitment=b"m" * 32,
        donor_key_id=ids.site_key.key_id,
        recipient_key_id=ids.steward_key.key_id,
        recipient_hpke_key_id=ids.hpke.key_id,
        dictionary_digest=ids.dictionary_digest,
    )


def sealed(ids: Identities) -> dict[str, str]:
    """Seal `PLAINTEXT` in chunks of 64 bytes to the fixed HPKE key."""
    out = io.BytesIO()
    result = seal(
        io.BytesIO(PLAINTEXT),
        out,
        recipient=ids.hpke.public_key,
        context=context(ids),
        limits=Limits(chunk_bytes=64, padding_bytes=64),
    )
    return {
        "stream": out.getvalue().hex(),
        "shipment": result.shipment(b"i" * 32).SerializeToString().hex(),
    }


def main() -> None:
    """Write what is missing or deterministic."""
    ids = fixed_identities()
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "signed.json").write_text(json.dumps(signed(ids), indent=1) + "\n")
    if not (GOLDEN / "sealed.json").exists():
        (GOLDEN / "sealed.json").write_text(json.dumps(sealed(ids), indent=1) + "\n")


if __name__ == "__main__":
    main()
