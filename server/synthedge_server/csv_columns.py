"""Read a CSV file of a public cohort column by column, with the standard library alone.

The coordinator's programs import no table library. This reader serves one command, `dictionary init --from`, which
touches no coordinator's folder and keeps nothing of what it reads.
"""

import csv
import io
from pathlib import Path
from typing import Final

from synthedge_core.errors import UsageError

_DELIMITERS: Final = (",", ";", "\t", "|")


def read_columns(path: Path) -> dict[str, list[str]]:
    """Cells of a CSV file as text, by the names in its first line.

    The delimiter is the one of comma, semicolon, tab and bar that the first line has most of; where it is not the
    comma, a decimal comma is read as a decimal point.

    Raises
    ------
    UsageError
        If the file cannot be read as UTF-8 text or as CSV, has no rows, or a line has another number of cells than the
        first.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"table {path} cannot be read: {error}") from None
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise UsageError(f"table {path} is no CSV file: {error}") from None
    rows = [line for line in lines[1:] if line]
    if not rows:
        raise UsageError(f"table {path} has no rows below its first line")
    names = [name.strip() for name in lines[0]]
    if "" in names or len(set(names)) < len(names):
        raise UsageError(f"the first line of {path} must name every column, each differently")
    n_ragged = sum(len(row) != len(names) for row in rows)
    if n_ragged:
        raise UsageError(
            f"{n_ragged} lines of {path} have another number of cells than the {len(names)} of the first line"
        )
    return {
        name: [_with_point(row[i]) if delimiter != "," else row[i] for row in rows]
        for i, name in enumerate(names)
    }


def _with_point(cell: str) -> str:
    whole, comma, fraction = cell.partition(",")
    is_number = comma and whole.lstrip("-").isdecimal() and fraction.isdecimal()
    return f"{whole}.{fraction}" if is_number else cell
