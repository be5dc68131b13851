"""Write the golden files: what version 1 signed and sealed, for ever to be accepted.

    python tests/support/write_golden.py

Signed bytes are the same at every run. Sealing draws a fresh key, so `sealed.json` is only written
when it is missing; delete it only together with the version number in the sealing context.
"""

import io
import json
from pathlib import Path

from identities import DAY_MS, Identities, fixed_identities
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import SealingContext, seal
from synthedge_protocols.statements import sign
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import statements_pb2 as pb

GOLDEN = Path(__file__).resolve().parents[1] / "protocols" / "golden"
PLAINTEXT = b"Twenty rows of the region, in dictionary units. " * 5


def signed(ids: Identities) -> dict[str, str]:
    """Return a site's and a steward's statement, and a token, as hexadecimal or text."""
    site = sign(
        ids.site_key,
        pb.Receipt(transfer_id=b"i" * 32, ciphertext_digest=b"c" * 32, rows=20, accepted=True),
        consortium=ids.consortium,
        site=ids.site,
        dictionary_digest=ids.dictionary_digest,
        issued_at_ms=ids.now_ms,
    )
    steward = sign(
        ids.steward_key,
        pb.Approval(
            transfer_id=b"i" * 32,
            request_digest=b"r" * 32,
            manifest_commitment=b"m" * 32,
            rows=20,
        ),
        consortium=ids.consortium,
        site=ids.site,
        dictionary_digest=ids.dictionary_digest,
        issued_at_ms=ids.now_ms,
        certificate=ids.steward_certificate,
    )
    token = EnrolmentToken(
        consortium=ids.consortium,
        site=ids.site,
        address="127.0.0.1:7443",
        enrolment_address="127.0.0.1:7444",
        ca_certificate=b"certificate",
        secret=b"x" * 32,
        expires_at_ms=ids.now_ms + DAY_MS,
    )
    return {
        "receipt": site.SerializeToString().hex(),
        "approval": steward.SerializeToString().hex(),
        "token": token.encode(),
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
        limits=Limits(chunk_bytes=64),
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
