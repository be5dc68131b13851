"""Rows as they may leave: top-coded, rounded, without ids, or not at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server_fixtures import DICTIONARY
from small_dictionary import SMALL_DICTIONARY
from synthedge_client.outbound import build_payload, coarsen, commitment, deidentify, sha256
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import DisclosureRefusedError
from synthedge_core.grids import NamedGrid
from synthedge_protocols.v1 import statements_pb2 as pb

SMALL = parse_dictionary(SMALL_DICTIONARY)  # sex, age, bp, stage
ages = hnp.arrays(np.float64, 6, elements=st.floats(18, 110) | st.just(np.nan))


def rows_with(name: str, column: np.ndarray) -> np.ndarray:
    values = np.full((len(column), len(SMALL.features)), np.nan)
    values[:, SMALL.index(name)] = column
    return values


@given(ages)
def test_no_age_above_89_leaves_and_missing_stays_missing(column: np.ndarray) -> None:
    leaving = deidentify(rows_with("age", column), SMALL, ["age"])[:, 0]

    assert (np.isnan(leaving) == np.isnan(column)).all()
    assert not (leaving > 89).any()
    assert (leaving[~np.isnan(leaving)] % 1 == 0).all()


@given(hnp.arrays(np.float64, 6, elements=st.floats(30, 200)))
def test_measurements_leave_rounded_as_the_dictionary_says(column: np.ndarray) -> None:
    leaving = deidentify(rows_with("bp", column), SMALL, ["bp"])[:, 0]

    assert (leaving % 1 == 0).all()
    assert (np.abs(leaving - column) <= 0.5).all()


@given(hnp.arrays(np.float64, 6, elements=st.floats(30, 200)))
def test_coarsening_twice_changes_nothing_more(column: np.ndarray) -> None:
    once = coarsen(rows_with("bp", column), SMALL)

    assert np.array_equal(coarsen(once, SMALL), once, equal_nan=True)


def test_only_the_agreed_features_leave_in_their_order() -> None:
    values = np.arange(8.0).reshape(2, 4)

    assert deidentify(values, SMALL, ["sex", "stage"]).tolist() == [[0, 3], [4, 7]]


def test_a_feature_without_a_privacy_class_never_leaves() -> None:
    with pytest.raises(DisclosureRefusedError, match="'note' has privacy class 'none'"):
        deidentify(np.ones((2, 3)), DICTIONARY, ["bp", "note"])


@pytest.mark.parametrize("privacy", ["date", "identifier", "free_text"])
def test_a_feature_whose_class_never_leaves_is_refused(privacy: str) -> None:
    text = SMALL_DICTIONARY.replace(
        'levels = ["I", "II", "III"]\ncenter = 1\nscale = 1\nprivacy = "measurement"',
        f'levels = ["I", "II", "III"]\ncenter = 1\nscale = 1\nprivacy = "{privacy}"',
    ).replace('\n[[grids]]\nname = "stage"\nfeatures = ["stage"]\n', "")
    dictionary = parse_dictionary(text)

    with pytest.raises(DisclosureRefusedError, match=f"'stage' has privacy class '{privacy}'"):
        deidentify(np.ones((1, 4)), dictionary, ["stage"])


def test_a_payload_holds_the_agreed_values_and_nothing_else() -> None:
    values = np.array([[0.0, 95.0, 101.4, 2.0], [1.0, 44.0, 99.6, np.nan]])
    tokens = [b"t" * 16, b"u" * 16]

    payload = build_payload(
        values,
        np.array([True, True]),
        tokens,
        transfer_id=b"i" * 32,
        donor="south",
        dictionary=SMALL,
        features=["age", "bp"],
        region=["bp"],
    )

    manifest = pb.Manifest.FromString(payload.manifest)
    samples = pb.SampleBatch.FromString(payload.samples).samples
    assert [list(s.values) for s in samples] == [[89, 101], [44, 100]]
    assert [s.token for s in samples] == tokens
    assert list(manifest.features) == ["age", "bp"]
    assert (manifest.rows, manifest.rows_digest) == (2, sha256(payload.samples))
    assert {f.name for f in pb.Sample.DESCRIPTOR.fields} == {"token", "values", "positive"}


def test_the_commitment_to_one_manifest_is_never_the_same_twice() -> None:
    def again() -> pb.TransferPayload:
        return build_payload(
            np.ones((1, 4)),
            np.array([True]),
            [b"t" * 16],
            transfer_id=b"i" * 32,
            donor="south",
            dictionary=SMALL,
            features=["bp"],
            region=["bp"],
        )

    one, other = again(), again()

    assert one.manifest == other.manifest
    assert commitment(one) != commitment(other)


@given(st.floats(89.4, 100.6))
def test_a_row_lies_where_the_recipient_will_see_it(bp: float) -> None:
    grid = NamedGrid(SMALL, SMALL.grid("bp"))
    values = rows_with("bp", np.array([bp]))

    leaving = np.full_like(values, np.nan)
    leaving[:, SMALL.index("bp")] = deidentify(values, SMALL, ["bp"])[:, 0]

    assert grid.assign(coarsen(values, SMALL)) == grid.assign(leaving)
