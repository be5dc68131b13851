"""What a data dictionary is made of, and the digest that names it.

`dictionary.parse_dictionary` makes these values and is the only place that checks them; inside,
code trusts them.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final

from synthedge_core.errors import DictionaryError

SCHEMA_VERSION: Final = 1
KINDS: Final = ("continuous", "integer", "ordinal", "categorical", "binary")
PRIVACY_CLASSES: Final = ("measurement", "age", "quasi", "date", "identifier", "free_text")
# Counts over a feature are published and its values are transferred only in these classes.
SHAREABLE_CLASSES: Final = ("measurement", "age", "quasi")


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One column that all sites agree on.

    Attributes
    ----------
    name, description : str
        What data files of the consortium call it, and what it means.
    kind : str
        One of `KINDS`.
    unit : str
        UCUM text, ``"1"`` for a bare number or a code.
    plausible : tuple of two floats or None
        Closed range in `unit`; continuous and integer features have one.
    levels, level_names : tuple of str
        Codes of an ordinal (lowest first), categorical or binary feature, and words for them
        (or empty).
    center, scale : float or None
        Reference centre and scale, in `unit` or (ordinal) in level indices; None for categorical
        and binary.
    cut_points : tuple of float
        Voxel edges in `unit`, strictly increasing, strictly inside `plausible`; or empty.
    privacy : str or None
        One of `PRIVACY_CLASSES`; None is unclassified and never leaves a site.
    decimals : int or None
        Decimal places of what leaves; None for features with levels.
    molar_mass_g_mol : float or None
        Lets an amount of substance be converted to a mass.
    top_code : float or None
        Larger values leave as this one.
    """

    name: str
    kind: str
    description: str = ""
    unit: str = "1"
    plausible: tuple[float, float] | None = None
    levels: tuple[str, ...] = ()
    level_names: tuple[str, ...] = ()
    center: float | None = None
    scale: float | None = None
    cut_points: tuple[float, ...] = ()
    privacy: str | None = None
    decimals: int | None = None
    molar_mass_g_mol: float | None = None
    top_code: float | None = None

    @property
    def has_levels(self) -> bool:
        """Whether values are indices into `levels` rather than measurements."""
        return self.kind in ("ordinal", "categorical", "binary")

    @property
    def is_ordered(self) -> bool:
        """Whether its values have an order, so that neighbouring voxels mean something."""
        return self.kind not in ("categorical", "binary")

    @property
    def is_shareable(self) -> bool:
        """Whether its privacy class lets it leave a site at all."""
        return self.privacy in SHAREABLE_CLASSES

    @property
    def n_levels(self) -> int:
        """Number of levels; 0 for continuous and integer features."""
        return len(self.levels)

    @property
    def n_voxels(self) -> int:
        """Voxels along a grid axis of this feature; 0 if it has neither levels nor cut points."""
        if self.has_levels:
            return self.n_levels
        return len(self.cut_points) + 1 if self.cut_points else 0

    def level_in_words(self, i_level: int) -> str:
        """Name a level for people: its name, or ``feature code`` where it has none."""
        if self.level_names:
            return self.level_names[i_level]
        return f"{self.name} {self.levels[i_level]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSpec:
    """A named grid: the cut points (or levels) of one or two features."""

    name: str
    features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The label: its column, the code of the positive level and what that means.

    Attributes
    ----------
    column, positive : str
        The label's name and its positive code in files of the consortium.
    definition, time_window, exclusions : str
        The outcome definition in words: the rule by which a patient is positive, the time within
        which it is looked at, and who is left out. No gate can see that a site labels otherwise,
        so every site acknowledges it when it accepts the dictionary.
    """

    column: str
    positive: str
    definition: str
    time_window: str = ""
    exclusions: str = ""

    @property
    def outcome_digest(self) -> str:
        """Hex SHA-256 of the outcome definition's canonical JSON; what a site acknowledges."""
        outcome = {
            "definition": self.definition,
            "exclusions": self.exclusions,
            "positive": self.positive,
            "time_window": self.time_window,
        }
        return hashlib.sha256(_canonical_json(outcome)).hexdigest()

    def in_words(self) -> list[str]:
        """The outcome definition, one line a key; a key that is not given says so."""
        return [
            f"positive ({self.column} = {self.positive}): {self.definition}",
            f"time window: {self.time_window or 'not given'}",
            f"left out: {self.exclusions or 'not given'}",
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What the consortium allows; a site may only tighten it.

    Whatever guards disclosure has no default: a threshold that nobody set must refuse, not pass.
    `min_sites` counts all sites that must have published before anybody gets a profile.
    """

    disclosure: str
    epsilon: float
    epsilon_total: float
    min_count: int
    min_sites: int
    similarity: float
    rows_per_transfer: int
    min_shared_features: int = 1
    retention_days: int = 365
    proposed_h: float = 336.0
    requested_h: float = 720.0
    prepared_h: float = 168.0
    approved_h: float = 72.0
    sealed_h: float = 72.0
    delivered_h: float = 168.0
    withdrawal_h: float = 72.0
    inbox_max_age_h: float = 168.0
    silent_h: float = 336.0

    def in_words(self) -> list[str]:
        """What a steward weighs before accepting it, one line a rule."""
        protection = (
            f"differential privacy, epsilon {self.epsilon:g} a report and {self.epsilon_total:g} in all"
            if self.disclosure == "dp"
            else f"rounded counts, voxels of fewer than {self.min_count} suppressed; not differentially private"
        )
        return [
            f"gap reports leave with {protection}",
            f"nobody learns anything before {self.min_sites} sites have reported",
            f"a transfer has at most {self.rows_per_transfer} rows, from regions of at least "
            f"{self.min_count} eligible patients, kept for at most {self.retention_days} days",
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dictionary:
    """A complete, checked data dictionary; `parse_dictionary` makes it.

    Attributes
    ----------
    digest : str
        Hex SHA-256 of `canonical_json`; names the dictionary, and with it the frame.
    """

    name: str
    target: Target
    features: tuple[Feature, ...]
    grids: tuple[GridSpec, ...]
    policy: Policy
    schema_version: int = SCHEMA_VERSION
    digest: str = field(init=False, compare=False)
    _positions: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        positions = {feature.name: i for i, feature in enumerate(self.features)}
        object.__setattr__(self, "_positions", positions)
        object.__setattr__(self, "digest", hashlib.sha256(self.canonical_json()).hexdigest())

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in the order of every canonical table."""
        return tuple(self._positions)

    def index(self, name: str) -> int:
        """Position of a feature in every canonical table.

        Raises
        ------
        DictionaryError
            If the dictionary has no such feature.
        """
        if name not in self._positions:
            known = ", ".join(self._positions)
            raise DictionaryError(
                f"dictionary {self.name!r} has no feature {name!r}; it has {known}"
            )
        return self._positions[name]

    def feature(self, name: str) -> Feature:
        """Look a feature up by name.

        Raises
        ------
        DictionaryError
            If the dictionary has no such feature.
        """
        return self.features[self.index(name)]

    def grid(self, name: str) -> GridSpec:
        """Look a grid up by name.

        Raises
        ------
        DictionaryError
            If the dictionary has no such grid.
        """
        for spec in self.grids:
            if spec.name == name:
                return spec
        known = ", ".join(spec.name for spec in self.grids) or "none"
        raise DictionaryError(
            f"dictionary {self.name!r} has no grid {name!r}; its grids are: {known}"
        )

    def canonical_json(self) -> bytes:
        """Serialise the dictionary the one way its digest is taken over.

        Keys sorted, no whitespace, UTF-8; defaults written out, entries without a value left out,
        whole numbers without a decimal point. Comments, the order of keys and ``94`` or ``94.0``
        therefore do not change the digest, while every value that changes behaviour does.
        """
        document = {
            "schema_version": self.schema_version,
            "name": self.name,
            "target": _plain(self.target),
            "features": [_plain(feature) for feature in self.features],
            "grids": [_plain(spec) for spec in self.grids],
            "policy": _plain(self.policy),
        }
        return _canonical_json(document)


def _canonical_json(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _plain(value: Any) -> Any:
    """Turn dataclasses, tuples and floats into what canonical JSON holds."""
    if dataclasses.is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(item) for name, item in items if item not in (None, (), "")}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
