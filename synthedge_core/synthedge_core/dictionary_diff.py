"""What differs between two dictionaries, in words: what a steward reads before accepting a new version."""

from dataclasses import fields
from typing import Any

from synthedge_core.dictionary_model import Dictionary, Feature


def differences(old: Dictionary, new: Dictionary) -> list[str]:
    """Name every difference that changes the digest, one sentence each.

    Parameters
    ----------
    old, new : Dictionary

    Returns
    -------
    list of str
        Outcome definition first, then features, grids, policy; empty if both are the same.
    """
    found = _changes("target", old.target, new.target)
    found += _changes("dictionary", old, new, only=("name", "schema_version"))
    found += _parts("feature", old.features, new.features)
    if [f.name for f in old.features if f.name in new.feature_names] != [
        f.name for f in new.features if f.name in old.feature_names
    ]:
        found.append("features: their order changed")
    found += _parts("grid", old.grids, new.grids)
    if {g.name for g in old.grids} == {g.name for g in new.grids} and [
        g.name for g in old.grids
    ] != [g.name for g in new.grids]:
        found.append("grids: their order changed")
    return found + _changes("policy", old.policy, new.policy)


def _parts(kind: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> list[str]:
    before, after = ({part.name: part for part in parts} for parts in (old, new))
    found = [f"{kind} '{name}': left out" for name in before if name not in after]
    for name, part in after.items():
        if name in before:
            found += _changes(f"{kind} '{name}'", before[name], part)
        else:
            found.append(f"{kind} '{name}': new{_in_words(part)}")
    return found


def _in_words(part: Any) -> str:
    return f", {part.kind} in {part.unit}" if isinstance(part, Feature) and part.plausible else ""


def _changes(where: str, old: Any, new: Any, only: tuple[str, ...] | None = None) -> list[str]:
    names = only or tuple(field.name for field in fields(old))
    return [
        f"{where}: {name} {_value(getattr(old, name))} -> {_value(getattr(new, name))}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]


def _value(value: Any) -> str:
    if value in (None, (), ""):
        return "(not given)"
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
