"""Which of a site's programs may run once only."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from synthedge_client.site import Site
from synthedge_core.errors import RefusedError


@contextmanager
def only_one(site: Site, kind: str) -> Iterator[None]:
    """Hold the site's lock for one kind of program: two on one database would do the work twice.

    Parameters
    ----------
    site : Site
    kind : {"agent", "flower"}
        Names the lock's file.

    Raises
    ------
    RefusedError
        If one runs already.
    """
    path = site.settings.folder / f"{kind}.lock"
    program = "an agent" if kind == "agent" else "a Flower runner"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{program} of site '{site.settings.id}' runs already on {path.parent}; stop it first"
            ) from None
        yield
