"""The wire: messages, identity, sealing and signed statements."""
