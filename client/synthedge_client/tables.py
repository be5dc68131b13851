"""Read any table a hospital exports: CSV in its many forms, Parquet, or a query on a database.

Cells are read as they are. An empty cell, and the usual words for "no value", are missing; a zero
is a zero. Text stays text: what a column means is decided by `synthedge_core.columns`.
"""

import bz2
import csv
import gzip
import io
import lzma
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthedge_core.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

# What exports write for "no value". "None" is left out: it is a level in many clinical tables
# ("alcohol: None").
MISSING_WORDS = ("", "?", ".", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")

_SEPARATORS = (",", ";", "\t", "|")
_SAMPLE_LINES = 50
_DATABASE_URL = re.compile(r"^[a-z][a-z0-9+]*://", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"^\s*[+-]?\d+,\d+\s*$")
_NUMBER = re.compile(r"^[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?$")
_DECIMAL_POINT = re.compile(r"^\s*[+-]?\d*\.\d+\s*$")


def read_table(
    source: str | Path,
    *,
    query: str | None = None,
    missing: Mapping[str, Iterable[str]] | None = None,
) -> "pd.DataFrame":
    """Read one table.

    Parameters
    ----------
    source : str or Path
        A CSV file (any of ``, ; tab |``; UTF-8 with or without byte-order mark, UTF-16,
        Windows-1252; plain, gzip, bzip2 or xz; decimal point or comma), a Parquet file, or an SQLAlchemy database
        URL such as ``sqlite:///wards.db``.
    query : str, optional
        The SELECT to run; required with a database URL, refused without one.
    missing : mapping of str to iterables of str, optional
        Further codes that mean "no value", per column: ``{"chol": ["0"]}``. Compared as text, and
        as numbers where both are numbers.

    Returns
    -------
    pandas.DataFrame
        Rows in file order under a plain 0..n-1 index; columns as named in the file.

    Raises
    ------
    TableError
        If the file is absent, empty or no table, a column name occurs twice, or the query fails.
    """
    import pandas as pd

    text = str(source)
    if _DATABASE_URL.match(text):
        frame = _read_database(text, query)
    else:
        path = Path(source)
        if query is not None:
            raise TableError(
                f"a query needs a database URL, but '{path.name}' is a file; drop --query"
            )
        frame = _read_file(path)
    _check_names(frame, _shown(text))
    for column, codes in (missing or {}).items():
        if column not in frame.columns:
            raise TableError(
                f"missing-value codes name '{column}', which is no column of {_shown(text)}; "
                f"its columns are {', '.join(map(str, frame.columns))}"
            )
        frame[column] = frame[column].mask(_equals_any(frame[column], codes, pd))
    return frame


def whole_numbers(frame: "pd.DataFrame", *, complete: bool = False) -> "pd.DataFrame":
    """Columns of whole numbers as such, to be written as they were read.

    pandas holds whole numbers beside missing cells as fractions and would write 6 as 6.0.

    Parameters
    ----------
    frame : DataFrame
    complete : bool
        Columns without missing cells too: rows that were made here, and not read from a file that says 6.0.
    """
    floats = frame.select_dtypes("float")
    chosen = [
        name
        for name in floats.columns
        if (complete or floats[name].isna().any()) and (floats[name].dropna() % 1 == 0).all()
    ]
    return frame.astype(dict.fromkeys(chosen, "Int64"))


def _shown(source: str) -> str:
    """Name a source without the password a database URL may hold."""
    if _DATABASE_URL.match(source):
        return f"the {source.split(':', 1)[0]} database"
    return f"'{Path(source).name}'"


def _read_database(url: str, query: str | None) -> "pd.DataFrame":
    import pandas as pd
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import (
        ArgumentError,
        DataError,
        IntegrityError,
        NoSuchModuleError,
        ResourceClosedError,
        SQLAlchemyError,
    )

    if query is None:
        raise TableError(f"{_shown(url)} needs a query; give one with --query")
    try:
        engine = create_engine(url)
        with engine.connect() as connection:
            return pd.read_sql_query(text(query), connection)
    except (ArgumentError, NoSuchModuleError) as error:
        raise TableError(
            f"{_shown(url)} cannot be opened: {type(error).__name__}; check the URL"
        ) from None
    except ResourceClosedError:
        raise TableError(f"the query on {_shown(url)} returns no rows; give a SELECT") from None
    except SQLAlchemyError as error:
        # A driver's text names the table or column at fault, unless it quotes a value.
        cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0][:120]
        if isinstance(error, DataError | IntegrityError) or " with text " in cause:
            cause = "a value is not of the type that the query or the driver wants"
        raise TableError(f"the query on {_shown(url)} failed: {cause}") from None


def _read_file(path: Path) -> "pd.DataFrame":
    import pandas as pd

    if not path.exists():
        raise TableError(f"the file '{path}' does not exist; check the path")
    if path.is_dir():
        raise TableError(f"'{path}' is a folder; give the table's file")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise TableError(f"'{path}' cannot be read: {error.strerror}") from None
    if head[:4] == b"PAR1":
        from pyarrow.lib import ArrowException

        try:
            return pd.read_parquet(path).reset_index(drop=True)
        except (ArrowException, OSError):
            raise TableError(
                f"'{path.name}' begins like Parquet but is damaged; export it again"
            ) from None
    if head[:2] == b"PK":
        raise TableError(f"'{path.name}' is an Excel or zip file; save the sheet as CSV")
    return _parse_csv(_decode(_decompress(path.read_bytes(), path.name), path.name), path.name)


def _decompress(data: bytes, name: str) -> bytes:
    try:
        if data[:2] == b"\x1f\x8b":
            return gzip.decompress(data)
        if data[:3] == b"BZh":
            return bz2.decompress(data)
        if data[:6] == b"\xfd7zXZ\x00":
            return lzma.decompress(data)
    except (EOFError, OSError, lzma.LZMAError, zlib.error):
        raise TableError(
            f"'{name}' is a damaged compressed file; export or copy it again"
        ) from None
    return data


def _decode(data: bytes, name: str) -> str:
    if not data.strip():
        raise TableError(f"'{name}' is empty; expected a header line and rows")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif data[:4000].count(0) > len(data[:4000]) // 4:
        # UTF-16 without a mark: every second byte of mostly Latin text is zero.
        encodings = ["utf-16-be" if data[0] == 0 else "utf-16-le"]
    else:
        # Windows-1252 last: it is what German and French clinical systems export, and never fails
        # except on five unused bytes.
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\x00" in text:
            break
        # Old Macs, and Excel for them, end lines by a carriage return alone.
        return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    raise TableError(
        f"'{name}' is not a text file in UTF-8, UTF-16 or Windows-1252; export it as CSV"
    )


def _separator(lines: list[str], name: str) -> str:
    """Choose the separator that gives the most columns, the same number in nearly every line."""
    best, best_columns = ",", 1
    for separator in _SEPARATORS:
        widths = [len(row) for row in _split(lines, separator, name) if row]
        if not widths or widths[0] < 2:
            continue
        agreeing = sum(width == widths[0] for width in widths)
        if agreeing >= 0.9 * len(widths) and widths[0] > best_columns:
            best, best_columns = separator, widths[0]
    return best


def _split(lines: list[str], separator: str, name: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=separator))
    except csv.Error:  # its text quotes nothing, and tells a user nothing
        raise TableError(
            f"'{name}' has a cell of more than {csv.field_size_limit():,} characters in its first lines: "
            "a quotation mark that is not closed, or free text; mend it or leave that column out"
        ) from None


def _require_header(names: list[str], name: str) -> None:
    """Refuse a file that begins with a patient: messages and reports show names of columns.

    Names that merely count the columns, as programs write them, are names.
    """
    told = [n for n in names if n]
    values = [n for n in told if n in MISSING_WORDS or _NUMBER.match(n)]
    counted = [[str(first + i) for i in range(len(values))] for first in (0, 1)]
    if 2 * len(values) > len(told) and values not in counted:
        raise TableError(
            f"the first line of '{name}' looks like a row of the table, not like names of columns; "
            "put a line with the names before it"
        )


def _parse_csv(text: str, name: str) -> "pd.DataFrame":
    import pandas as pd

    lines = [line for line in text.split("\n", _SAMPLE_LINES)[:_SAMPLE_LINES] if line.strip()]
    if len(lines) > 1 and lines[0].strip().lower().startswith("sep="):
        text = text.split("\n", 1)[1]
        lines = lines[1:]
    separator = _separator(lines, name)
    cells = [cell for row in _split(lines[1:], separator, name) for cell in row]
    commas = sum(bool(_DECIMAL_COMMA.match(cell)) for cell in cells)
    points = sum(bool(_DECIMAL_POINT.match(cell)) for cell in cells)
    names = [cell.strip() for cell in _split(lines[:1], separator, name)[0]]
    _require_header(names, name)
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise TableError(f"'{name}' has the column name '{repeated[0]}' more than once; rename one")
    try:
        with warnings.catch_warnings():
            # Cells beyond the header's would be left out, with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                io.StringIO(text),
                sep=separator,
                decimal="," if separator != "," and commas > points else ".",
                names=names,
                header=0,
                index_col=False,
                keep_default_na=False,
                na_values=list(MISSING_WORDS),
                skipinitialspace=True,
                low_memory=False,
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        unclosed = re.search(r"inside string starting at row (\d+)", str(error))
        if unclosed:
            raise TableError(
                f"'{name}' has a quotation mark in row {unclosed.group(1)} that is not closed; mend that row"
            ) from None
        line = re.search(r"line (\d+)", str(error))
        where = f" at line {line.group(1)}" if line else ""
        raise TableError(
            f"'{name}' is not a regular table{where}: rows differ in their number of columns; "
            f"expected {len(names)} columns separated by {separator!r}"
        ) from None


def _check_names(frame: "pd.DataFrame", shown: str) -> None:
    frame.columns = [str(column).strip() for column in frame.columns]
    if frame.shape[1] < 2:
        raise TableError(f"{shown} has {frame.shape[1]} column; expected features and a label")
    nameless = [i for i, column in enumerate(frame.columns) if column == ""]
    if nameless:
        # Exports with a row number have one nameless first column.
        frame.columns = [
            column if column else f"column_{i + 1}" for i, column in enumerate(frame.columns)
        ]
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise TableError(f"{shown} has the column name '{repeated[0]}' more than once; rename one")
    if len(frame) == 0:
        raise TableError(f"{shown} has a header but no row")


def _equals_any(column: Any, codes: Iterable[str], pd: Any) -> Any:
    wanted = [str(code) for code in codes]
    hit = column.astype("string").isin(wanted).fillna(False).astype(bool)
    numbers = pd.to_numeric(pd.Series(wanted, dtype="object"), errors="coerce").dropna().tolist()
    if numbers and pd.api.types.is_numeric_dtype(column):
        hit = hit | column.isin(numbers)
    return hit
