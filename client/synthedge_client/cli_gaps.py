"""`synthedge site gaps ...`: gap reports, what would leave, and which gaps were found."""

from typing import Any

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
    help="Gap reports: look, publish, and see which gaps were found.", no_args_is_help=True
)


@app.command("preview")
def gaps_preview(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show byte for byte the report that `gaps publish` sends, what is suppressed and why; nothing leaves.

    The report is drawn once and kept: looking again shows the same. Around these bytes, `publish` adds the
    consortium, this site's id, the dictionary's digest, the time, and the steward's key and signature.
    """
    from google.protobuf.json_format import MessageToDict

    from synthedge_client.releases import preview
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        shown = preview(site)
        labels = {spec.name: site.grid(spec.name) for spec in site.dictionary.grids}
    release, report = shown.release, shown.release.message
    rows = [
        [
            f"{grid.grid}/{i}",
            labels[grid.grid].label(i),
            "suppressed" if v.suppressed else f"{v.gap_score:.3f}",
            "" if v.suppressed else f"{v.density:.2f}",
            "" if v.suppressed else f"{v.positive_rate:.2f}",
            release.reasons[grid.grid][i],
        ]
        for grid in report.grids
        for i, v in enumerate(grid.voxels)
    ]
    title = (
        f"{report.disclosure} report of {len(release.report)} bytes; publishing it costs epsilon {shown.cost:g}"
        f"{'' if release.statement is None else ' (it was published before)'}"
    )
    listed = table(title, ["id", "voxel", "gap score", "density", "positive rate", "why"], rows)
    promise = lines(*_in_words(shown.guarantees), f"bytes: {release.report.hex()}")

    def render(console: Any) -> None:
        listed(console)
        promise(console)

    emit(
        {
            "published": release.statement is not None,
            "cost": shown.cost,
            "guarantees": shown.guarantees,
            "report": MessageToDict(report),
            "reasons": release.reasons,
            "bytes": release.report.hex(),
        },
        as_json=json,
        render=render,
    )


def _in_words(guarantees: dict[str, float]) -> list[str]:
    if not guarantees:
        return ["Rounded and suppressed counts; this is not differential privacy."]
    return [
        f"OpenDP bounds epsilon at {guarantees['add_or_remove']:.3g} for one patient more or fewer, "
        f"{guarantees['replace']:.3g} for one patient exchanged."
    ]


@app.command("publish")
def gaps_publish(
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign the gap report that `gaps preview` shows, and queue it; the agent sends exactly these bytes."""
    from synthedge_client.releases import publish
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = publish(site, ask_steward(site, steward, passphrase_file))
    what = "Queued" if result["new"] else "The same release, queued again at no cost"
    emit(
        result,
        as_json=json,
        render=lines(
            f"{what}: {result['voxels']} voxels, {result['report_bytes']} bytes of report, protection "
            f"{result['disclosure']}; epsilon spent {result['spent']:g} of {result['total']:g}."
        ),
    )


@app.command("budget")
def gaps_budget(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show the privacy loss spent on this dictionary, what is left, each release, and what a refresh costs."""
    from synthedge_client.releases import budget, state_in_words
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = budget(site)
    listed = table(
        f"epsilon {result['spent']:g} of {result['total']:g} spent, {result['left']:g} left",
        ["release", "published", "protection", "epsilon", "k", "known from"],
        [
            [
                r["release"],
                r["published"],
                r["disclosure"],
                f"{r['epsilon']:g}",
                r["min_count"] or "",
                r["known_from"],
            ]
            for r in result["releases"]
        ],
    )
    words = lines(state_in_words(result["report"]), *filter(None, [result["frozen"]]))

    def render(console: Any) -> None:
        listed(console)
        words(console)

    emit(result, as_json=json, render=render)


@app.command("repair")
def gaps_repair(
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take releases that only the coordinator remembers into this site's ledger, after a restore from backup."""
    from synthedge_client.ledger_check import repair
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        who = ask_steward(site, steward, passphrase_file)
        result = repair(site, who)
    emit(
        result,
        as_json=json,
        render=lines(
            f"{result['taken_in']} releases taken in; epsilon spent {result['spent']:g} of {result['total']:g}."
        ),
    )


@app.command("list")
def gaps_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show this site's gaps against the other sites' profile, why they are gaps, and who could help.

    A gap of kind 'population' is a kind of patient this site has practically none of.
    """
    from synthedge_client.gaps import awaited_in_words, list_gaps
    from synthedge_client.releases import report_state, state_in_words
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        gaps = list_gaps(site)
        state = report_state(site)
        awaited = awaited_in_words(site)
    listed = table(
        "Gaps",
        ["gap", "kind", "region", "status", "z", "expected", "here", "ask for", "donors"],
        [
            [
                g.id,
                g.kind,
                g.label,
                g.status,
                f"{g.z:.1f}",
                f"{g.expected:.1f}",
                int(g.observed),
                f"{g.rows} rows" if g.rows else "nothing",
                ", ".join(p.donor for p in g.proposals) or "nobody",
            ]
            for g in gaps
        ],
    )
    reasons = lines(
        *(f"{g.label}: {g.why}." for g in gaps), *filter(None, [awaited]), state_in_words(state)
    )

    def render(console: Any) -> None:
        listed(console)
        reasons(console)

    emit(
        [g.as_dict() for g in gaps],
        as_json=json,
        render=render,
    )
