"""`synthedge site gaps ...`: gap reports, what would leave, and which gaps were found."""

import typer

from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
    PassphraseOption,
    StewardOption,
    lines,
    read_passphrase,
    table,
)
from synthedge_client.console import emit

app = typer.Typer(
    help="Gap reports: look, publish, and see which gaps were found.", no_args_is_help=True
)


@app.command("preview")
def gaps_preview(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show byte for byte what `gaps publish` would send; nothing leaves."""
    from google.protobuf.json_format import MessageToDict

    from synthedge_client.releases import preview
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        report, is_stored = preview(site)
        labels = {spec.name: site.grid(spec.name) for spec in site.dictionary.grids}
    rows = [
        [
            f"{grid.grid}/{i}",
            labels[grid.grid].label(i),
            "suppressed" if v.suppressed else f"{v.gap_score:.3f}",
            "" if v.suppressed else f"{v.density:.2f}",
            "" if v.suppressed else f"{v.positive_rate:.2f}",
        ]
        for grid in report.grids
        for i, v in enumerate(grid.voxels)
    ]
    title = (
        f"{'The stored release' if is_stored else 'A draw as a release would be; publishing draws anew'}: "
        f"{report.disclosure}, epsilon {report.epsilon:g}, {report.ByteSize()} bytes"
    )
    emit(
        {
            "stored": is_stored,
            "report": MessageToDict(report),
            "bytes": report.SerializeToString().hex(),
        },
        as_json=json,
        render=table(title, ["id", "voxel", "gap score", "density", "positive rate"], rows),
    )


@app.command("publish")
def gaps_publish(
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign the gap report and queue it; the agent sends exactly these bytes."""
    from synthedge_client.keystore import open_steward
    from synthedge_client.releases import publish
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = publish(
            site, open_steward(site.settings.keys, steward, read_passphrase(passphrase_file))
        )
    what = "Queued" if result["new"] else "The same release, queued again at no cost"
    emit(
        result,
        as_json=json,
        render=lines(
            f"{what}: {result['voxels']} voxels, {result['bytes']} bytes, protection {result['disclosure']}; "
            f"epsilon spent {result['spent']:g} of {result['total']:g}."
        ),
    )


@app.command("budget")
def gaps_budget(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show the privacy loss spent on this dictionary, and what is left."""
    from synthedge_client.releases import budget
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = budget(site)
    emit(
        result,
        as_json=json,
        render=lines(
            f"{result['releases']} releases, epsilon {result['spent']:g} of {result['total']:g} spent."
        ),
    )


@app.command("list")
def gaps_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show this site's gaps against the other sites' profile, and who could help."""
    from synthedge_client.gaps import list_gaps
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        gaps = list_gaps(site)
    emit(
        [g.as_dict() for g in gaps],
        as_json=json,
        render=table(
            "Gaps",
            ["gap", "region", "status", "z", "expected", "here", "donors"],
            [
                [
                    g.id,
                    g.label,
                    g.status,
                    f"{g.z:.1f}",
                    f"{g.expected:.1f}",
                    int(g.observed),
                    ", ".join(p.donor for p in g.proposals) or "nobody",
                ]
                for g in gaps
            ],
        ),
    )
