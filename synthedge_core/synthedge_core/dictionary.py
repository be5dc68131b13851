"""The consortium's data dictionary: consortium.toml as a checked value.

Every site and the coordinator work from one dictionary; its digest is in every message, because two
reports made under different dictionaries live in different frames.
"""

import tomllib
from typing import Any, Final

from synthedge_core.dictionary_model import (
    KINDS,
    PRIVACY_CLASSES,
    SCHEMA_VERSION,
    SHAREABLE_CLASSES,
    Dictionary,
    Feature,
    GridSpec,
    Policy,
    Target,
)
from synthedge_core.errors import DictionaryError
from synthedge_core.toml_reader import TableReader

__all__ = [
    "KINDS",
    "PRIVACY_CLASSES",
    "SHAREABLE_CLASSES",
    "Dictionary",
    "Feature",
    "GridSpec",
    "Policy",
    "Target",
    "parse_dictionary",
]

DISCLOSURE_MODES: Final = ("dp", "threshold")
# The L1 sensitivity of a release is the number of grids, and every voxel carries noise: at
# epsilon 1 and 200 patients more grids or finer ones drown the counts.
MAX_GRIDS: Final = 3
MAX_VOXELS: Final = 12
# Safe Harbor lets ages above 89 leave only as one class (45 CFR 164.514(b)(2)(i)(C)).
SAFE_HARBOR_AGE: Final = 89.0

# What people write for a unit, and its UCUM text. A site's units are converted by UCUM, so a misspelt one would be
# found only at the first site whose own unit differs.
NOT_UCUM: Final = {
    "mmHg": "mm[Hg]",
    "mm Hg": "mm[Hg]",
    "years": "a",
    "year": "a",
    "yr": "a",
    "months": "mo",
    "days": "d",
    "hours": "h",
    "bpm": "/min",
    "°C": "Cel",
    "°F": "[degF]",
    "kg/m^2": "kg/m2",
    "kg/m²": "kg/m2",
    "µmol/L": "umol/L",
    "IU/L": "[IU]/L",
    "lbs": "[lb_av]",
    "percent": "%",
}


def parse_dictionary(text: str) -> Dictionary:
    """Read and check the text of a consortium.toml.

    Parameters
    ----------
    text : str
        The file's content.

    Returns
    -------
    Dictionary

    Raises
    ------
    DictionaryError
        Naming every problem, one sentence and one line each.
    """
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and integers longer than Python converts
        raise DictionaryError(f"the dictionary is not valid TOML: {error}") from None
    except RecursionError:
        raise DictionaryError("the dictionary is not valid TOML: nested too deeply") from None
    problems: list[str] = []
    reader = TableReader(document, "dictionary", problems)
    reader.integer("schema_version", required=True, at_least=SCHEMA_VERSION, at_most=SCHEMA_VERSION)
    name = reader.text("name", required=True, max_characters=100)
    target = _read_target(reader.table("target", required=True))
    features = [_read_feature(item) for item in reader.tables("features", required=True)]
    grids = [_read_grid(item) for item in reader.tables("grids")]
    policy = _read_policy(reader.table("policy", required=True))
    reader.finish()
    _check_names(target, features, grids, problems)
    by_name = {feature.name: feature for feature in features}
    for spec in grids:
        _check_grid(spec, by_name, problems)
    if problems or name is None or target is None or policy is None:
        raise DictionaryError("the dictionary is not valid:\n" + "\n".join(problems))
    return Dictionary(
        name=name, target=target, features=tuple(features), grids=tuple(grids), policy=policy
    )


def _read_target(reader: TableReader | None) -> Target | None:
    if reader is None:
        return None
    target = Target(
        column=reader.text("column", required=True, max_characters=100) or "",
        positive=reader.text("positive", required=True, max_characters=100) or "",
        # Sites that disagree about the outcome send each other wrong labels, which no gate can see.
        definition=reader.text("definition", required=True) or "",
        time_window=reader.text("time_window") or "",
        exclusions=reader.text("exclusions") or "",
    )
    reader.finish()
    return target


def _read_feature(reader: TableReader) -> Feature:
    name = reader.text("name", required=True, max_characters=100) or ""
    description = reader.text("description") or ""
    kind = reader.choice("kind", KINDS, required=True) or ""
    privacy = reader.choice("privacy", PRIVACY_CLASSES)
    if kind in ("continuous", "integer"):
        feature = _read_measured(reader, name, description, kind, privacy)
    elif kind:
        feature = _read_coded(reader, name, description, kind, privacy)
    else:
        # Without a kind nobody can say which of the other keys belong: one problem, not ten.
        return Feature(name=name, kind=kind)
    reader.finish()
    return feature


def _read_measured(
    reader: TableReader, name: str, description: str, kind: str, privacy: str | None
) -> Feature:
    is_continuous = kind == "continuous"
    for key in ("levels", "level_names"):
        reader.refuse(key, f"has no meaning for a {kind} feature")
    # "1" only where bare counts are common: a measurement without a unit is how mg/dL meets mmol/L.
    unit = reader.text("unit", required=is_continuous, max_characters=50) or "1"
    if unit in NOT_UCUM:
        reader.note("unit", f"must be UCUM text: {NOT_UCUM[unit]}, not {unit}")
    plausible = reader.numbers("plausible", required=True)
    if plausible and len(plausible) != 2:
        reader.note("plausible", "must be two numbers, lowest and highest")
        plausible = ()
    center = reader.number("center", required=True)
    scale = reader.number("scale", required=True, above=0.0)
    cut_points = reader.numbers("cut_points")
    decimals = reader.integer("decimals", required=is_continuous, at_least=-6, at_most=12)
    molar_mass = reader.number("molar_mass_g_mol", above=0.0)
    top_code = reader.number("top_code")
    if privacy == "age" and top_code is None:
        if unit == "a":
            top_code = SAFE_HARBOR_AGE
        elif not reader.has("top_code"):
            reader.note("top_code", "is missing; an age in another unit than 'a' needs one")
    if privacy == "age" and unit == "a" and top_code is not None and top_code > SAFE_HARBOR_AGE:
        reader.note("top_code", f"must be at most {SAFE_HARBOR_AGE:g} for an age in years")
    if len(plausible) == 2:
        low, high = plausible
        if cut_points and not low < cut_points[0] <= cut_points[-1] < high:
            reader.note("cut_points", f"must lie inside the plausible range {low:g} to {high:g}")
        if center is not None and not low <= center <= high:
            reader.note("center", f"must lie inside the plausible range {low:g} to {high:g}")
        if top_code is not None and top_code <= low:
            reader.note("top_code", f"must be above the lowest plausible value {low:g}")
    if kind == "integer" and any(not edge.is_integer() for edge in cut_points):
        reader.note("cut_points", "must be whole numbers for an integer feature")
    if top_code is not None and cut_points and cut_points[-1] > top_code:
        reader.note("cut_points", f"must not tell apart values above top_code {top_code:g}")
    return Feature(
        name=name,
        kind=kind,
        description=description,
        unit=unit,
        plausible=(plausible[0], plausible[1]) if len(plausible) == 2 else None,
        center=center,
        scale=scale,
        cut_points=cut_points,
        privacy=privacy,
        decimals=0 if decimals is None else decimals,
        molar_mass_g_mol=molar_mass,
        top_code=top_code,
    )


def _read_coded(
    reader: TableReader, name: str, description: str, kind: str, privacy: str | None
) -> Feature:
    for key in ("unit", "plausible", "cut_points", "decimals", "molar_mass_g_mol", "top_code"):
        reader.refuse(key, f"has no meaning for a {kind} feature")
    levels = reader.texts("levels", required=True)
    level_names = reader.texts("level_names")
    if levels and (len(levels) != 2 if kind == "binary" else len(levels) < 2):
        reader.note("levels", "must be exactly two" if kind == "binary" else "must be two or more")
    if level_names and levels and len(level_names) != len(levels):
        reader.note("level_names", f"must be as many as levels ({len(levels)})")
    center = scale = None
    if kind == "ordinal":
        center = reader.number("center", required=True)
        scale = reader.number("scale", required=True, above=0.0)
        if center is not None and levels and not 0 <= center <= len(levels) - 1:
            reader.note("center", f"must be a level index between 0 and {len(levels) - 1}")
    else:
        for key in ("center", "scale"):
            reader.refuse(key, f"has no meaning for a {kind} feature")
    return Feature(
        name=name,
        kind=kind,
        description=description,
        levels=levels,
        level_names=level_names,
        center=center,
        scale=scale,
        privacy=privacy,
    )


def _read_grid(reader: TableReader) -> GridSpec:
    name = reader.text("name", required=True, max_characters=100) or ""
    features = reader.texts("features", required=True)
    if len(features) > 2:
        reader.note("features", "must be one or two")
    reader.finish()
    return GridSpec(name=name, features=features)


def _read_policy(reader: TableReader | None) -> Policy | None:
    if reader is None:
        return None
    disclosure = reader.choice("disclosure", DISCLOSURE_MODES, required=True)
    epsilon = reader.number("epsilon", required=True, above=0.0)
    epsilon_total = reader.number("epsilon_total", required=True, above=0.0)
    min_count = reader.integer("min_count", required=True, at_least=2, at_most=1_000)
    # With one other site the "mean of the others" would be that site's own numbers.
    min_sites = reader.integer("min_sites", required=True, at_least=3, at_most=100_000)
    similarity = reader.number("similarity", required=True, above=0.0, at_most=1.0)
    rows = reader.integer("rows_per_transfer", required=True, at_least=1, at_most=100_000)
    hours = (
        *("proposed_h", "requested_h", "prepared_h", "approved_h", "sealed_h", "delivered_h"),
        *("withdrawal_h", "inbox_max_age_h", "silent_h"),
    )
    optional: dict[str, Any] = {
        key: reader.number(key, above=0.0, at_most=87_600.0) for key in hours
    }
    optional["min_shared_features"] = reader.integer(
        "min_shared_features", at_least=1, at_most=1_000
    )
    optional["retention_days"] = reader.integer("retention_days", at_least=1, at_most=36_500)
    reader.finish()
    if epsilon is not None and epsilon_total is not None and epsilon_total < epsilon:
        reader.note("epsilon_total", f"must be at least epsilon ({epsilon:g})")
    if (
        disclosure is None
        or epsilon is None
        or epsilon_total is None
        or min_count is None
        or min_sites is None
        or similarity is None
        or rows is None
    ):
        return None
    return Policy(
        disclosure=disclosure,
        epsilon=epsilon,
        epsilon_total=epsilon_total,
        min_count=min_count,
        min_sites=min_sites,
        similarity=similarity,
        rows_per_transfer=rows,
        **{key: value for key, value in optional.items() if value is not None},
    )


def _check_names(
    target: Target | None,
    features: list[Feature],
    grids: list[GridSpec],
    problems: list[str],
) -> None:
    """Note names used twice, and too many grids."""
    for kind, names in (
        ("features", [feature.name for feature in features]),
        ("grids", [spec.name for spec in grids]),
    ):
        for name in sorted({name for name in names if name and names.count(name) > 1}):
            problems.append(f"dictionary: {kind} must have distinct names; {name!r} occurs twice")
    if target is not None and target.column in {feature.name for feature in features}:
        problems.append(
            f"target: column must not be a feature; {target.column!r} would predict itself"
        )
    if len(grids) > MAX_GRIDS:
        problems.append(f"dictionary: grids must be at most {MAX_GRIDS}, not {len(grids)}")


def _check_grid(spec: GridSpec, features: dict[str, Feature], problems: list[str]) -> None:
    """Note a grid that cannot be laid, or that no site could publish."""
    where = f"grid {spec.name!r}"
    n_voxels = 1
    for name in spec.features:
        feature = features.get(name)
        if feature is None:
            problems.append(f"{where}: features must be in the dictionary; {name!r} is not")
            continue
        if not feature.kind:
            continue  # its own problem is already noted
        if not feature.is_shareable:
            problems.append(
                f"{where}: features must have privacy {', '.join(SHAREABLE_CLASSES[:-1])} or "
                f"{SHAREABLE_CLASSES[-1]}; {name!r} never leaves a site"
            )
        if feature.n_voxels == 0:
            problems.append(f"{where}: features must have cut_points or levels; {name!r} has none")
        n_voxels *= max(feature.n_voxels, 1)
    if n_voxels > MAX_VOXELS:
        problems.append(f"{where}: must have at most {MAX_VOXELS} voxels, not {n_voxels}")
