"""The two-person rule: where site.toml asks for it, a decision is signed by two stewards with two keys.

The second steward's statement carries the first one's, over the same words, so that whoever receives it verifies both.
"""

from typing import TypeVar

from synthedge_client.site import Site
from synthedge_client.stewards import Steward
from synthedge_core.errors import RefusedError
from synthedge_protocols.keys import fingerprint
from synthedge_protocols.v1 import statements_pb2 as pb

SignedTwice = TypeVar("SignedTwice", pb.Approval, pb.StandingPolicy)


def needs_two(site: Site) -> bool:
    """Whether this site's decisions to give rows need two stewards."""
    return site.settings.approvals == 2


def is_complete(site: Site, body: pb.Approval | pb.StandingPolicy) -> bool:
    """Whether a decision carries as many signatures as this site asks for."""
    return body.HasField("first") or not needs_two(site)


def sign_once_more(
    site: Site, steward: Steward, body: SignedTwice, first: bytes | None
) -> pb.SignedStatement:
    """Sign a decision; where another steward's signature over the same words is stored, carry that along.

    Parameters
    ----------
    body : Approval or StandingPolicy
        Without a first signature; it is set here if there is one.
    first : bytes or None
        The serialised SignedStatement that waits for a second steward.

    Raises
    ------
    RefusedError
        If the same key signed before.
    """
    if first is not None and needs_two(site):
        earlier = pb.SignedStatement.FromString(first)
        words = pb.Statement.FromString(earlier.statement).payload
        # Other words, for example of a manifest prepared anew: the first signature is not about these.
        if words == body.SerializeToString(deterministic=True):
            if signer_of(earlier) == steward.key.fingerprint:
                raise RefusedError(
                    f"steward '{steward.name}' has signed this already; two different stewards must sign"
                )
            body.first.CopyFrom(earlier)
    return steward.sign(site, body)


def signer_of(signed: pb.SignedStatement) -> str:
    """Fingerprint of the steward's key that signed a statement of this site's own."""
    certificate = pb.Statement.FromString(signed.certificate.statement).payload
    return fingerprint(pb.StewardCertificate.FromString(certificate).public_key)
