"""Who may work on a coordinator's folder at the same time."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from synthedge_core.errors import RefusedError
from synthedge_protocols.errors import UnavailableError
from synthedge_server.folder import CoordinatorFolder


@contextmanager
def alone(folder: CoordinatorFolder) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it however the process ends.

    Raises
    ------
    RefusedError
        If another process holds it.
    UnavailableError
        If the folder cannot be written, or its file system knows no locks.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(folder.lock.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"another coordinator runs on {folder.path}; stop it first"
            ) from None
        except OSError as error:
            raise UnavailableError(
                f"{folder.lock} cannot be locked: {error.strerror}; the folder belongs to the user who runs the "
                "coordinator, on a file system that can be written and honours flock"
            ) from None
        yield
