"""One run of the mission in one process: the product's own functions, without the processes between.

This is what makes a mean over seeds affordable; the demonstration itself runs real processes.
"""

from dataclasses import dataclass

import numpy as np

from synthedge_client.counting import PatientCounts, effective_disclosure, protect
from synthedge_client.gate import check_delivery
from synthedge_client.outbound import coarsen, deidentify
from synthedge_client.settings import DisclosureSettings
from synthedge_client.site_fill import neighbourhood
from synthedge_core.dictionary import Dictionary
from synthedge_core.fill_copula import MIN_NEAR_ROWS, copula_rows
from synthedge_core.fill_schema import RowSchema
from synthedge_core.gap_score import voxel_statistics
from synthedge_core.grids import NamedGrid, VoxelCounts, count
from synthedge_core.holes import GridStatistics, Hole, find_holes, hole_profile, rank_holes
from synthedge_core.matching import rank_donors
from synthedge_deploy.cohorts import Cohort, Hospital
from synthedge_deploy.comparison import compare
from synthedge_deploy.evaluate import Measures, Model
from synthedge_deploy.samples import Samples, join


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What one run found, moved and reached.

    Attributes
    ----------
    grid, region : str or None
        Of the recipient's first hole, in words; None if it found none.
    z : float
        Of that hole; 0 if there is none.
    transfers : dict
        Rows by donor; empty if nobody had any.
    comparison : dict
        Measures by training set and model, see `comparison.compare`.
    """

    grid: str | None
    region: str | None
    z: float
    transfers: dict[str, int]
    comparison: dict[str, dict[Model, Measures]]


def simulate(cohort: Cohort, seed: int) -> Simulation:
    """Publish, find the recipient's first hole, move rows from the ranked donors, fill, measure.

    Parameters
    ----------
    cohort : Cohort
    seed : int
        Picks the donors' rows, the fill and the rivals' rows. In ``dp`` mode the noise comes from the
        operating system, so that two runs with one seed differ.

    Returns
    -------
    Simulation

    Raises
    ------
    DisclosureRefusedError
        If the dictionary's policy does not protect the reports.
    """
    dictionary = cohort.dictionary
    grids = {spec.name: NamedGrid(dictionary, spec) for spec in dictionary.grids}
    reports = {
        hospital.site: _published(hospital, grids, dictionary) for hospital in cohort.hospitals
    }
    generator = np.random.default_rng([seed, 200])
    found = _first_hole(cohort, grids, reports)
    deliveries: dict[str, Samples] = {}
    if found is not None:
        deliveries = _deliveries(cohort, grids[found[0]], found[1].voxel, reports, generator)
    nothing = cohort.recipient.samples.rows(np.array([], dtype=np.int64))
    received = join([nothing, *deliveries.values()])
    synthetic = nothing
    if found is not None and len(received) >= MIN_NEAR_ROWS:
        synthetic = _fill(cohort, received, seed)
    return Simulation(
        grid=None if found is None else found[0],
        region=None if found is None else grids[found[0]].label(found[1].voxel),
        z=0.0 if found is None else found[1].z,
        transfers={donor: len(samples) for donor, samples in deliveries.items()},
        comparison=compare(cohort, received, synthetic, seed),
    )


def _counts(hospital: Hospital, grid: NamedGrid) -> VoxelCounts:
    return count(grid, hospital.samples.values, hospital.samples.positive)


def _published(
    hospital: Hospital, grids: dict[str, NamedGrid], dictionary: Dictionary
) -> dict[str, GridStatistics]:
    """Say what the hospital's gap report would, for the grids whose features it has."""
    usable = [
        grid
        for grid in grids.values()
        if not any(hospital.columns.get(feature, {}).get("absent") for feature in grid.features)
    ]
    values = hospital.samples.values
    counts = PatientCounts(
        grids=usable,
        voxels=np.column_stack([grid.assign(values) for grid in usable]),
        positive=hospital.samples.positive,
        features=dictionary.feature_names,
    )
    protected, _ = protect(counts, effective_disclosure(dictionary.policy, DisclosureSettings()))
    published = {}
    for grid, told in zip(usable, protected, strict=True):
        statistics = voxel_statistics(told.positives, told.negatives)
        published[grid.name] = GridStatistics(
            density=statistics.density,
            positive_rate=statistics.positive_rate,
            grid_positive_rate=statistics.grid_positive_rate,
            known=~told.suppressed,
        )
    return published


def _first_hole(
    cohort: Cohort, grids: dict[str, NamedGrid], reports: dict[str, dict[str, GridStatistics]]
) -> tuple[str, Hole] | None:
    min_others = cohort.dictionary.policy.min_sites - 1
    holes = {}
    for name in reports[cohort.carved_site]:
        others = [reports[h.site][name] for h in cohort.donors if name in reports[h.site]]
        if len(others) >= min_others:
            own = _counts(cohort.recipient, grids[name])
            profile = hole_profile(others, min_others)
            holes[name] = find_holes(profile, own.positives, own.negatives)
    ranked = rank_holes(holes)
    return ranked[0] if ranked else None


def _deliveries(
    cohort: Cohort,
    grid: NamedGrid,
    voxel: int,
    reports: dict[str, dict[str, GridStatistics]],
    generator: np.random.Generator,
) -> dict[str, Samples]:
    """Consented positives of the region from the ranked donors, as the recipient's gate takes them."""
    dictionary, policy = cohort.dictionary, cohort.dictionary.policy
    own = cohort.recipient.samples
    features = tuple(
        name
        for name in dictionary.feature_names
        if not cohort.recipient.columns.get(name, {}).get("absent")
    )
    matches = rank_donors(
        grid,
        cohort.carved_site,
        {site: report[grid.name] for site, report in reports.items() if grid.name in report},
        similarity=policy.similarity,
        min_shared_features=policy.min_shared_features,
        min_others=policy.min_sites - 1,
    )
    donors = {hospital.site: hospital for hospital in cohort.donors}
    deliveries: dict[str, Samples] = {}
    n_wanted = policy.rows_per_transfer
    for match in matches:
        if match.voxel != voxel or n_wanted <= 0:
            continue
        donor = donors[match.donor]
        givable = donor.samples.positive & donor.has_consent
        # As `donating.prepare` selects: by the values that would leave, and not from a handful of patients.
        leaving = coarsen(donor.samples.values, dictionary)
        eligible = np.flatnonzero(givable & (grid.assign(leaving) == voxel))
        if len(eligible) < policy.min_count:
            continue
        chosen = generator.permutation(eligible)[:n_wanted]
        samples = np.full((len(chosen), len(dictionary.features)), np.nan)
        agreed = [dictionary.index(name) for name in features]
        samples[:, agreed] = deidentify(donor.samples.values[chosen], dictionary, features)
        if check_delivery(
            samples, own.values, own.positive, dictionary, features, grid, voxel
        ).accepted:
            deliveries[match.donor] = Samples(samples, np.ones(len(samples), dtype=np.bool_))
            n_wanted -= len(samples)
    return deliveries


def _fill(cohort: Cohort, received: Samples, seed: int) -> Samples:
    """As many synthetic positives as real ones came, drawn as a site's own fill draws them."""
    own, dictionary = cohort.recipient.samples, cohort.dictionary
    near = neighbourhood(received.values, own.values[own.positive], dictionary)
    rows = copula_rows(near, len(received), RowSchema.of_features(dictionary.features), seed=seed)
    return Samples(rows, np.ones(len(rows), dtype=np.bool_))
