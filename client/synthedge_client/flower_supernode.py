"""Flower's SuperNode, as the site's runner starts it: ``python -m synthedge_client.flower_supernode OPTIONS``.

It ends with the runner, and its sign of life comes every few seconds: Flower's own, every 20, leaves a lost SuperNode
in the books for a minute, during which it can neither be asked nor come back. No option sets that.

It also ends with any of its parts: Flower's ends its loop, or its signs of life, at an answer it does not expect (a
proxy's expired certificate, an error 500), and stays as a process that nothing reaches. The runner starts it again.
"""

import os
import threading
import traceback

from flwr.supercore import heartbeat
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode

# The shortest the SuperLink takes.
INTERVAL_S = 10


def main() -> None:
    """Run the SuperNode until it is told to stop, or a part of it does."""
    for module in (heartbeat, fleet_http_connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = INTERVAL_S
    start_parent_process_monitor(os.getppid())
    threading.excepthook = _end
    try:
        flower_supernode()
    except Exception:  # noqa: BLE001 - whatever it was, other threads would keep the process
        traceback.print_exc()
    os._exit(1)


def _end(failed: threading.ExceptHookArgs) -> None:
    threading.__excepthook__(failed)
    os._exit(1)


if __name__ == "__main__":
    main()
