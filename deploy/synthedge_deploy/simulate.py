"""One run of the mission in one process: the product's own functions, without the processes between.

This is what makes a mean over seeds affordable; the demonstration itself runs real processes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synthedge_client.counting import PatientCounts, effective_disclosure, protect
from synthedge_client.dose import recommend, rows_of_each
from synthedge_client.gate import check_delivery
from synthedge_client.outbound import deidentify
from synthedge_client.selection import choose, giveable
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
from synthedge_deploy.samples import BoolArray, Samples, join

# Reports by site, then by grid.
Reports = Mapping[str, Mapping[str, GridStatistics]]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One region that the recipient asked for.

    Attributes
    ----------
    grid, region : str
        The region in words.
    z : float
        Of the hole.
    rows : int
        Asked for.
    received : dict
        Rows by donor; empty if nobody had any.
    """

    grid: str
    region: str
    z: float
    rows: int
    received: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one site asked for, received and filled.

    Attributes
    ----------
    asks : tuple of Ask
    received, synthetic : Samples
        Active after the recipient's gate; both may be empty.
    """

    asks: tuple[Ask, ...]
    received: Samples
    synthetic: Samples


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What one run found, moved and reached.

    Attributes
    ----------
    grid, region : str or None
        That was asked for first, in words; None if the recipient found no hole.
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
    """Run the demonstration's story: the carved site's steward asks on suspicion too; measure.

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
    moved = move_rows(cohort, published_reports(cohort), seed, suspected=True)
    first = moved.asks[0] if moved.asks else None
    transfers: Counter[str] = Counter()
    for ask in moved.asks:
        transfers.update(ask.received)
    return Simulation(
        grid=None if first is None else first.grid,
        region=None if first is None else first.region,
        z=0.0 if first is None else first.z,
        transfers=dict(transfers),
        comparison=compare(cohort, moved.received, moved.synthetic, seed),
    )


def published_reports(cohort: Cohort) -> dict[str, dict[str, GridStatistics]]:
    """Protect and publish what every hospital counts; by site and grid.

    Raises
    ------
    DisclosureRefusedError
        If the dictionary's policy does not protect the reports.
    """
    grids = _grids(cohort)
    return {
        hospital.site: _published(hospital, grids, cohort.dictionary)
        for hospital in cohort.hospitals
    }


def move_rows(cohort: Cohort, reports: Reports, seed: int, *, suspected: bool = False) -> Moved:
    """Find the recipient's holes, ask for rows of the ranked donors, pass the gate, fill.

    Parameters
    ----------
    cohort : Cohort
    reports : mapping
        From `published_reports`.
    seed : int
        Picks the donors' rows and the fill.
    suspected : bool
        Whether the recipient asks for the first region where nothing is confirmed, as a steward may.

    Returns
    -------
    Moved
    """
    grids, policy = _grids(cohort), cohort.dictionary.policy
    generator = np.random.default_rng([seed, 200])
    nothing = cohort.recipient.samples.rows(np.array([], dtype=np.int64))
    received = nothing
    asks: list[Ask] = []
    asked: set[tuple[str, int]] = set()
    while len(received) < policy.rows_per_transfer:
        chosen = recommend(
            _holes(cohort, grids, reports, received),
            int(cohort.recipient.samples.positive.sum()) + len(received),
            asked,
            least=policy.min_count,
            most=policy.rows_per_transfer - len(received),
            suspected=suspected and not asks,
        )
        if chosen is None:
            break
        grid, hole = grids[chosen.grid], chosen.hole
        asked.add((chosen.grid, hole.voxel))
        delivered = _deliveries(cohort, grid, hole.voxel, chosen.rows, reports, generator)
        received = join([received, *delivered.values()])
        asks.append(
            Ask(
                grid=grid.name,
                region=grid.label(hole.voxel),
                z=hole.z,
                rows=chosen.rows,
                received={donor: len(samples) for donor, samples in delivered.items()},
            )
        )
    synthetic = _fill(cohort, received, seed) if len(received) >= MIN_NEAR_ROWS else nothing
    return Moved(asks=tuple(asks), received=received, synthetic=synthetic)


def _grids(cohort: Cohort) -> dict[str, NamedGrid]:
    return {spec.name: NamedGrid(cohort.dictionary, spec) for spec in cohort.dictionary.grids}


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


def _holes(
    cohort: Cohort, grids: dict[str, NamedGrid], reports: Reports, received: Samples
) -> list[tuple[str, Hole]]:
    """Rank the recipient's holes as `gaps list` does, what it received counted as its own."""
    min_others = cohort.dictionary.policy.min_sites - 1
    own = join([cohort.recipient.samples, received])
    holes = {}
    for name in reports[cohort.carved_site]:
        others = [reports[h.site][name] for h in cohort.donors if name in reports[h.site]]
        if len(others) >= min_others:
            counts = count(grids[name], own.values, own.positive)
            profile = hole_profile(others, min_others)
            holes[name] = find_holes(profile, counts.positives, counts.negatives)
    return rank_holes(holes)


def _deliveries(
    cohort: Cohort,
    grid: NamedGrid,
    voxel: int,
    n_wanted: int,
    reports: Reports,
    generator: np.random.Generator,
) -> dict[str, Samples]:
    """Rows of the region from the ranked donors, as the recipient's gate takes them."""
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
    proposed = [match for match in matches if match.voxel == voxel]
    for i, match in enumerate(proposed):
        if n_wanted <= 0:
            break
        n_asked = rows_of_each(n_wanted, len(proposed) - i, least=policy.min_count)
        donor = donors[match.donor]
        given = deliver(
            donor.samples,
            donor.has_consent,
            own,
            dictionary,
            features,
            grid,
            match.donor_voxel,
            n_asked,
            generator,
        )
        if given is not None and given[1]:
            deliveries[match.donor] = given[0]
            n_wanted -= len(given[0])
    return deliveries


def deliver(
    donor: Samples,
    has_consent: BoolArray,
    own: Samples,
    dictionary: Dictionary,
    features: Sequence[str],
    grid: NamedGrid,
    voxel: int,
    n_asked: int,
    generator: np.random.Generator,
) -> tuple[Samples, bool] | None:
    """Rows of a region as a donor gives them, and whether the recipient's gate takes them.

    Parameters
    ----------
    donor, own : Samples
        The donor's rows and the recipient's.
    has_consent : ndarray of bool
        One a row of the donor's.
    dictionary : Dictionary
    features : sequence of str
        What was agreed on.
    grid, voxel
        The region.
    n_asked : int
    generator : numpy.random.Generator

    Returns
    -------
    (Samples, bool) or None
        None where the donor has fewer than the policy's least number to give.
    """
    eligible = giveable(donor.values, donor.positive, has_consent, dictionary, grid, voxel)
    # As in `donating.prepare`: not from a handful of patients.
    if len(eligible) < dictionary.policy.min_count:
        return None
    chosen = choose(eligible, n_asked, generator)
    samples = np.full((len(chosen), len(dictionary.features)), np.nan)
    agreed = [dictionary.index(name) for name in features]
    samples[:, agreed] = deidentify(donor.values[chosen], dictionary, features)
    taken = check_delivery(
        samples, own.values, own.positive, dictionary, tuple(features), grid, voxel
    )
    return Samples(samples, np.ones(len(samples), dtype=np.bool_)), taken.accepted


def _fill(cohort: Cohort, received: Samples, seed: int) -> Samples:
    """As many synthetic positives as real ones came, drawn as a site's own fill draws them."""
    own, dictionary = cohort.recipient.samples, cohort.dictionary
    near = neighbourhood(received.values, own.values[own.positive], dictionary)
    rows = copula_rows(near, len(received), RowSchema.of_features(dictionary.features), seed=seed)
    return Samples(rows, np.ones(len(rows), dtype=np.bool_))
