"""Units of measurement: from a site's unit to the dictionary's, both written as UCUM text."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np

from synthedge_core.dictionary import Feature
from synthedge_core.errors import TableError
from synthedge_core.frame import FloatArray
from synthedge_core.rescale import AffineUnit


@lru_cache(maxsize=1)
def _ucum() -> tuple[Any, Callable[[str], Any]]:
    """Pint's registry with the units of UCUM, and what reads UCUM text into its quantities."""
    # A quarter of a second, needed only by a site whose units differ. `PintUcumRegistry` would build two registries:
    # it reads into pint's application registry, whose quantities mix with none of its own.
    from ucumvert import UcumToPintTransformer, get_ucum_parser, parse_ucum

    transformer, parser = UcumToPintTransformer(), get_ucum_parser()
    return transformer.ureg, lambda unit: transformer.transform(parse_ucum(unit, parser))


def unit_conversion(own_unit: str, feature: Feature) -> AffineUnit:
    """Find the way from a site's unit to the dictionary's.

    Parameters
    ----------
    own_unit : str
        UCUM text, for example ``mmol/L``.
    feature : Feature
        Its molar mass takes amounts of substance to masses.

    Raises
    ------
    TableError
        If a unit is not understood or the two do not measure the same thing.
    """
    source, target = (_parse(unit, feature.name) for unit in (own_unit, feature.unit))
    bridge = _bridge(source, target, feature, own_unit)

    def converted(number: float) -> float:
        quantity = _ucum()[0].Quantity(number * source.magnitude, source.units)
        # Pint multiplies no temperature that has an offset: only what needs the bridge takes it.
        bridged = quantity if bridge is None else quantity * bridge
        return float(bridged.to(target.units).magnitude / target.magnitude)

    offset = converted(0.0)
    return AffineUnit(factor=converted(1.0) - offset, offset=offset)


# What laboratories and devices write; a site whose values fit one of them has most likely forgotten to say so.
_USUAL_UNITS: Final = (
    "mg/dL", "mmol/L", "g/L", "g/dL", "umol/L", "mm[Hg]", "kPa", "Cel", "[degF]", "kg", "[lb_av]", "g",
    "m", "cm", "[in_i]", "a", "mo", "d", "h", "min", "%", "1", "mm", "/min", "/s",
)  # fmt: skip
_FITTING_SHARE: Final = 0.95


def fitting_units(feature: Feature, own: FloatArray) -> list[str]:
    """Usual units in which nearly all of a site's values would be plausible.

    Parameters
    ----------
    feature : Feature
        With a plausible range.
    own : ndarray of shape (n,)
        The site's values as its file holds them, none missing.
    """
    low, high = feature.plausible or (-math.inf, math.inf)
    fitting = []
    for unit in _USUAL_UNITS:
        try:
            values = unit_conversion(unit, feature).to_dictionary(own)
        except TableError:
            continue
        if np.mean((values >= low) & (values <= high)) >= _FITTING_SHARE:
            fitting.append(unit)
    return fitting


def _parse(unit: str, feature: str) -> Any:
    from ucumvert.parser import InvalidUcumError

    _, read = _ucum()
    try:
        quantity = read(unit)
    except InvalidUcumError:
        quantity = None
    # An annotation such as {score} parses to a token without a dimension of its own.
    if not hasattr(quantity, "units"):
        raise TableError(
            f"unit '{unit}' is no UCUM unit that can be converted; correct [columns.{feature}] of site.toml"
        )
    return quantity


def _bridge(source: Any, target: Any, feature: Feature, own_unit: str) -> Any:
    """What a value must be multiplied by before its dimension is the dictionary's; None if nothing."""
    if source.is_compatible_with(target):
        return None
    if feature.molar_mass_g_mol is not None:
        registry, _ = _ucum()
        molar_mass = feature.molar_mass_g_mol * registry.gram / registry.mole
        factors: tuple[Any, ...] = (molar_mass, 1 / molar_mass)
        # Of a temperature there is no amount; pint multiplies none that has an offset.
        if source.is_compatible_with(registry.kelvin):
            factors = ()
        for factor in factors:
            if (source * factor).is_compatible_with(target):
                return factor
    hint = (
        ""
        if feature.molar_mass_g_mol
        else "; a molar mass in the dictionary may be what is missing"
    )
    raise TableError(
        f"unit '{own_unit}' cannot be converted to '{feature.unit}'{hint}; "
        f"correct [columns.{feature.name}] of site.toml"
    )
