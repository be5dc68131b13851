import numpy as np
import pandas as pd
import pytest

from imbalanced_patients import imbalanced_patients
from synthedge_core import (
    MetaExtractor,
    Preprocessor,
    augment_imbalanced,
    preprocess,
    require_observed,
)
from synthedge_core.errors import RefusedError, TableError, UsageError

TABLE = imbalanced_patients()
TRAIN, TEST = TABLE.iloc[:300], TABLE.iloc[300:]


def test_nothing_of_other_rows_is_learned() -> None:
    preprocessor = Preprocessor("died").fit(TRAIN)
    before, _ = preprocessor.transform(TRAIN)
    odd = TEST.assign(age=TEST["age"] + 500, ward="west")
    preprocessor.transform(odd)
    after, _ = preprocessor.transform(TRAIN)
    pd.testing.assert_frame_equal(before, after)
    assert before["age"].mean() == pytest.approx(0, abs=1e-9)
    assert before["age"].std(ddof=0) == pytest.approx(1)


def test_unseen_categories_have_a_column_of_their_own_and_are_counted() -> None:
    preprocessor = Preprocessor("died").fit(TRAIN)
    train, _ = preprocessor.transform(TRAIN)
    odd, _ = preprocessor.transform(TEST.assign(ward=["west"] * 30 + ["north"] * (len(TEST) - 30)))
    assert list(odd.columns) == list(train.columns)
    assert train["ward = other"].sum() == 0
    assert odd["ward = other"].sum() == 30
    assert preprocessor.unseen_ == {"ward": 30}


def test_missing_values_are_filled_and_told() -> None:
    features, _ = Preprocessor("died").fit(TRAIN).transform(TEST)
    assert np.isfinite(features.to_numpy()).all()
    assert features["diastolic missing"].sum() == TEST["diastolic"].isna().sum()


def test_identifiers_are_no_features() -> None:
    features, _ = Preprocessor("died").fit(TRAIN).transform(TRAIN)
    assert "patient_id" not in features.columns


def test_one_call_prepares_rebalanced_training_rows_and_observed_test_rows() -> None:
    train = augment_imbalanced(TRAIN, "died", "undersample")
    x, y, x_test, y_test = preprocess(train, TEST, "died")
    assert len(x) == len(y) == len(train)
    assert len(x_test) == len(y_test) == len(TEST)
    assert not any(str(name).startswith("_") for name in x.columns)


def test_a_test_set_with_generated_rows_is_refused() -> None:
    table = augment_imbalanced(TABLE, "died", target_counts={1: 100}, measure=False)
    n_new = int(table["_synthetic"].sum())
    with pytest.raises(RefusedError, match=f"{n_new} of {len(table)} rows .* not observed"):
        require_observed(table)
    with pytest.raises(RefusedError, match="judged on observed rows"):
        preprocess(TRAIN, table, "died")
    assert len(require_observed(table[~table["_synthetic"]])) == len(TABLE)


def test_generated_rows_are_found_even_without_their_marks() -> None:
    table = augment_imbalanced(TABLE, "died", target_counts={1: 100}, measure=False)
    unmarked = table.drop(columns=["_origin", "_synthetic"])
    n_new = int(table["_synthetic"].sum())
    with pytest.raises(RefusedError, match=f"{n_new} of .* do not occur"):
        require_observed(unmarked, observed=TABLE)
    assert len(require_observed(TEST, observed=TABLE)) == len(TEST)
    doubled = pd.concat([TEST, TEST])
    with pytest.raises(RefusedError, match=f"{len(TEST)} of"):
        require_observed(doubled, observed=TABLE)


def test_labels_that_training_rows_lack_and_missing_columns_are_refused() -> None:
    preprocessor = Preprocessor("died").fit(TRAIN)
    with pytest.raises(TableError, match="a model cannot predict it"):
        preprocessor.transform(TEST.assign(died=2))
    with pytest.raises(TableError, match="no column 'age'"):
        preprocessor.transform(TEST.drop(columns="age"))
    with pytest.raises(UsageError, match="call fit"):
        Preprocessor("died").transform(TEST)


def test_the_inference_is_shown() -> None:
    found = MetaExtractor.extract(TABLE, discrete_columns=["died"])
    kinds = found.to_frame().set_index("column")["kind"]
    assert kinds["patient_id"] == "not used"
    assert kinds["age"] == "integer"
    assert kinds["ward"] == "categorical"
    assert "an identifier" in str(found)
