"""Matching received measurements to own ones: on demand, and only where it makes sense."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server_fixtures import DICTIONARY_TOML
from sites import delivered, patients, sites, steward, with_hole
from synthedge_client.accepting import accept
from synthedge_client.harmonise import harmonise_received, match
from synthedge_client.received import load_with_tokens
from synthedge_client.site_table import load_site_table
from synthedge_core.dictionary import Feature, parse_dictionary

CHOL = """
[[features]]
name = "chol"
kind = "continuous"
unit = "mg/dL"
plausible = [50, 500]
center = 200.0
scale = 40.0
decimals = 3
privacy = "measurement"

[[grids]]
name = "bp\""""
WITH_CHOL = DICTIONARY_TOML.replace('\n[[grids]]\nname = "bp"', CHOL, 1)
FREE = Feature(name="x", kind="continuous", unit="1", center=0.0, scale=1.0)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float64, 9, elements=st.integers(-50, 50).map(float)),
    hnp.arrays(np.float64, 12, elements=st.integers(-50, 50).map(float)),
)
def test_location_and_scale_become_the_recipients(theirs: np.ndarray, own: np.ndarray) -> None:
    theirs[0] = np.nan

    matched = match(theirs, own, FREE)

    assert np.isnan(matched[0])
    assert np.nanmean(matched) == pytest.approx(np.mean(own), abs=1e-6)
    if np.nanstd(theirs):
        assert np.nanstd(matched) == pytest.approx(np.std(own), abs=1e-6)


def test_only_measurements_outside_the_region_are_matched(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    north_rows = patients("n", with_hole())
    north_rows = north_rows.assign(chol=generator.normal(200, 20, len(north_rows)).round(3))
    south_rows = patients("s")
    south_rows = south_rows.assign(chol=generator.normal(260, 20, len(south_rows)).round(3))
    order = parse_dictionary(WITH_CHOL).feature_names
    values = np.array([[101.0 + i, 1.0, np.nan, 250.0 + 5 * i] for i in range(8)])
    assert order == ("bp", "sex", "note", "chol")
    with sites(tmp_path, WITH_CHOL, north=north_rows, south=south_rows) as (north, south):
        transfer = delivered(north, south, values, rows=8)
        accept(north, transfer, steward())
        received, tokens = load_with_tokens(north)
        table = load_site_table(north.settings, north.dictionary)

        matched, changed = harmonise_received(north, table, received, tokens)

    region = table.own[(table.own["sex"] == 2) & (table.own["bp"] >= 100)]
    assert changed == ("chol",)
    assert matched["chol"].astype(float).mean() == pytest.approx(region["chol"].mean(), abs=0.001)
    for column in ("bp", "sex", "progressed", "_donor"):
        assert matched[column].tolist() == received[column].tolist()
