"""`synthedge site audit ...`: what happened at this site."""

import typer

from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
)
from synthedge_client.console import emit

app = typer.Typer(help="What happened at this site.", no_args_is_help=True)


@app.command("report")
def audit_report(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show which gaps were found, what left, what was received, and who decided."""
    from synthedge_client import audit
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        report = audit.collect(site)
    emit(report, as_json=json, render=lambda console: audit.render(report, console))
