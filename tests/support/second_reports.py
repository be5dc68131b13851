"""A second implementation of dictionary digests and gap reports, written from docs/protocol.md, sections 4 and 7."""

import hashlib
import itertools
import json
import math
import tomllib
from typing import Any

from second_statements import require
from synthedge_protocols.v1 import statements_pb2 as pb

# docs/dictionary.md: defaults of the policy.
POLICY = {
    "min_shared_features": 1, "retention_days": 365, "proposed_h": 336, "requested_h": 720,
    "prepared_h": 168, "approved_h": 72, "sealed_h": 72, "delivered_h": 168, "withdrawal_h": 72,
    "inbox_max_age_h": 168, "silent_h": 336,
}  # fmt: skip


def canonical(document: Any) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def plain(value: Any) -> Any:
    """Whole numbers without a point, entries that say nothing left out."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if v not in (None, "", [])}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def dictionary_digest(toml: str) -> bytes:
    given = tomllib.loads(toml)
    given["policy"] = POLICY | given["policy"]
    given["features"] = [_defaults(feature) | feature for feature in given["features"]]
    return hashlib.sha256(canonical(plain(given))).digest()


def _defaults(feature: dict[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": "1"}
    if feature["kind"] == "integer":
        defaults["decimals"] = 0
    if feature.get("privacy") == "age" and feature.get("unit") == "a":
        defaults["top_code"] = 89
    return defaults


def outcome_digest(toml: str) -> bytes:
    target = tomllib.loads(toml)["target"]
    words = ("definition", "exclusions", "positive", "time_window")
    return hashlib.sha256(canonical({word: target.get(word, "") for word in words})).digest()


def gap_report(
    toml: str, release_id: bytes, has: list[str], counts: dict[str, list[tuple[float, float]]]
) -> pb.GapReport:
    """A report of protected counts: for each grid (positives, negatives) of every voxel in flat order."""
    dictionary = tomllib.loads(toml)
    features = {feature["name"]: feature for feature in dictionary["features"]}
    policy = dictionary["policy"]
    report = pb.GapReport(
        release_id=release_id,
        disclosure=policy["disclosure"],
        features=[name for name in features if name in has],
    )
    if policy["disclosure"] == "dp":
        report.epsilon = policy["epsilon"]
    else:
        report.min_count = policy["min_count"]
    for grid in dictionary["grids"]:
        if set(grid["features"]) <= set(has):
            report.grids.append(_grid([features[f] for f in grid["features"]], grid, counts))
    return report


def _grid(
    axes: list[dict[str, Any]], grid: dict[str, Any], counts: dict[str, list[tuple[float, float]]]
) -> pb.GridReport:
    indices = list(itertools.product(*(range(_n_voxels(axis)) for axis in axes)))
    voxels = counts[grid["name"]]
    require(len(voxels) == len(indices), "every voxel")
    total = sum(p + n for p, n in voxels)
    told = pb.GridReport(grid=grid["name"], positive_rate=sum(p for p, _ in voxels) / total)
    for index, (positives, negatives) in zip(indices, voxels, strict=True):
        n = positives + negatives
        density, p = n * len(voxels) / total, positives / n if n else 0.0
        sparsity = max(0.0, 1.0 - density)
        entropy = 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
        told.voxels.add(
            index=index,
            centroid=[x for axis, i in zip(axes, index, strict=True) for x in _centre(axis, i)],
            gap_score=0.5 * sparsity + 0.3 * entropy + 0.2 * p,
            sparsity=sparsity,
            label_entropy=entropy,
            density=density,
            positive_rate=p,
        )
    return told


def _n_voxels(axis: dict[str, Any]) -> int:
    return len(axis["levels"]) if "levels" in axis else len(axis["cut_points"]) + 1


def _centre(axis: dict[str, Any], i: int) -> list[float]:
    if axis["kind"] in ("categorical", "binary"):
        return [float(i == j) for j in range(len(axis["levels"]))]
    if axis["kind"] == "ordinal":
        return [(i - axis["center"]) / axis["scale"]]
    edges, (lowest, highest) = axis["cut_points"], axis["plausible"]
    if 0 < i < len(edges):
        value = (edges[i - 1] + edges[i]) / 2
    elif i == 0:
        width = edges[1] - edges[0] if len(edges) > 1 else 2 * axis["scale"]
        value = (max(edges[0] - width, lowest) + edges[0]) / 2
    else:
        width = edges[-1] - edges[-2] if len(edges) > 1 else 2 * axis["scale"]
        value = (edges[-1] + min(edges[-1] + width, highest)) / 2
    return [(value - axis["center"]) / axis["scale"]]
