"""`synthedge site requests ...`: requests for samples, made and received."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client.cli_options import (
    HERE,
    FolderOption,
    JsonOption,
    PassphraseOption,
    StewardOption,
    ask_steward,
    in_lines,
    lines,
    table,
    transfer_named,
)
from synthedge_client.console import emit

if TYPE_CHECKING:
    from synthedge_core.dictionary import Feature

ReasonOption = Annotated[str, typer.Option(help="Goes to the other side; name no patient.")]

app = typer.Typer(help="Requests for samples, made and received.", no_args_is_help=True)


@app.command("new")
def requests_new(
    gap: Annotated[
        str, typer.Argument(help="A gap's id from 'gaps list', or a voxel's from 'gaps preview'.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="How many samples at the most.")],
    purpose: Annotated[str, typer.Option(help="Data Use Ontology code, for example DUO:0000007.")],
    steward: StewardOption,
    accept_if_gate_passes: Annotated[
        bool,
        typer.Option(
            "--accept-if-gate-passes",
            help="Take the rows in once the gate lets them pass, without 'requests accept'.",
        ),
    ] = False,
    donor: Annotated[
        str | None, typer.Option(help="Ask this site, instead of the best match not asked yet.")
    ] = None,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign a request for samples of a gap's region. The coordinator and the donor learn the region."""
    from synthedge_client.asking import request
    from synthedge_client.gaps import choose_region
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        region = choose_region(site, gap, donor)
        transfer_id = request(
            site,
            ask_steward(site, steward, passphrase_file),
            donor=region.donor,
            grid=region.grid,
            voxel=region.voxel,
            rows=rows,
            purpose=purpose,
            accept_if_gate_passes=accept_if_gate_passes,
        )
    emit(
        {
            "transfer_id": transfer_id.hex(),
            "donor": region.donor,
            "region": region.grid.label(region.voxel),
            "rows": rows,
            "reason": region.reason,
        },
        as_json=json,
        render=lines(
            f"Request {transfer_id.hex()[:12]} to '{region.donor}' signed and queued: at most {rows} positives, "
            f"{region.grid.label(region.voxel)}.",
            f"Why there: {region.reason}",
        ),
    )


@app.command("list")
def requests_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """List all requests and transfers of this site."""
    from synthedge_client.site import open_site
    from synthedge_client.status import describe_transfers

    with open_site(dir) as site:
        rows = describe_transfers(site)
    emit(
        rows,
        as_json=json,
        render=table(
            "Requests and transfers",
            ["id", "role", "peer", "region", "rows", "state", "waits for, or why"],
            [
                [
                    r["transfer_id"][:12],
                    r["role"],
                    r["peer"],
                    r["region"],
                    r["rows"],
                    r["state"],
                    r["problem"] or r["waits_for"] or r["reason"],
                ]
                for r in rows
            ],
        ),
    )


@app.command("show")
def requests_show(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show one request: who asks, why, which region and features, how many, and how many patients are eligible."""
    from synthedge_client.site import open_site
    from synthedge_client.status import describe_request

    with open_site(dir) as site:
        details = describe_request(site, id)
    emit(
        details,
        as_json=json,
        render=table(
            "Request", ["", ""], [[k.replace("_", " "), in_lines(v)] for k, v in details.items()]
        ),
    )


@app.command("prepare")
def requests_prepare(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Select rows and show exactly what would leave. Nothing leaves."""
    import numpy as np

    from synthedge_client.deidentify import uniqueness_in_words
    from synthedge_client.donating import prepare
    from synthedge_client.site import open_site
    from synthedge_protocols.v1.statements_pb2 import Manifest, SampleBatch

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        payload = prepare(site, transfer, "steward")
        manifest = Manifest.FromString(payload.manifest)
        features = list(manifest.features)
        rows = [list(sample.values) for sample in SampleBatch.FromString(payload.samples).samples]
        dictionary = site.under(transfer.dictionary_digest).dictionary
        unique = uniqueness_in_words(np.array(rows), dictionary, features)
    shown = table(
        f"Exactly these {len(rows)} rows would go to '{transfer.peer}' (shown here only)",
        features,
        [
            [_as_kept(dictionary.feature(f), v) for f, v in zip(features, row, strict=True)]
            for row in rows
        ],
    )
    notes = [*(f"{line}." for line in unique), "They are pseudonymised personal data."]
    if manifest.coarsened:
        notes.append(f"Coarsened to the dictionary's intervals: {', '.join(manifest.coarsened)}.")

    def render(console: Any) -> None:
        shown(console)
        lines(*notes)(console)

    emit(
        {
            "transfer_id": transfer.id.hex(),
            "features": features,
            "rows": rows,
            "unique": unique,
            "coarsened": list(manifest.coarsened),
        },
        as_json=json,
        render=render,
    )


def _as_kept(feature: "Feature", value: float) -> str:
    """A value as tables of the consortium have it: levels travel by their number, and are read by their code."""
    if value != value:
        return ""
    return feature.levels[int(value)] if feature.has_levels else f"{value:g}"


@app.command("approve")
def requests_approve(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign the prepared rows; the agent seals and ships them."""
    from synthedge_client.donating import approve
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        is_complete = approve(
            site,
            transfer,
            ask_steward(site, steward, passphrase_file),
        )
    emit(
        {"transfer_id": transfer.id.hex(), "rows": transfer.rows, "complete": is_complete},
        as_json=json,
        render=lines(
            f"Approved: {transfer.rows} rows go sealed to '{transfer.peer}'."
            if is_complete
            else "Signed. Another steward has to approve too before anything leaves."
        ),
    )


@app.command("decline")
def requests_decline(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Decline a request."""
    from synthedge_client.donating import decline
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        decline(
            site,
            transfer,
            ask_steward(site, steward, passphrase_file),
            reason,
        )
    emit({"transfer_id": transfer.id.hex()}, as_json=json, render=lines("Declined."))


@app.command("accept")
def requests_accept(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take in a delivery that passed the gate ('requests show' says what the gate found); the receipt is signed."""
    from synthedge_client.accepting import accept
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        accept(
            site,
            transfer,
            ask_steward(site, steward, passphrase_file),
        )
    emit(
        {"transfer_id": transfer.id.hex(), "rows": transfer.rows},
        as_json=json,
        render=lines(f"Accepted: {transfer.rows} rows from '{transfer.peer}' are active."),
    )


@app.command("refuse")
def requests_refuse(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Delete a delivery that passed the gate, and say so to the donor."""
    from synthedge_client.accepting import refuse
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        refuse(
            site,
            transfer,
            ask_steward(site, steward, passphrase_file),
            reason,
        )
    emit(
        {"transfer_id": transfer.id.hex()},
        as_json=json,
        render=lines("Refused; the rows are deleted."),
    )


@app.command("cancel")
def requests_cancel(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Call a transfer off: the recipient until it is delivered, the donor after its approval."""
    from synthedge_client.cancelling import cancel
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        cancel(
            site,
            transfer,
            ask_steward(site, steward, passphrase_file),
            reason,
        )
    emit(
        {"transfer_id": transfer.id.hex()},
        as_json=json,
        render=lines("Cancelled; the other side is told."),
    )
