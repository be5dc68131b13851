import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_dictionary import SMALL_DICTIONARY
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import DictionaryError, FrameMismatchError
from synthedge_core.frame import Frame

DICTIONARY = parse_dictionary(SMALL_DICTIONARY)
FRAME = Frame(DICTIONARY)


def test_columns_follow_the_dictionary_with_one_column_per_unordered_level() -> None:
    assert FRAME.columns == ("sex=1", "sex=2", "age", "bp", "stage")
    assert FRAME.frame_id == DICTIONARY.digest


def test_values_become_reference_scores_and_indicators() -> None:
    rows = FRAME.transform(np.array([[1.0, 70.0, 80.0, 2.0]]))
    assert rows.tolist() == [[0.0, 1.0, 2.0, -1.0, 1.0]]


def test_a_missing_value_is_missing_in_all_columns_of_its_feature() -> None:
    rows = FRAME.transform(np.array([[np.nan, 50.0, np.nan, 0.0]]))
    assert np.isnan(rows[0]).tolist() == [True, True, False, True, False]


def test_the_reference_point_has_no_property() -> None:
    assert FRAME.reference.tolist() == [0.5, 0.5, 0.0, 0.0, 0.0]


def test_the_mask_covers_the_columns_of_the_features_a_site_has() -> None:
    assert FRAME.mask(["bp", "sex"]).tolist() == [True, True, False, True, False]
    with pytest.raises(DictionaryError, match="no feature 'chol'"):
        FRAME.mask(["chol"])


def test_a_table_with_other_columns_is_refused() -> None:
    with pytest.raises(FrameMismatchError, match="expected 4 feature columns"):
        FRAME.transform(np.zeros((2, 3)))


@pytest.mark.parametrize("level", [-1.0, 0.5, 2.0])
def test_what_is_no_level_index_is_refused(level: float) -> None:
    with pytest.raises(FrameMismatchError, match="feature 'sex': 1 values are no level index"):
        FRAME.transform(np.array([[level, 50.0, 94.0, 0.0]]))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_two_samples_keep_their_order_in_every_column(a: float, b: float) -> None:
    rows = FRAME.coordinates("bp", np.array([a, b]))[:, 0]
    assert (rows[0] <= rows[1]) or (a > b)
