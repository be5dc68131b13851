"""What leaves a site. What is computed from patients is built here, what is signed is queued here: read this file.

Rules
-----
* A gap report is a function of protected counts (see `protection`) and of the dictionary, of nothing else.
* Samples leave only inside a `TransferPayload` that is sealed to one recipient: de-identified by the dictionary's
  privacy classes, rounded, shuffled, without local ids; a feature without a class leaves nothing. Combinations of
  quasi-identifiers that few rows share are coarsened or left empty (see `deidentify`).
* `enqueue` is the only writer of the outbox. Beside it and sealed payloads the agent sends only what asks for
  something and tells of no patient: renewals, key requests, digests of what was sent and read (see `connection`).
* Flower carries nothing but answers to rounds, which lie in the outbox too (see `build_answer`).
"""

import secrets
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from synthedge_client import store
from synthedge_client.counting import Disclosure, PatientCounts
from synthedge_client.deidentify import protect_quasi
from synthedge_client.protection import ProtectedCounts
from synthedge_core.dictionary import Dictionary, Feature
from synthedge_core.errors import DisclosureRefusedError
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.grids import NamedGrid
from synthedge_protocols.discovery import Refusal
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb

FloatArray = NDArray[np.float64]

# Safe Harbor: ages over 89 become one category (45 CFR 164.514(b)(2)(i)(C)).
AGE_TOP_CODE = 89.0


def build_gap_report(
    counts: PatientCounts,
    protected: Sequence[ProtectedCounts],
    disclosure: Disclosure,
    release_id: bytes,
) -> pb.GapReport:
    """The report of one release: of the counts only what was protected enters.

    Parameters
    ----------
    counts : PatientCounts
        Its grids and features; its counts are not looked at.
    protected : sequence of ProtectedCounts
        One a grid.
    disclosure : Disclosure
    release_id : bytes
        16 random bytes.
    """
    return pb.GapReport(
        release_id=release_id,
        disclosure=disclosure.mode,
        epsilon=disclosure.epsilon,
        min_count=disclosure.min_count,
        features=list(counts.features),
        grids=[_grid_report(grid, p) for grid, p in zip(counts.grids, protected, strict=True)],
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


def build_answer(
    asked: wire.DiscoveryRound, found: pb.SignedStatement | Refusal
) -> pb.DiscoveryAnswer:
    """The answer to a round: a report that was published before, or a reason of a fixed list; nothing else enters."""
    answer = pb.DiscoveryAnswer(round_id=asked.round_id, dictionary_digest=asked.dictionary_digest)
    if isinstance(found, Refusal):
        answer.refusal = found.value
    else:
        answer.report.CopyFrom(found)
    return answer


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
    region: Sequence[str],
) -> pb.TransferPayload:
    """What will be sealed: salt, manifest and de-identified samples.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        The selected rows in dictionary units, already in shuffled order.
    positive : ndarray of bool, shape (n_rows,)
    tokens : sequence of bytes
        16 random bytes a row.
    features : sequence of str
        What was agreed on.
    region : sequence of str
        Features of the requested region's grid.

    Raises
    ------
    DisclosureRefusedError
        If a feature may not leave.
    """
    protected = protect_quasi(
        deidentify(values, dictionary, features),
        dictionary,
        features,
        region,
        dictionary.policy.min_count,
    )
    leaving = protected.values
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
        coarsened=protected.coarsened,
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
