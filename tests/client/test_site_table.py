"""A hospital's table in dictionary terms, and everything that is wrong with it at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server_fixtures import DICTIONARY, DICTIONARY_TOML
from sites import accept_dictionary, make_site, patients, queued, steward
from synthedge_client.releases import publish
from synthedge_client.settings import load_settings
from synthedge_client.site import open_site
from synthedge_client.site_table import SiteTable, examine_site_table, load_site_table
from synthedge_client.table_problems import Problem
from synthedge_client.units import unit_conversion
from synthedge_core.dictionary import Dictionary, Feature, parse_dictionary
from synthedge_core.errors import TableError
from synthedge_core.grids import NamedGrid, count
from synthedge_core.rescale import ColumnMap, LevelMap
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server.report_checks import check_report

CHOLESTEROL = Feature(
    name="chol", kind="continuous", unit="mg/dL", molar_mass_g_mol=386.65, privacy="measurement"
)


def examine(
    parent: Path, rows: pd.DataFrame, settings: str = "", dictionary: Dictionary = DICTIONARY
) -> tuple[SiteTable | None, list[Problem]]:
    folder = make_site(parent, "north", rows, settings)
    return examine_site_table(load_settings(folder), dictionary)


def mapped(parent: Path, rows: pd.DataFrame, settings: str = "", **more: Any) -> SiteTable:
    table, problems = examine(parent, rows, settings, **more)
    assert table is not None, problems
    return table


def test_own_columns_units_and_codes_become_the_dictionarys_and_return(tmp_path: Path) -> None:
    rows = patients("n").rename(columns={"bp": "rr", "progressed": "worse"})
    rows["rr"] = (rows["rr"] / 7.5006157584566).round(9)
    rows["sex"] = rows["sex"].map({1: "F", 2: "M"})
    rows["worse"] = rows["worse"].map({1: "yes", 0: "no"})
    table = mapped(
        tmp_path,
        rows,
        """
[label]
column = "worse"
positive = ["yes"]
negative = ["no"]
[columns.bp]
column = "rr"
unit = "kPa"
[columns.sex]
levels = { F = "1", M = "2" }
""",
    )

    expected = patients("n")
    assert np.allclose(table.values[:, 0], expected["bp"])
    assert table.values[:, 1].tolist() == (expected["sex"] - 1).tolist()
    assert table.positive.tolist() == (expected["progressed"] == 1).tolist()
    own = table.to_own_rows(table.values)
    assert np.allclose(own["rr"].astype(float), rows["rr"])
    assert own["sex"].tolist() == rows["sex"].tolist()
    assert set(own["worse"]) == {"yes"}


def test_codes_that_mean_missing_and_empty_cells_are_missing(tmp_path: Path) -> None:
    rows = patients("n").astype({"bp": object})
    rows["bp"] = [0, None, "n.m.", *rows["bp"][3:]]
    table = mapped(tmp_path, rows, '[columns.bp]\nmissing = ["0", "n.m."]\n')

    assert np.isnan(table.values[:3, 0]).all()
    assert not np.isnan(table.values[3:, 0]).any()


def test_rows_without_a_label_are_left_out_and_said_so(tmp_path: Path) -> None:
    rows = patients("n")
    rows["progressed"] = [*[None] * 5, *rows["progressed"][5:]]
    table, problems = examine(tmp_path, rows)

    assert table is not None
    assert len(table.values) == len(rows) - 5
    assert [(p.rows, p.stops) for p in problems] == [(5, False)]


def test_only_an_exact_active_is_a_consent(tmp_path: Path) -> None:
    rows = patients("n")
    rows["consent"] = "withdrawn"
    for i, text in enumerate(["active", " Active ", "", "inactive", "yes", "1"]):
        rows.loc[i, "consent"] = text
    table = mapped(tmp_path, rows)

    assert table.consents.to("DUO:0000007").tolist() == [True, True] + [False] * (len(rows) - 2)
    rows["consent"] = "yes"
    (tmp_path / "other").mkdir()
    _, problems = examine(tmp_path / "other", rows)
    assert any("no row says 'active'" in p.found for p in problems)


def test_every_problem_is_listed_at_once_and_none_names_a_value(tmp_path: Path) -> None:
    rows = patients("SECRET").drop(columns="consent").astype({"bp": object, "sex": object})
    rows.loc[0, "bp"] = "very high"
    rows.loc[1, "sex"] = "hermaphrodite"
    rows.loc[2, "mrn"] = None
    rows.loc[3, "progressed"] = 77
    rows.loc[4, "note"] = 6543
    settings = '[columns.height]\ncolumn = "cm"\n[label]\npositive = ["1"]\nnegative = ["0"]\n'

    table, problems = examine(tmp_path, rows, settings)

    assert table is None
    about = {p.about: p.rows for p in problems}
    assert about == {
        "[columns.height]": None,
        "column 'consent'": None,
        "column 'bp'": 1,
        "column 'sex'": 1,
        "column 'note'": 1,
        "label 'progressed'": 1,
        "column 'mrn'": 1,
    }
    said = " ".join(f"{p.about} {p.found}" for p in problems)
    for value in ("very high", "hermaphrodite", "SECRET", "77", "6543"):
        assert value not in said


def test_a_missing_target_column_is_named(tmp_path: Path) -> None:
    folder = make_site(tmp_path, "north", patients("n").drop(columns="progressed"))

    with pytest.raises(TableError, match=r"'progressed': .* for the label; correct site\.toml"):
        load_site_table(load_settings(folder), DICTIONARY)


def test_a_wrong_unit_shows_as_implausible_values_with_their_number(tmp_path: Path) -> None:
    rows = patients("n")
    rows["bp"] /= 7.5

    _, problems = examine(tmp_path, rows)

    assert [(p.about, p.rows, p.stops) for p in problems] == [("feature 'bp'", 128, True)]
    assert "30 to 200 mm[Hg]" in problems[0].found


def test_a_repeated_patient_is_a_note_and_an_unknown_label_stops(tmp_path: Path) -> None:
    rows = patients("n")
    rows["mrn"] = [rows["mrn"][1], *rows["mrn"][1:]]
    rows.loc[2, "progressed"] = 2

    _, problems = examine(tmp_path, rows)

    assert [(p.about, p.stops) for p in problems] == [
        ("label 'progressed'", True),
        ("column 'mrn'", False),
    ]


def test_a_level_without_an_own_code_is_told_before_a_sample_needs_it(tmp_path: Path) -> None:
    rows = patients("n")
    rows["sex"] = "F"
    table, problems = examine(tmp_path, rows, '[columns.sex]\nlevels = { F = "1" }\n')

    assert table is not None
    assert [(p.about, p.stops) for p in problems] == [("feature 'sex'", False)]
    assert "no own code for the dictionary's 2" in problems[0].found


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ('[columns.bp]\ncolumn = "nowhere"\n', "no column 'nowhere'"),
        ('[columns.bp]\nunit = "mmol/L"\n', "'mmol/L' cannot be converted to 'mm\\[Hg\\]'"),
        ('[columns.bp]\nunit = "furlong per"\n', "is no UCUM unit"),
        ('[columns.bp]\nlevels = { a = "1" }\n', "levels are given for a feature that has none"),
        ('[columns.sex]\nlevels = { a = "9" }\n', "level '9' is none of the dictionary's"),
        ('[columns.sex]\nunit = "kg"\n', "a unit is given for a feature with levels"),
    ],
)
def test_a_mapping_that_cannot_be_is_told(tmp_path: Path, settings: str, match: str) -> None:
    folder = make_site(tmp_path, "north", patients("n"), settings)

    with pytest.raises(TableError, match=match):
        load_site_table(load_settings(folder), DICTIONARY)


@given(st.floats(0.1, 30))
def test_moles_become_grams_and_return(mmol_l: float) -> None:
    unit = unit_conversion("mmol/L", CHOLESTEROL)

    mg_dl = unit.to_dictionary(np.array([mmol_l]))

    # 1 mmol/L of a substance of 386.65 g/mol is 38.665 mg/dL.
    assert np.allclose(mg_dl, 38.665 * mmol_l)
    assert np.allclose(unit.to_own(mg_dl), mmol_l)


def test_grams_become_moles_where_the_dictionary_counts_moles() -> None:
    feature = Feature(name="glu", kind="continuous", unit="mmol/L", molar_mass_g_mol=180.156)

    assert np.allclose(unit_conversion("mg/dL", feature).to_dictionary(np.array([18.0156])), 1.0)


def test_a_temperature_is_no_amount_of_substance() -> None:
    with pytest.raises(TableError, match="'Cel' cannot be converted to 'mg/dL'"):
        unit_conversion("Cel", CHOLESTEROL)


def test_a_missing_molar_mass_is_named_as_what_may_be_missing() -> None:
    feature = Feature(name="chol", kind="continuous", unit="mg/dL")

    with pytest.raises(TableError, match="molar mass in the dictionary may be what is missing"):
        unit_conversion("mmol/L", feature)


@given(st.floats(20, 45))
def test_temperatures_have_an_offset_and_return(celsius: float) -> None:
    feature = Feature(name="temp", kind="continuous", unit="[degF]")
    unit = unit_conversion("Cel", feature)

    assert np.allclose(unit.to_dictionary(np.array([celsius])), celsius * 9 / 5 + 32)
    assert np.allclose(unit.to_own(unit.to_dictionary(np.array([celsius]))), celsius)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = make_site(tmp_path, "north", patients("n"))
    (tmp_path / "north.csv").unlink()

    with pytest.raises(TableError, match=r"north\.csv"):
        load_site_table(load_settings(folder), parse_dictionary(DICTIONARY_TOML))


# Nine features: rows that agree in all of them do not coincide by chance.
WIDE_TOML = DICTIONARY_TOML.replace(
    "[[grids]]",
    "\n".join(
        f"""[[features]]
name = "lab{i}"
kind = "integer"
unit = "mg/dL"
plausible = [40, 500]
center = 200
scale = 40
molar_mass_g_mol = 386.65
privacy = "measurement"
"""
        for i in range(6)
    )
    + "[[grids]]",
    1,
)
WIDE = parse_dictionary(WIDE_TOML)


def wide_rows() -> pd.DataFrame:
    rows = patients("n")
    labs = np.random.default_rng(0).integers(120, 300, (len(rows), 6))
    return rows.assign(**{f"lab{i}": labs[:, i] for i in range(6)})


def found(problems: list[Problem]) -> dict[str, tuple[int | None, bool]]:
    return {p.about: (p.rows, p.stops) for p in problems}


def test_the_order_of_columns_changes_no_count(tmp_path: Path) -> None:
    rows = wide_rows()
    shuffled = rows[np.random.default_rng(1).permutation(rows.columns)]
    (tmp_path / "shuffled").mkdir()

    tables = [
        mapped(folder, columns, dictionary=WIDE)
        for folder, columns in ((tmp_path, rows), (tmp_path / "shuffled", shuffled))
    ]

    assert list(shuffled.columns) != list(rows.columns)
    first, second = (
        [
            counted.tobytes()
            for spec in WIDE.grids
            for counts in [count(NamedGrid(WIDE, spec), table.values, table.positive)]
            for counted in (counts.positives, counts.negatives)
        ]
        for table in tables
    )
    assert first == second
    assert tables[0].values.tobytes() == tables[1].values.tobytes()


def test_a_site_that_lacks_features_takes_part_with_what_it_has(tmp_path: Path) -> None:
    rows = patients("n").drop(columns="sex")
    folder = make_site(tmp_path, "north", rows, "[columns.sex]\nabsent = true\n")
    accept_dictionary(folder, DICTIONARY_TOML)
    with open_site(folder) as north:
        publish(north, steward())
        signed = queued(north)[-1]

    report = pb.GapReport.FromString(pb.Statement.FromString(signed.statement).payload)
    grids = {spec.name: NamedGrid(DICTIONARY, spec) for spec in DICTIONARY.grids}
    assert list(report.features) == ["bp", "note"]
    assert list(check_report(report, DICTIONARY, grids)) == ["bp"]


def test_zeros_that_cannot_be_are_told_apart_from_other_implausible_values(tmp_path: Path) -> None:
    rows = wide_rows()
    rows.loc[:9, "lab0"] = 0
    rows.loc[10:12, "lab0"] = 9000

    table, problems = examine(tmp_path, rows, dictionary=WIDE)

    assert table is None
    assert [(p.rows, "write missing" in p.found) for p in problems if p.stops] == [
        (10, True),
        (3, False),
    ]
    (tmp_path / "again").mkdir()
    settings = '[columns.lab0]\nmissing = ["0", "9000"]\n'
    assert np.isnan(
        mapped(tmp_path / "again", rows, settings, dictionary=WIDE).values[:13, 3]
    ).all()


@pytest.mark.parametrize("zero", ["0", "0.0", "0.00", " 0 ", "-0"])
def test_a_missing_code_of_zero_means_every_way_to_write_zero(tmp_path: Path, zero: str) -> None:
    rows = patients("n").astype({"bp": str})
    rows.loc[0, "bp"] = zero
    rows.loc[1, "bp"] = "n.m."

    table = mapped(tmp_path, rows, '[columns.bp]\nmissing = ["0", "n.m."]\n')

    assert np.isnan(table.values[:2, 0]).all()
    assert not np.isnan(table.values[2:, 0]).any()


def test_a_forgotten_unit_is_guessed_for_the_data_manager(tmp_path: Path) -> None:
    rows = wide_rows()
    rows["lab0"] = (rows["lab0"] / 38.665).round(2)

    _, problems = examine(tmp_path, rows, dictionary=WIDE)

    (problem,) = problems
    assert (problem.rows, problem.stops) == (len(rows), True)
    assert "in mmol/L the values would be plausible: is that your unit?" in problem.found


def test_a_feature_nobody_measured_is_no_feature_of_the_site(tmp_path: Path) -> None:
    rows = wide_rows().astype({"lab1": float, "lab2": float})
    rows["lab1"] = np.nan
    rows.loc[:99, "lab2"] = np.nan

    _, problems = examine(tmp_path, rows, dictionary=WIDE)

    assert found(problems) == {
        "feature 'lab1'": (len(rows), True),
        "feature 'lab2'": (100, False),
    }
    assert "write absent = true" in problems[0].found


def test_a_column_that_is_read_as_two_things_is_told(tmp_path: Path) -> None:
    settings = '[columns.lab1]\ncolumn = "lab0"\n[columns.note]\ncolumn = "progressed"\n'

    _, problems = examine(tmp_path, wide_rows(), settings, dictionary=WIDE)

    assert [p.found.split(";")[0] for p in problems if p.stops] == [
        "is read as feature 'note' and as the label",
        "is read as feature 'lab1' and as feature 'lab0'",
    ]


def test_one_patient_under_two_ids_is_noticed(tmp_path: Path) -> None:
    rows = wide_rows()
    twice = pd.concat([rows, rows[:3].assign(mrn=["x1", "x2", "x3"])])

    table, problems = examine(tmp_path, twice, dictionary=WIDE)

    assert table is not None
    assert found(problems) == {"patients": (3, False)}


def test_fractions_of_a_whole_number_are_noticed(tmp_path: Path) -> None:
    rows = wide_rows().astype({"lab3": float})
    rows.loc[:4, "lab3"] += 0.5

    _, problems = examine(tmp_path, rows, dictionary=WIDE)

    assert found(problems) == {"feature 'lab3'": (5, False)}


def test_columns_of_another_dictionary_are_no_problem(tmp_path: Path) -> None:
    folder = make_site(tmp_path, "north", patients("n"), '[columns.height]\ncolumn = "cm"\n')
    settings = replace(load_settings(folder), known_features=frozenset({"height"}))

    assert examine_site_table(settings, DICTIONARY)[1] == []


def test_received_rows_that_lack_a_newer_feature_have_it_missing(tmp_path: Path) -> None:
    table = mapped(tmp_path, wide_rows(), dictionary=WIDE)

    values = table.from_own_rows(wide_rows().drop(columns="lab5")[:4])

    assert np.isnan(values[:, -1]).all()
    assert not np.isnan(values[:, :-1]).any()


UNITS = ["mg/dL", "mmol/L", "g/L", "umol/L", "mg/L"]


@given(st.sampled_from(UNITS), st.sampled_from(UNITS), st.floats(1e-3, 1e4))
def test_concentrations_in_any_two_units_return_unchanged(
    own_unit: str, unit: str, number: float
) -> None:
    feature = Feature(name="chol", kind="continuous", unit=unit, molar_mass_g_mol=386.65)
    conversion = unit_conversion(own_unit, feature)

    there = conversion.to_dictionary(np.array([number]))

    assert np.allclose(conversion.to_own(there), number, rtol=1e-12)
    assert np.allclose(
        unit_conversion(unit, replace(feature, unit=own_unit)).to_dictionary(there), number
    )


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 3), min_size=1), st.data())
def test_levels_in_own_codes_return_as_the_first_code_of_their_level(
    codes: dict[str, int], data: st.DataObject
) -> None:
    own_codes = {code.strip(): level for code, level in codes.items() if code.strip()}
    if not own_codes:
        return
    column_map = ColumnMap(feature="f", column="c", coding=LevelMap(own_codes))
    cells = data.draw(st.lists(st.sampled_from(sorted(own_codes)), min_size=1))

    levels = column_map.to_dictionary(cells)
    back = column_map.to_own(levels)

    assert levels.tolist() == [own_codes[cell] for cell in cells]
    assert column_map.to_dictionary(list(back)).tolist() == levels.tolist()
