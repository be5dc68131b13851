"""The recipient's steward asks for samples: a signed request, queued for the coordinator and the donor."""

import secrets
from collections.abc import Collection

from synthedge_client import outbound
from synthedge_client.deciding import Decider
from synthedge_client.dictionaries import require_accepted
from synthedge_client.site import Site
from synthedge_client.site_table import load_site_table
from synthedge_client.standing import require_taking_part
from synthedge_client.transfers import insert_request
from synthedge_core.errors import RefusedError, UsageError
from synthedge_core.grids import NamedGrid
from synthedge_protocols.keys import key_id
from synthedge_protocols.purposes import is_duo_code
from synthedge_protocols.v1 import statements_pb2 as pb


def request(
    site: Site,
    steward: Decider,
    *,
    donor: str,
    grid: NamedGrid,
    voxel: int,
    rows: int,
    purpose: str,
    accept_if_gate_passes: bool = False,
    features: Collection[str] | None = None,
) -> bytes:
    """Sign and queue a request for samples; return its transfer id.

    Parameters
    ----------
    voxel : int
        Flat index of the region in `grid`.
    rows : int
        How many at most, 1 to the dictionary's ``rows_per_transfer``.
    purpose : str
        A DUO code.
    accept_if_gate_passes : bool
        Take the rows in as soon as the gate lets them pass, without a second look.
    features : collection of str, optional
        Ask for these at the most; everything this site has and may ask for if left out.

    Raises
    ------
    UsageError
        If the number of rows is out of range, the purpose is no DUO code, or the donor is not known.
    RefusedError
        If the donor's key was not compared, or this site has no column for a feature of the region.
    TableError
        If the site's own table cannot be used.
    """
    dictionary = site.dictionary
    limit = dictionary.policy.rows_per_transfer
    if not 1 <= rows <= limit:
        raise UsageError(
            f"{rows} rows were asked for, expected 1 to {limit} (the dictionary's policy)"
        )
    if not is_duo_code(purpose):
        raise UsageError(f"purpose '{purpose}' is no DUO code; write for example DUO:0000007")
    table = load_site_table(site.settings, dictionary)
    # Features without a privacy class leave no site: asking for them would only be refused.
    wanted = [
        f
        for f in table.features
        if dictionary.feature(f).is_shareable and (features is None or f in features)
    ]
    absent = sorted(set(grid.features) - set(wanted))
    if absent:
        raise RefusedError(
            f"this site has no column for '{absent[0]}', so it could not check that rows lie in "
            f"{grid.label(voxel)}; ask for a region of another grid"
        )
    body = pb.TransferRequest(
        recipient=site.settings.id,
        donor=donor,
        grid=grid.name,
        voxel=grid.index_of(voxel),
        purpose=purpose,
        features=wanted,
        rows=rows,
        retention_days=dictionary.policy.retention_days,
        hpke_key_id=site.hpke_key.key_id,
        nonce=secrets.token_bytes(32),
        accept_if_gate_passes=accept_if_gate_passes,
    )
    with site.store.write() as connection:
        require_accepted(connection)
        require_taking_part(connection)
        site.require_verified_peer(connection, donor)
        body.donor_key_id = key_id(site.peer_public_key(connection, donor))
        signed = steward.sign(site, body)
        transfer_id = insert_request(connection, signed, body, role="recipient", who=steward.label)
        outbound.enqueue(connection, "transfer-request", signed, steward.label)
    return transfer_id
