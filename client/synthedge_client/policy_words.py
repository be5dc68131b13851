"""What a steward types for a policy, as the policy says it."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

from synthedge_client.site import Site
from synthedge_core.errors import UsageError
from synthedge_protocols.standing_policies import region_name


def regions_named(site: Site, typed: Sequence[str]) -> list[str]:
    """Grids by name, and gaps' ids (``grid/number``) as regions.

    Raises
    ------
    UsageError
        If there is no such grid or voxel.
    """
    grids = {spec.name for spec in site.dictionary.grids}
    regions = []
    for text in typed:
        name, _, number = text.rpartition("/")
        if text in grids:
            regions.append(text)
        elif name in grids and number.isdecimal() and int(number) < site.grid(name).n_voxels:
            regions.append(region_name(name, site.grid(name).index_of(int(number))))
        else:
            raise UsageError(f"there is no grid or voxel '{text}'; see 'synthedge site gaps list'")
    return regions


def end_of_day_ms(day: date) -> int:
    """The last moment of a local day. Unit: ms of Unix time."""
    after = datetime.combine(day + timedelta(days=1), datetime.min.time()).astimezone()
    return int(after.timestamp() * 1000) - 1
