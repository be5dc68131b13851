"""Commands about the coordinator's database: upgrade, backup, restore."""

from pathlib import Path
from typing import Annotated

import typer

from synthedge_server.console import emit
from synthedge_server.folder import CoordinatorFolder

app = typer.Typer(help="The coordinator's database.", no_args_is_help=True)

Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="An empty PostgreSQL database, postgresql://USER@HOST:5432/NAME; without it, SQLite in DIR."
    ),
]
PasswordFile = Annotated[
    str | None,
    typer.Option(
        help="File with its user's password, readable by its owner only.",
        # Written down in a folder that is new and empty.
        callback=lambda path: path and str(Path(path).absolute()),
    ),
]
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


def backup(
    output: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="New file, or a folder that gets one named by consortium and time; it holds keys.",
        ),
    ],
    folder: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Write the whole coordinator into one file, while 'serve' runs or not: database, settings, keys, sealed bytes."""
    from synthedge_server.backup import back_up

    data = back_up(CoordinatorFolder(folder), output)
    ca = "" if data["has_ca"] else "; the CA's key is not in it: ca/ was moved away"
    emit(
        data,
        f"backup of consortium '{data['consortium']}' in {data['file']}: {data['sites']} sites, "
        f"{data['events']} entries of the audit log, {data['sealed_files']} sealed files{ca}\n"
        "it holds private keys: keep it where nobody else reads it",
        as_json=as_json,
    )


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by 'backup'.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
    database: DatabaseUrl = None,
    database_password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Make a coordinator from a backup, in a new folder; the one it was taken of must not run any more."""
    from synthedge_server.restore import restore as restore_backup

    data = restore_backup(
        file,
        CoordinatorFolder(folder),
        database=database,
        database_password_file=database_password_file,
    )
    ca = "" if data["has_ca"] else f"\nput ca/ back into {folder} before certificates are due"
    log = (
        f"\nthe audit log did not verify before: {data['log_problem']}"
        if data["log_problem"]
        else ""
    )
    emit(
        data,
        f"consortium '{data['consortium']}' restored into {folder}: {data['sites']} sites, "
        f"{data['events']} entries of the audit log, {data['sealed_files']} sealed files{ca}{log}\n"
        f"next: synthedge-coordinator serve --dir {folder}\n"
        "sites that were told more since the backup are frozen when they call: 'sites' lists them, "
        "'sites recover' lets them in",
        as_json=as_json,
    )
