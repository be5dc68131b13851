"""Options and renderings that the site's commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from synthedge_client.site import Site
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
        If the file is not there.
    IdentityError
        If others than its owner can read it.
    """
    from synthedge_core.errors import UsageError
    from synthedge_protocols.private_files import read_private_file

    if file is None:
        text: str = typer.prompt(
            "Passphrase", hide_input=True, confirmation_prompt=confirm, err=True
        )
        return text.encode()
    if not file.is_file():
        raise UsageError(
            f"there is no passphrase file {file}; name one, or leave the option out to be asked"
        )
    return read_private_file(file).rstrip(b"\r\n")


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Any:
    """Return a renderer of a titled table."""

    def render(console: Any) -> None:
        from rich.table import Table

        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        console.print(table if rows else f"{title}: none")

    return render


def in_lines(value: Any) -> Any:
    """A list or mapping as lines of text."""
    if isinstance(value, dict):
        value = [f"{key} {item}" for key, item in value.items()]
    return "\n".join(value) or "none" if isinstance(value, list) else value


def lines(*lines: str) -> Any:
    """Return a renderer of lines of text."""
    return lambda console: [console.print(line, soft_wrap=True) for line in lines]


def transfer_named(site: "Site", typed: str) -> "Transfer":
    """Find the transfer whose id begins with what was typed."""
    from synthedge_client.transfers import find_transfer

    with site.store.read() as connection:
        return find_transfer(connection, typed)
