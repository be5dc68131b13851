"""Sealed bytes on a site's disk: ciphertext on its way out or in, for as long as its transfer needs it."""

import os
from pathlib import Path
from typing import BinaryIO, Literal

from synthedge_client.site import Site
from synthedge_client.transfers import Transfer
from synthedge_protocols.lifecycle import State

# Until the recipient's receipt the donor may have to upload again.
_DONOR_NEEDS = frozenset({State.APPROVED, State.SEALED, State.RELAYED})
_RECIPIENT_NEEDS = frozenset({State.RELAYED, State.DELIVERED})


def outgoing_file(site: Site, transfer: Transfer) -> Path:
    """Where the donor keeps the ciphertext until the recipient's receipt."""
    return site.settings.folder / "outgoing" / f"{transfer.id.hex()}.sealed"


def incoming_file(site: Site, transfer: Transfer) -> Path:
    """Where the recipient gathers the ciphertext."""
    return site.settings.folder / "incoming" / f"{transfer.id.hex()}.part"


def open_private(path: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    """Open a file for writing that only its owner may read, in a folder only its owner may enter.

    Parameters
    ----------
    path : Path
    mode : {"wb", "ab"}
        From the start, or behind what is there.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "ab" else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, 0o600), mode)


def sweep(site: Site, transfers: list[Transfer]) -> int:
    """Delete every file whose transfer needs it no longer; return how many.

    By what lies on disk and not by what just happened: the agent may have been killed in between.
    """
    needed = {
        outgoing_file(site, t) if t.role == "donor" else incoming_file(site, t)
        for t in transfers
        if t.state in (_DONOR_NEEDS if t.role == "donor" else _RECIPIENT_NEEDS)
    }
    stale = [
        path
        for folder in ("outgoing", "incoming")
        for path in (site.settings.folder / folder).glob("*")
        if path not in needed
    ]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)
