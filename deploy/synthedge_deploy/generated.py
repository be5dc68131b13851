"""Hospitals that nobody knows anything of but how they were made: for planning a consortium.

Patients are drawn in the features of any dictionary. A hidden severity moves features and outcome together; hospitals
differ by the shift in every feature and in how often the outcome occurs. Some of them lack every positive patient of
one region of the dictionary's grids: the holes that are looked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from statistics import NormalDist
from typing import Final

import numpy as np

from synthedge_core.dictionary import Dictionary, Feature, parse_dictionary
from synthedge_core.errors import UsageError
from synthedge_core.grids import NamedGrid
from synthedge_deploy.samples import BoolArray, FloatArray, IntArray, Samples

# The hidden severity moves the log-odds of the outcome by so much a standard deviation; a third are positive.
_SLOPE: Final = 1.6
_INTERCEPT: Final = -1.0
# Sizes are log-normal: a third of the hospitals have less than 0.6 or more than 1.6 times the usual patients.
_SIZE_SD: Final = 0.5
_LEAST_PATIENTS: Final = 40
_CONSENTING: Final = 0.95
# A region that held fewer positives would hardly be missed by anybody.
_MIN_SHARE: Final = 0.1
_MIN_POSITIVES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a consortium to be simulated is like; everything follows from it.

    Attributes
    ----------
    dictionary_text : str
        A consortium.toml.
    n_sites : int
    shift : float
        Standard deviation of what hospitals differ by: in every feature, in reference scales, and in the log-odds
        of the outcome. 0: all draw from one population.
    patients : int
        The median hospital's.
    holes : float
        Share of hospitals that lack the positives of one region, in [0, 1].
    seed : int
    """

    dictionary_text: str
    n_sites: int
    shift: float = 0.3
    patients: int = 400
    holes: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("sites", self.n_sites, 3, 10_000),
            ("shift", self.shift, 0, 3),
            ("patients", self.patients, _LEAST_PATIENTS, 100_000),
            ("holes", self.holes, 0, 1),
            ("seed", self.seed, 0, 2**63 - 1),
        ):
            if not least <= value <= most:
                raise UsageError(f"{name} is {value}; it must be from {least} to {most}")

    @cached_property
    def dictionary(self) -> Dictionary:
        """The parsed dictionary."""
        return parse_dictionary(self.dictionary_text)

    @cached_property
    def grids(self) -> dict[str, NamedGrid]:
        """The dictionary's grids by name."""
        return {spec.name: NamedGrid(self.dictionary, spec) for spec in self.dictionary.grids}

    @property
    def agreed(self) -> tuple[str, ...]:
        """Features that sites agree to move: all that may leave one."""
        return tuple(f.name for f in self.dictionary.features if f.is_shareable)

    def site(self, i: int) -> str:
        """Site id of the i-th hospital."""
        return f"site-{i:05}"


@dataclass(frozen=True, kw_only=True)
class MadeHole:
    """A region whose positive patients were taken away.

    Attributes
    ----------
    grid : str
    voxel : int
        Flat index.
    also : frozenset of (str, int)
        Voxels of other grids that lost at least half of their positives with it: found there it is found too.
    n_removed : int
        Patients.
    """

    grid: str
    voxel: int
    also: frozenset[tuple[str, int]]
    n_removed: int

    def is_at(self, grid: str, voxel: int) -> bool:
        """Whether a hole found there is this one."""
        return (grid, voxel) == (self.grid, self.voxel) or (grid, voxel) in self.also


@dataclass(frozen=True, kw_only=True)
class GeneratedHospital:
    """One hospital's patients, one row each.

    Attributes
    ----------
    site : str
    samples : Samples
        What is left after the hole was made.
    has_consent : ndarray of bool, shape (n_patients,)
    hole : MadeHole or None
    """

    site: str
    samples: Samples
    has_consent: BoolArray
    hole: MadeHole | None


def hospitals(plan: Plan) -> Iterator[GeneratedHospital]:
    """Generate all of a plan's hospitals."""
    return (hospital(plan, i) for i in range(plan.n_sites))


def hospital(plan: Plan, i: int) -> GeneratedHospital:
    """Generate the i-th hospital: the same one in every process, whatever the number of sites."""
    generator = np.random.default_rng([plan.seed, 1, i])
    features = plan.dictionary.features
    # How the features hang together is the consortium's, not a hospital's.
    loadings = np.random.default_rng([plan.seed, 0]).uniform(-0.7, 0.7, len(features))
    n = max(_LEAST_PATIENTS, round(plan.patients * generator.lognormal(0.0, _SIZE_SD)))
    shifts = plan.shift * generator.normal(size=len(features) + 1)
    severity = generator.normal(size=n)
    noise = generator.normal(size=(n, len(features)))
    scores = loadings * severity[:, None] + np.sqrt(1 - loadings**2) * noise + shifts[:-1]
    values = np.column_stack(
        [_in_units(scores[:, f], feature) for f, feature in enumerate(features)]
    )
    log_odds = _INTERCEPT + _SLOPE * severity + shifts[-1]
    positive = generator.random(n) < 1 / (1 + np.exp(-log_odds))
    samples = Samples(values, positive)
    hole = None
    if generator.random() < plan.holes:
        hole, samples = _with_hole(plan, samples, generator)
    return GeneratedHospital(
        site=plan.site(i),
        samples=samples,
        has_consent=generator.random(len(samples)) < _CONSENTING,
        hole=hole,
    )


def _in_units(score: FloatArray, feature: Feature) -> FloatArray:
    """Standard scores in a feature's unit, or as indices of its levels, which split a normal curve evenly."""
    if feature.levels:
        n_levels = len(feature.levels)
        cuts = [NormalDist().inv_cdf(k / n_levels) for k in range(1, n_levels)]
        return np.searchsorted(cuts, score).astype(np.float64)
    low, high = feature.plausible or (-np.inf, np.inf)
    center, scale = feature.center, feature.scale
    if center is None or scale is None:
        center, scale = (low + high) / 2, (high - low) / 6
    decimals = 0 if feature.kind == "integer" else feature.decimals
    values = center + scale * score
    # Rounded to what a table would hold; the bounds are values a table may hold.
    return np.clip(values if decimals is None else np.round(values, decimals), low, high)


def _with_hole(
    plan: Plan, samples: Samples, generator: np.random.Generator
) -> tuple[MadeHole | None, Samples]:
    """Take away the positives of a region that has enough of them; nothing where there is none."""
    voxels = {name: grid.assign(samples.values) for name, grid in plan.grids.items()}
    n_positive = samples.positive.sum()
    held = {
        name: np.bincount(of_grid[samples.positive & (of_grid >= 0)], minlength=grid.n_voxels)
        for (name, grid), of_grid in zip(plan.grids.items(), voxels.values(), strict=True)
    }
    usable = [
        (name, int(voxel))
        for name, counts in held.items()
        for voxel in np.flatnonzero(
            (counts >= _MIN_POSITIVES) & (counts >= _MIN_SHARE * n_positive)
        )
    ]
    if not usable:
        return None, samples
    grid, voxel = usable[int(generator.integers(len(usable)))]
    removed = samples.positive & (voxels[grid] == voxel)
    return (
        MadeHole(
            grid=grid,
            voxel=voxel,
            also=frozenset(
                chain.from_iterable(
                    _half_emptied(name, voxels[name][removed], counts)
                    for name, counts in held.items()
                    if name != grid
                )
            ),
            n_removed=int(removed.sum()),
        ),
        samples.rows(~removed),
    )


def _half_emptied(grid: str, removed_from: IntArray, held: IntArray) -> Iterator[tuple[str, int]]:
    lost = np.bincount(removed_from[removed_from >= 0], minlength=len(held))
    return ((grid, int(voxel)) for voxel in np.flatnonzero((lost > 0) & (lost >= held / 2)))
