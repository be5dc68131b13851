"""`synthedge site audit ...`: what happened at this site."""

from pathlib import Path
from typing import Annotated

import typer

from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
    lines,
)
from synthedge_client.console import emit, note, print_line

app = typer.Typer(help="What happened at this site.", no_args_is_help=True)


@app.command("report")
def audit_report(
    since: Annotated[str | None, typer.Option(help="From this day on.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this day.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="As one CSV table.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="As one HTML page with pictures; needs --out.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file, which must not exist, not here.")
    ] = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show which gaps were found, what left, what was received, and who decided."""
    from synthedge_client import audit, audit_files, audit_sections
    from synthedge_client.audit_log import parse_day
    from synthedge_client.site import open_site

    form = audit_files.choose_form(as_json=json, as_csv=csv, as_html=html, out=out)
    period = audit.Period(
        since_ms=audit_files.in_ms(parse_day(since)),
        until_ms=audit_files.in_ms(parse_day(until, end=True)),
    )
    with open_site(dir) as site:
        report = audit.collect(site, period)
    if out is not None:
        audit_files.write(report, form, out)
        note(f"{out}: audit report of site '{report.site}'")
    elif form == "csv":
        print_line(audit_sections.to_csv(report).rstrip())
    else:
        emit(
            report,
            as_json=form == "json",
            render=lambda console: audit_sections.render(report, console),
        )


@app.command("verify")
def audit_verify(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Check this site's audit log: every entry, and every head that was given away."""
    from synthedge_client.audit_log import verify_log
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = verify_log(site)
    emit(
        result,
        as_json=json,
        render=lines(
            f"Valid: {result['entries']} entries, as signed in {result['heads_given']} heads that others hold.",
            f"root {result['root']}",
        ),
    )


@app.command("export")
def audit_export(
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    since: Annotated[str | None, typer.Option(help="Show entries from this day on.")] = None,
    until: Annotated[str | None, typer.Option(help="Show entries up to this day.")] = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Write the audit log as one file that anybody can verify; no patient value is in it.

    Entries outside the period are there as salted commitments: they count, and tell nothing.
    """
    from synthedge_client.audit_log import export_log, parse_day
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = export_log(site, out, parse_day(since), parse_day(until, end=True))
    emit(
        result,
        as_json=json,
        render=lines(
            f"{out}: {result['entries']} entries, {result['shown']} of them shown.",
            f"Verify it anywhere: synthedge audit verify {out}",
            f"It must name the fingerprint {result['fingerprint']}",
        ),
    )
