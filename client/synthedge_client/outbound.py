"""Everything that leaves a site: built here, signed here, queued here. A reviewer reads this file.

Rules
-----
* A gap report is a function of protected counts (see `protection`) and of the dictionary, of nothing else.
* Samples leave only inside a `TransferPayload` that is sealed to one recipient: de-identified by the dictionary's
  privacy classes, rounded, shuffled, without local ids; a feature without a class leaves nothing.
* `enqueue` is the only writer of the outbox, and the agent sends nothing but the outbox and sealed payloads.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from synthedge_client import store
from synthedge_client.protection import ProtectedCounts, protect_dp, protect_threshold
from synthedge_client.settings import DisclosureSettings
from synthedge_client.site_table import SiteTable
from synthedge_core.dictionary import Dictionary, Feature, Policy
from synthedge_core.errors import DisclosureRefusedError
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.grids import NamedGrid, count
from synthedge_protocols.v1 import statements_pb2 as pb

FloatArray = NDArray[np.float64]

# Safe Harbor: ages over 89 become one category (45 CFR 164.514(b)(2)(i)(C)).
AGE_TOP_CODE = 89.0


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """How a gap report is protected: the consortium's policy, tightened by the site.

    Attributes
    ----------
    mode : str
        ``dp`` or ``threshold``.
    epsilon, epsilon_total : float
        Per release and per dictionary; 0 in threshold mode.
    min_count : int
        k of threshold mode; 0 in dp mode.
    """

    mode: str
    epsilon: float
    epsilon_total: float
    min_count: int


def effective_disclosure(policy: Policy, site: DisclosureSettings) -> Disclosure:
    """Combine the consortium's policy with the site's own; the stricter of the two holds.

    Raises
    ------
    DisclosureRefusedError
        If the site asks for less protection than the consortium.
    """
    mode = site.mode or policy.disclosure
    if policy.disclosure == "dp" and mode != "dp":
        raise DisclosureRefusedError(
            "[disclosure] of site.toml asks for 'threshold' where the consortium demands 'dp'; remove it"
        )
    for name in ("epsilon", "epsilon_total"):
        own, agreed = getattr(site, name), getattr(policy, name)
        # Written so that NaN, which compares with nothing, is refused too.
        if own is not None and not own <= agreed:
            raise DisclosureRefusedError(
                f"{name} {own} of site.toml is weaker than the consortium's {agreed}; a site may only lower it"
            )
    if site.min_count is not None and site.min_count < policy.min_count:
        raise DisclosureRefusedError(
            f"min_count {site.min_count} of site.toml is weaker than the consortium's {policy.min_count}; "
            "a site may only raise it"
        )
    is_dp = mode == "dp"
    return Disclosure(
        mode=mode,
        epsilon=_stricter(site.epsilon, policy.epsilon) if is_dp else 0.0,
        epsilon_total=_stricter(site.epsilon_total, policy.epsilon_total) if is_dp else 0.0,
        min_count=0 if is_dp else max(site.min_count or 0, policy.min_count),
    )


def _stricter(own: float | None, agreed: float) -> float:
    # Not `own or agreed`: a site that writes 0 lets nothing leave.
    return agreed if own is None else own


def build_gap_report(
    table: SiteTable, dictionary: Dictionary, disclosure: Disclosure, release_id: bytes
) -> pb.GapReport:
    """The report of one release.

    Parameters
    ----------
    table : SiteTable
        The site's own rows; the first row of each patient is counted.
    dictionary : Dictionary
    disclosure : Disclosure
    release_id : bytes
        16 random bytes.

    Raises
    ------
    DisclosureRefusedError
        If the protection is not usable, or no grid of the dictionary fits the site's features.
    """
    first = table.first_row_of_patient
    grids = [
        NamedGrid(dictionary, spec)
        for spec in dictionary.grids
        if set(spec.features) <= set(table.features)
    ]
    if not grids:
        raise DisclosureRefusedError(
            "this site has the features of none of the dictionary's grids; there is nothing to report"
        )
    counts = [count(grid, table.values[first], table.positive[first]) for grid in grids]
    positives, negatives = [c.positives for c in counts], [c.negatives for c in counts]
    if disclosure.mode == "dp":
        protected = protect_dp(positives, negatives, disclosure.epsilon)
    else:
        protected = protect_threshold(positives, negatives, disclosure.min_count)
    return pb.GapReport(
        release_id=release_id,
        disclosure=disclosure.mode,
        epsilon=disclosure.epsilon,
        min_count=disclosure.min_count,
        features=list(table.features),
        grids=[_grid_report(grid, p) for grid, p in zip(grids, protected, strict=True)],
    )


def _grid_report(grid: NamedGrid, protected: ProtectedCounts) -> pb.GridReport:
    statistics = voxel_statistics(protected.positives, protected.negatives)
    voxels = []
    for flat in range(grid.n_voxels):
        voxel = pb.VoxelReport(
            index=grid.index_of(flat),
            centroid=grid.centroid(flat).tolist(),
            suppressed=bool(protected.suppressed[flat]),
        )
        if not voxel.suppressed:
            voxel.gap_score = float(statistics.gap_score[flat])
            voxel.sparsity = float(statistics.sparsity[flat])
            voxel.label_entropy = float(statistics.label_entropy[flat])
            voxel.density = float(statistics.density[flat])
            voxel.positive_rate = float(statistics.positive_rate[flat])
        voxels.append(voxel)
    return pb.GridReport(
        grid=grid.name, positive_rate=float(statistics.grid_positive_rate), voxels=voxels
    )


def deidentify(values: FloatArray, dictionary: Dictionary, features: Sequence[str]) -> FloatArray:
    """Rows as they may leave: only the agreed features, top-coded and rounded.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        Dictionary units, NaN = missing.
    dictionary : Dictionary
    features : sequence of str
        The agreed features, a subset of the dictionary's, in its order.

    Returns
    -------
    ndarray of shape (n_rows, len(features))

    Raises
    ------
    DisclosureRefusedError
        If a feature has no privacy class, or one that never leaves.
    """
    for name in features:
        feature = dictionary.feature(name)
        if not feature.is_shareable:
            raise DisclosureRefusedError(
                f"feature '{name}' has privacy class '{feature.privacy or 'none'}', which does not leave a site; "
                "correct the dictionary or agree on a transfer without it"
            )
    return coarsen(values, dictionary)[:, [dictionary.index(name) for name in features]]


def coarsen(values: FloatArray, dictionary: Dictionary) -> FloatArray:
    """Values as they would leave: top-coded and rounded; which of them may is not decided here.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        Dictionary units, NaN = missing.
    dictionary : Dictionary

    Returns
    -------
    ndarray of shape (n_rows, n_features)
    """
    columns = [_coarsen(values[:, i], feature) for i, feature in enumerate(dictionary.features)]
    return np.column_stack(columns)


def _coarsen(column: FloatArray, feature: Feature) -> FloatArray:
    top = feature.top_code
    if feature.privacy == "age":
        top = AGE_TOP_CODE if top is None else min(top, AGE_TOP_CODE)
    if top is not None:
        column = np.minimum(column, top)
    return column if feature.decimals is None else np.round(column, feature.decimals)


def build_payload(
    values: FloatArray,
    positive: NDArray[np.bool_],
    tokens: Sequence[bytes],
    *,
    transfer_id: bytes,
    donor: str,
    dictionary: Dictionary,
    features: Sequence[str],
) -> pb.TransferPayload:
    """What will be sealed: salt, manifest and de-identified samples.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        The selected rows in dictionary units, already in shuffled order.
    positive : ndarray of bool, shape (n_rows,)
    tokens : sequence of bytes
        16 random bytes a row.

    Raises
    ------
    DisclosureRefusedError
        If a feature may not leave.
    """
    leaving = deidentify(values, dictionary, features)
    batch = pb.SampleBatch(
        samples=[
            pb.Sample(token=token, values=row.tolist(), positive=bool(label))
            for token, row, label in zip(tokens, leaving, positive, strict=True)
        ]
    ).SerializeToString(deterministic=True)
    manifest = pb.Manifest(
        transfer_id=transfer_id,
        donor=donor,
        dictionary_digest=bytes.fromhex(dictionary.digest),
        features=list(features),
        rows=len(leaving),
        rows_digest=sha256(batch),
    )
    return pb.TransferPayload(
        salt=secrets.token_bytes(32),
        manifest=manifest.SerializeToString(deterministic=True),
        samples=batch,
    )


def commitment(payload: pb.TransferPayload) -> bytes:
    """What the coordinator and the log may see of a manifest: a salted digest nobody can guess at."""
    return sha256(payload.salt + payload.manifest)


def sha256(data: bytes) -> bytes:
    """SHA-256 of some bytes."""
    import hashlib

    return hashlib.sha256(data).digest()


def enqueue(connection: sa.Connection, kind: str, signed: pb.SignedStatement, who: str) -> None:
    """Queue a signed statement for the agent, and write down that it will leave."""
    connection.execute(
        store.outbox.insert().values(kind=kind, statement=signed.SerializeToString())
    )
    store.record(
        connection, "queued", who, kind=kind, statement_digest=sha256(signed.statement).hex()
    )
