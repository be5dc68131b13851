"""Checks command lines that stand in deployment files against the programs' own parsers, without running them."""

from collections.abc import Sequence
from pathlib import Path

import click
import typer

from synthedge_client.cli import app as site_app
from synthedge_server.cli import app as coordinator_app

DEPLOY = Path(__file__).parents[2] / "deploy"
_APPS = {"synthedge": site_app, "synthedge-coordinator": coordinator_app}


def command_of(line: Sequence[str]) -> tuple[str, dict[str, object]]:
    """Parse a command line; return the full name of the command and the options it was given.

    Raises
    ------
    click.ClickException
        If the program would not understand it.
    """
    program, *rest = line
    names = [Path(program).name]
    context = typer.main.get_command(_APPS[names[0]]).make_context(names[0], list(rest))
    # The context's own command: `synthedge site` hands over to a group that is loaded on use.
    while isinstance(group := context.command, click.Group):
        found, command, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert found is not None
        assert command is not None
        names.append(found)
        context = command.make_context(found, list(rest), parent=context)
    return " ".join(names), dict(context.params)
