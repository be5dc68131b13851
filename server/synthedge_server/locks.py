"""What one process at a time may do on a coordinator's folder."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import UnavailableError
from synthedge_server.folder import CoordinatorFolder


@contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file; the system lets go of it however the process ends.

    Raises
    ------
    RefusedError
        If another process holds it, in the words of `refusal`.
    UnavailableError
        If the folder cannot be written, or its file system knows no locks.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(refusal) from None
        except OSError as error:
            raise UnavailableError(
                f"{path} cannot be locked: {error.strerror}; the folder belongs to the user who runs the "
                "coordinator, on a file system that can be written and honours flock"
            ) from None
        yield


@contextmanager
def alone(folder: CoordinatorFolder) -> Iterator[None]:
    """Hold the folder's lock; raises as `held`."""
    with held(folder.lock, f"another coordinator runs on {folder.path}; stop it first"):
        yield
