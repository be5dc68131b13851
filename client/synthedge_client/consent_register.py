"""A consent register beside the table: a CSV file, or a FHIR R5 bundle of Consents.

Rules
-----
* Everything in the file is understood, or the whole file is refused: nobody consents until it is mended.
* A complaint names line numbers and counts, never a patient or a value.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

from synthedge_client.consent import ACTIVE, ConsentEntry, in_words
from synthedge_client.fhir_consent import parse_bundle
from synthedge_core.errors import TableError
from synthedge_protocols.purposes import is_duo_code

Register = Mapping[str, Sequence[ConsentEntry]]

COLUMNS = ("patient_id", "status", "valid_from", "valid_to", "purposes")
MAX_BYTES = 256 * 1024**2
MAX_ENTRIES = 2_000_000


def load_register(path: Path) -> Register:
    """Read a register; the name's ending says which kind, ``.csv`` or ``.json``.

    Returns
    -------
    mapping of patient id to sequence of ConsentEntry
        In the file's order.

    Raises
    ------
    TableError
        If the file is not there, too large, of another kind, or anything in it is not understood.
    """
    readers: dict[str, Callable[[str, str], Register]] = {".csv": parse_csv, ".json": parse_bundle}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TableError(
            f"the consent register '{path.name}' is neither .csv nor .json; name one that is in [consent] of site.toml"
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TableError(
            f"the consent register '{path.name}' cannot be read ({error.strerror}); until it can, nobody consents"
        ) from None
    if len(data) > MAX_BYTES:
        raise TableError(
            f"the consent register '{path.name}' is larger than {MAX_BYTES} bytes; leave out ended consents"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError(
            f"the consent register '{path.name}' is not UTF-8; save it as UTF-8"
        ) from None
    return reader(text, path.name)


def parse_csv(text: str, name: str) -> Register:
    """Read a CSV register: patient_id,status,valid_from,valid_to,purposes.

    Parameters
    ----------
    text : str
        `status` is active or withdrawn, dates are ISO 8601 days or empty (open), `purposes` are DUO codes
        separated by blanks or semicolons. An active entry names at least one; a withdrawn one without any
        withdraws everything.
    name : str
        The file's, for messages.

    Raises
    ------
    TableError
        Naming the lines of the first kind of problem.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    register: dict[str, list[ConsentEntry]] = {}
    problems: dict[str, list[int]] = {}
    n_entries = 0
    try:
        header = tuple(cell.strip().lower() for cell in next(reader, []))
        if header != COLUMNS:
            raise TableError(
                f"the consent register '{name}' must begin with the line {','.join(COLUMNS)}; correct it"
            )
        for row in reader:
            if not row:
                continue
            n_entries += 1
            if n_entries > MAX_ENTRIES:
                raise TableError(
                    f"the consent register '{name}' has more than {MAX_ENTRIES} entries; leave out ended consents"
                )
            entry = _entry([cell.strip() for cell in row])
            if isinstance(entry, str):
                problems.setdefault(entry, []).append(reader.line_num)
            else:
                register.setdefault(row[0].strip(), []).append(entry)
    except csv.Error:
        raise TableError(
            f"the consent register '{name}' is no regular CSV at line {reader.line_num}; correct it"
        ) from None
    if problems:
        raise TableError(in_words(name, "line", problems))
    return register


def _entry(cells: list[str]) -> ConsentEntry | str:
    """One line's entry, or what is wrong with it."""
    if len(cells) != len(COLUMNS):
        return f"other than {len(COLUMNS)} cells"
    patient, status, *days, purposes = cells
    if not patient:
        return "no patient id"
    if status.lower() not in (ACTIVE, "withdrawn"):
        return "a status other than active or withdrawn"
    try:
        valid_from, valid_to = (date.fromisoformat(day) if day else None for day in days)
    except ValueError:
        return "a date not written YYYY-MM-DD"
    if valid_from and valid_to and valid_to < valid_from:
        return "an end before its beginning"
    codes = frozenset(purposes.replace(";", " ").split())
    if not all(is_duo_code(code) for code in codes):
        return "a purpose that is no DUO code"
    permits = status.lower() == ACTIVE
    if permits and not codes:
        return "an active consent without a purpose"
    return ConsentEntry(permits, codes or None, valid_from, valid_to)
