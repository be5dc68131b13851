"""The gap network as a drawing: sites on a circle, proposals as thin lines, transfers as thick ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from synthedge_server.overview import MatchRow, SiteRow, TransferRow

SIZE: Final = 640.0
_RADIUS: Final = 240.0
_NODE_RADIUS: Final = 9.0


@dataclass(frozen=True, slots=True)
class Node:
    """A site; `anchor` and the label's place keep the text off the circle."""

    site: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Edge:
    """A line from a donor to a recipient, bent so that both directions are seen.

    Attributes
    ----------
    path : str
        Of SVG.
    kind : str
        ``proposal``, ``waiting``, ``active`` or ``ended``: the class it is drawn with.
    title : str
        What a pointer over it tells.
    """

    path: str
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Network:
    """Everything of the drawing, in units of a square of `SIZE`."""

    nodes: list[Node]
    edges: list[Edge]


def draw(
    sites: Sequence[SiteRow], matches: Sequence[MatchRow], transfers: Sequence[TransferRow]
) -> Network:
    """Lay the network out; the same rows give the same drawing."""
    nodes = {row.site: _node(row.site, i, len(sites)) for i, row in enumerate(sites)}
    edges = []
    proposed: dict[tuple[str, str], list[str]] = {}
    for match in matches:
        proposed.setdefault((match.donor, match.recipient), []).append(match.region)
    moved: dict[tuple[str, str, str], list[str]] = {}
    for transfer in transfers:
        kind = "waiting" if transfer.waits_for else "ended"
        kind = "active" if transfer.state == "ACTIVE" else kind
        moved.setdefault((transfer.donor, transfer.recipient, kind), []).append(transfer.region)
    for (donor, recipient), regions in proposed.items():
        if donor in nodes and recipient in nodes:
            edges.append(_edge(nodes[donor], nodes[recipient], "proposal", regions, 0.10))
    for (donor, recipient, kind), regions in moved.items():
        bend = {"active": 0.20, "waiting": 0.28, "ended": 0.36}[kind]
        edges.append(_edge(nodes[donor], nodes[recipient], kind, regions, bend))
    return Network(list(nodes.values()), edges)


def _node(site: str, i: int, n_sites: int) -> Node:
    angle = 2 * math.pi * i / max(n_sites, 1) - math.pi / 2
    x, y = math.cos(angle), math.sin(angle)
    centre, reach = SIZE / 2, _RADIUS + 2 * _NODE_RADIUS
    anchor = "middle" if abs(x) < 0.3 else ("start" if x > 0 else "end")
    return Node(
        site,
        centre + _RADIUS * x,
        centre + _RADIUS * y,
        centre + reach * x,
        centre + reach * y + 5.0,
        anchor,
    )


def _edge(donor: Node, recipient: Node, kind: str, regions: list[str], bend: float) -> Edge:
    middle_x, middle_y = (donor.x + recipient.x) / 2, (donor.y + recipient.y) / 2
    across_x, across_y = recipient.y - donor.y, donor.x - recipient.x
    control = f"{middle_x + bend * across_x:.1f} {middle_y + bend * across_y:.1f}"
    # Ends at the rim of the node, or its arrowhead would lie under it.
    length = math.hypot(recipient.x - donor.x, recipient.y - donor.y) or 1.0
    end_x = recipient.x - (recipient.x - donor.x) / length * (_NODE_RADIUS + 4)
    end_y = recipient.y - (recipient.y - donor.y) / length * (_NODE_RADIUS + 4)
    shown = ", ".join(sorted(set(regions))[:5]) + (", …" if len(set(regions)) > 5 else "")
    title = f"{kind}: {donor.site} to {recipient.site}, {shown}"
    path = f"M{donor.x:.1f} {donor.y:.1f} Q{control} {end_x:.1f} {end_y:.1f}"
    return Edge(path, kind, title)
