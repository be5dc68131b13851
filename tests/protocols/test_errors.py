from collections.abc import Iterator

import grpc
import pytest

from synthedge_protocols.errors import (
    STATUS,
    WAIT_KEY,
    BusyError,
    IdentityError,
    LimitExceededError,
    ProtocolError,
    TransferAuthenticationError,
    UnavailableError,
    from_status,
    status_of,
)


def everything_below(root: type[ProtocolError]) -> Iterator[type[ProtocolError]]:
    yield root
    for child in root.__subclasses__():
        yield from everything_below(child)


def test_every_error_type_has_a_status_and_a_listed_exit_code() -> None:
    for error in everything_below(ProtocolError):
        if not error.__module__.startswith("synthedge_protocols"):
            continue  # another package's, which never leaves it as itself
        assert error in STATUS, f"{error.__name__} has no row in STATUS"
        assert error.exit_code in range(1, 8)


@pytest.mark.parametrize("error", STATUS)
def test_the_caller_rebuilds_the_type_the_servicer_raised(error: type[ProtocolError]) -> None:
    rebuilt = from_status(*status_of(error("site 'north' is not known")))
    assert type(rebuilt) is error


def test_a_public_message_arrives_and_a_secret_cause_does_not() -> None:
    assert str(from_status(*status_of(IdentityError("unknown site")))) == "unknown site"
    secret = TransferAuthenticationError("the tag of chunk 3 is wrong")
    assert "chunk" not in str(from_status(*status_of(secret)))
    assert "disk" not in str(from_status(*status_of(ProtocolError("disk /var is full"))))


def test_a_status_of_grpc_itself_is_understood_without_our_metadata() -> None:
    assert type(from_status(grpc.StatusCode.UNAVAILABLE, "no route")) is UnavailableError
    assert type(from_status(grpc.StatusCode.UNKNOWN, None)) is ProtocolError


def test_a_name_that_does_not_fit_the_status_is_not_believed() -> None:
    metadata = [("synthedge-error", "IdentityError")]
    rebuilt = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", metadata)
    assert type(rebuilt) is LimitExceededError


def test_a_peer_cannot_send_control_characters_to_a_terminal() -> None:
    text = str(from_status(grpc.StatusCode.UNAVAILABLE, "a\x1b[31mb\n" + "c" * 5_000))
    assert text.isprintable()
    assert len(text) <= 1_000


def test_who_is_told_to_wait_learns_how_long() -> None:
    code, text, metadata = status_of(BusyError("too much", 2.5))
    error = from_status(code, text, metadata)
    assert isinstance(error, BusyError)
    assert error.wait_s == pytest.approx(2.5, abs=0.01)
    for said in ("", "-1", "1e9", "9" * 20):
        error = from_status(code, text, [*metadata, (WAIT_KEY, said)])
        assert isinstance(error, BusyError)
        assert 0 <= error.wait_s <= 300
