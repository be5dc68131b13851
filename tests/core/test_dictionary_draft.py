"""A draft says what a table shows of many patients, nothing of few, and leaves to people what only they know."""

import re
import tomllib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clinical_data import clinical_data_dir
from synthedge_core.clinical_reference import REFERENCES, normalised
from synthedge_core.dictionary import NOT_UCUM, parse_dictionary
from synthedge_core.dictionary_draft import MIN_ROWS, draft_dictionary
from synthedge_core.errors import DictionaryError
from synthedge_core.public_dictionaries import PUBLIC_DICTIONARIES, public_dictionary


def cohort(n_rows: int = 200) -> dict[str, list[str]]:
    """A public cohort's columns as a CSV file has them."""
    generator = np.random.default_rng(0)
    return {
        "patient_id": [f"P{i}" for i in range(n_rows)],
        "age": [str(a) for a in generator.integers(31, 84, n_rows)],
        "sex": [("F", "M")[i % 2] for i in range(n_rows)],
        "sbp": [f"{v:.0f}" for v in generator.normal(134, 17, n_rows)],
        "chol": [f"{v:.1f}" for v in generator.normal(5.2, 0.8, n_rows)],
        "score": [f"{v:.2f}" for v in generator.gamma(2.0, 3.7, n_rows)],
        "stage": [("1", "2", "3")[i % 3] for i in range(n_rows)],
        "visit": [f"2020-03-{1 + i % 28:02d}" for i in range(n_rows)],
        "consent": ["active"] * n_rows,
        "ill": ["1" if i % 5 == 0 else "0" for i in range(n_rows)],
    }


def filled_in(toml: str) -> str:
    """What a person makes of a draft: every open key filled in, every suggested class taken."""
    toml = re.sub(r'^# (privacy = "[a-z]+")', r"\1", toml, flags=re.M)
    toml = re.sub(r'^(positive|column) = ""', r'\1 = "x"', toml, flags=re.M)
    return re.sub(r'^(\w+) = ""', r'\1 = "1"', toml, flags=re.M)


def features_of(toml: str) -> dict[str, dict[str, object]]:
    return {feature["name"]: feature for feature in tomllib.loads(toml)["features"]}


def test_a_drafted_dictionary_is_valid_once_people_filled_it_in() -> None:
    draft = draft_dictionary("cohort", cohort(), target="ill")

    with pytest.raises(DictionaryError, match="definition must be a text that is not empty"):
        parse_dictionary(draft.toml)
    dictionary = parse_dictionary(filled_in(draft.toml))

    assert dictionary.feature_names == ("age", "sex", "sbp", "chol", "score", "stage")
    assert dictionary.target.positive == "1"
    assert [grid.name for grid in dictionary.grids] == ["sex x age", "sbp", "chol"]
    assert "feature 'chol': description, unit, privacy" in draft.to_fill_in


def test_no_feature_of_a_draft_has_a_privacy_class_before_somebody_decides() -> None:
    draft = draft_dictionary("cohort", cohort(), target="ill")

    assert not any("privacy" in feature for feature in features_of(draft.toml).values())
    assert all("privacy" in line for line in draft.to_fill_in if line.startswith("feature"))


def test_known_measurements_get_reference_values_and_guideline_cut_points() -> None:
    features = features_of(draft_dictionary("cohort", cohort(), target="ill").toml)

    assert features["sbp"]["unit"] == "mm[Hg]"
    assert features["sbp"]["cut_points"] == [120, 140, 160]
    assert features["age"]["cut_points"] == [40, 50, 60, 70]


def test_a_unit_the_values_do_not_fit_is_left_to_people() -> None:
    toml = draft_dictionary("cohort", cohort(), target="ill").toml

    assert features_of(toml)["chol"]["unit"] == ""
    assert "total serum cholesterol in mg/dL? the values do not fit" in toml


def test_identifiers_dates_and_consents_are_no_features() -> None:
    columns = cohort()
    columns["remark"] = [f"seen twice, note {i}" for i in range(200)]
    columns["number_of_bed"] = [str(i % 7) for i in range(200)]

    toml = draft_dictionary("cohort", columns, target="ill").toml

    assert not {"patient_id", "visit", "consent", "remark", "number_of_bed"} & set(
        features_of(toml)
    )
    assert toml.count("# left out: column") == 5


def test_codes_of_few_rows_are_not_copied() -> None:
    columns = cohort()
    columns["stage"][:4] = ["hermit", "hermit", "4", "4"]
    columns["ill"][:4] = ["7"] * 4

    toml = draft_dictionary("cohort", columns, target="ill").toml

    assert features_of(toml)["stage"]["levels"] == ["1", "2", "3"]
    assert "2 codes of fewer than 5 rows are not shown" in toml
    assert "hermit" not in toml
    assert tomllib.loads(toml)["target"]["positive"] == ""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=20, max_size=80, unique=True))
def test_the_lowest_and_highest_values_decide_no_range(thousandths: list[int]) -> None:
    values = sorted(number / 1000 + 0.0001 for number in thousandths)
    with_outliers = [-9e6, -8e6, *values[2:-2], 8e6, 9e6]

    ranges = [
        features_of(draft_dictionary("d", {"x": [f"{v:.4f}" for v in x]}).toml)["x"]["plausible"]
        for x in (values, with_outliers)
    ]

    assert ranges[0] == ranges[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=20, max_size=60))
def test_any_column_makes_readable_toml_without_rare_codes(cells: list[str]) -> None:
    columns = {"x": cells, "known": ["yes", "no"] * 30}

    document = tomllib.loads(draft_dictionary("any", columns).toml)

    counts = Counter(cell.strip() for cell in cells)
    for feature in document["features"]:
        if feature["name"] == "x":
            assert all(counts[level] >= MIN_ROWS or level == "0" for level in feature["levels"])


def test_a_table_without_a_usable_column_is_told() -> None:
    with pytest.raises(DictionaryError, match="no column 'ill' for the target"):
        draft_dictionary("d", {"x": ["1"]}, target="ill")
    with pytest.raises(DictionaryError, match="none of the table's 1 columns can be a feature"):
        draft_dictionary("d", {"x": ["1"]})


def test_references_name_ucum_units_and_each_column_name_once() -> None:
    names = [name for reference in REFERENCES for name in reference.names]

    assert len(names) == len(set(names)) == len({normalised(name) for name in names})
    for reference in REFERENCES:
        low, high = reference.plausible
        assert reference.unit not in NOT_UCUM
        assert low < reference.center < high
        assert all(low < edge < high for edge in reference.cut_points)
        assert bool(reference.cut_points) == bool(reference.source)


@pytest.mark.parametrize("name", PUBLIC_DICTIONARIES)
def test_the_dictionaries_that_come_along_are_complete(name: str) -> None:
    dictionary = parse_dictionary(public_dictionary(name))

    assert dictionary.grids
    assert all(feature.is_shareable for feature in dictionary.features)
    assert dictionary.target.time_window
    assert dictionary.target.exclusions


def test_a_dictionary_that_does_not_come_along_is_told_with_those_that_do() -> None:
    with pytest.raises(DictionaryError, match="there are cardiovascular, diabetes, heart"):
        public_dictionary("../secret")


def test_real_clinical_columns_are_recognised() -> None:
    path = clinical_data_dir() / "framingham.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    columns = {name: [line[i] for line in lines[1:]] for i, name in enumerate(lines[0])}

    dictionary = parse_dictionary(
        filled_in(draft_dictionary("framingham", columns, target="TenYearCHD").toml)
    )

    assert dictionary.feature("totChol").cut_points == (200, 240)
    assert dictionary.feature("totChol").unit == "mg/dL"
    assert dictionary.feature("education").privacy == "quasi"
    assert [grid.name for grid in dictionary.grids] == ["male x age", "sysBP", "glucose"]
