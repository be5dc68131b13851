"""What virtual sites ask for and give: recommended, chosen, protected, sealed and looked at as by the product."""

import hashlib
import io
from typing import Final

import numpy as np

from synthedge_client.dose import recommend, rows_of_each
from synthedge_client.outbound import build_payload, commitment
from synthedge_core.holes import Hole
from synthedge_deploy.generated import GeneratedHospital, Plan
from synthedge_deploy.planning_figures import Figures
from synthedge_deploy.simulate import deliver
from synthedge_deploy.virtual_site import VirtualKeys
from synthedge_protocols.compression import compress
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import SealingContext, seal
from synthedge_protocols.v1 import coordinator_pb2 as wire

_LIMITS: Final = Limits()


def ask_and_give(
    plan: Plan,
    made: dict[str, GeneratedHospital],
    site: str,
    ranked: list[tuple[str, Hole]],
    proposals: wire.Proposals,
    figures: Figures,
) -> None:
    """Ask for what is recommended first, as a steward would, and let the proposed donors give."""
    policy, own = plan.dictionary.policy, made[site]
    n_positive = int(own.samples.positive.sum())
    chosen = recommend(
        ranked, n_positive, (), least=policy.min_count, most=policy.rows_per_transfer
    )
    if chosen is None:
        return
    figures.asks += 1
    grid, n_wanted = plan.grids[chosen.grid], chosen.rows
    is_made = own.hole is not None and own.hole.is_at(chosen.grid, chosen.hole.voxel)
    proposed = [
        (p.donor, grid.flat_of(tuple(p.donor_voxel)))
        for p in proposals.proposals
        if p.grid == chosen.grid and grid.flat_of(tuple(p.voxel)) == chosen.hole.voxel
    ]
    generator = np.random.default_rng([plan.seed, 2, int(site.rpartition("-")[2])])
    for i, (donor, voxel) in enumerate(proposed):
        if n_wanted <= 0:
            return
        n_asked = rows_of_each(n_wanted, len(proposed) - i, least=policy.min_count)
        given = deliver(
            made[donor].samples,
            made[donor].has_consent,
            own.samples,
            plan.dictionary,
            plan.agreed,
            grid,
            voxel,
            n_asked,
            generator,
        )
        if given is None:
            continue  # the donor has too few to give
        rows, accepted = given
        figures.wire_bytes["sealed"] += _sealed_bytes(
            plan, donor, site, rows.values, rows.positive, grid.features
        )
        if not accepted:
            figures.refused += 1
            continue
        n_wanted -= len(rows)
        figures.transfers += 1
        figures.rows += len(rows)
        figures.to_made += is_made
        figures.rows_to_made += len(rows) * is_made


def _sealed_bytes(
    plan: Plan,
    donor: str,
    recipient: str,
    values: np.ndarray,
    positive: np.ndarray,
    region: tuple[str, ...],
) -> int:
    """Protect and seal rows as a donor does; how many bytes leave it."""
    dictionary = plan.dictionary
    identifier = hashlib.sha256(f"{donor} {recipient}".encode()).digest()
    payload = build_payload(
        values,
        positive,
        [hashlib.sha256(identifier + bytes([i])).digest()[:16] for i in range(len(values))],
        transfer_id=identifier,
        donor=donor,
        dictionary=dictionary,
        features=plan.agreed,
        region=region,
    )
    giving, asking = VirtualKeys(plan, donor), VirtualKeys(plan, recipient)
    ciphertext = io.BytesIO()
    sealed = seal(
        io.BytesIO(compress(payload.SerializeToString())),
        ciphertext,
        recipient=asking.hpke.public_key,
        context=SealingContext(
            transfer_id=identifier,
            request_digest=identifier,
            manifest_commitment=commitment(payload),
            donor_key_id=giving.statement.key_id,
            recipient_key_id=asking.statement.key_id,
            recipient_hpke_key_id=asking.hpke.key_id,
            dictionary_digest=bytes.fromhex(dictionary.digest),
        ),
        limits=_LIMITS,
    )
    return len(ciphertext.getvalue()) + sealed.shipment(identifier).ByteSize()
