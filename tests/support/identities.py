"""A site's identities, made from fixed seeds so that every run signs the same bytes."""

from dataclasses import dataclass

from synthedge_protocols.keys import HpkeKeyPair, StatementKey
from synthedge_protocols.limits import Limits
from synthedge_protocols.statements import sign
from synthedge_protocols.v1 import statements_pb2 as pb

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000


@dataclass(frozen=True)
class Identities:
    """A site with its steward, what they sign under, and a moment at which all is in force."""

    consortium: str
    site: str
    site_key: StatementKey
    steward_key: StatementKey
    steward_certificate: pb.SignedStatement
    hpke: HpkeKeyPair
    dictionary_digest: bytes
    now_ms: int
    limits: Limits


def fixed_identities() -> Identities:
    """Site 'north' of consortium 'demo' with steward 'ada', certified for a day on either side."""
    site_key, steward_key = StatementKey.from_seed(b"s" * 32), StatementKey.from_seed(b"t" * 32)
    certificate = sign(
        site_key,
        pb.StewardCertificate(
            steward="ada",
            public_key=steward_key.public_bytes,
            not_before_ms=NOW_MS - DAY_MS,
            not_after_ms=NOW_MS + DAY_MS,
        ),
        consortium="demo",
        site="north",
        dictionary_digest=b"",
        issued_at_ms=NOW_MS - DAY_MS,
    )
    return Identities(
        consortium="demo",
        site="north",
        site_key=site_key,
        steward_key=steward_key,
        steward_certificate=certificate,
        hpke=HpkeKeyPair(b"h" * 96),
        dictionary_digest=b"d" * 32,
        now_ms=NOW_MS,
        limits=Limits(),
    )
