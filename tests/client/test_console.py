import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import typer

from synthedge_client import console
from synthedge_client.cli import app
from synthedge_client.cli_options import lines, table
from synthedge_core.errors import DisclosureRefusedError, RefusedError, TableError
from synthedge_protocols.errors import ConsentError, IdentityError


def app_that(raises: BaseException | None = None) -> typer.Typer:
    made = typer.Typer()

    @made.callback()
    def root() -> None:
        pass

    @made.command()
    def work(as_json: bool = typer.Option(False, "--json")) -> None:
        if raises is not None:
            raise raises
        console.emit({"value": np.float64(1.5), "none": float("nan")}, as_json=as_json)

    return made


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RefusedError("no"), 1),
        (TableError("no"), 4),
        (DisclosureRefusedError("no"), 6),
        (ConsentError("no"), ConsentError.exit_code),
        (IdentityError("no"), IdentityError.exit_code),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_ends_as_its_exit_code_and_one_sentence(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.run_app(app_that(error), ["work"], program="synthedge") == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["bp[mmHg]", "[/bold]", "[link=http://evil.example]x[/link]", ":x:"]
)
def test_what_looks_like_markup_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for render in (table(text, ["reason"], [[text]]), lines(text)):
        console.emit({}, as_json=False, render=render)
        assert text in capsys.readouterr().out


def test_a_bug_shows_where_but_not_the_text_of_the_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ValueError("could not convert 'patient 4711'")
    assert console.run_app(app_that(error), ["work", "--json"], program="synthedge") == 5
    captured = capsys.readouterr()
    assert "4711" not in captured.err + captured.out
    assert "test_console.py" in captured.err
    assert json.loads(captured.out)["data"]["code"] == 5


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError("No module named 'ctgan'", name="ctgan")
    assert console.run_app(app_that(error), ["work"], program="synthedge") == 4
    assert "synthedge-federation[ctgan]" in capsys.readouterr().err


def test_a_database_that_others_write_is_no_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (sqlite3.connect(tmp_path / "site.db", timeout=0) for _ in range(2))
    one.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError) as busy:
        other.execute("BEGIN IMMEDIATE")
    error = sa.exc.OperationalError("BEGIN", {}, busy.value)
    assert console.run_app(app_that(error), ["work"], program="synthedge") == 3
    assert "try again" in capsys.readouterr().err
    one.close()
    other.close()


def test_text_is_shown_as_it_is_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said = 'write missing = ["0"] in [columns.chol] :smile: [/] of site.toml'
    render = table("Findings", ["s"], [[said], ["a\x1b[31mb"]])
    console.emit({}, as_json=False, render=render)
    console.emit({}, as_json=False, render=lines(f"{said} a\x1b[31mb"))
    out = capsys.readouterr().out
    assert out.count(said) == 2
    assert out.startswith("Findings\n")
    assert "\x1b[31m" not in out


def test_who_cannot_be_asked_for_a_passphrase_is_told_how_to_give_it() -> None:
    code = (
        "from synthedge_client.cli_options import read_passphrase\n"
        "try: read_passphrase(None)\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL, start_new_session=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "give --passphrase-file" in done.stdout
    assert done.stderr == ""


def test_json_is_strict_and_in_its_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run_app(app_that(), ["work", "--json"], program="synthedge") == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "status": "ok",
        "data": {"value": 1.5, "none": None},
    }


@pytest.mark.parametrize("given", [["nonsense"], ["fill"], ["demo", "--seeds", "x"]])
def test_bad_arguments_are_exit_code_4(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.run_app(app, [*given, "--json"], program="synthedge") == 4
    assert json.loads(capsys.readouterr().out)["status"] == "error"


def test_help_loads_nothing_heavy_and_answers_at_once() -> None:
    heavy = "pandas sklearn scipy torch ctgan plotly grpc cryptography sqlalchemy pyarrow numpy"
    code = (
        "import sys; from synthedge_client.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print([m for m in '{heavy}'.split() if m in sys.modules])\n"
        "import synthedge_client.agent; print('pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True
    )
    # An agent reads no table before it must.
    assert done.stdout.splitlines()[-2:] == ["[]", "False"]
    assert "analyze" in done.stdout

    def timed(*arguments: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - started

    program = str(Path(sys.executable).parent / "synthedge")
    helped = min(timed(program, "--help") for _ in range(3))
    assert helped - min(timed("-c", "pass") for _ in range(3)) < 0.5


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("analyze", "fill", "compare", "report", "demo", "site"):
        assert console.run_app(app, [name, "--help"], program="synthedge") == 0
        assert name in capsys.readouterr().out


def test_progress_is_silent_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("working", total=1.0) as report:
        report(0.5)
    assert capsys.readouterr().err == ""


def test_values_of_every_kind_become_json() -> None:
    given: dict[str, object] = {"a": np.arange(2), "b": {3, 1}, "c": Path("x"), "d": b"\x01"}
    assert console.plain(given) == {"a": [0, 1], "b": [1, 3], "c": "x", "d": "01"}


def test_people_see_what_the_renderer_prints(capsys: pytest.CaptureFixture[str]) -> None:
    render: Callable[..., None] = lambda out: out.print("hello")  # noqa: E731
    console.emit({}, as_json=False, render=render)
    assert capsys.readouterr().out == "hello\n"
