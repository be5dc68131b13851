"""`synthedge site keys ...`: new keys, and a passphrase for the ones there are."""

from pathlib import Path
from typing import Annotated

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

app = typer.Typer(help="The site's own keys: change or protect them.", no_args_is_help=True)


@app.command()
def rotate(
    steward: StewardOption,
    sealing_only: Annotated[
        bool,
        typer.Option(
            "--sealing-only",
            help="Keep the statement key and its fingerprint; make a new sealing key only.",
        ),
    ] = False,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Make new keys; the old key signs them, and open transfers finish under the old ones."""
    from synthedge_client.policies import list_policies
    from synthedge_client.rotation import rotate as make_new
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        key = ask_steward(site, steward, passphrase_file)
        made = make_new(site, key, sealing_only=sealing_only)
        lapsed = [p for p in list_policies(site) if p["problem"]]
    told = (
        ["The statement key stays; peers take the new sealing key by themselves."]
        if sealing_only
        else [
            f"New fingerprint: {made['fingerprint']}",
            "Telephone every peer: nothing new goes to or from this site until a person there has run",
            f"'synthedge site peers verify {site.settings.id} {made['fingerprint']}'.",
        ]
    )
    emit(
        made | {"policies_not_in_force": [p["policy"] for p in lapsed]},
        as_json=json,
        render=lines(
            *told,
            "The agent announces it; open transfers finish under the old keys.",
            *(f"Standing policy {p['policy'][:12]}: {p['problem']}" for p in lapsed),
        ),
    )


@app.command()
def protect(
    passphrase_file: Annotated[
        Path,
        typer.Option(
            help="File with the passphrase, mode 0600, outside the site's folder; read at every start."
        ),
    ],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Encrypt the secret that opens the site's keys and records under a passphrase kept elsewhere."""
    from synthedge_client.keystore import protect_secret
    from synthedge_client.settings import load_settings

    keys = load_settings(dir).keys
    protect_secret(keys, passphrase_file)
    emit(
        {"protected": True, "passphrase_file": str(passphrase_file.absolute())},
        as_json=json,
        render=lines(
            f"The keys in {keys} open only where {passphrase_file.absolute()} can be read.",
            "Without that passphrase they are lost: keep a copy of it on paper, in a safe.",
        ),
    )
