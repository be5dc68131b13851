"""From the arguments of a local command to a `SynthEdge` over the table it names."""

import contextlib
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client import console
from synthedge_core.errors import TableError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from synthedge_core.columns import Column
    from synthedge_core.dictionary import Dictionary
    from synthedge_core.synthedge import SynthEdge

DataArgument = Annotated[
    str,
    typer.Argument(
        help="CSV (also ; or tab, UTF-16, gzip), Parquet, or a database URL with --query."
    ),
]
TargetOption = Annotated[
    str | None, typer.Option(help="Label column; default: the dictionary's, or 'target'.")
]
PositiveOption = Annotated[
    list[str] | None,
    typer.Option(help="Label value that counts as positive; repeat it to join several."),
]
QueryOption = Annotated[str | None, typer.Option(help="SELECT to run on a database URL.")]
DictionaryOption = Annotated[
    Path | None,
    typer.Option(help="Data dictionary (consortium.toml): kinds, levels, ranges, grids."),
]
DiscreteOption = Annotated[
    list[str] | None, typer.Option(help="Column that holds codes; repeatable.")
]
ContinuousOption = Annotated[
    list[str] | None, typer.Option(help="Column that holds measurements; repeatable.")
]
IgnoreOption = Annotated[
    list[str] | None, typer.Option(help="Column to keep but not to use; repeatable.")
]
MissingOption = Annotated[
    list[str] | None,
    typer.Option(help="Code that means 'no value': COLUMN=CODE, for example chol=0; repeatable."),
]
ConstraintOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Rule for new rows: 'chol > 0', '40 <= age <= 90', 'diaBP < sysBP', "
        "'fixed: sex, pregnant'; repeatable."
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, help="One seed; the same seed gives the same bytes.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableArguments:
    """What every local command is told about its table; see the options' help texts."""

    data: str
    target: str | None = None
    positive: Sequence[str] | None = None
    query: str | None = None
    dictionary: Path | None = None
    discrete: Sequence[str] | None = None
    continuous: Sequence[str] | None = None
    ignore: Sequence[str] | None = None
    missing: Sequence[str] | None = None
    constraint: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """The table's name for titles: a file's name, or a database's kind (a URL may hold a password)."""
        return "database query" if "://" in self.data else Path(self.data).name


def load(arguments: TableArguments) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """Read the table a command names.

    Parameters
    ----------
    arguments : TableArguments

    Returns
    -------
    table : pandas.DataFrame
    settings : dict
        The further arguments of `SynthEdge`.

    Raises
    ------
    TableError, DictionaryError, UsageError
        If the table, the dictionary or an option cannot be used.
    """
    from synthedge_client.tables import read_table

    dictionary = _dictionary(arguments.dictionary)
    table = read_table(
        arguments.data, query=arguments.query, missing=_missing_codes(arguments.missing or ())
    )
    target = arguments.target
    positive: Any = list(arguments.positive) if arguments.positive else None
    if dictionary is not None:
        target = target or dictionary.target.column
        if positive is None and target == dictionary.target.column:
            positive = dictionary.target.positive
    settings = {
        "target_col": target or "target",
        "positive": positive,
        "discrete_cols": arguments.discrete or (),
        "continuous_cols": arguments.continuous or (),
        "ignore_cols": arguments.ignore or (),
        "dictionary": dictionary,
        "constraints": tuple(arguments.constraint or ()),
    }
    return table, settings


def is_large_parquet(arguments: TableArguments) -> bool:
    """Say whether the table is a Parquet file that must be read by row groups."""
    path = Path(arguments.data)
    if "://" in arguments.data or not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            return False
    from synthedge_client.parquet_scan import is_large

    return is_large(path)


def open_table(arguments: TableArguments) -> "SynthEdge":
    """Read the table a command names and look at its columns; errors as for `load` and `SynthEdge`."""
    from synthedge_core.synthedge import SynthEdge

    table, settings = load(arguments)
    return SynthEdge(table, **settings)


def _dictionary(path: Path | None) -> "Dictionary | None":
    if path is None:
        return None
    from synthedge_core.dictionary import parse_dictionary

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(f"the dictionary '{path}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TableError(f"the dictionary '{path}' is not UTF-8 text") from None
    return parse_dictionary(text)


def _missing_codes(pairs: Sequence[str]) -> dict[str, list[str]]:
    codes: dict[str, list[str]] = {}
    for pair in pairs:
        column, separator, code = pair.partition("=")
        if not separator or not column:
            raise UsageError(f"--missing '{pair}' cannot be read; write COLUMN=CODE, as chol=0")
        codes.setdefault(column, []).append(code)
    return codes


def check_output(arguments: TableArguments, *outputs: Path | None) -> None:
    """Refuse to write over the table that is read.

    Raises
    ------
    UsageError
        If an output is that file.
    """
    table = Path(arguments.data)
    for output in outputs:
        if output is not None and output.exists() and table.exists() and output.samefile(table):
            raise UsageError(f"'{output}' is the table itself; name another file")


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as CSV, gzipped CSV or Parquet, by the file's ending; whole, or not at all.

    Raises
    ------
    TableError
        If the ending is another one or the file cannot be written.
    """
    from synthedge_client.tables import whole_numbers

    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise TableError(f"'{path.name}' has no known ending; use .csv, .csv.gz or .parquet")
    if path.exists() and not path.is_file():
        raise TableError(f"'{path}' is no file; name one")
    staged = path.with_name(f".{path.name}.new")
    try:
        # Never into what is there already: in a shared folder it may lead elsewhere.
        staged.unlink(missing_ok=True)
        with staged.open("xb") as file:
            if path.suffix == ".parquet":
                table.to_parquet(file, index=False)
            else:
                text = whole_numbers(table).to_csv(index=False, lineterminator="\n").encode()
                # Neither time nor name in the gzip header: the same seed gives the same bytes.
                file.write(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
        staged.replace(path)
    except OSError as error:
        raise TableError(f"'{path}' cannot be written: {error.strerror}; nothing was") from None
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()


def columns_data(columns: "Sequence[Column]") -> list[dict[str, Any]]:
    """Describe the columns for the JSON envelope."""
    return [
        {
            "name": column.name,
            "kind": column.kind,
            "reason": column.reason,
            "n_levels": len(column.levels),
            "n_missing": column.n_missing,
            "n_refused": column.n_refused,
        }
        for column in columns
    ]


def columns_table(columns: "Sequence[Column]") -> "Table":
    """Describe the columns for people."""
    from rich.table import Table

    table = Table("column", "kind", "why", "levels", "missing", "refused", title="Columns")
    for column in columns:
        table.add_row(
            column.name,
            column.kind or "not used",
            column.reason,
            str(len(column.levels)) if column.has_levels else "",
            str(column.n_missing) if column.n_missing else "",
            str(column.n_refused) if column.n_refused else "",
        )
    return table


def progress_of(description: str) -> Any:
    """Show a progress bar for work that reports its share done."""
    return console.progress(description, total=1.0)
