"""The pictures of the audit report: gap map, timeline of transfers, who gave to whom. Geometry only; the page draws.

Everything in them was published or stands in the report's tables: a picture shows no more than the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from synthedge_client.audit import AuditReport

WIDTH: Final = 760.0
LABEL: Final = 170.0
_ROW: Final = 26.0
_MAX_ROWS: Final = 60
_MIN_BAR: Final = 6.0


@dataclass(frozen=True, slots=True)
class Tile:
    """One gap of the map: its place among its grid's, and how far it falls short.

    Attributes
    ----------
    x, y, width : float
        Of a bar whose length is expected patients; `filled` is the part that is here at the most.
    """

    label: str
    y: float
    width: float
    filled: float
    status: str
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One transfer on the timeline."""

    label: str
    y: float
    x: float
    width: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Flow:
    """Rows between this site and another one."""

    peer: str
    y: float
    given: int
    given_width: float
    taken: int
    taken_width: float


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing: its height and what is in it; `ticks` are (x, text)."""

    height: float
    items: Sequence[Any]
    ticks: Sequence[tuple[float, str]] = ()


def gap_map(report: AuditReport) -> Picture:
    """Expected against present positives, worst gap first."""
    gaps = report.gaps[:_MAX_ROWS]
    scale = max((gap["expected"] for gap in gaps), default=1.0) or 1.0
    room = WIDTH - LABEL - 120
    tiles = [
        Tile(
            gap["region"],
            i * _ROW,
            room * gap["expected"] / scale,
            # "<5" is drawn as five: the picture tells no more than the table.
            room * min(1.0, (5 if gap["observed"] == "<5" else gap["observed"]) / scale),
            gap["status"],
            f"{gap['observed']} of {gap['expected']:g} expected, z {gap['z']:g}, {gap['status']}",
        )
        for i, gap in enumerate(gaps)
    ]
    return Picture(len(tiles) * _ROW, tiles)


def timeline(report: AuditReport) -> Picture:
    """Every transfer from its request to its last change."""
    transfers = sorted(
        [*report.sent, *report.received, *report.open], key=lambda row: str(row["requested_at"])
    )[-_MAX_ROWS:]
    if not transfers:
        return Picture(0.0, ())
    starts = [_seconds(row["requested_at"]) for row in transfers]
    ends = [_seconds(row["changed_at"]) for row in transfers]
    first, last = min(starts), max(*ends, min(starts) + 1.0)
    room = WIDTH - LABEL
    bars = [
        Bar(
            f"{row['donor']} to {row['recipient']}",
            i * _ROW,
            min(WIDTH - _MIN_BAR, LABEL + room * (start - first) / (last - first)),
            max(_MIN_BAR, room * (end - start) / (last - first)),
            _kind(row["state"]),
            f"{row['state']}: {row['rows']} rows, {row['region']}, {row['transfer_id'][:12]}",
        )
        for i, (row, start, end) in enumerate(zip(transfers, starts, ends, strict=True))
    ]
    ticks = [
        (LABEL, transfers[0]["requested_at"][:10]),
        (WIDTH, datetime.fromtimestamp(last).astimezone().date().isoformat()),
    ]
    return Picture(len(bars) * _ROW, bars, ticks)


def flows(report: AuditReport) -> Picture:
    """How many rows went to each other site, and came from it."""
    given: dict[str, int] = {}
    taken: dict[str, int] = {}
    for row in report.sent:
        given[row["recipient"]] = given.get(row["recipient"], 0) + row["rows"]
    for row in report.received:
        taken[row["donor"]] = taken.get(row["donor"], 0) + row["rows"]
    peers = sorted({*given, *taken})
    scale = max([*given.values(), *taken.values(), 1])
    room = (WIDTH - LABEL) / 2 - 50
    return Picture(
        len(peers) * _ROW,
        [
            Flow(
                peer,
                i * _ROW,
                given.get(peer, 0),
                room * given.get(peer, 0) / scale,
                taken.get(peer, 0),
                room * taken.get(peer, 0) / scale,
            )
            for i, peer in enumerate(peers)
        ],
    )


def _kind(state: str) -> str:
    if state == "ACTIVE":
        return "active"
    if state in ("REQUESTED", "PREPARED", "APPROVED", "SEALED", "RELAYED", "DELIVERED"):
        return "waiting"
    return "ended"


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
