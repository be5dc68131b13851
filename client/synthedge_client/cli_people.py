"""`synthedge site steward|peers ...`: the people who decide, and the other sites."""

from typing import Annotated

import typer

from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
    PassphraseOption,
    lines,
    read_passphrase,
    table,
)
from synthedge_client.console import emit

steward_app = typer.Typer(
    help="The people who decide: each has a key of their own.", no_args_is_help=True
)
peers_app = typer.Typer(
    help="The other sites, and whether their keys were compared.", no_args_is_help=True
)


@steward_app.command("add")
def steward_add(
    name: Annotated[str, typer.Argument(help="The steward's name.")],
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Make a steward's key; nobody else can sign with it, the agent neither."""
    from synthedge_client import store
    from synthedge_client.site import open_site
    from synthedge_client.stewards import add_steward, require_new

    with open_site(dir) as site:
        require_new(site.settings.keys, name)
        passphrase = read_passphrase(passphrase_file, confirm=True)
        fingerprint = add_steward(site.settings.keys, name, passphrase)
        with site.store.write() as connection:
            store.record(connection, "steward added", "site", steward=name, steward_key=fingerprint)
    emit(
        {"steward": name, "fingerprint": fingerprint},
        as_json=json,
        render=lines(f"Steward '{name}' added, key {fingerprint}."),
    )


@steward_app.command("list")
def steward_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Name the stewards."""
    from synthedge_client.settings import load_settings
    from synthedge_client.stewards import list_stewards

    stewards = list_stewards(load_settings(dir).keys)
    emit(stewards, as_json=json, render=table("Stewards", ["steward"], [[s] for s in stewards]))


@steward_app.command("remove")
def steward_remove(
    name: Annotated[str, typer.Argument(help="The steward's name.")],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Delete the key of a steward who decides no more; what was signed with it stands."""
    from synthedge_client import store
    from synthedge_client.site import open_site
    from synthedge_client.stewards import list_stewards, remove_steward

    with open_site(dir) as site:
        remove_steward(site.settings.keys, name)
        with site.store.write() as connection:
            store.record(connection, "steward removed", "site", steward=name)
        left = list_stewards(site.settings.keys)
    emit(
        {"steward": name, "left": left},
        as_json=json,
        render=lines(
            f"Steward '{name}' removed. A copy of the key would still count: unless there is none, run",
            f"  synthedge site keys rotate --steward {left[0]}",
            "and sign standing policies anew ('synthedge site policies list').",
        ),
    )


@peers_app.command("list")
def peers_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Name the other sites, with the fingerprints the coordinator shows for them."""
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        peers = site.list_peers()
    emit(
        peers,
        as_json=json,
        render=table(
            "Peers",
            ["site", "fingerprint", "verified", ""],
            [
                [
                    p["site"],
                    p["fingerprint"],
                    "yes" if p["verified"] else "NO: telephone and compare",
                    f"announced: {p['pending']}; telephone and compare"
                    if p["pending"]
                    else p["problem"],
                ]
                for p in peers
            ],
        ),
    )


@peers_app.command("verify")
def peers_verify(
    peer: Annotated[str, typer.Argument(help="The other site's id.")],
    fingerprint: Annotated[
        str, typer.Argument(help="Its fingerprint as you heard it from that site itself.")
    ],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Confirm that a peer's key is the one it told you outside this system."""
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        site.verify_peer(peer, fingerprint)
    emit({"peer": peer, "verified": True}, as_json=json, render=lines(f"Site '{peer}' verified."))
