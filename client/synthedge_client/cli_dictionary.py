"""`synthedge site dictionary ...`: the consortium's dictionary as this site knows it, and accepting a version."""

from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from synthedge_client.dictionaries import KnownDictionary
    from synthedge_core.dictionary import Feature

app = typer.Typer(
    help="The consortium's data dictionary: look, compare, accept.", no_args_is_help=True
)
VersionOption = Annotated[
    int | None, typer.Option("--version", help="Which version; the newest without it.")
]


@app.command("show")
def dictionary_show(
    version: VersionOption = None, dir: FolderOption = HERE, json: JsonOption = False
) -> None:
    """Show a version: the outcome definition, the policy, features and grids, and whether it is accepted here."""
    from synthedge_client.dictionaries import budget_in_words, choose, list_known
    from synthedge_client.site import open_site

    with open_site(dir) as site, site.store.read() as connection:
        shown = choose(connection, version)
        known = list_known(connection)
        budget = budget_in_words(connection, shown.dictionary)
    dictionary = shown.dictionary
    features = table(
        "Features",
        ["feature", "kind", "unit or levels", "plausible", "cut points", "class"],
        [_feature_row(feature) for feature in dictionary.features],
    )
    about = lines(
        f"Dictionary '{dictionary.name}', version {shown.version}, {dictionary.digest}",
        _acceptance_in_words(shown),
        *dictionary.target.in_words(),
        *dictionary.policy.in_words(),
        budget,
        "grids: " + "; ".join(f"{g.name} ({', '.join(g.features)})" for g in dictionary.grids),
        f"versions known here: {', '.join(str(one.version) for one in known)}",
    )

    def render(console: Any) -> None:
        about(console)
        features(console)

    emit(
        {
            "version": shown.version,
            "digest": dictionary.digest,
            "name": dictionary.name,
            "accepted_by": shown.accepted_by,
            "outcome": dictionary.target.in_words(),
            "outcome_digest": dictionary.target.outcome_digest,
            "policy": dictionary.policy.in_words(),
            "budget": budget,
            "features": list(dictionary.feature_names),
            "grids": [spec.name for spec in dictionary.grids],
            "versions": [one.version for one in known],
        },
        as_json=json,
        render=render,
    )


@app.command("diff")
def dictionary_diff(
    version: VersionOption = None, dir: FolderOption = HERE, json: JsonOption = False
) -> None:
    """Show what a version changes against the one this site works under."""
    from synthedge_client.dictionaries import choose, in_force
    from synthedge_client.site import open_site
    from synthedge_core.dictionary_diff import differences

    with open_site(dir) as site, site.store.read() as connection:
        old, new = in_force(connection), choose(connection, version)
    found = differences(old.dictionary, new.dictionary)
    emit(
        {"from": old.version, "to": new.version, "differences": found},
        as_json=json,
        render=lines(
            f"Version {old.version} (this site works under it) against version {new.version}:",
            *(found or ["no difference"]),
        ),
    )


@app.command("accept")
def dictionary_accept(
    steward: StewardOption,
    version: VersionOption = None,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign that this site labels its patients as the outcome definition says, and work under this version."""
    from synthedge_client.dictionaries import accept
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        key = ask_steward(site, steward, passphrase_file)
        result = accept(site, key, version)
    emit(
        result,
        as_json=json,
        render=lines(
            f"Accepted version {result['version']} of the dictionary, {result['digest'][:16]}…, and acknowledged:",
            *result["outcome"],
            result["budget"],
            "This site works under it from now on; transfers under way finish under theirs. "
            "Next: 'synthedge site doctor'.",
        ),
    )


def _acceptance_in_words(shown: "KnownDictionary") -> str:
    if shown.is_accepted:
        return f"accepted here by {shown.accepted_by}"
    return (
        "NOT accepted here: nothing is published under it before "
        "'synthedge site dictionary accept --steward NAME'"
    )


def _feature_row(feature: "Feature") -> list[str]:
    names = feature.level_names or feature.levels
    coded = zip(feature.levels, names, strict=True)
    return [
        feature.name,
        feature.kind,
        ", ".join(c if c == n else f"{c} {n}" for c, n in coded) or feature.unit,
        f"{feature.plausible[0]:g} to {feature.plausible[1]:g}" if feature.plausible else "",
        ", ".join(f"{edge:g}" for edge in feature.cut_points),
        feature.privacy or "none: never leaves",
    ]
