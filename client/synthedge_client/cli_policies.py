"""`synthedge site policies ...`: what stewards let the site do without asking again."""

from datetime import date
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
    table,
)
from synthedge_client.console import emit

app = typer.Typer(
    help="Standing policies: decisions a steward makes once, in advance.", no_args_is_help=True
)

PolicyArgument = Annotated[str, typer.Argument(help="The first digits of the policy's id.")]


@app.command("add")
def policies_add(
    may: Annotated[
        list[str],
        typer.Option(
            help="What the site may do: request (confirmed holes), approve, accept; repeat."
        ),
    ],
    peer: Annotated[list[str], typer.Option(help="With which site; repeat.")],
    purpose: Annotated[list[str], typer.Option(help="Data Use Ontology code; repeat.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows at most, per peer and period.")],
    valid_until: Annotated[str, typer.Option(help="The last day, YYYY-MM-DD.")],
    steward: StewardOption,
    period_days: Annotated[int, typer.Option(min=1, help="Length of the period.")] = 30,
    feature: Annotated[
        list[str] | None, typer.Option(help="Feature that may leave; repeat. All, if left out.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="A grid, or a gap's id; repeat. Every region, if left out."),
    ] = None,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign a policy. The agent carries it out from now on; whatever it does not cover waits for a steward."""
    from synthedge_client.policies import add_policy
    from synthedge_client.policy_words import end_of_day_ms, regions_named
    from synthedge_client.site import open_site
    from synthedge_core.errors import UsageError
    from synthedge_protocols.v1.statements_pb2 import StandingPolicy

    try:
        last_day = date.fromisoformat(valid_until)
    except ValueError:
        raise UsageError(f"'{valid_until}' is no day; write YYYY-MM-DD") from None
    with open_site(dir) as site:
        body = StandingPolicy(
            acts=may,
            peers=peer,
            purposes=purpose,
            features=feature or [f.name for f in site.dictionary.features if f.is_shareable],
            rows=rows,
            period_days=period_days,
            regions=regions_named(site, region or []),
            valid_until_ms=end_of_day_ms(last_day),
        )
        key = ask_steward(site, steward, passphrase_file)
        identifier, is_in_force = add_policy(site, key, body)
    said = "in force" if is_in_force else "in force once another steward signs it: policies sign"
    emit(
        {"policy": identifier.hex(), "in_force": is_in_force},
        as_json=json,
        render=lines(f"Policy {identifier.hex()[:12]} signed; {said}."),
    )


@app.command("list")
def policies_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """List the policies."""
    from synthedge_client.policies import list_policies
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        found = list_policies(site)
    emit(
        found,
        as_json=json,
        render=table(
            "Standing policies",
            ["id", "may", "peers", "purposes", "rows", "regions", "until", ""],
            [
                [
                    p["policy"][:12],
                    ", ".join(p["may"]),
                    ", ".join(p["peers"]),
                    ", ".join(p["purposes"]),
                    f"{p['rows']} in {p['period_days']} days",
                    ", ".join(p["regions"]) or "all",
                    p["valid_until"],
                    p["problem"],
                ]
                for p in found
            ],
        ),
    )


@app.command("sign")
def policies_sign(
    id: PolicyArgument,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign a policy as the second of two stewards, or anew after new keys or a new dictionary."""
    from synthedge_client.policies import countersign, list_policies
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        key = ask_steward(site, steward, passphrase_file)
        identifier = countersign(site, key, id)
        (policy,) = [p for p in list_policies(site) if p["policy"] == identifier.hex()]
    said = "Signed; " + (policy["problem"] or "it is in force") + "."
    emit(
        {"policy": identifier.hex(), "problem": policy["problem"]}, as_json=json, render=lines(said)
    )


@app.command("remove")
def policies_remove(
    id: PolicyArgument,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """End a policy at once."""
    from synthedge_client.policies import remove_policy
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        key = ask_steward(site, steward, passphrase_file)
        identifier = remove_policy(site, key, id)
    emit({"policy": identifier.hex()}, as_json=json, render=lines("Removed."))
