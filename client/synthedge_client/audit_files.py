"""The audit report as a file: text, JSON, CSV or HTML, written whole or not at all."""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from synthedge_client.audit import AuditReport
from synthedge_client.audit_sections import render, to_csv
from synthedge_client.console import plain, rich_console
from synthedge_core.errors import UsageError

Form = Literal["text", "json", "csv", "html"]


def choose_form(*, as_json: bool, as_csv: bool, as_html: bool, out: Path | None) -> Form:
    """Turn the command's options into one form.

    Raises
    ------
    UsageError
        If two forms are asked for, HTML without a file, or a file that is there.
    """
    asked: list[Form] = []
    asked += ["json"] if as_json else []
    asked += ["csv"] if as_csv else []
    asked += ["html"] if as_html else []
    if len(asked) > 1:
        raise UsageError(f"--{' and --'.join(asked)} exclude each other; ask for one at a time")
    if as_html and out is None:
        raise UsageError("--html writes a page; name its file with --out report.html")
    if out is not None and out.exists():
        raise UsageError(f"{out} exists already; name a new file")
    return asked[0] if asked else "text"


def in_ms(moment: datetime | None) -> int | None:
    """Unix time in milliseconds."""
    return None if moment is None else int(moment.timestamp() * 1000)


def write(report: AuditReport, form: Form, out: Path) -> None:
    """Write the report; raises as `write_whole`."""
    write_whole(out, [_content(report, form)])


def write_whole(out: Path, parts: Iterable[str]) -> None:
    """Write a text file in one step.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    staged = out.with_name(out.name + ".new")
    try:
        # Never into what is there already: in a shared folder it may lead elsewhere.
        staged.unlink(missing_ok=True)
        with staged.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
        staged.replace(out)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None


def _content(report: AuditReport, form: Form) -> str:
    if form == "json":
        return json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if form == "csv":
        return to_csv(report)
    if form == "html":
        from synthedge_client.audit_html import to_html

        return to_html(report)
    from io import StringIO

    buffer = StringIO()
    render(report, rich_console(buffer, width=80))
    return buffer.getvalue()
