"""Limits, names and length-prefixed fields."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.errors import MalformedError
from synthedge_protocols.framing import join_fields, split_fields
from synthedge_protocols.limits import Limits
from synthedge_protocols.names import check_name


def test_a_limit_must_be_positive_and_a_chunk_must_fit_a_message() -> None:
    with pytest.raises(ValueError, match="sites"):
        Limits(sites=0)
    with pytest.raises(ValueError, match="call_timeout_s"):
        Limits(call_timeout_s=float("nan"))
    with pytest.raises(ValueError, match="chunk_bytes"):
        Limits(chunk_bytes=1_048_576)


@pytest.mark.parametrize("name", ["n", "north-2", "a" * 63])
def test_a_plain_name_is_accepted(name: str) -> None:
    assert check_name("site", name) == name


@pytest.mark.parametrize("name", ["", "North", "-a", "a-", "a/b", "..", "a" * 64, "nörd", "a\n"])
def test_a_name_that_could_be_a_path_or_a_log_line_is_refused(name: str) -> None:
    with pytest.raises(MalformedError, match="site name"):
        check_name("site", name)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_splitting_undoes_joining(fields: list[bytes]) -> None:
    assert split_fields(join_fields(fields), len(fields)) == fields


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_different_fields_never_join_to_the_same_bytes(a: list[bytes], b: list[bytes]) -> None:
    assert (join_fields(a) == join_fields(b)) == (a == b)


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_split_or_are_refused(data: bytes, n_fields: int) -> None:
    with contextlib.suppress(MalformedError):
        assert join_fields(split_fields(data, n_fields)) == data
