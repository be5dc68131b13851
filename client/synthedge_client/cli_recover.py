"""`synthedge site recover`: a steward lets a frozen site go on."""

import typer

from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
    PassphraseOption,
    StewardOption,
    ask_steward,
    lines,
)
from synthedge_client.console import emit


def mount(app: typer.Typer) -> None:
    """Add the command to ``synthedge site``."""
    app.command("recover")(recover)


def recover(
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Let a site go on whose records differed from the coordinator's: one of the two is a restored backup."""
    from synthedge_client.divergence import recover as recover_site
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        signer = ask_steward(site, steward, passphrase_file)
        result = recover_site(site, signer)
    emit(
        result,
        as_json=json,
        render=lines(
            f"The site was {result['reason']}.",
            f"{result['sent_again']} statements are sent again; what the inbox holds is read again.",
            "Next: 'synthedge site run'.",
        ),
    )
