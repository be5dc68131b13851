"""Commands about the coordinator's database."""

from pathlib import Path
from typing import Annotated

import typer

from synthedge_server.console import emit
from synthedge_server.folder import CoordinatorFolder

app = typer.Typer(help="The coordinator's database.", no_args_is_help=True)

Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
HERE = Path()


@app.callback()
def database() -> None:
    """The coordinator's database."""


@app.command()
def upgrade(folder: Dir = HERE, as_json: Json = False) -> None:
    """Bring the tables of an earlier release to this one's, with 'serve' stopped; take a backup before."""
    from synthedge_server.upgrade import upgrade_database

    old, new = upgrade_database(CoordinatorFolder(folder))
    told = f"tables of version {old} are of version {new} now"
    emit(
        {"from": old, "to": new},
        told if old != new else f"the tables are of version {new} already; nothing to do",
        as_json=as_json,
    )
