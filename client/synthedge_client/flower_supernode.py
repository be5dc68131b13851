"""Flower's SuperNode, as the site's runner starts it: ``python -m synthedge_client.flower_supernode OPTIONS``.

It ends with the runner, and its sign of life comes every few seconds: Flower's own, every 20, leaves a lost SuperNode
in the books for a minute, during which it can neither be asked nor come back. No option sets that.
"""

import os

from flwr.supercore import heartbeat
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode

# The shortest the SuperLink takes.
INTERVAL_S = 10


def main() -> None:
    """Run the SuperNode until it is told to stop."""
    for module in (heartbeat, fleet_http_connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = INTERVAL_S
    start_parent_process_monitor(os.getppid())
    flower_supernode()


if __name__ == "__main__":
    main()
