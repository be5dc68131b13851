"""`synthedge site ...`: the commands of a hospital's site. Each opens the site's folder, does one thing, and ends."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from synthedge_client import (
    cli_audit,
    cli_consent,
    cli_dictionary,
    cli_flower,
    cli_gaps,
    cli_keys,
    cli_people,
    cli_policies,
    cli_recover,
    cli_requests,
    cli_withdrawals,
)
from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
    in_lines,
    lines,
    table,
)
from synthedge_client.console import emit, note

app = typer.Typer(
    help="A hospital's site: keys, gaps, requests, transfers, audit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_people.steward_app, name="steward")
app.add_typer(cli_people.peers_app, name="peers")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_dictionary.app, name="dictionary")
app.add_typer(cli_gaps.app, name="gaps")
app.add_typer(cli_requests.app, name="requests")
app.add_typer(cli_consent.app, name="consent")
app.add_typer(cli_policies.app, name="policies")
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_flower.app, name="flower")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The site's folder; made if it is not there.")],
    id: Annotated[
        str, typer.Option("--id", help="The site's id: lower-case letters, digits, hyphens.")
    ],
    data: Annotated[Path, typer.Option(help="The table of patients.")],
    patient_id: Annotated[str, typer.Option(help="Column that tells patients apart.")],
    consent: Annotated[
        str | None, typer.Option(help="Column that says 'active' where a patient consents.")
    ] = None,
    consent_register: Annotated[
        Path | None,
        typer.Option(help="Instead: a register of consents, CSV or FHIR R5 Bundle (.json)."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a site's folder with its keys and site.toml."""
    from synthedge_client.site import create_site
    from synthedge_core.errors import UsageError

    where = [said for said in (consent, consent_register) if said is not None]
    if len(where) != 1:
        raise UsageError(
            f"{len(where)} places of consents were named, expected one: --consent COLUMN or --consent-register FILE"
        )
    fingerprint = create_site(folder, id=id, data=data, patient_id=patient_id, consent=where[0])
    emit(
        {"site": id, "folder": str(folder), "fingerprint": fingerprint},
        as_json=json,
        render=lines(
            f"Site '{id}' made in {folder}; its keys are in {folder / 'keys'}.",
            f"Fingerprint: {fingerprint}",
            f"Next: describe your columns in {folder / 'site.toml'}, add a steward, enrol.",
        ),
    )


@app.command()
def enrol(
    token_file: Annotated[Path, typer.Option(help="File with the operator's one-time token.")],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Join a consortium with a one-time token; sends public keys, receives a certificate and the dictionary."""
    from synthedge_client.enrolment import enrol_site

    result = enrol_site(dir, token_file)
    emit(
        result,
        as_json=json,
        render=lines(
            f"Enrolled in '{result['consortium']}' as '{result['site']}'; "
            f"certificate until {result['certificate_expires']}.",
            f"Dictionary '{result['dictionary']}', version {result['dictionary_version']}, "
            f"{result['dictionary_digest'][:16]}…:",
            *result["outcome"],
            *result["policy"],
            "Next: 'synthedge site doctor', 'synthedge site run' in the background, and, when your patients are "
            "labelled as it says, 'synthedge site dictionary accept --steward NAME'.",
        ),
    )


@app.command()
def address(
    address: Annotated[
        str, typer.Argument(help="host:port of enrolled sites, as the operator tells it.")
    ],
    enrolment_address: Annotated[
        str | None,
        typer.Option(help="host:port of enrolment, if its port changed too."),
    ] = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Dial the coordinator at another address, after it moved; it must answer there."""
    from synthedge_client.coordinator_address import change_address
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        address, enrolment = change_address(site, address, enrolment_address)
    emit(
        {"address": address, "enrolment_address": enrolment},
        as_json=json,
        render=lines(
            f"The coordinator answers at {address}, its enrolment at {enrolment}.",
            "Restart 'synthedge site run'.",
        ),
    )


@app.command()
def fingerprint(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show this site's key fingerprint: read it to the other sites by telephone."""
    from synthedge_client.site import site_fingerprint

    text = site_fingerprint(dir)
    emit({"fingerprint": text}, as_json=json, render=lines(text))


@app.command()
def doctor(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Check the table, its mapping to the dictionary and the connection; list every problem at once."""
    from synthedge_client.doctor import examine

    findings = examine(dir)
    emit(
        {"findings": [vars(f) for f in findings]},
        as_json=json,
        render=table(
            "Findings",
            ["", "about", "found", "rows"],
            [
                ["stop" if f.stops else "note", f.about, f.found, "" if f.rows is None else f.rows]
                for f in findings
            ],
        ),
    )
    if any(f.stops for f in findings):
        raise typer.Exit(4)


@app.command()
def status(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show what waits, and for whom."""
    from synthedge_client.site import open_site
    from synthedge_client.status import summarise

    with open_site(dir) as site:
        summary = summarise(site)
    emit(
        summary,
        as_json=json,
        render=table(
            "Status",
            ["", ""],
            [[key.replace("_", " "), in_lines(value)] for key, value in summary.items()],
        ),
    )


@app.command()
def ping(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Tell whether the agent reached the coordinator in the last five minutes; for health checks."""
    from synthedge_client.ping import ping as look

    silent_s = look(dir)
    emit(
        {"reached_seconds_ago": round(silent_s, 1)},
        as_json=json,
        render=lines(f"The agent reached the coordinator {silent_s:.0f} s ago."),
    )


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="Exchange what waits, then end.")] = False,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Run the agent: it sends what was decided, takes in what arrives, and ships sealed samples."""
    import logging
    import sys

    from synthedge_client import agent
    from synthedge_client.locks import only_one
    from synthedge_client.site import open_site
    from synthedge_client.status import summarise

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    with open_site(dir) as site, only_one(site, "agent"):
        connection = site.connect()
        if once:
            try:
                agent.run_once(site, connection)
            finally:
                connection.close()
            problems = summarise(site)["problems"]
            emit(
                {"done": True, "problems": problems},
                as_json=json,
                render=lines(
                    "Exchanged everything that could be.",
                    *(f"Transfer {id}: {problem}" for id, problem in problems.items()),
                ),
            )
            return
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        note(f"agent of site '{site.settings.id}' runs; Ctrl-C stops it")
        agent.run_forever(site, connection, stop)


@app.command()
def fill(
    output: Annotated[Path, typer.Option(help="Where the filled table goes (CSV).")],
    seed: Annotated[int, typer.Option(help="Makes the synthetic rows repeatable.")] = 0,
    harmonise: Annotated[
        bool,
        typer.Option(
            "--harmonise",
            help="Match received measurements to own location and scale; for known biases only.",
        ),
    ] = False,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Write own rows, received rows and synthetic rows around them; the column _origin tells them apart."""
    from synthedge_client.site import open_site
    from synthedge_client.site_fill import fill_site

    with open_site(dir) as site:
        result = fill_site(site, output, seed, harmonise=harmonise)
    emit(
        result,
        as_json=json,
        render=lines(
            f"{output}: {result['observed']} own rows, {result['received']} received, "
            f"{result['synthetic']} synthetic.",
            *result["notes"],
        ),
    )


cli_recover.mount(app)
cli_withdrawals.mount(app, consent=cli_consent.app, peers=cli_people.peers_app)
