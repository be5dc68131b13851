"""What one simulated consortium found, moved and cost."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Figures:
    """What one simulated consortium found, moved and cost.

    Attributes
    ----------
    sites, reports : int
        Sites, and those whose report was taken in.
    holes_made : int
    holes_confirmed, confirmed_right : int
        Confirmed holes of all sites, and how many of them are where one was made.
    made_confirmed, made_first : int
        Made holes that were confirmed, and that came first in their site's list.
    proposals, asks : int
        Donors proposed, and regions that sites would ask for.
    transfers, rows : int
        Deliveries that passed the recipient's gate, and their rows.
    refused : int
        Deliveries that did not.
    to_made, rows_to_made : int
        Those of `transfers` and `rows` that went where a hole was made.
    wire_bytes : dict of str to int
        By kind: `rounds` and `reports` as Flower carries them, `profiles`, `proposals`, `directory` (what every site
        reads once) and `sealed` rows with their shipment.
    wall_s : dict of str to float
        By stage, in seconds.
    cpu_ms : dict of str to float
        By stage, milliseconds of processor time a site. `report` is measured at the first few
        sites in this process.
    """

    sites: int
    reports: int = 0
    holes_made: int = 0
    holes_confirmed: int = 0
    confirmed_right: int = 0
    made_confirmed: int = 0
    made_first: int = 0
    proposals: int = 0
    asks: int = 0
    transfers: int = 0
    rows: int = 0
    refused: int = 0
    to_made: int = 0
    rows_to_made: int = 0
    wire_bytes: Counter[str] = field(default_factory=Counter)
    wall_s: dict[str, float] = field(default_factory=dict)
    cpu_ms: dict[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> float | None:
        """Share of the confirmed holes that were made; None without any."""
        return self.confirmed_right / self.holes_confirmed if self.holes_confirmed else None

    @property
    def recall(self) -> float | None:
        """Share of the made holes that were confirmed; None without any."""
        return self.made_confirmed / self.holes_made if self.holes_made else None

    @property
    def first(self) -> float | None:
        """Share of the made holes that came first; None without any."""
        return self.made_first / self.holes_made if self.holes_made else None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        shares = {"precision": self.precision, "recall": self.recall, "first": self.first}
        return asdict(self) | shares | {"wire_bytes": dict(self.wire_bytes)}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s[stage] = time.perf_counter() - wall_s
        self.cpu_ms[stage] = (time.process_time() - cpu_s) * 1000 / self.sites
