"""Who could help whom, for the operator: what was proposed, or what another strategy would propose."""

from typing import Any

from synthedge_core.dictionary import parse_dictionary
from synthedge_core.matching import StrategyName
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.operations import current_dictionary, reading
from synthedge_server.overview import list_matches
from synthedge_server.registry import Registry


def proposed_matches(folder: CoordinatorFolder) -> list[dict[str, Any]]:
    """The newest proposals to every site, as they were sent."""
    keys = ("recipient", "grid", "voxel", "rank", "donor", "donor_voxel", "similarity", "reason")
    with reading(folder) as engine, engine.connect() as connection:
        return [{key: getattr(row, key) for key in keys} for row in list_matches(connection)]


def matches_by(folder: CoordinatorFolder, strategy: StrategyName) -> list[dict[str, Any]]:
    """Match the current reports by one strategy, to compare; nothing is sent to anybody.

    Parameters
    ----------
    folder : CoordinatorFolder
    strategy : str
        ``share``, what the proposals are made by, or ``seed``, the published synthedge rule.

    Raises
    ------
    UsageError
        If there is no such strategy.
    """
    registry = Registry(parse_dictionary(current_dictionary(folder)))
    matcher = registry.new_matcher(strategy)
    with reading(folder) as engine, engine.connect() as connection:
        reports = registry.current_reports(connection)
    matcher.update(reports)
    return [
        {
            "recipient": site,
            "grid": match.grid,
            "voxel": list(registry.grids[match.grid].index_of(match.voxel)),
            "rank": match.rank,
            "donor": match.donor,
            "donor_grid": match.donor_grid,
            "donor_voxel": list(registry.grids[match.donor_grid].index_of(match.donor_voxel)),
            "similarity": round(match.similarity, 3),
            "reason": match.reason,
        }
        for site in reports
        for match in matcher.matches(site)
    ]
