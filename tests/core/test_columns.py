import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_dictionary import SMALL_DICTIONARY
from synthedge_core.columns import Column, analysis_matrix, decode, encode, infer_columns
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import TableError

N = 60
RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "age": RNG.integers(20, 90, N),
        "bp": RNG.normal(120, 10, N).round(1),
        "cp": RNG.integers(1, 5, N),
        "sex": np.where(RNG.random(N) < 0.5, "F", "M"),
        "ward": RNG.choice(["A", "B", "C"], N),
        "smoker": RNG.random(N) < 0.5,
        "stage": pd.Categorical(RNG.choice(["I", "II", "III"], N), ordered=True),
        "mrn": np.arange(1000, 1000 + N),
        "seen": pd.date_range("2020-01-01", periods=N),
        "born": [f"19{y}-03-0{y % 9 + 1}" for y in RNG.integers(10, 99, N)],
        "note": [f"free text of patient {i % 55}" for i in range(N)],
        "unit": 7,
        "empty": np.nan,
    }
)


def columns_of(table: pd.DataFrame, **stated: list[str]) -> dict[str, Column]:
    return {column.name: column for column in infer_columns(table, **stated)}  # type: ignore[arg-type]


def test_kinds_are_inferred_and_reasons_given() -> None:
    kinds = {name: column.kind for name, column in columns_of(TABLE).items()}
    assert kinds == {
        "age": "integer",
        "bp": "continuous",
        "cp": "ordinal",
        "sex": "binary",
        "ward": "categorical",
        "smoker": "binary",
        "stage": "ordinal",
        "mrn": None,
        "seen": None,
        "born": None,
        "note": None,
        "unit": None,
        "empty": None,
    }
    assert columns_of(TABLE)["mrn"].reason == "an identifier"
    assert columns_of(TABLE)["unit"].reason == "one value only"


def test_kinds_can_be_stated() -> None:
    found = columns_of(TABLE, discrete=["cp"], continuous=["mrn"], ignore=["age"])
    assert found["cp"].kind == "categorical"
    assert found["mrn"].kind == "integer"
    assert (found["age"].kind, found["age"].reason) == (None, "left out by you")
    with pytest.raises(TableError, match="'nothing' is named as discrete"):
        columns_of(TABLE, discrete=["nothing"])
    with pytest.raises(TableError, match="two things"):
        columns_of(TABLE, discrete=["cp"], continuous=["cp"])


def test_a_few_entries_that_are_no_numbers_are_counted_not_guessed() -> None:
    dirty = pd.DataFrame({"crp": ["1.5", "2.5", "<5", *map(str, range(57))]})
    column = columns_of(dirty)["crp"]
    assert (column.kind, column.n_refused) == ("continuous", 1)
    assert np.isnan(encode(dirty, [column])[2, 0])


def test_the_dictionary_decides_kind_levels_and_range() -> None:
    dictionary = parse_dictionary(SMALL_DICTIONARY)
    table = pd.DataFrame({"bp": [90.0, 0.0, None], "sex": [1, 2, 9]})
    bp, sex = infer_columns(table, features=dictionary.features)
    assert (bp.kind, bp.n_missing, bp.n_refused) == ("continuous", 1, 1)
    assert (sex.kind, sex.levels, sex.n_refused) == ("binary", (1, 2), 1)
    values = encode(table, [bp, sex])
    np.testing.assert_array_equal(values, [[90, 0], [np.nan, 1], [np.nan, np.nan]])


def test_decoding_undoes_encoding_types_included() -> None:
    used = [c for c in infer_columns(TABLE) if c.kind is not None]
    decoded = decode(encode(TABLE, used), used, TABLE)
    for column in used:
        pd.testing.assert_series_equal(decoded[column.name], TABLE[column.name], check_names=False)


@given(st.lists(st.one_of(st.none(), st.integers(-999, 999)), min_size=12, max_size=40))
def test_encoding_keeps_every_number_and_every_missing_cell(cells: list[int | None]) -> None:
    table = pd.DataFrame({"x": pd.Series(cells, dtype="Int64")})
    (column,) = infer_columns(table, continuous=["x"])
    if column.kind is None:
        return
    decoded = decode(encode(table, [column]), [column], table)["x"]
    assert decoded.astype("Int64").tolist() == table["x"].tolist()


def test_words_become_one_column_per_level_and_numbers_stay() -> None:
    ward, cp, sex = (columns_of(TABLE)[name] for name in ("ward", "cp", "sex"))
    matrix, names = analysis_matrix(encode(TABLE, [ward, cp, sex]), [ward, cp, sex])
    assert names == ["ward = A", "ward = B", "ward = C", "cp", "sex = M"]
    assert (matrix[:, :3].sum(axis=1) == 1).all()
    np.testing.assert_array_equal(matrix[:, 3], TABLE["cp"])
