"""Where a process is to be killed: ``Method:before`` or ``Method:after`` a call is carried out, or ``never``."""

import os
import signal


def die_at(death: str, method: str, when: str) -> None:
    """Kill this process as ``kill -9`` does, if this is the place."""
    if death == f"{method}:{when}":
        os.kill(os.getpid(), signal.SIGKILL)
