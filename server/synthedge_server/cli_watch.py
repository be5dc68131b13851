"""Commands that look: transfers, what is wrong, the audit log, the web console. They change nothing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from synthedge_server.console import emit, table
from synthedge_server.folder import CoordinatorFolder

audit_app = typer.Typer(help="The coordinator's audit log.", no_args_is_help=True)

Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
HERE = Path()


def listed(folder: Path, rows: Callable[..., Sequence[Any]]) -> list[dict[str, Any]]:
    """Read one of `overview`'s lists from a folder."""
    from synthedge_server.ledger import system_clock
    from synthedge_server.operations import reading

    with reading(CoordinatorFolder(folder)) as engine, engine.connect() as connection:
        return [asdict(row) for row in rows(connection, system_clock())]


def columns(data: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """Lay some of the rows' values out for people; ids are cut to 12 digits."""
    if not data:
        return "none"
    cells = [[str(row[key])[: 12 if key.endswith("_id") else None] for key in keys] for row in data]
    return table([key.replace("_", " ") for key in keys], cells)


def transfers(folder: Dir = HERE, as_json: Json = False) -> None:
    """List the transfers: who is stuck, since when, waiting for whom; and open withdrawals."""
    from synthedge_server.overview import list_transfers, list_withdrawals

    data = listed(folder, list_transfers)
    withdrawals = listed(folder, list_withdrawals)
    shown = (
        "transfer_id",
        "state",
        "waits_for",
        "since",
        "problem",
        "recipient",
        "donor",
        "region",
    )
    text = columns(data, shown)
    if withdrawals:
        keys = ("notice_id", "state", "is_overdue", "due", "donor", "recipient", "transfer_id")
        text += "\n\nwithdrawals\n" + columns(withdrawals, keys)
    emit(data, text, as_json=as_json)


def doctor(folder: Dir = HERE, as_json: Json = False) -> None:
    """Look for everything that is wrong, and say what to do next; exit code 1 if anything is."""
    from synthedge_server.doctor import examine

    data = [asdict(problem) for problem in examine(CoordinatorFolder(folder))]
    lines = [f"{p['subject']}: {p['what']}\n  next: {p['next_step']}" for p in data]
    emit(data, "\n".join(lines) or "nothing is wrong", as_json=as_json)
    if data:
        raise typer.Exit(1)


def ping(
    alive: Annotated[
        bool,
        typer.Option(
            "--alive", help="It is enough that it answers: a new start brings no database back."
        ),
    ] = False,
    folder: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Tell whether the coordinator on this machine serves; for health checks."""
    from synthedge_server.ping import ping as call

    address = call(CoordinatorFolder(folder), is_enough_to_answer=alive)
    emit({"address": str(address)}, f"answers at {address}", as_json=as_json)


@audit_app.command("verify")
def audit_verify(folder: Dir = HERE, as_json: Json = False) -> None:
    """Recompute the audit log from its entries; sites do the same with what they were shown."""
    from synthedge_server.audit import verify_log

    result = verify_log(CoordinatorFolder(folder))
    emit(
        result,
        f"valid: {result['entries']} entries, witnessed by {result['witnesses']} sites\n"
        f"root {result['root']}\nkey {result['fingerprint']}",
        as_json=as_json,
    )


@audit_app.command("export")
def audit_export(
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    folder: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Write the audit log as one file; 'synthedge audit verify FILE' checks it anywhere."""
    from synthedge_server.audit import export_log

    result = export_log(CoordinatorFolder(folder), out)
    emit(
        result,
        f"{out}: {result['entries']} entries\nverify it anywhere: synthedge audit verify {out}\n"
        f"it must name the fingerprint {result['fingerprint']}",
        as_json=as_json,
    )


def console(
    folder: Dir = HERE,
    listen: Annotated[
        str, typer.Option(help="Where to answer, on loopback; from another machine go through SSH.")
    ] = "127.0.0.1:7445",
    as_json: Json = False,
) -> None:
    """Run the read-only web console until Ctrl-C: sites, gap network, proposals, transfers, audit log."""
    from synthedge_server.console_server import serve_console
    from synthedge_server.settings import Address, parse_address

    def announce(address: Address, token_file: Path) -> None:
        emit(
            {"ready": True, "url": f"http://{address}/", "token_file": str(token_file)},
            f"ready: http://{address}/  log in with the token in {token_file}",
            as_json=as_json,
        )

    serve_console(CoordinatorFolder(folder), parse_address(listen), announce)


def prove_blind(as_json: Json = False) -> None:
    """Send canary patients through a coordinator on this machine and search its files, memory and messages for them."""
    import importlib

    from synthedge_core.errors import UsageError

    try:
        # By name: the coordinator itself can import nothing that reads a table.
        blindness = importlib.import_module("synthedge_deploy.blindness")
    except ModuleNotFoundError:
        raise UsageError(
            "the proof plays the sites too and needs the complete distribution: "
            "pip install 'synthedge-federation[all]'"
        ) from None
    result = blindness.prove(lambda line: typer.echo(f"$ {line}", err=True))
    searched = "\n".join(
        f"  {place}: {size:,} bytes" for place, size in result["searched_bytes"].items()
    )
    emit(
        result,
        f"blind: of {result['canaries']} canary patients, {result['received_by_recipient']} arrived at the "
        f"recipient, none of {result['forms_searched']} traces was found in the coordinator's\n{searched}\n"
        f"(the same search finds {result['found_at_donor']} traces at the donor)",
        as_json=as_json,
    )
