"""`synthedge-coordinator discover` and `flower`: ask sites for the reports they published."""

from pathlib import Path
from typing import Annotated

import typer

from synthedge_server.console import emit, table

Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
HERE = Path()
flower_app = typer.Typer(
    help="Flower as the engine of discovery rounds: its SuperLink, and the app that sites approve.",
    no_args_is_help=True,
)


def discover(
    folder: Dir = HERE,
    engine: Annotated[
        str,
        typer.Option(help="What carries the round: the sites' own 'channel', or 'flower'."),
    ] = "channel",
    sites: Annotated[
        str | None, typer.Option(help="Whom to ask, a,b,c; without it every site that takes part.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for answers.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Ask sites for the gap report their steward published, and say what came back of each.

    A round publishes nothing anew and costs no privacy budget. Exit code 0: every site answered, be it with a refusal;
    3: some are offline or were late.
    """
    from synthedge_core.errors import UsageError
    from synthedge_protocols.discovery import ENGINES
    from synthedge_server.discovery import run_round
    from synthedge_server.folder import CoordinatorFolder
    from synthedge_server.rounds import ANSWERED

    chosen = next((known for known in ENGINES if known == engine), None)
    if chosen is None:
        raise UsageError(f"there is no engine '{engine}'; take {' or '.join(ENGINES)}")
    if chosen == "flower":
        _require_flower()
    names = None if sites is None else [name.strip() for name in sites.split(",") if name.strip()]
    data = run_round(CoordinatorFolder(folder), chosen, names, timeout)
    headers = ("site", "outcome", "reason")
    rows = [[str(row[key]) for key in headers] for row in data["sites"]]
    emit(data, table(headers, rows), as_json=as_json)
    if not all(row["outcome"] in ANSWERED for row in data["sites"]):
        raise typer.Exit(3)


@flower_app.command()
def serve(folder: Dir = HERE, as_json: Json = False) -> None:
    """Run Flower's SuperLink on loopback until SIGTERM, for the SuperNodes of the sites that take part.

    Sites reach it through a reverse proxy alone (deploy/flower/nginx.conf); the coordinator's certificate and key lie
    for it in flower/proxy.pem and flower/proxy.key, and are written anew when the certificate is renewed.
    """
    from synthedge_server.folder import CoordinatorFolder
    from synthedge_server.log import log_to_stderr
    from synthedge_server.settings import Address
    from synthedge_server.superlink import serve_superlink

    _require_flower()
    log_to_stderr()

    def announce(address: Address) -> None:
        emit({"ready": True, "listen": str(address)}, f"ready: {address}", as_json=as_json)

    serve_superlink(CoordinatorFolder(folder), announce)


def _require_flower() -> None:
    from synthedge_core.errors import UsageError
    from synthedge_protocols.flower_app import problem_with_flower

    problem = problem_with_flower()
    if problem is not None:
        raise UsageError(problem)


@flower_app.command()
def app(as_json: Json = False) -> None:
    """Print the digest of the app that rounds ship: a site answers Flower only for a digest it approved."""
    from synthedge_protocols.flower_app import app as this_app

    digest = this_app().digest
    emit({"digest": digest}, digest, as_json=as_json)
