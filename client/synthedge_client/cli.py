"""The command `synthedge`: local commands, `synthedge demo`, and the door to `synthedge site`.

Nothing heavy is imported before a command runs: `synthedge --help` answers at once.
"""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from synthedge_client import (
    console,
    local_analyze,
    local_audit,
    local_compare,
    local_fill,
    local_rebalance,
    local_report,
)
from synthedge_core.errors import UsageError

_SITE_MODULE = "synthedge_client.cli_site"
_DEMO_MODULE = "synthedge_deploy.demo"


class _SiteGroup(TyperGroup):
    """`synthedge site ...`, loaded when one of its commands is asked for."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Hand over to the real group."""
        module = importlib.import_module(_SITE_MODULE)
        real = typer.main.get_command(module.app)
        return real.make_context(info_name, args, parent=parent, **extra)


class _ConsentGroup(TyperGroup):
    """`synthedge consent ...`: the same as `synthedge site consent ...`."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Hand over to the site's group."""
        site = importlib.import_module(_SITE_MODULE)
        real = typer.main.get_command(site.cli_consent.app)
        return real.make_context(info_name, args, parent=parent, **extra)


class _RootGroup(TyperGroup):
    """The root, with the site commands as a door that opens on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command, local ones first."""
        return [*super().list_commands(ctx), "site"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or the door to the site commands."""
        if cmd_name == "site":
            text = "A hospital's site: keys, gaps, requests, transfers, audit."
            return _SiteGroup(name="site", help=text, short_help=text)
        if cmd_name == "consent":
            # What a privacy officer types in a hurry; `site consent` is where it is listed.
            return _ConsentGroup(name="consent", help="What patients consent to.", hidden=True)
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="synthedge",
    cls=_RootGroup,
    help=f"Find the holes in a clinical table, and fill them honestly.\n\n{console.EXIT_CODE_HELP}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(local_analyze.analyze)
app.command()(local_fill.fill)
app.command()(local_rebalance.rebalance)
app.command()(local_compare.compare)
app.command()(local_report.report)
app.add_typer(local_audit.app, name="audit")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from synthedge_core import __version__

        console.print_line(f"synthedge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command()
def demo(
    keep: Annotated[
        Path | None, typer.Option(help="Folder in which the consortium is built and kept.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with clinical files, instead of the built-in data set."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train-test splits to measure over.")] = 1,
    json: JsonOption = False,
) -> None:
    """Run a whole consortium on this machine, from the hole to the filled table."""
    try:
        module = importlib.import_module(_DEMO_MODULE)
    except ModuleNotFoundError as missing:
        if missing.name not in {_DEMO_MODULE, _DEMO_MODULE.split(".")[0]}:
            raise
        raise UsageError(
            "the demonstration is not part of this installation; "
            "install the complete distribution: pip install 'synthedge-federation[all]'"
        ) from None
    module.run(keep=keep, data=data, seeds=seeds, as_json=json)


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(console.run_app(app, program="synthedge"))
