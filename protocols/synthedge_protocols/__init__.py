"""The wire: messages, identity, sealing and signed statements."""

import os

# Before grpc is imported, which several modules here do: its own lines about broken handshakes are no sentences for
# the users of either program.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
