"""What a steward's standing policy covers, judged alike by the site that acts under it and by those who hear of it.

Rows per peer and period are for the acting site alone to keep: nobody else knows all of its transfers.
"""

from typing import Any

from synthedge_protocols.errors import MalformedError, PolicyError
from synthedge_protocols.purposes import covers
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import statements_pb2 as pb

__all__ = ["ACTS", "check_policy", "region_name", "require_authority", "require_covered"]

ACTS = ("request", "approve", "accept")
_ID_BYTES = 16


def region_name(grid: str, voxel: tuple[int, ...]) -> str:
    """Spell one region as a policy lists it, ``"sex x age/1,2"``."""
    return f"{grid}/{','.join(str(i) for i in voxel)}"


def check_policy(policy: pb.StandingPolicy) -> None:
    """Return if a policy is complete and says nothing but what this version knows.

    Raises
    ------
    MalformedError
        If not.
    """
    if len(policy.policy_id) != _ID_BYTES:
        raise MalformedError(f"a standing policy's id has {_ID_BYTES} bytes")
    if not policy.acts or not set(policy.acts) <= set(ACTS):
        raise MalformedError(f"a standing policy allows some of {', '.join(ACTS)}, nothing else")
    lists = {"peers": policy.peers, "purposes": policy.purposes, "features": policy.features}
    for name, values in lists.items():
        if not values:
            raise MalformedError(f"a standing policy names its {name}; this one names none")
    if not (policy.rows and policy.period_days and policy.valid_until_ms > 0):
        raise MalformedError("a standing policy bounds rows, period and its own time")


def require_covered(
    policy: pb.StandingPolicy, act: str, *, peer: str, request: pb.TransferRequest, now_ms: int
) -> None:
    """Return if a policy allows an act on a request.

    Parameters
    ----------
    policy : StandingPolicy
        Verified.
    act : {"request", "approve", "accept"}
    peer : str
        The other side of the transfer, as the policy's site sees it.
    request : TransferRequest
        What is asked for.
    now_ms : int
        When the act was signed. Unit: ms of Unix time.

    Raises
    ------
    MalformedError
        If the policy is incomplete.
    PolicyError
        Naming the first thing it does not cover.
    """
    check_policy(policy)
    regions = (request.grid, region_name(request.grid, tuple(request.voxel)))
    refused = None
    if act not in policy.acts:
        refused = f"to {act}"
    elif now_ms > policy.valid_until_ms:
        refused = "anything any more: its time has passed"
    elif peer not in policy.peers:
        refused = f"site '{peer[:63]}'"
    elif not any(covers(purpose, request.purpose) for purpose in policy.purposes):
        refused = f"purpose {request.purpose[:20]}"
    elif not set(request.features) <= set(policy.features):
        refused = "every feature that is asked for"
    elif request.rows > policy.rows:
        refused = f"{request.rows} rows"
    elif policy.regions and not set(regions) & set(policy.regions):
        refused = "the region that is asked for"
    if refused is not None:
        raise PolicyError(
            f"the standing policy {policy.policy_id.hex()[:8]} does not cover {refused}; "
            "a steward must decide"
        )


def require_authority(
    verified: Verified[Any],
    request: pb.TransferRequest,
) -> None:
    """Return if whoever signed a request, approval or receipt may do so for this request.

    A steward may; so may a site that refuses a delivery, or carries out what the request or a standing policy says.

    Raises
    ------
    PolicyError
        If a site's key signed what neither the request nor a policy covers.
    """
    payload = verified.payload
    if verified.signer.kind == "steward":
        return
    if isinstance(payload, pb.Receipt):
        if not payload.accepted or request.accept_if_gate_passes:
            return
        act, peer = "accept", request.donor
    elif isinstance(payload, pb.Approval):
        act, peer = "approve", request.recipient
    else:
        act, peer = "request", request.donor
    if verified.policy is None:
        raise PolicyError(
            f"a steward of site '{verified.site}' must sign this {verified.type}, or a standing policy cover it"
        )
    require_covered(
        verified.policy.payload, act, peer=peer, request=request, now_ms=verified.issued_at_ms
    )
