"""A hospital's file in the dictionary's terms and back, written a second time without the product's code.

Knows what the demonstration's diabetes hospitals need: own columns, own codes of sex, mmol/L for mg/dL.
"""

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Molar masses in g/mol over 10: mg/dL per mmol/L.
MG_PER_MMOL = {
    "total_cholesterol": 38.665,
    "ldl": 38.665,
    "hdl": 38.665,
    "glucose": 18.0156,
}
OLDEST_AGE = 89.0

Row = dict[str, float]


@dataclass(frozen=True)
class Patient:
    """One line of a hospital's file, in dictionary units; `sex` is the dictionary's code as a number."""

    values: Row
    positive: bool
    consented: bool


class OwnMapping:
    """How one hospital writes what the dictionary names."""

    def __init__(self, site: Path, dictionary: Mapping[str, Any]) -> None:
        settings = tomllib.loads((site / "site.toml").read_text())
        self.file = Path(settings["site"]["data"])
        self.consent = settings["site"]["consent"]
        self.label = settings["label"]
        self.features = [feature["name"] for feature in dictionary["features"]]
        self.decimals = {f["name"]: f.get("decimals") for f in dictionary["features"]}
        self.columns: dict[str, dict[str, Any]] = settings.get("columns", {})

    def column(self, feature: str) -> str:
        name: str = self.columns.get(feature, {}).get("column", feature)
        return name

    def patients(self) -> list[Patient]:
        with self.file.open(newline="") as file:
            return [
                Patient(
                    values={f: self.read(f, line[self.column(f)]) for f in self.features},
                    positive=line[self.label["column"]] in self.label["positive"],
                    consented=line[self.consent] == "active",
                )
                for line in csv.DictReader(file)
            ]

    def read(self, feature: str, cell: str) -> float:
        own = self.columns.get(feature, {})
        if "levels" in own:
            return float(own["levels"][cell])
        return float(cell) * (MG_PER_MMOL[feature] if own.get("unit") == "mmol/L" else 1.0)

    def leaving(self, values: Row) -> Row:
        """The values as they may leave: ages top-coded, numbers rounded as the dictionary says."""
        rounded = {
            name: value if self.decimals[name] is None else round(value, self.decimals[name])
            for name, value in values.items()
        }
        return rounded | {"age": min(rounded["age"], OLDEST_AGE)}

    def read_received(self, sample: Mapping[str, Any]) -> Row:
        """A received sample, kept in own units and codes, in dictionary units."""
        return {f: self.read(f, str(sample[self.column(f)])) for f in self.features}


def same(a: Row, b: Row) -> bool:
    """Whether two rows are one, but for the last digits of a conversion."""
    return all(abs(a[name] - b[name]) <= 1e-9 * max(1.0, abs(b[name])) for name in b)


def in_region(values: Row, grid: str, voxel: list[int], dictionary: Mapping[str, Any]) -> bool:
    """Whether a patient lies in a voxel of one of the dictionary's named grids."""
    spec = next(g for g in dictionary["grids"] if g["name"] == grid)
    by_name = {feature["name"]: feature for feature in dictionary["features"]}
    for name, cell in zip(spec["features"], voxel, strict=True):
        feature = by_name[name]
        if "levels" in feature:
            position = [float(level) for level in feature["levels"]].index(values[name])
        else:
            position = sum(values[name] >= edge for edge in feature["cut_points"])
        if position != cell:
            return False
    return True
