"""Who may work on a coordinator's folder at the same time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from synthedge_core.errors import RefusedError
from synthedge_server.folder import CoordinatorFolder


@contextmanager
def alone(folder: CoordinatorFolder) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it however the process ends.

    Raises
    ------
    RefusedError
        If another process holds it.
    """
    with folder.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"another coordinator runs on {folder.path}; stop it first"
            ) from None
        yield
