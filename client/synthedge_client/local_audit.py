"""`synthedge audit verify`: an exported audit log, checked on a machine that has neither keys nor network."""

from pathlib import Path
from typing import Annotated

import typer

from synthedge_client.console import emit

app = typer.Typer(help="Check exported audit logs; needs no site.", no_args_is_help=True)


@app.callback()
def _audit() -> None:
    """Keep the command's name: a group of one command would lose it."""


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A file of 'audit export'.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for programs.")
    ] = False,
) -> None:
    """Say whether an exported audit log is as it was signed, or which entry is wrong."""
    from synthedge_client.audit_log import verify_file

    result = verify_file(file)
    emit(
        result,
        as_json=json,
        render=lambda console: console.print(
            f"Valid: {result['entries']} entries of the log '{result['log']}', {result['shown']} of them shown,\n"
            f"signed by the key {result['fingerprint']}\n"
            "Compare this fingerprint with the one the log's owner reads out.",
            soft_wrap=True,
        ),
    )
