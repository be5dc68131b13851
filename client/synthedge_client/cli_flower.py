"""`synthedge site flower`: let the operator ask this site through Flower as well."""

import signal
import threading
from typing import Annotated

import typer

from synthedge_client.cli_options import HERE, FolderOption, JsonOption, lines
from synthedge_client.console import emit, note

app = typer.Typer(
    help="Answer discovery rounds through Flower too: only for an app you approved, run from what is installed here.",
    no_args_is_help=True,
)


@app.command()
def approve(
    digest: Annotated[
        str, typer.Argument(help="Digest of the app, as the operator tells it on another way.")
    ],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Answer rounds that ship the app of this digest, and of no other any more."""
    from synthedge_client.flower_node import approve_app
    from synthedge_client.site import open_site
    from synthedge_protocols.flower_app import app as this_app

    with open_site(dir) as site:
        approve_app(site, digest)
    is_own = this_app().digest == digest.strip().lower()
    emit(
        {"approved": digest, "is_of_this_release": is_own},
        as_json=json,
        render=lines(
            f"Approved app {digest}.",
            "It is the one of the release installed here."
            if is_own
            else f"It is not the one of the release installed here ({this_app().digest}): ask the operator which "
            "release the coordinator runs.",
        ),
    )


@app.command()
def run(
    superlink: Annotated[
        str, typer.Option(help="Where the coordinator's Flower proxy listens, host:port.")
    ],
    dir: FolderOption = HERE,
) -> None:
    """Run a SuperNode and answer its messages; the agent ('site run') announces its key, so keep that running too."""
    import logging
    import sys

    from synthedge_client.coordinator_address import host_of
    from synthedge_core.errors import UsageError
    from synthedge_protocols.flower_app import prepare_flower, problem_with_flower

    host_of(superlink)  # refused now, not by a SuperNode that is started again and again
    problem = problem_with_flower()
    if problem is not None:
        raise UsageError(problem)
    prepare_flower()
    from synthedge_client import flower_runner
    from synthedge_client.site import open_site

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with open_site(dir) as site:
        note(f"Flower runner of site '{site.settings.id}' runs; Ctrl-C stops it")
        flower_runner.run(site, superlink, stop)
