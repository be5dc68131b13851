"""Options and renderings that the site's commands share."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client.console import printable

if TYPE_CHECKING:
    from synthedge_client.site import Site
    from synthedge_client.stewards import Steward
    from synthedge_client.transfers import Transfer

FolderOption = Annotated[Path, typer.Option("--dir", help="The site's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
StewardOption = Annotated[
    str, typer.Option("--steward", help="Who decides: the name of a steward's key.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Read the passphrase here instead of asking for it."),
]
HERE = Path()


def read_passphrase(file: Path | None, *, confirm: bool = False) -> bytes:
    """Read a passphrase from a file, or ask for it.

    Raises
    ------
    UsageError
        If the file is not there, or nobody sits at a terminal to be asked.
    IdentityError
        If others than its owner can read it.
    """
    from synthedge_core.errors import UsageError
    from synthedge_protocols.private_files import read_private_file

    if file is None:
        _require_terminal()
        text: str = typer.prompt(
            "Passphrase", hide_input=True, confirmation_prompt=confirm, err=True
        )
        return text.encode()
    if not file.is_file():
        raise UsageError(
            f"there is no passphrase file {file}; name one, or leave the option out to be asked"
        )
    return read_private_file(file).rstrip(b"\r\n")


def ask_steward(site: "Site", name: str, passphrase_file: Path | None) -> "Steward":
    """Open the key of the steward who decides; who is not there is not asked for a passphrase.

    Raises
    ------
    UsageError
        If there is no such steward, or no passphrase can be had.
    IdentityError
        If the passphrase is wrong.
    """
    from synthedge_client.stewards import open_steward, require_steward

    require_steward(site.settings.keys, name)
    return open_steward(site.settings.keys, name, read_passphrase(passphrase_file))


def _require_terminal() -> None:
    from synthedge_core.errors import UsageError

    try:
        # Where getpass asks, whatever standard input is.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        if not sys.stdin.isatty():
            raise UsageError(
                "there is no terminal to ask for the passphrase; give --passphrase-file FILE (mode 0600)"
            ) from None


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Any:
    """Return a renderer of a titled table."""

    def render(console: Any) -> None:
        from rich.table import Table

        if not rows:
            console.print(f"{title}: none")
            return
        # No title of the table's own: it would be folded to the width of a narrow table.
        console.print(title, style="italic", soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(printable(str(cell)) for cell in row))
        console.print(table)

    return render


def in_lines(value: Any) -> Any:
    """A list or mapping as lines of text."""
    if isinstance(value, dict):
        value = [f"{key} {item}" for key, item in value.items()]
    return "\n".join(value) or "none" if isinstance(value, list) else value


def lines(*lines: str) -> Any:
    """Return a renderer of lines of text."""
    return lambda console: [console.print(printable(line), soft_wrap=True) for line in lines]


def transfer_named(site: "Site", typed: str) -> "Transfer":
    """Find the transfer whose id begins with what was typed."""
    from synthedge_client.transfers import find_transfer

    with site.store.read() as connection:
        return find_transfer(connection, typed)
