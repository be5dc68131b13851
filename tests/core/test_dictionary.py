import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from small_dictionary import SMALL_DICTIONARY
from synthedge_core.dictionary import (
    NOT_UCUM,
    Feature,
    GridSpec,
    Policy,
    Target,
    parse_dictionary,
)
from synthedge_core.dictionary_diff import differences
from synthedge_core.errors import DictionaryError


def _problems(text: str) -> list[str]:
    with pytest.raises(DictionaryError) as caught:
        parse_dictionary(text)
    return str(caught.value).splitlines()[1:]


def _changed(old: str, new: str) -> str:
    assert old in SMALL_DICTIONARY
    return SMALL_DICTIONARY.replace(old, new, 1)


def test_a_valid_dictionary_becomes_a_value() -> None:
    dictionary = parse_dictionary(SMALL_DICTIONARY)
    assert dictionary.feature_names == ("sex", "age", "bp", "stage")
    assert dictionary.index("bp") == 2
    assert dictionary.feature("bp").plausible == (30.0, 200.0)
    assert dictionary.feature("sex").n_levels == 2
    assert dictionary.grid("sex x age").features == ("sex", "age")
    assert dictionary.policy.approved_h == 72
    assert dictionary.policy.retention_days == 365


def test_the_digest_is_the_sha256_of_the_canonical_json() -> None:
    dictionary = parse_dictionary(SMALL_DICTIONARY)
    text = dictionary.canonical_json()
    assert dictionary.digest == hashlib.sha256(text).hexdigest()
    assert text.startswith(b'{"features":[{"kind":"binary","level_names":["female","male"]')
    assert b'"target":{"column":"ill"' in text


def test_the_digest_ignores_comments_order_and_the_form_of_numbers() -> None:
    other = _changed("center = 94.0", "center = 94  # a public cohort").replace(
        'name = "small"\n', "", 1
    )
    other = 'name = "small"\n' + other
    assert parse_dictionary(other).digest == parse_dictionary(SMALL_DICTIONARY).digest


def test_the_digest_does_not_change_when_a_default_is_written_out() -> None:
    written = _changed("min_sites = 3", "min_sites = 3\nretention_days = 365")
    assert parse_dictionary(written).digest == parse_dictionary(SMALL_DICTIONARY).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[80, 90, 100]", "[80, 90, 101]"),
        ("epsilon = 1.0", "epsilon = 0.5"),
        ('unit = "mm[Hg]"', 'unit = "kPa"'),
        ("rows_per_transfer = 20", "rows_per_transfer = 20\nsealed_h = 71"),
    ],
)
def test_the_digest_changes_with_every_value_that_matters(old: str, new: str) -> None:
    changed = parse_dictionary(_changed(old, new))
    assert changed.digest != parse_dictionary(SMALL_DICTIONARY).digest


def test_all_problems_are_reported_at_once() -> None:
    text = _changed("epsilon = 1.0\n", "").replace('kind = "binary"', 'kind = "boolean"')
    text = text.replace("[80, 90, 100]", "[80, 70]")
    assert _problems(text) == [
        "feature 'sex': kind must be one of continuous, integer, ordinal, categorical, binary",
        "feature 'bp': cut_points must be strictly increasing",
        "policy: epsilon is missing; it has no default",
        "grid 'bp': features must have cut_points or levels; 'bp' has none",
    ]


@pytest.mark.parametrize(
    "key",
    [
        "disclosure",
        "epsilon",
        "epsilon_total",
        "min_count",
        "min_sites",
        "similarity",
        "rows_per_transfer",
    ],
)
def test_a_threshold_that_nobody_set_refuses(key: str) -> None:
    lines = [line for line in SMALL_DICTIONARY.splitlines() if not line.startswith(f"{key} =")]
    assert f"policy: {key} is missing; it has no default" in _problems("\n".join(lines))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("min_count = 5", "min_cuont = 5", "policy: 'min_cuont' is not a known key"),
        ('name = "small"', 'name = "small"\nx = 1', "dictionary: 'x' is not a known key"),
        ("decimals = 0", "decimals = 0\ndigits = 2", "feature 'bp': 'digits' is not a known key"),
        ("[30, 200]", "[200, 30]", "feature 'bp': plausible must be strictly increasing"),
        ("[80, 90, 100]", "[20, 90]", "feature 'bp': cut_points must lie inside the plausible"),
        ("[80, 90, 100]", "[80, nan]", "feature 'bp': cut_points must be a list of finite"),
        ("scale = 14.0", "scale = 0", "feature 'bp': scale must be above 0"),
        ('unit = "mm[Hg]"\n', "", "feature 'bp': unit is missing"),
        ("[40, 60, 70]", "[40, 60.5]", "feature 'age': cut_points must be whole numbers"),
        ("[40, 60, 70]", "[60, 95]", "feature 'age': cut_points must not tell apart"),
        ('levels = ["1", "2"]', "levels = [1, 2]", "feature 'sex': levels must be a list of texts"),
        ('levels = ["1", "2"]', 'levels = ["1"]', "feature 'sex': levels must be exactly two"),
        ('["female", "male"]', '["female"]', "feature 'sex': level_names must be as many"),
        ('levels = ["1", "2"]', 'levels = ["1", "2"]\nunit = "1"', "feature 'sex': unit has no"),
        ('privacy = "age"', 'privacy = "date"', "'age' never leaves a site"),
        ('privacy = "age"', "", "'age' never leaves a site"),
        ('["bp"]', '["bq"]', "grid 'bp': features must be in the dictionary; 'bq' is not"),
        ('["bp"]', '["bp", "age"]', "grid 'bp': must have at most 12 voxels, not 16"),
        ('["bp"]', '["bp", "age", "sex"]', "grid 'bp': features must be one or two"),
        ('name = "stage"\nfeatures', 'name = "bp"\nfeatures', "grids must have distinct names"),
        ('column = "ill"', 'column = "bp"', "target: column must not be a feature"),
        ("min_sites = 3", "min_sites = 2", "policy: min_sites must be between 3 and"),
        ("min_count = 5", "min_count = true", "policy: min_count must be an integer"),
        ("similarity = 0.70", "similarity = 1.5", "policy: similarity must be above 0 and at most"),
        ("epsilon_total = 4.0", "epsilon_total = 0.5", "epsilon_total must be at least epsilon"),
        ("schema_version = 1", "schema_version = 2", "dictionary: schema_version must be"),
        ('name = "small"', 'name = "sm\\nall"', "dictionary: name must be at most 100 printable"),
        ('definition = "ill within a year"', "", "target: definition is missing"),
    ],
)
def test_a_wrong_entry_is_named_with_what_was_expected(old: str, new: str, problem: str) -> None:
    assert any(problem in line for line in _problems(_changed(old, new)))


def test_a_fourth_grid_is_refused() -> None:
    fourth = '[[grids]]\nname = "sex"\nfeatures = ["sex"]\n\n[policy]'
    problems = _problems(_changed("[policy]", fourth))
    assert problems == ["dictionary: grids must be at most 3, not 4"]


def test_an_age_in_years_is_top_coded_at_89_unless_lower() -> None:
    assert parse_dictionary(SMALL_DICTIONARY).feature("age").top_code == 89
    lower = _changed('privacy = "age"', 'privacy = "age"\ntop_code = 80')
    assert parse_dictionary(lower).feature("age").top_code == 80
    higher = _changed('privacy = "age"', 'privacy = "age"\ntop_code = 95')
    assert _problems(higher) == ["feature 'age': top_code must be at most 89 for an age in years"]


def test_an_age_in_another_unit_needs_its_own_top_code() -> None:
    in_months = SMALL_DICTIONARY.replace('unit = "a"', 'unit = "mo"')
    assert any("'age': top_code is missing" in line for line in _problems(in_months))


@pytest.mark.parametrize("text", ["[", "a = " + "[" * 5_000, "a = " + "9" * 5_000])
def test_what_is_not_toml_is_refused_in_words(text: str) -> None:
    with pytest.raises(DictionaryError, match="not valid TOML"):
        parse_dictionary(text)


def test_an_empty_file_names_everything_it_lacks() -> None:
    assert _problems("") == [
        f"dictionary: {key} is missing; it has no default"
        for key in ("schema_version", "name", "target", "features", "policy")
    ]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    dictionary = parse_dictionary(SMALL_DICTIONARY)
    with pytest.raises(DictionaryError, match="no feature 'chol'; it has sex, age, bp, stage"):
        dictionary.index("chol")
    with pytest.raises(DictionaryError, match="no grid 'chol'; its grids are: bp, sex x age"):
        dictionary.grid("chol")


def test_the_outcome_definition_is_part_of_both_digests() -> None:
    plain = parse_dictionary(SMALL_DICTIONARY)
    for key in ("time_window", "exclusions"):
        changed = parse_dictionary(_changed("[[features]]", f'{key} = "one year"\n\n[[features]]'))
        assert changed.digest != plain.digest
        assert changed.target.outcome_digest != plain.target.outcome_digest
    other_column = parse_dictionary(_changed('column = "ill"', 'column = "sick"'))
    assert other_column.target.outcome_digest == plain.target.outcome_digest


@pytest.mark.parametrize("unit", sorted(NOT_UCUM))
def test_a_unit_that_is_no_ucum_text_is_told_with_the_right_one(unit: str) -> None:
    (problem,) = _problems(_changed("mm[Hg]", unit))
    assert problem == f"feature 'bp': unit must be UCUM text: {NOT_UCUM[unit]}, not {unit}"


def test_the_differences_of_two_dictionaries_are_named_one_by_one() -> None:
    old = parse_dictionary(SMALL_DICTIONARY)
    text = _changed("[80, 90, 100]", "[80, 90]").replace(
        'name = "stage"\nfeatures', 'name = "s"\nfeatures'
    )
    text = text.replace("epsilon = 1.0", "epsilon = 0.5").replace("ill within a year", "ill")
    new = parse_dictionary(text)

    assert differences(old, old) == []
    assert differences(old, new) == [
        "target: definition ill within a year -> ill",
        "feature 'bp': cut_points [80, 90, 100] -> [80, 90]",
        "grid 'stage': left out",
        "grid 's': new",
        "policy: epsilon 1 -> 0.5",
    ]


def test_features_that_come_go_and_change_places_are_named() -> None:
    old = parse_dictionary(SMALL_DICTIONARY)
    bp, rest = old.feature("bp"), [f for f in old.features if f.name not in ("bp", "stage")]
    moved = dataclasses.replace(old, features=(bp, *rest))

    assert differences(old, moved) == [
        "feature 'stage': left out",
        "features: their order changed",
    ]
    assert "feature 'stage': new" in differences(moved, old)


def test_every_key_of_a_dictionary_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "dictionary.md").read_text("utf-8")
    for kind in (Target, Feature, GridSpec, Policy):
        for key in dataclasses.fields(kind):
            assert f"`{key.name}`" in text, key.name


def test_what_the_coordinator_imports_loads_no_table_or_training_library() -> None:
    code = (
        "import sys\n"
        "import synthedge_core.dictionary, synthedge_core.grids\n"
        "import synthedge_core.holes, synthedge_core.matching\n"
        "print(sorted({'pandas', 'scipy', 'sklearn', 'torch', 'pyarrow'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
