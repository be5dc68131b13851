"""What a gap report is made from: each patient once, in one voxel of each grid, and how that is protected."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synthedge_client.protection import Figures, ProtectedCounts, protect_dp
from synthedge_client.settings import DisclosureSettings
from synthedge_client.site_table import SiteTable
from synthedge_core.dictionary import Dictionary, Policy
from synthedge_core.errors import DisclosureRefusedError
from synthedge_core.grids import NamedGrid

IntArray = NDArray[np.int64]

# What any dictionary may ask for; a site may allow less.
MAX_GRIDS = 3
MAX_VOXELS = 12


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
    max_grids, max_voxels : int
        The most grids of a report, and voxels of a grid.
    """

    mode: str
    epsilon: float
    epsilon_total: float
    min_count: int
    max_grids: int = MAX_GRIDS
    max_voxels: int = MAX_VOXELS


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
    agreed_most = {
        "epsilon": policy.epsilon,
        "epsilon_total": policy.epsilon_total,
        "max_grids": MAX_GRIDS,
        "max_voxels": MAX_VOXELS,
    }
    for name, agreed in agreed_most.items():
        own = getattr(site, name)
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
        max_grids=MAX_GRIDS if site.max_grids is None else site.max_grids,
        max_voxels=MAX_VOXELS if site.max_voxels is None else site.max_voxels,
    )


def _stricter(own: float | None, agreed: float) -> float:
    # Not `own or agreed`: a site that writes 0 lets nothing leave.
    return agreed if own is None else own


@dataclass(frozen=True)
class PatientCounts:
    """A site's patients in the voxels of its grids. Never leaves.

    Attributes
    ----------
    grids : list of n_grids NamedGrid
        Those of the dictionary whose features the site has, in its order.
    voxels : ndarray of shape (n_patients, n_grids)
        -1 where a feature of the grid is missing.
    positive : ndarray of bool, shape (n_patients,)
    features : tuple of str
        The dictionary's features this site has.
    """

    grids: list[NamedGrid]
    voxels: IntArray
    positive: NDArray[np.bool_]
    features: tuple[str, ...]

    @property
    def positives(self) -> list[IntArray]:
        """Positive patients per voxel, one array a grid."""
        return self._per_voxel(self.positive)

    @property
    def negatives(self) -> list[IntArray]:
        """Negative patients per voxel, one array a grid."""
        return self._per_voxel(~self.positive)

    def _per_voxel(self, chosen: NDArray[np.bool_]) -> list[IntArray]:
        found = []
        for g, grid in enumerate(self.grids):
            column = self.voxels[chosen, g]
            found.append(np.bincount(column[column >= 0], minlength=grid.n_voxels))
        return found

    @cached_property
    def snapshot(self) -> str:
        """Digest of everything a report can depend on; stays at the site.

        Data that change without moving a patient to another voxel or label leave it as it is: the report
        of such data says nothing new, so it costs nothing and is not stale.
        """
        rows = np.column_stack([self.voxels, self.positive.astype(np.int64)])
        digest = hashlib.sha256(
            json.dumps([[grid.name for grid in self.grids], list(self.features)]).encode()
        )
        digest.update(rows[np.lexsort(rows.T)].astype("<i8").tobytes())
        return digest.hexdigest()


def reported_grids(
    dictionary: Dictionary, features: Collection[str], disclosure: Disclosure
) -> list[NamedGrid]:
    """The grids a site with these features reports on.

    Raises
    ------
    DisclosureRefusedError
        If there is none, or the dictionary asks for finer grids than the site allows.
    """
    grids = [
        NamedGrid(dictionary, spec)
        for spec in dictionary.grids
        if set(spec.features) <= set(features)
    ]
    if not grids:
        raise DisclosureRefusedError(
            "this site has the features of none of the dictionary's grids; there is nothing to report"
        )
    if len(grids) > disclosure.max_grids:
        raise DisclosureRefusedError(
            f"the dictionary asks for {len(grids)} grids, this site allows {disclosure.max_grids}; "
            "nothing is released"
        )
    for grid in grids:
        if grid.n_voxels > disclosure.max_voxels:
            raise DisclosureRefusedError(
                f"grid '{grid.name}' of the dictionary has {grid.n_voxels} voxels, this site allows "
                f"{disclosure.max_voxels}; nothing is released"
            )
    return grids


def count_patients(
    table: SiteTable, dictionary: Dictionary, disclosure: Disclosure
) -> PatientCounts:
    """Put each patient of a table into the voxels of the dictionary's grids, by the patient's first row.

    Raises
    ------
    DisclosureRefusedError
        If no grid fits the site's features, or the dictionary asks for finer grids than the site allows.
    """
    grids = reported_grids(dictionary, table.features, disclosure)
    first = table.first_row_of_patient
    values = table.values[first]
    return PatientCounts(
        grids=grids,
        voxels=np.column_stack([grid.assign(values) for grid in grids]),
        positive=table.positive[first],
        features=table.features,
    )


def protect(
    counts: PatientCounts,
    disclosure: Disclosure,
    earlier: Mapping[str, Figures] | None = None,
) -> tuple[list[ProtectedCounts], dict[str, Figures]]:
    """Protect counts as agreed.

    Parameters
    ----------
    counts : PatientCounts
    disclosure : Disclosure
    earlier : mapping of grid name to Figures, optional
        Of the last release in threshold mode under the same dictionary.

    Returns
    -------
    list of ProtectedCounts
        One a grid.
    dict of str to Figures
        What the next release is held against; empty in dp mode, where every release is noise anew.

    Raises
    ------
    DisclosureRefusedError
        If the protection is not usable, or a small group could not be protected.
    """
    if disclosure.mode == "dp":
        return protect_dp(counts.positives, counts.negatives, disclosure.epsilon), {}
    # The optimiser behind it takes a third of a second to load: only a site that publishes by thresholds waits.
    from synthedge_client.thresholds import protect_threshold

    return protect_threshold(
        counts.grids, counts.voxels, counts.positive, disclosure.min_count, earlier
    )
