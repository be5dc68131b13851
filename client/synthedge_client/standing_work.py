"""What the agent does under standing policies: asks for confirmed holes, approves requests, accepts deliveries.

Rules
-----
* Without a policy that covers it in every point, nothing here acts: a steward decides.
* What a policy covers but cannot be done (too few patients, a table that is being edited) is tried again later.
"""

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial

import sqlalchemy as sa

from synthedge_client import policies, store
from synthedge_client.accepting import accept
from synthedge_client.asking import request
from synthedge_client.donating import approve, prepare
from synthedge_client.gaps import Gap, list_gaps
from synthedge_client.site import Site
from synthedge_client.transfers import Transfer, get_transfer, list_transfers, region_of
from synthedge_core.errors import SynthEdgeError
from synthedge_protocols.errors import ProtocolError
from synthedge_protocols.lifecycle import State, is_final

log = logging.getLogger(__name__)

RETRY_S = 60.0
# Holes are looked for anew when a hint, the table or a policy changed, and now and then besides.
LOOK_AGAIN_S = 600.0


@dataclass
class StandingWork:
    """Carries out policies for one running agent; holds only when to try what again."""

    clock: Callable[[], float] = time.monotonic
    _next: dict[Hashable, float] = field(default_factory=dict)

    def carry_out(self, site: Site) -> bool:
        """One pass; True if anything was decided."""
        if not policies.has_policies(site):
            return False
        with site.store.read() as connection:
            transfers = list_transfers(connection)
        done = [self._try(t.id, partial(_decide, site, t)) for t in transfers if _is_open(t)]
        key = _circumstances(site)
        return any(done) | self._try(key, lambda: _ask(site), again_s=LOOK_AGAIN_S)

    def _try(self, key: Hashable, act: Callable[[], bool], again_s: float = RETRY_S) -> bool:
        if self.clock() < self._next.get(key, 0.0):
            return False
        try:
            done = act()
        except (ProtocolError, SynthEdgeError, OSError) as error:
            log.warning("a standing policy could not be carried out: %s", error)
            done = False
        if not done:
            self._next = {k: at for k, at in self._next.items() if at > self.clock()}
            self._next[key] = self.clock() + again_s
        return done


def _is_open(transfer: Transfer) -> bool:
    if transfer.role == "donor":
        return transfer.state in (State.REQUESTED, State.PREPARED)
    return transfer.state is State.DELIVERED and transfer.gate is not None


def _decide(site: Site, transfer: Transfer) -> bool:
    site = site.under(transfer.dictionary_digest)
    act = "approve" if transfer.role == "donor" else "accept"
    with site.store.read() as connection:
        decider = policies.policy_for(site, connection, act, transfer.peer, transfer.request)
    if decider is None:
        return False
    if act == "accept":
        accept(site, transfer, decider)
        return True
    if not transfer.has_manifest:
        prepare(site, transfer, decider.label)
        with site.store.read() as connection:
            transfer = get_transfer(connection, transfer.id)
    approve(site, transfer, decider)
    return True


def _circumstances(site: Site) -> Hashable:
    """What the answer to "which holes are to be asked for" depends on."""
    with site.store.read() as connection:
        hints = connection.execute(
            sa.select(store.hints.c.message).order_by(store.hints.c.kind)
        ).scalars()
        kept = connection.execute(sa.select(sa.func.count()).select_from(store.policies))
        return (
            "holes",
            hash(tuple(hints)),
            kept.scalar_one(),
            site.settings.data.stat().st_mtime_ns if site.settings.data.exists() else 0,
        )


def _ask(site: Site) -> bool:
    with site.store.read() as connection:
        deciders = policies.policies_for(site, connection, "request")
    if not deciders or _proposals_are_old(site):
        return False
    asked = [_ask_for(site, decider, gap) for gap in _confirmed(site) for decider in deciders]
    return any(asked)


def _proposals_are_old(site: Site) -> bool:
    """Whether the coordinator proposed nothing new for longer than the policy lets an agent act on it."""
    with site.store.read() as connection:
        told_at: int | None = connection.execute(
            sa.select(sa.func.max(store.events.c.at_ms)).where(
                store.events.c.what == "proposals received"
            )
        ).scalar_one()
    limit_ms = site.dictionary.policy.proposed_h * 3_600_000
    return told_at is None or store.now_ms() - told_at > limit_ms


def _confirmed(site: Site) -> list[Gap]:
    return [gap for gap in list_gaps(site) if gap.status == "confirmed"]


def _ask_for(site: Site, decider: policies.PolicyDecider, gap: Gap) -> bool:
    """Ask the best proposed donor that was not asked yet, unless rows for this hole came or are on their way."""
    grid = site.grid(gap.grid)
    with site.store.read() as connection:
        mine = [t for t in list_transfers(connection) if t.role == "recipient"]
        places = {(p.donor, p.donor_voxel): p for p in gap.proposals}
        asked = {
            (t.peer, region_of(site, t.request)[1]): t for t in mine if t.request.grid == gap.grid
        }
        if any(place in places and not is_final(t.state) for place, t in asked.items()):
            return False
        left = {p: policies.rows_left(connection, decider.policy, "request", p[0]) for p in places}
    for place, proposed in places.items():
        is_allowed = proposed.donor in decider.policy.peers and _is_allowed_region(
            decider, gap.grid, grid.index_of(proposed.donor_voxel)
        )
        rows = min(gap.rows, left[place])
        if place in asked or not is_allowed or rows < 1:
            continue
        request(
            site,
            decider,
            donor=proposed.donor,
            grid=grid,
            voxel=proposed.donor_voxel,
            rows=rows,
            purpose=decider.policy.purposes[0],
            features=decider.policy.features,
        )
        return True
    return False


def _is_allowed_region(decider: policies.PolicyDecider, grid: str, index: tuple[int, ...]) -> bool:
    from synthedge_protocols.standing_policies import region_name

    allowed = decider.policy.regions
    return not allowed or grid in allowed or region_name(grid, index) in allowed
