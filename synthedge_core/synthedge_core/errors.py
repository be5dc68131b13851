"""The root of the project's own errors and their kinds.

Each kind knows the exit code of a command that ends in it, so that no command line keeps a second
table: 1 refused by a rule, 4 bad arguments or input file, 6 disclosure control refused,
7 verification failed. A message says what was found, where, what was expected and what to do next;
it never carries a value of a sample.
"""

from typing import ClassVar


class SynthEdgeError(Exception):
    """Something this project refuses on purpose."""

    exit_code: ClassVar[int] = 1


class RefusedError(SynthEdgeError):
    """A rule of the consortium, or of this site, forbids it."""


class GridError(SynthEdgeError):
    """Counts, indices or shapes that do not fit the grid they are used with."""


class FrameMismatchError(SynthEdgeError):
    """Two things that live in different frames and must not be compared."""


class DictionaryError(SynthEdgeError):
    """The data dictionary is not valid, or does not know what was asked for."""

    exit_code: ClassVar[int] = 4


class TableError(SynthEdgeError):
    """A data file that cannot be read, or does not match what the site says it holds."""

    exit_code: ClassVar[int] = 4


class UsageError(SynthEdgeError):
    """Arguments or settings that make no sense."""

    exit_code: ClassVar[int] = 4


class DisclosureRefusedError(SynthEdgeError):
    """Disclosure control does not let it leave the site."""

    exit_code: ClassVar[int] = 6


class VerificationError(SynthEdgeError):
    """A stored or received thing is not what its digest or signature says."""

    exit_code: ClassVar[int] = 7
