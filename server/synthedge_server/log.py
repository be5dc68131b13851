"""One JSON object per line on stderr.

Fields that came from a peer are JSON strings, never part of a format string. The text of an unexpected
exception may quote what a peer sent, so only its type and the places it passed are written.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Final

LOGGER: Final = logging.getLogger("synthedge.coordinator")


class JsonLines(logging.Formatter):
    """Write a record as one JSON object: at, level, event and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Serialise one record."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["at_lines"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(line)


def log(event: str, *, level: int = logging.INFO, failed: bool = False, **fields: object) -> None:
    """Write one line.

    Parameters
    ----------
    event : str
        A fixed word or two of ours, never a peer's text.
    level : int
        Of `logging`.
    failed : bool
        Add the exception that is being handled: its type and places.
    **fields
        What the line tells; no token, key or patient value.
    """
    LOGGER.log(level, event, exc_info=failed, extra={"fields": fields})


def log_to_stderr() -> None:
    """Send the coordinator's lines, and the warnings of its libraries, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)


# A command sends its lines nowhere; one about something that went wrong is still told whole.
if logging.lastResort is not None:
    logging.lastResort.setFormatter(JsonLines())
