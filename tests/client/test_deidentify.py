"""Quasi-identifiers that leave are shared by k rows; the steward is told how many rows are unique."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from small_dictionary import SMALL_DICTIONARY
from synthedge_client.deidentify import protect_quasi, uniqueness_in_words
from synthedge_client.outbound import build_payload
from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_protocols.v1 import statements_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]


def quasi(*names: str) -> Dictionary:
    """The small dictionary (sex, age, bp, stage) with some features as quasi-identifiers."""
    head, *features = SMALL_DICTIONARY.split("[[features]]")
    changed = [
        f.replace('privacy = "measurement"', 'privacy = "quasi"')
        if any(f'name = "{name}"' in f for name in names)
        else f
        for f in features
    ]
    return parse_dictionary("[[features]]".join([head, *changed]))


FEATURES = ["sex", "age", "bp", "stage"]
BP_AND_STAGE = quasi("bp", "stage")
tables = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 25), st.just(4)),
    elements=st.integers(0, 2).map(float),
).map(lambda t: np.column_stack([t[:, 0] % 2, 40 + t[:, 1], 60 + 20 * t[:, 2] + t[:, 1], t[:, 3]]))


@settings(deadline=None, max_examples=60)
@given(tables, st.integers(1, 6), st.booleans())
def test_every_combination_that_leaves_is_shared_by_k_rows(
    values: np.ndarray, k: int, some_missing: bool
) -> None:
    if some_missing:
        values[0, 2:] = np.nan

    protected = protect_quasi(values, BP_AND_STAGE, FEATURES, [], k)

    leaving = protected.values[:, 2:]
    shared = Counter(tuple(row) for row in np.where(np.isnan(leaving), -1.0, leaving).tolist())
    is_nothing = np.isnan(leaving).all()
    assert is_nothing or min(shared.values()) >= k
    assert np.array_equal(protected.values[:, :2], values[:, :2])  # no quasi-identifiers


def test_values_become_the_centres_of_their_intervals_before_any_is_emptied() -> None:
    values = np.array(
        [[1, 50, 91 + i, 0] for i in range(6)] + [[1, 50, 101 + i, 0] for i in range(6)]
    )
    values = values.astype(np.float64)

    protected = protect_quasi(values, BP_AND_STAGE, FEATURES, ["sex"], 5)

    assert protected.coarsened == ("bp",)
    assert sorted(set(protected.values[:, 2])) == [95, 105]
    assert protected.emptied == {}
    assert protect_quasi(values, BP_AND_STAGE, FEATURES, [], 1).coarsened == ()


def test_what_stays_rare_is_left_empty_but_never_the_regions_own_interval() -> None:
    values = np.array([[1.0, 50, 91 + i, i == 0] for i in range(8)])

    protected = protect_quasi(values, BP_AND_STAGE, FEATURES, ["bp"], 5)

    assert set(protected.values[:, 2]) == {95.0}
    assert np.isnan(protected.values[:, 3]).all()  # 7 alike and 1: the one would be told by its gap
    assert protected.emptied == {"stage": 8}


def test_a_payload_holds_coarse_rows_and_says_so() -> None:
    values = np.array([[1.0, 50, 91 + i, 0] for i in range(8)])
    payload = build_payload(
        values,
        np.ones(8, dtype=np.bool_),
        [bytes([i]) * 16 for i in range(8)],
        transfer_id=bytes(32),
        donor="south",
        dictionary=BP_AND_STAGE,
        features=FEATURES,
        region=["bp"],
    )

    samples = pb.SampleBatch.FromString(payload.samples).samples
    assert {sample.values[2] for sample in samples} == {95.0}
    assert list(pb.Manifest.FromString(payload.manifest).coarsened) == ["bp"]


def test_the_steward_reads_how_many_rows_are_unique() -> None:
    values = np.array([[1.0, 50, 91 + i // 2, 0] for i in range(7)] + [[1.0, 51, 70, 0]])

    lines = uniqueness_in_words(values, BP_AND_STAGE, FEATURES)

    assert lines == [
        "2 of 8 rows are unique on age, bp, stage",
        "2 of 8 rows are unique on sex, age, bp, stage",
    ]


@pytest.mark.parametrize(
    "folder", ["client", "server", "protocols", "deploy", "docs", "synthedge_core"]
)
def test_rows_that_leave_are_never_called_what_they_are_not(folder: str) -> None:
    texts = [
        p for kind in ("*.py", "*.md", "*.proto", "*.toml") for p in (ROOT / folder).rglob(kind)
    ]
    texts += [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    word = "anonym"
    for text in texts:
        said = text.read_text(encoding="utf-8").lower()
        for found in range(said.count(word)):
            at = -1
            for _ in range(found + 1):
                at = said.index(word, at + 1)
            before = said[max(0, at - 24) : at]
            assert before.endswith(("pseud", "k-", "not ", "never ")), (
                f"{text.name}: ...{before}{word}"
            )
