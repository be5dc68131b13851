"""A hospital site: local tables, consent, disclosure, agent and command line."""
