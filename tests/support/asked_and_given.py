"""A transfer between the two sites of `enrolled.pair`, step by step."""

from enrolled import exchange
from sites import MALE_HIGH, steward, transfer_at
from synthedge_client.asking import request
from synthedge_client.donating import approve, prepare
from synthedge_client.site import Site

Pair = list[Site]


def ask(north: Site, rows: int = 5, *, donor: str = "south", voxel: int = MALE_HIGH) -> bytes:
    """Request rows; return the transfer's id."""
    return request(
        north,
        steward(),
        donor=donor,
        grid=north.grid("sex x bp"),
        voxel=voxel,
        rows=rows,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )


def give(south: Site, identifier: bytes) -> None:
    """Prepare and approve."""
    prepare(south, transfer_at(south, identifier), "ada")
    approve(south, transfer_at(south, identifier), steward())


async def asked_and_given(north: Site, south: Site) -> bytes:
    """Request and approve; nothing is sealed yet."""
    identifier = ask(north)
    await exchange(north, south)
    give(south, identifier)
    return identifier


def states(identifier: bytes, *sites: Site) -> list[str]:
    """Where each site's record of a transfer stands."""
    return [transfer_at(site, identifier).state.value for site in sites]
