"""`synthedge-coordinator`: the operator's command line.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated, Any

import click
import typer

from synthedge_server import (
    cli_database,
    cli_dictionary,
    cli_discovery,
    cli_simulation,
    cli_watch,
)
from synthedge_server.console import EXIT_CODES, emit, run, table
from synthedge_server.folder import CoordinatorFolder

app = typer.Typer(
    help="Run a SynthEdge consortium's coordinator: enrol sites, match gaps, relay sealed transfers.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
sites_app = typer.Typer(help="List the enrolled sites; suspend, resume or revoke one.")
app.add_typer(sites_app, name="sites", invoke_without_command=True)
app.add_typer(cli_database.app, name="database")
app.add_typer(cli_dictionary.app, name="dictionary")
app.add_typer(cli_discovery.flower_app, name="flower")
app.add_typer(cli_watch.audit_app, name="audit")

Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
Reason = Annotated[
    str, typer.Option("--reason", help="Goes to the sites that share transfers with it.")
]
HERE = Path()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
    name: Annotated[str, typer.Option("--name", help="The consortium's name.")],
    dictionary: Annotated[Path, typer.Option("--dictionary", help="consortium.toml")],
    listen: Annotated[str, typer.Option(help="Where enrolled sites connect.")] = "127.0.0.1:7443",
    enrolment_listen: Annotated[
        str, typer.Option(help="Where sites without a certificate enrol.")
    ] = "127.0.0.1:7444",
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address that sites reach it by, the first one for new sites; without it, where it listens."
        ),
    ] = None,
    database: cli_database.DatabaseUrl = None,
    database_password_file: cli_database.PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Make a coordinator's folder: keys, certificate authority, database, settings."""
    from synthedge_server.operations import create_coordinator, read_dictionary_file
    from synthedge_server.settings import parse_address

    digest = create_coordinator(
        CoordinatorFolder(folder),
        name=name,
        dictionary_toml=read_dictionary_file(dictionary),
        listen=parse_address(listen),
        enrolment_listen=parse_address(enrolment_listen),
        hosts=tuple(host or ()),
        database=database,
        database_password_file=database_password_file,
    )
    emit(
        {"dir": str(folder), "consortium": name, "dictionary_digest": digest},
        f"coordinator of consortium '{name}' in {folder}, dictionary {digest[:12]}\n"
        f"next: synthedge-coordinator serve --dir {folder}",
        as_json=as_json,
    )


@app.command()
def serve(
    folder: Dir = HERE,
    listen: Annotated[
        str | None,
        typer.Option(help="Instead of coordinator.toml's: one of several processes on a machine."),
    ] = None,
    enrolment_listen: Annotated[
        str | None, typer.Option(help="Instead of coordinator.toml's.")
    ] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(help="Instead of coordinator.toml's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the coordinator in the foreground until SIGTERM or Ctrl-C; log lines go to stderr."""
    import asyncio
    from dataclasses import replace

    from synthedge_server.log import log_to_stderr
    from synthedge_server.serve import serve as run_server
    from synthedge_server.settings import (
        Address,
        parse_address,
        parse_metrics_address,
        read_settings,
    )

    log_to_stderr()

    def announce(sites: Address, enrolment: Address) -> None:
        emit(
            {"ready": True, "listen": str(sites), "enrolment_listen": str(enrolment)},
            f"ready: sites at {sites}, enrolment at {enrolment}",
            as_json=as_json,
        )

    settings = read_settings(CoordinatorFolder(folder).settings)
    if listen is not None:
        settings = replace(settings, listen=parse_address(listen))
    if enrolment_listen is not None:
        settings = replace(settings, enrolment_listen=parse_address(enrolment_listen))
    if metrics_listen is not None:
        settings = replace(settings, metrics_listen=parse_metrics_address(metrics_listen))
    asyncio.run(run_server(CoordinatorFolder(folder), settings, announce))


@app.command()
def invite(
    site: Annotated[str, typer.Argument(help="The new site's id.")],
    folder: Dir = HERE,
    valid_hours: Annotated[float, typer.Option(help="How long the token is good for.")] = 72,
    as_json: Json = False,
) -> None:
    """Print a one-time token that enrols one site; hand it over on a private way."""
    from synthedge_server.operations import invite as make_token

    token = make_token(CoordinatorFolder(folder), site, valid_hours)
    emit(
        {"site": site, "token": token.encode(), "expires_at_ms": token.expires_at_ms},
        token.encode(),
        as_json=as_json,
    )


@sites_app.callback()
def sites(context: typer.Context, folder: Dir = HERE, as_json: Json = False) -> None:
    """List the enrolled sites; suspend, resume or revoke one."""
    if context.invoked_subcommand is not None:
        if folder != HERE or as_json:
            raise click.UsageError(
                f"--dir and --json stand behind '{context.invoked_subcommand}', not before it"
            )
        return
    from synthedge_server.overview import list_sites

    data = cli_watch.listed(folder, list_sites)
    shown = (
        "site",
        "state",
        "problem",
        "open_transfers",
        "reported",
        "last_seen",
        "certificate_expires",
    )
    emit(data, cli_watch.columns(data, shown), as_json=as_json)


@sites_app.command()
def suspend(site: str, reason: Reason = "", folder: Dir = HERE, as_json: Json = False) -> None:
    """Answer no call of a site and release no key to or from it until it is resumed."""
    _set_state(folder, site, "suspended", reason, as_json)


@sites_app.command()
def resume(site: str, reason: Reason = "", folder: Dir = HERE, as_json: Json = False) -> None:
    """Let a suspended site in again."""
    _set_state(folder, site, "active", reason, as_json)


@sites_app.command()
def revoke(site: str, reason: Reason = "", folder: Dir = HERE, as_json: Json = False) -> None:
    """Shut a site out for ever; end its transfers, active ones too, since no withdrawal would reach them."""
    _set_state(folder, site, "revoked", reason, as_json)


@sites_app.command()
def recover(site: str, folder: Dir = HERE, as_json: Json = False) -> None:
    """Let a site in again that was frozen because a database was restored from a backup; say what was lost."""
    from synthedge_server.operations import recover_site

    data = recover_site(CoordinatorFolder(folder), site)
    revoked = data["transfers_revoked"]
    emit(
        data,
        f"site '{site}' was {data['reason']}\n"
        f"it reads {data['messages_replayed']} messages of its inbox again; transfers revoked: "
        f"{', '.join(t[:12] for t in revoked) or 'none'}\n"
        "a steward of the site now runs 'synthedge site recover', if it says it is frozen",
        as_json=as_json,
    )


@sites_app.command("reset-keys")
def reset_keys(site: str, reason: Reason = "", folder: Dir = HERE, as_json: Json = False) -> None:
    """Let a site that lost its keys, or left, enrol anew under its id: end its transfers, then invite it."""
    _set_state(folder, site, "reset", reason, as_json)


@app.command()
def matches(
    folder: Dir = HERE,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="Match the current reports by 'share' (ours) or 'seed' (the published rule), to compare; "
            "without it, show what was proposed."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the newest proposals: which site could help which, and why."""
    from synthedge_core.errors import UsageError
    from synthedge_core.matching import STRATEGIES
    from synthedge_server.match_list import matches_by, proposed_matches

    if strategy is None:
        data = proposed_matches(CoordinatorFolder(folder))
    else:
        name = next((known for known in STRATEGIES if known == strategy), None)
        if name is None:
            raise UsageError(f"there is no strategy '{strategy}'; take {' or '.join(STRATEGIES)}")
        data = matches_by(CoordinatorFolder(folder), name)
    emit(data, _table(data), as_json=as_json)


@app.command()
def status(folder: Dir = HERE, as_json: Json = False) -> None:
    """Tell what the coordinator holds and since when."""
    from synthedge_server.status import read_status

    data = read_status(CoordinatorFolder(folder))
    emit(data, "\n".join(f"{key}:{_told(value)}" for key, value in data.items()), as_json=as_json)


def _told(value: Any) -> str:
    """A value of `status` for people: what are sentences stand on lines of their own."""
    if not isinstance(value, (dict, list)):
        return f" {value}"
    items = [f"{key}: {each}" for key, each in value.items()] if isinstance(value, dict) else value
    if all(isinstance(item, str) and " " not in item for item in items):
        return f" {', '.join(items) or 'none'}"
    return "".join(f"\n {_told(item)}" for item in items)


def _set_state(folder: Path, site: str, state: str, reason: str, as_json: bool) -> None:
    from synthedge_server.operations import reading, set_site_state
    from synthedge_server.standing import standing_of

    where = CoordinatorFolder(folder)
    n_ended = set_site_state(where, site, state, reason)
    with reading(where) as engine, engine.connect() as connection:
        state = standing_of(connection, site).value
    emit(
        {"site": site, "state": state, "transfers_ended": n_ended},
        f"site '{site}' is {state}; {n_ended} transfers ended",
        as_json=as_json,
    )


def _table(data: list[dict[str, Any]]) -> str:
    if not data:
        return "none"
    headers = list(data[0])
    return table(headers, [[str(row[key]) for key in headers] for row in data])


app.command()(cli_discovery.discover)
app.command()(cli_database.backup)
app.command()(cli_database.restore)
app.command()(cli_watch.transfers)
app.command()(cli_watch.doctor)
app.command()(cli_watch.ping)
app.command()(cli_watch.console)
app.command("prove-blind")(cli_watch.prove_blind)
app.command()(cli_simulation.simulate)


def main() -> None:
    """Run the command line and exit with its code."""
    raise SystemExit(run(app, "synthedge-coordinator"))
