import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.errors import IdentityError, MalformedError
from synthedge_protocols.tokens import EnrolmentToken

TOKEN = EnrolmentToken(
    consortium="demo",
    site="north",
    address="127.0.0.1:7443",
    enrolment_address="coordinator.example:7444",
    ca_certificate=b"\x30\x82" + bytes(range(256)),
    secret=b"very secret bytes of 32 letters!",
    expires_at_ms=1_790_000_000_000,
)
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(
    names, names, st.text(max_size=40), st.binary(max_size=600), st.binary(min_size=32, max_size=32)
)
def test_decoding_undoes_encoding(
    consortium: str, site: str, address: str, ca_certificate: bytes, secret: bytes
) -> None:
    token = EnrolmentToken(
        consortium=consortium,
        site=site,
        address=address,
        enrolment_address=address,
        ca_certificate=ca_certificate,
        secret=secret,
        expires_at_ms=7,
    )
    assert EnrolmentToken.decode(token.encode()) == token


def test_a_token_is_one_line_and_survives_a_mail_program() -> None:
    line = TOKEN.encode()
    assert len(line.split()) == 1
    assert line.startswith("synthedge1.")
    assert EnrolmentToken.decode(f"  {line[:50]}\r\n {line[50:]}\n") == TOKEN


@given(st.data())
def test_one_mistyped_letter_is_recognised(data: st.DataObject) -> None:
    line = TOKEN.encode()
    i = data.draw(st.integers(0, len(line) - 1))
    letter = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_."))
    mistyped = line[:i] + letter + line[i + 1 :]
    with contextlib.suppress(IdentityError):
        assert EnrolmentToken.decode(mistyped) == TOKEN  # the same letter, or unused last bits


@pytest.mark.parametrize("text", ["", "synthedge1.", "synthedge1.AAAA", "hello", "synthedge1.é"])
def test_what_is_no_token_is_refused_in_words(text: str) -> None:
    with pytest.raises(IdentityError, match="token"):
        EnrolmentToken.decode(text)


@given(st.integers(1, 400))
def test_a_token_cut_short_is_refused(n_missing: int) -> None:
    with pytest.raises(IdentityError):
        EnrolmentToken.decode(TOKEN.encode()[:-n_missing])


def test_the_secret_is_shown_neither_by_repr_nor_by_an_error() -> None:
    assert "very secret" not in repr(TOKEN)
    assert "30 bytes" not in repr(TOKEN)
    with pytest.raises(IdentityError) as caught:
        EnrolmentToken.decode(TOKEN.encode() + "A" * 4)
    assert caught.value.__cause__ is None
    assert "very secret" not in str(caught.value)


def test_a_secret_of_another_length_is_refused() -> None:
    with pytest.raises(MalformedError, match="32 bytes"):
        EnrolmentToken(
            consortium="demo",
            site="north",
            address="a:1",
            enrolment_address="a:2",
            ca_certificate=b"",
            secret=b"short",
            expires_at_ms=0,
        )
