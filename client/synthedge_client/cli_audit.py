"""`synthedge site audit ...`: what happened at this site."""

from pathlib import Path
from typing import Annotated

import typer

from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
    PassphraseOption,
    ask_steward,
    in_lines,
    lines,
    table,
)
from synthedge_client.cli_withdrawals import received_app
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


@app.command("alarms")
def audit_alarms(
    steward: Annotated[
        str | None,
        typer.Option(help="Sign off as looked at: the name of a steward's key; the events stay."),
    ] = None,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show what speaks against the coordinator's audit log, with the heads it signed."""
    from synthedge_client.log_heads import alarms, clear_alarms
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        with site.store.read() as connection:
            raised = alarms(connection)
        if steward is not None:
            key = ask_steward(site, steward, passphrase_file)
            with site.store.write() as connection:
                clear_alarms(connection, key.label)
    emit(
        raised,
        as_json=json,
        render=lines(*[f"{a['what']}\n{a['note']}" for a in raised] or ["No alarms."]),
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


@app.command("disclosures")
def audit_disclosures(
    patient: Annotated[
        str | None, typer.Option(help="Only what left of this patient, by the id of your table.")
    ] = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Account for disclosures: date, recipient, what left, for which purpose."""
    from synthedge_client.accounts import disclosures
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        found = disclosures(site, patient)
    # An id that nobody has is answered like one of whom nothing left: the ledger finds patients by their id alone.
    whose = "" if patient is None else " of the patient with exactly this id (check its spelling)"
    emit(
        found,
        as_json=json,
        render=table(
            f"Disclosures{whose}",
            ["date", "recipient", "description", "purpose", "state", "withdrawn"],
            [
                [
                    d["date"],
                    d["recipient"],
                    d["description"],
                    d["purpose"],
                    d["state"],
                    d["withdrawn"],
                ]
                for d in found
            ],
        ),
    )


@app.command("ropa")
def audit_ropa(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Write the record of processing activities as far as this software knows it."""
    from synthedge_client.accounts import records_of_processing
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        entries = records_of_processing(site)
    emit(
        entries,
        as_json=json,
        render=table(
            "Record of processing activities",
            ["", ""],
            [[entry["heading"], entry["text"]] for entry in entries],
        ),
    )


@received_app.command("list")
def received_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """List every received row by its name: donor, transfer, since when, until when."""
    from synthedge_client.accounts import list_received
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        rows = list_received(site)
    emit(
        rows,
        as_json=json,
        render=table(
            "Received rows",
            ["row", "donor", "transfer", "arrived", "until"],
            [[r["row"], r["donor"], r["transfer_id"][:12], r["arrived"], r["until"]] for r in rows],
        ),
    )


@received_app.command("trace")
def received_trace(
    row: Annotated[
        str,
        typer.Argument(help="The row's name: of 'received list', or the column _row of a file."),
    ],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show where a received row is from, under which agreement, until when, in which files it went."""
    from synthedge_client.accounts import trace
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        found = trace(site, row)
    files = [
        f"{file['file']}, written {file['written']}: {file['state']}" for file in found["files"]
    ]
    shown = {key: value for key, value in found.items() if key != "files"} | {"files": files}
    emit(
        found,
        as_json=json,
        render=table(
            "Received row",
            ["", ""],
            [[key.replace("_", " "), in_lines(value)] for key, value in shown.items()],
        ),
    )
