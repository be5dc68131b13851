"""What a transfer request must satisfy before the donor hears of it."""

import re
from typing import Final

from sqlalchemy import Connection, bindparam, select

from synthedge_core.dictionary import Policy
from synthedge_core.errors import GridError
from synthedge_protocols.errors import IdentityError, MalformedError, PolicyError
from synthedge_protocols.keys import key_id
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.statements import Verified
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import store
from synthedge_server.registry import Registry

_NONCE_BYTES: Final = 32
# Data Use Ontology terms, https://github.com/EBISPOT/DUO
_PURPOSE: Final = re.compile(r"DUO:\d{7}")
_KEYS_OF: Final = Prepared(
    select(store.sites.c.hpke_key_id, store.sites.c.statement_public_key).where(
        store.sites.c.site == bindparam("of_site")
    )
)


def check_request(
    connection: Connection, registry: Registry, verified: Verified[pb.TransferRequest]
) -> None:
    """Return if a request fits dictionary, policy, current reports and the recipient's keys.

    Raises
    ------
    IdentityError
        If it is signed for another site, or names an HPKE key that is not the signer's registered one.
    MalformedError
        If grid, voxel, features, purpose or nonce are not what the dictionary or protocol knows.
    PolicyError
        If the donor cannot be asked, or the policy does not allow what is asked.
    """
    request = verified.payload
    if request.recipient != verified.site:
        raise IdentityError(
            f"the request names '{request.recipient[:63]}' as recipient but was signed by "
            f"'{verified.site}'"
        )
    if request.donor == verified.site:
        raise PolicyError("the request names its own site as donor")
    if request.grid not in registry.grids_of(connection, request.donor):
        raise PolicyError(
            f"the request names donor '{request.donor[:63]}', which is no active site with a "
            f"current report of grid '{request.grid[:100]}'"
        )
    try:
        registry.grids[request.grid].flat_of(tuple(request.voxel))
    except GridError as error:
        raise MalformedError(f"the request: {error}") from None
    _check_features(request, registry)
    _check_policy(request, registry.dictionary.policy)
    if request.hpke_key_id != _KEYS_OF.one(connection, of_site=verified.site).hpke_key_id:
        raise IdentityError(
            f"the request of site '{verified.site}' names an HPKE key that is not its registered one"
        )
    donor_key = _KEYS_OF.one(connection, of_site=request.donor).statement_public_key
    if request.donor_key_id != key_id(donor_key):
        raise IdentityError(
            f"the request names another key of site '{request.donor}' than the one on record; it changed its keys: "
            f"compare the new fingerprint ('synthedge site peers verify {request.donor} FINGERPRINT') and ask again"
        )
    if len(request.nonce) != _NONCE_BYTES:
        raise MalformedError(f"the request: a nonce has {_NONCE_BYTES} bytes")


def _check_features(request: pb.TransferRequest, registry: Registry) -> None:
    dictionary, wanted = registry.dictionary, set(request.features)
    in_order = [name for name in dictionary.feature_names if name in wanted]
    if not wanted or list(request.features) != in_order:
        raise MalformedError(
            "the request: its features are not the dictionary's, each at most once and in its order"
        )
    hidden = [name for name in in_order if not dictionary.feature(name).is_shareable]
    if hidden:
        raise PolicyError(f"the request asks for {', '.join(hidden)}, which never leaves a site")
    if not set(registry.grids[request.grid].features) <= wanted:
        raise PolicyError(
            f"the request leaves out a feature of grid '{request.grid}'; without it nobody could "
            "check that the rows lie in the region"
        )


def _check_policy(request: pb.TransferRequest, policy: Policy) -> None:
    if not 1 <= request.rows <= policy.rows_per_transfer:
        raise PolicyError(
            f"the request asks for {request.rows} rows; the consortium allows 1 to "
            f"{policy.rows_per_transfer}"
        )
    if not 1 <= request.retention_days <= policy.retention_days:
        raise PolicyError(
            f"the request asks to keep rows for {request.retention_days} days; the consortium allows "
            f"1 to {policy.retention_days}"
        )
    if not _PURPOSE.fullmatch(request.purpose):
        raise MalformedError(
            "the request: the purpose is not a Data Use Ontology code such as DUO:0000007"
        )
