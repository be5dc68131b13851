import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from synthedge_core.errors import TableError, UsageError
from synthedge_core.rescale import AffineUnit, ColumnMap, LevelMap

CELSIUS_FROM_FAHRENHEIT = AffineUnit(5 / 9, -160 / 9)
SEX = LevelMap({"F": 0, "M": 1, "male": 1})


def _column(coding: AffineUnit | LevelMap, *missing: str) -> ColumnMap:
    return ColumnMap(feature="f", column="own", coding=coding, missing=frozenset(missing))


@given(
    arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)),
    st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3),
    st.floats(-1e3, 1e3),
)
def test_there_and_back_is_the_identity(own: np.ndarray, factor: float, offset: float) -> None:
    unit = AffineUnit(factor, offset)
    assert unit.to_own(unit.to_dictionary(own)) == pytest.approx(own, rel=1e-9, abs=1e-6)


@given(st.lists(st.sampled_from([0.0, 1.0, np.nan])))
def test_levels_survive_there_and_back(levels: list[float]) -> None:
    values = np.array(levels, dtype=np.float64)
    column = _column(SEX)
    back = column.to_dictionary(column.to_own(values).tolist())
    assert np.array_equal(back, values, equal_nan=True)


units = st.tuples(st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3), st.floats(-1e3, 1e3))


@given(arrays(np.float64, 5, elements=st.floats(-1e6, 1e6) | st.just(np.nan)), units, units)
def test_a_donors_values_mean_the_same_in_a_recipients_table(
    own: np.ndarray, donor: tuple[float, float], recipient: tuple[float, float]
) -> None:
    gives, takes = _column(AffineUnit(*donor)), _column(AffineUnit(*recipient))
    sent = gives.to_dictionary(own.tolist())
    arrived = takes.to_dictionary(takes.to_own(sent).tolist())

    # Two offsets of up to 1e3 cost digits relative to the smallest factor, not to the value.
    assert arrived == pytest.approx(sent, rel=1e-9, abs=1e-6, nan_ok=True)
    back = np.array([np.nan if c is None else c for c in gives.to_own(arrived)], dtype=np.float64)
    assert back == pytest.approx(own, rel=1e-6, abs=1e-2, nan_ok=True)


@given(
    st.lists(st.sampled_from(["F", "M", "male", ""])), st.permutations(["w", "m"]), st.booleans()
)
def test_a_donors_codes_mean_the_same_in_a_recipients_table(
    own: list[str], codes: list[str], is_turned: bool
) -> None:
    order = (1, 0) if is_turned else (0, 1)
    gives, takes = _column(SEX), _column(LevelMap(dict(zip(codes, order, strict=True))))
    sent = gives.to_dictionary(own)
    arrived = takes.to_dictionary(takes.to_own(sent).tolist())

    assert np.array_equal(arrived, sent, equal_nan=True)
    assert [c or "" for c in gives.to_own(arrived)] == [c.replace("male", "M") for c in own]


def test_a_physical_value_stays_the_same() -> None:
    celsius = _column(CELSIUS_FROM_FAHRENHEIT).to_dictionary(["98.6", "32", ""])
    assert celsius[:2] == pytest.approx([37, 0])
    assert np.isnan(celsius[2])


def test_several_own_codes_may_mean_one_level_and_the_first_is_written_back() -> None:
    column = _column(SEX)
    assert column.to_dictionary([" F", "M", "male", None]).tolist()[:3] == [0, 1, 1]
    assert column.to_own(np.array([1.0, 0.0, np.nan])).tolist() == ["M", "F", None]


def test_missing_codes_are_missing_and_never_zero() -> None:
    values = _column(AffineUnit(), "0", "?").to_dictionary(["0", "?", 0.0, " ", "7", np.nan, None])
    assert np.isnan(values).tolist() == [True, True, True, True, False, True, True]


def test_codes_match_whatever_number_type_the_file_gave_them() -> None:
    binary = LevelMap({"0": 0, "1": 1})
    assert _column(binary).to_dictionary([1.0, 0, "1"]).tolist() == [1, 0, 1]


def test_every_unreadable_cell_is_marked() -> None:
    number = _column(AffineUnit())
    cells = ["1,5", "1_000", "inf", "nan", "abc", "1.5", "", None, 2]
    assert number.unreadable(cells).tolist() == [True] * 5 + [False] * 4
    assert _column(SEX).unreadable(["F", "X", ""]).tolist() == [False, True, False]


def test_an_unreadable_column_is_refused_without_showing_a_value() -> None:
    with pytest.raises(TableError, match="column 'own': 2 cells hold neither a number") as caught:
        _column(AffineUnit()).to_dictionary(["secret", "12", "hidden"])
    assert "secret" not in str(caught.value)
    with pytest.raises(TableError, match="1 cells hold neither a code listed as a level"):
        _column(SEX).to_dictionary(["X"])


def test_a_level_without_an_own_code_is_refused() -> None:
    with pytest.raises(TableError, match="column 'own' has no own code for the level of 2 values"):
        _column(SEX).to_own(np.array([2.0, 0.0, 2.0]))


@pytest.mark.parametrize(
    ("factor", "offset"), [(0.0, 0.0), (np.inf, 0.0), (1.0, np.nan), (np.nan, 0.0)]
)
def test_a_unit_that_cannot_be_taken_back_is_refused(factor: float, offset: float) -> None:
    with pytest.raises(UsageError, match="cannot be taken back"):
        AffineUnit(factor, offset)
