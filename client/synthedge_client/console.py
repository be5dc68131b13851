"""Output of every command: results, the `--json` envelope, progress, and the one error boundary.

Results go to stdout, everything else to stderr. Exit codes:

0 done; 1 refused by a rule (the message says which); 2 connection or identity; 3 timeout;
4 bad arguments or bad input file; 5 a bug of this program; 6 disclosure control refused;
7 verification failed.
"""

import dataclasses
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
import typer

from synthedge_core.errors import SynthEdgeError

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
EXIT_TIMEOUT = 3
EXIT_BAD_INPUT = 4
EXIT_BUG = 5
# The shell's own convention for a program stopped with Ctrl-C (128 + SIGINT).
EXIT_INTERRUPTED = 130

EXIT_CODE_HELP = (
    "Exit codes: 0 done, 1 refused by a rule, 2 connection or identity, 3 timeout, "
    "4 bad arguments or input file, 5 a bug, 6 disclosure control refused, 7 verification failed."
)

# A user's interrupted installation or missing extra is told apart from a bug by the package's name.
_EXTRAS = {
    "ctgan": "ctgan",
    "torch": "ctgan",
    "flwr": "flower",
    "ray": "simulation",
    "pandas": "site",
    "sklearn": "site",
    "scipy": "site",
    "pyarrow": "site",
    "imblearn": "site",
    "matplotlib": "site",
    "threadpoolctl": "site",
    "plotly": "site",
    "sqlalchemy": "site",
    "grpc": "site",
    "cryptography": "site",
    "opendp": "site",
    "pint": "site",
    "ucumvert": "site",
}


def plain(value: Any) -> Any:
    """Turn a value into what strict JSON can hold.

    Dataclasses and mappings become objects, arrays and sets become lists, NaN and infinities become
    null (JSON has no such numbers), paths, dates and anything else become text.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value, key=str)]
    if hasattr(value, "tolist") and callable(value.tolist):  # NumPy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    if isinstance(value, (Sequence, Iterator)):
        return [plain(item) for item in value]
    return str(value)


def emit(data: Any, *, as_json: bool, render: "Callable[[Console], None] | None" = None) -> None:
    """Print a command's result on stdout.

    Parameters
    ----------
    data : object
        The result; see `plain` for what may be in it.
    as_json : bool
        Print the envelope ``{"schema_version": 1, "status": "ok", "data": ...}`` on one line
        instead of calling `render`.
    render : callable, optional
        Prints the result for people, on the given Rich console. Without it the data is printed as
        indented JSON.
    """
    if as_json:
        print_line(_envelope("ok", data))
    elif render is None:
        print_line(json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        # A file or a pipe has no width; 80 columns would cut what a pager shows.
        render(rich_console(sys.stdout, width=None if sys.stdout.isatty() else 120))


def rich_console(file: TextIO, width: int | None) -> "Console":
    """Make the console of every result: it shows text as it is.

    Brackets in it are a table of site.toml, a region's bounds or a peer's words, never markup.
    """
    from rich.console import Console

    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """Take out what would steer a terminal: reasons and names of files are a peer's words."""
    from synthedge_protocols import texts

    return "\n".join(map(texts.printable, text.split("\n")))


def print_line(text: str) -> None:
    """Print one line on stdout and flush it, so that a reader of a pipe sees it at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell the user something that is not the result: one line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _envelope(status: str, data: Any) -> str:
    envelope = {"schema_version": SCHEMA_VERSION, "status": status, "data": plain(data)}
    return json.dumps(envelope, ensure_ascii=False, allow_nan=False)


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """Show a progress bar with the time left on stderr while the body runs.

    Parameters
    ----------
    description : str
        What is being done.
    total : float, optional
        Amount of work; without it the bar only moves.

    Yields
    ------
    callable
        To be called with the amount of work done so far. Does nothing when stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None, *, program: str) -> int:
    """Run a command line and turn whatever happens into an exit code.

    The only place where errors end: one sentence on stderr (and the JSON envelope on stdout when
    ``--json`` was asked for). A traceback appears for a bug only, and then without the error's own
    text, which could hold a value of a patient.

    Parameters
    ----------
    app : typer.Typer
        The root application.
    arguments : sequence of str, optional
        Command-line arguments without the program's name; default: those of the process.
    program : str
        The program's name in help and usage texts.

    Returns
    -------
    int
        The exit code, see the module's documentation.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    command = typer.main.get_command(app)
    try:
        code = command.main(args=given, prog_name=program, standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # how Typer passes Ctrl-C on
            note("stopped by the user")
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as usage:
        note(usage.format_message())
        return EXIT_BAD_INPUT
    except click.UsageError as usage:
        hint = f" See '{usage.ctx.command_path} --help'." if usage.ctx is not None else ""
        message = usage.format_message()
        return _fail(
            EXIT_BAD_INPUT, message + ("" if message.endswith(".") else ".") + hint, as_json
        )
    except click.ClickException as refused:
        return _fail(EXIT_BAD_INPUT, refused.format_message(), as_json)
    except (KeyboardInterrupt, click.exceptions.Abort):
        note("stopped by the user")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell.
        sys.stderr.close()
        return 0
    except SynthEdgeError as refused:
        return _fail(refused.exit_code, str(refused), as_json)
    except Exception as error:  # noqa: BLE001 - the boundary itself
        return _other(error, as_json)


def _other(error: Exception, as_json: bool) -> int:
    """Answer errors of the wire and of the installation; everything else is a bug."""
    # `synthedge_protocols` is looked at only now: loading it would make `--help` slow.
    if "synthedge_protocols.errors" in sys.modules:
        protocol_error = sys.modules["synthedge_protocols.errors"].ProtocolError
        if isinstance(error, protocol_error):
            return _fail(int(error.exit_code), str(error), as_json)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.split(".")[0]
        if package in _EXTRAS:
            extra = _EXTRAS[package]
            text = (
                f"this command needs the package '{package}'; "
                f"run: pip install 'synthedge-federation[{extra}]'"
            )
            return _fail(EXIT_BAD_INPUT, text, as_json)
    if getattr(getattr(error, "orig", None), "sqlite_errorname", "") == "SQLITE_BUSY":
        text = "another command, or the agent, writes the site's database all this time; nothing was done, try again"
        return _fail(EXIT_TIMEOUT, text, as_json)
    frames = traceback.extract_tb(error.__traceback__)
    for frame in frames:
        note(f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}")
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "start"
    text = f"this is a bug of synthedge: {type(error).__name__} at {where}"
    return _fail(EXIT_BUG, f"{text}; please report it with the lines above", as_json)


def _fail(code: int, message: str, as_json: bool) -> int:
    note(f"error: {message}")
    if as_json:
        print_line(_envelope("error", {"code": code, "message": message}))
    return code
