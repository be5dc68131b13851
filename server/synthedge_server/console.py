"""Output of the operator's commands: results on stdout, sentences on stderr, one place where errors end."""

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import click
import typer

from synthedge_core.errors import SynthEdgeError

EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 refused by a rule, 2 connection or identity, 3 timeout, 4 bad arguments or "
    "input file, 5 a bug, 6 disclosure control refused, 7 verification failed."
)
_BAD_INPUT: Final = 4
_BUG: Final = 5
_INTERRUPTED: Final = 130


def emit(data: Any, text: str, *, as_json: bool) -> None:
    """Print a command's result.

    Parameters
    ----------
    data : object
        What `--json` puts into the envelope.
    text : str
        What people read.
    as_json : bool
    """
    _line(sys.stdout, _envelope("ok", data) if as_json else text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns as wide as their widest entry."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [headers, *rows]
    )


def run(app: typer.Typer, program: str) -> int:
    """Run the command line; return the exit code, see `EXIT_CODES`."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = typer.main.get_command(app).main(prog_name=program, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as usage:
        _line(sys.stderr, usage.format_message())
        return _BAD_INPUT
    except click.ClickException as refused:
        return _fail(_BAD_INPUT, refused.format_message(), as_json)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell.
        sys.stderr.close()
        return 0
    except SynthEdgeError as refused:
        return _fail(refused.exit_code, str(refused), as_json)
    except Exception as error:  # noqa: BLE001 - the boundary itself
        return _fail(*_other(error), as_json)
    return code if isinstance(code, int) else 0


def _other(error: Exception) -> tuple[int, str]:
    # The wire's errors are looked at only now: importing them makes `--help` slow.
    from synthedge_protocols.errors import ProtocolError

    if isinstance(error, ProtocolError):
        return error.exit_code, str(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "synthedge").startswith(
        "synthedge"
    ):
        return _BAD_INPUT, (
            f"this command needs the package '{error.name}'; run: pip install 'synthedge-federation[coordinator]'"
        )
    frames = traceback.extract_tb(error.__traceback__)
    for frame in frames:
        _line(sys.stderr, f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}")
    return _BUG, (
        f"this is a bug of synthedge-coordinator: {type(error).__name__}; please report it with the "
        "lines above"
    )


def _fail(code: int, message: str, as_json: bool) -> int:
    _line(sys.stderr, f"error: {message}")
    if as_json:
        _line(sys.stdout, _envelope("error", {"code": code, "message": message}))
    return code


def _line(stream: TextIO, text: str) -> None:
    # Flushed: who starts `serve` waits for its one line through a pipe.
    stream.write(text + "\n")
    stream.flush()


def _envelope(status: str, data: Any) -> str:
    return json.dumps({"schema_version": 1, "status": status, "data": data})
