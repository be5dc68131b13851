from collections.abc import Iterator

import pytest

from synthedge_core import errors
from synthedge_core.errors import SynthEdgeError


def _subclasses(kind: type[SynthEdgeError]) -> Iterator[type[SynthEdgeError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("SynthEdgeError", 1),
        ("RefusedError", 1),
        ("GridError", 1),
        ("FrameMismatchError", 1),
        ("DictionaryError", 4),
        ("TableError", 4),
        ("UsageError", 4),
        ("DisclosureRefusedError", 6),
        ("VerificationError", 7),
    ],
)
def test_each_kind_of_error_keeps_its_exit_code(name: str, exit_code: int) -> None:
    assert getattr(errors, name).exit_code == exit_code


def test_no_error_claims_success_or_our_own_bug() -> None:
    own = [k for k in _subclasses(SynthEdgeError) if k.__module__ == SynthEdgeError.__module__]
    assert own
    assert all(kind.exit_code not in (0, 5) for kind in own)
