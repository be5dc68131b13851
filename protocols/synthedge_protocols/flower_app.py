"""What both ends of a Flower round agree on: the record that carries our bytes, and the app that names the round.

Flower ships apps to sites. Ours holds no code that runs: both ends run what is installed with them, and the app's
digest only says which conversation is meant. A site approves that digest and no other.
"""

import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from synthedge_protocols.errors import MalformedError

if TYPE_CHECKING:
    from flwr.app import RecordDict

__all__ = [
    "MESSAGE_TYPE",
    "QUERY",
    "App",
    "app",
    "pack",
    "prepare_flower",
    "problem_with_flower",
    "unpack",
]

# As pyproject.toml pins it: runner and SuperLink are spoken to through modules that Flower does not promise to keep.
_FLWR: Final = "1.41.0"
QUERY: Final = "gap_scan"
MESSAGE_TYPE: Final = f"query.{QUERY}"
_RECORD: Final = "synthedge"
_ENTRY: Final = "message"
# The year zip files begin with: bytes that depend on nothing but their content.
_DATE: Final = (1980, 1, 1, 0, 0, 0)

_PYPROJECT: Final = """\
[project]
name = "synthedge-gap-scan"
version = "1.0.0"
description = "Asks a SynthEdge site for the gap report it has published"
dependencies = []

[tool.flwr.app]
publisher = "synthedge"

[tool.flwr.app.components]
serverapp = "nothing:server_app"
clientapp = "nothing:client_app"
"""
_NOTHING: Final = """\
raise ImportError("SynthEdge runs the apps installed with it, never one that Flower shipped")
"""


@dataclass(frozen=True, slots=True)
class App:
    """A Flower app bundle.

    Attributes
    ----------
    content : bytes
        The bundle, a zip file.
    """

    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle, hex: what a site approves."""
        return hashlib.sha256(self.content).hexdigest()


@lru_cache(maxsize=1)
def app() -> App:
    """The app of this release; the same bytes wherever it is made.

    Notes
    -----
    Stored, not deflated: the bytes that zlib writes differ between its versions.
    """
    files = {"pyproject.toml": _PYPROJECT, "nothing.py": _NOTHING}
    # Flower's manifest: path, SHA-256, size in bits.
    manifest = "\n".join(
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{len(text.encode()) * 8}"
        for name, text in files.items()
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        for name, text in {**files, ".info/CONTENT": manifest}.items():
            entry = zipfile.ZipInfo(name, date_time=_DATE)
            entry.create_system = 3
            bundle.writestr(entry, text)
    return App(buffer.getvalue())


def problem_with_flower() -> str | None:
    """What keeps this installation from taking part in Flower rounds, in one sentence; None if nothing does."""
    try:
        found = version("flwr")
    except PackageNotFoundError:
        return "Flower is not installed; run: pip install 'synthedge-federation[flower]'"
    if found != _FLWR:
        return f"Flower {found} is installed, this release works with {_FLWR} only; run: pip install flwr=={_FLWR}"
    return None


def prepare_flower() -> None:
    """Keep Flower, here and in child processes, from calling anybody; before it is imported, for it reads this then."""
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    )


def pack(message: bytes) -> "RecordDict":
    """Put a serialised protobuf message into the one record of a Flower message."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({_RECORD: ConfigRecord({_ENTRY: message})})


def unpack(content: "RecordDict", limit_bytes: int) -> bytes:
    """Return what `pack` put in.

    Raises
    ------
    MalformedError
        If there is anything else, or more than `limit_bytes`.
    """
    records = dict(content.config_records)
    if len(content) != 1 or set(records) != {_RECORD} or set(records[_RECORD]) != {_ENTRY}:
        raise MalformedError("a Flower message without the one record of a discovery round")
    message = records[_RECORD][_ENTRY]
    if not isinstance(message, bytes) or len(message) > limit_bytes:
        raise MalformedError("a Flower message whose record is no bytes, or too many")
    return message
