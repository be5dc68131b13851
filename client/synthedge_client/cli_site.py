"""`synthedge site ...`: the commands of a hospital's site. Each opens the site's folder, does one thing, and ends."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthedge_client.console import emit, note

if TYPE_CHECKING:
    from synthedge_client.site import Site
    from synthedge_client.transfers import Transfer

app = typer.Typer(
    help="A hospital's site: keys, gaps, requests, transfers, audit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
steward_app = typer.Typer(
    help="The people who decide: each has a key of their own.", no_args_is_help=True
)
peers_app = typer.Typer(
    help="The other sites, and whether their keys were compared.", no_args_is_help=True
)
gaps_app = typer.Typer(
    help="Gap reports: look, publish, and see which gaps were found.", no_args_is_help=True
)
requests_app = typer.Typer(help="Requests for samples, made and received.", no_args_is_help=True)
audit_app = typer.Typer(help="What happened at this site.", no_args_is_help=True)
app.add_typer(steward_app, name="steward")
app.add_typer(peers_app, name="peers")
app.add_typer(gaps_app, name="gaps")
app.add_typer(requests_app, name="requests")
app.add_typer(audit_app, name="audit")

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


def _passphrase(file: Path | None, *, confirm: bool = False) -> bytes:
    from synthedge_core.errors import UsageError

    if file is None:
        text: str = typer.prompt(
            "Passphrase", hide_input=True, confirmation_prompt=confirm, err=True
        )
        return text.encode()
    if not file.is_file():
        raise UsageError(
            f"there is no passphrase file {file}; name one, or leave the option out to be asked"
        )
    return file.read_bytes().rstrip(b"\r\n")


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> Any:
    def render(console: Any) -> None:
        from rich.table import Table

        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        console.print(table if rows else f"{title}: none")

    return render


def _in_lines(value: Any) -> Any:
    """A list or mapping as lines of text."""
    if isinstance(value, dict):
        value = [f"{key} {item}" for key, item in value.items()]
    return "\n".join(value) or "none" if isinstance(value, list) else value


def _lines(*lines: str) -> Any:
    return lambda console: [console.print(line, soft_wrap=True) for line in lines]


def _find_transfer(site: "Site", typed: str) -> "Transfer":
    from synthedge_client.transfers import find_transfer

    with site.store.read() as connection:
        return find_transfer(connection, typed)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The site's folder; made if it is not there.")],
    id: Annotated[
        str, typer.Option("--id", help="The site's id: lower-case letters, digits, hyphens.")
    ],
    data: Annotated[Path, typer.Option(help="The table of patients.")],
    patient_id: Annotated[str, typer.Option(help="Column that tells patients apart.")],
    consent: Annotated[
        str, typer.Option(help="Column that says 'active' where a patient consents.")
    ],
    json: JsonOption = False,
) -> None:
    """Make a site's folder with its keys and site.toml."""
    from synthedge_client.site import create_site

    fingerprint = create_site(folder, id=id, data=data, patient_id=patient_id, consent=consent)
    emit(
        {"site": id, "folder": str(folder), "fingerprint": fingerprint},
        as_json=json,
        render=_lines(
            f"Site '{id}' made in {folder}; its keys are in {folder / 'keys'}.",
            f"Fingerprint: {fingerprint}",
            f"Next: describe your columns in {folder / 'site.toml'}, add a steward, enrol.",
        ),
    )


@steward_app.command("add")
def steward_add(
    name: Annotated[str, typer.Argument(help="The steward's name.")],
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Make a steward's key; nobody else can sign with it, the agent neither."""
    from synthedge_client.keystore import add_steward
    from synthedge_client.settings import load_settings

    fingerprint = add_steward(
        load_settings(dir).keys, name, _passphrase(passphrase_file, confirm=True)
    )
    emit(
        {"steward": name, "fingerprint": fingerprint},
        as_json=json,
        render=_lines(f"Steward '{name}' added, key {fingerprint}."),
    )


@steward_app.command("list")
def steward_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Name the stewards."""
    from synthedge_client.keystore import list_stewards
    from synthedge_client.settings import load_settings

    stewards = list_stewards(load_settings(dir).keys)
    emit(stewards, as_json=json, render=_table("Stewards", ["steward"], [[s] for s in stewards]))


@app.command()
def enrol(
    token_file: Annotated[Path, typer.Option(help="File with the operator's one-time token.")],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Join a consortium with a one-time token; sends public keys, receives a certificate and the dictionary."""
    from synthedge_client.enrolment import enrol_site

    result = enrol_site(dir, token_file)
    emit(
        result,
        as_json=json,
        render=_lines(
            f"Enrolled in '{result['consortium']}' as '{result['site']}'; "
            f"certificate until {result['certificate_expires']}.",
            f"Dictionary '{result['dictionary']}' {result['dictionary_digest'][:16]}…: "
            f"{result['target_definition']}",
            "Next: 'synthedge site doctor', then 'synthedge site run' in the background.",
        ),
    )


@app.command()
def fingerprint(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show this site's key fingerprint: read it to the other sites by telephone."""
    from synthedge_client.site import site_fingerprint

    text = site_fingerprint(dir)
    emit({"fingerprint": text}, as_json=json, render=_lines(text))


@app.command()
def doctor(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Check the table, its mapping to the dictionary and the connection; list every problem at once."""
    from synthedge_client.doctor import examine

    findings = examine(dir)
    emit(
        {"findings": [vars(f) for f in findings]},
        as_json=json,
        render=_table(
            "Findings",
            ["", "about", "found", "rows"],
            [
                ["stop" if f.stops else "note", f.about, f.found, "" if f.rows is None else f.rows]
                for f in findings
            ],
        ),
    )
    if any(f.stops for f in findings):
        raise typer.Exit(4)


@app.command()
def status(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show what waits, and for whom."""
    from synthedge_client.site import open_site
    from synthedge_client.status import summarise

    with open_site(dir) as site:
        summary = summarise(site)
    emit(
        summary,
        as_json=json,
        render=_table(
            "Status",
            ["", ""],
            [[key.replace("_", " "), _in_lines(value)] for key, value in summary.items()],
        ),
    )


@app.command()
def run(
    once: Annotated[bool, typer.Option("--once", help="Exchange what waits, then end.")] = False,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Run the agent: it sends what was decided, takes in what arrives, and ships sealed samples."""
    import logging
    import sys

    from synthedge_client import agent
    from synthedge_client.site import open_site
    from synthedge_client.status import summarise

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    with open_site(dir) as site, agent.agent_lock(site):
        connection = site.connect()
        if once:
            try:
                agent.run_once(site, connection)
            finally:
                connection.close()
            problems = summarise(site)["problems"]
            emit(
                {"done": True, "problems": problems},
                as_json=json,
                render=_lines(
                    "Exchanged everything that could be.",
                    *(f"Transfer {id}: {problem}" for id, problem in problems.items()),
                ),
            )
            return
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        note(f"agent of site '{site.settings.id}' runs; Ctrl-C stops it")
        agent.run_forever(site, connection, stop)


@peers_app.command("list")
def peers_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Name the other sites, with the fingerprints the coordinator shows for them."""
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        peers = site.list_peers()
    emit(
        peers,
        as_json=json,
        render=_table(
            "Peers",
            ["site", "fingerprint", "verified", ""],
            [
                [
                    p["site"],
                    p["fingerprint"],
                    "yes" if p["verified"] else "NO: telephone and compare",
                    p["problem"],
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
    emit({"peer": peer, "verified": True}, as_json=json, render=_lines(f"Site '{peer}' verified."))


@gaps_app.command("preview")
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
        render=_table(title, ["id", "voxel", "gap score", "density", "positive rate"], rows),
    )


@gaps_app.command("publish")
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
            site, open_steward(site.settings.keys, steward, _passphrase(passphrase_file))
        )
    what = "Queued" if result["new"] else "The same release, queued again at no cost"
    emit(
        result,
        as_json=json,
        render=_lines(
            f"{what}: {result['voxels']} voxels, {result['bytes']} bytes, protection {result['disclosure']}; "
            f"epsilon spent {result['spent']:g} of {result['total']:g}."
        ),
    )


@gaps_app.command("budget")
def gaps_budget(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show the privacy loss spent on this dictionary, and what is left."""
    from synthedge_client.releases import budget
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = budget(site)
    emit(
        result,
        as_json=json,
        render=_lines(
            f"{result['releases']} releases, epsilon {result['spent']:g} of {result['total']:g} spent."
        ),
    )


@gaps_app.command("list")
def gaps_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show this site's gaps against the other sites' profile, and who could help."""
    from synthedge_client.gaps import list_gaps
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        gaps = list_gaps(site)
    emit(
        [g.as_dict() for g in gaps],
        as_json=json,
        render=_table(
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


@requests_app.command("new")
def requests_new(
    gap: Annotated[
        str, typer.Argument(help="A gap's id from 'gaps list', or a voxel's from 'gaps preview'.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="How many samples at the most.")],
    purpose: Annotated[str, typer.Option(help="Data Use Ontology code, for example DUO:0000007.")],
    steward: StewardOption,
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
    from synthedge_client.keystore import open_steward
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        region = choose_region(site, gap, donor)
        transfer_id = request(
            site,
            open_steward(site.settings.keys, steward, _passphrase(passphrase_file)),
            donor=region.donor,
            grid=region.grid,
            voxel=region.voxel,
            rows=rows,
            purpose=purpose,
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
        render=_lines(
            f"Request {transfer_id.hex()[:12]} to '{region.donor}' signed and queued: at most {rows} positives, "
            f"{region.grid.label(region.voxel)}.",
            f"Why there: {region.reason}",
        ),
    )


@requests_app.command("list")
def requests_list(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """List all requests and transfers of this site."""
    from synthedge_client.site import open_site
    from synthedge_client.status import describe_transfers

    with open_site(dir) as site:
        rows = describe_transfers(site)
    emit(
        rows,
        as_json=json,
        render=_table(
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


@requests_app.command("show")
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
        render=_table("Request", ["", ""], [[k.replace("_", " "), v] for k, v in details.items()]),
    )


@requests_app.command("prepare")
def requests_prepare(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Select rows and show exactly what would leave. Nothing leaves."""
    from synthedge_client.donating import prepare
    from synthedge_client.site import open_site
    from synthedge_protocols.v1.statements_pb2 import Manifest, SampleBatch

    with open_site(dir) as site:
        transfer = _find_transfer(site, id)
        payload = prepare(site, transfer, "steward")
    features = list(Manifest.FromString(payload.manifest).features)
    rows = [list(sample.values) for sample in SampleBatch.FromString(payload.samples).samples]
    emit(
        {"transfer_id": transfer.id.hex(), "features": features, "rows": rows},
        as_json=json,
        render=_table(
            f"Exactly these {len(rows)} rows would go to '{transfer.peer}' (shown here only)",
            features,
            [["" if value != value else f"{value:g}" for value in row] for row in rows],
        ),
    )


@requests_app.command("approve")
def requests_approve(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Sign the prepared rows; the agent seals and ships them."""
    from synthedge_client.donating import approve
    from synthedge_client.keystore import open_steward
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        transfer = _find_transfer(site, id)
        approve(
            site, transfer, open_steward(site.settings.keys, steward, _passphrase(passphrase_file))
        )
    emit(
        {"transfer_id": transfer.id.hex(), "rows": transfer.rows},
        as_json=json,
        render=_lines(f"Approved: {transfer.rows} rows go sealed to '{transfer.peer}'."),
    )


@requests_app.command("decline")
def requests_decline(
    id: Annotated[str, typer.Argument(help="The first digits of the id.")],
    reason: Annotated[str, typer.Option(help="Goes to the other side; name no patient.")],
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Decline a request."""
    from synthedge_client.donating import decline
    from synthedge_client.keystore import open_steward
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        transfer = _find_transfer(site, id)
        decline(
            site,
            transfer,
            open_steward(site.settings.keys, steward, _passphrase(passphrase_file)),
            reason,
        )
    emit({"transfer_id": transfer.id.hex()}, as_json=json, render=_lines("Declined."))


@app.command()
def received(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """List what was received: from whom, how many rows, and what the gate said."""
    from synthedge_client.site import open_site
    from synthedge_client.status import describe_transfers

    with open_site(dir) as site:
        rows = [r for r in describe_transfers(site) if r["role"] == "recipient"]
    emit(
        rows,
        as_json=json,
        render=_table(
            "Received",
            ["id", "donor", "region", "rows", "state", "gate"],
            [
                [r["transfer_id"][:12], r["peer"], r["region"], r["rows"], r["state"], r["reason"]]
                for r in rows
            ],
        ),
    )


@app.command()
def fill(
    output: Annotated[Path, typer.Option(help="Where the filled table goes (CSV).")],
    seed: Annotated[int, typer.Option(help="Makes the synthetic rows repeatable.")] = 0,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Write own rows, received rows and synthetic rows around them; the column _origin tells them apart."""
    from synthedge_client.site import open_site
    from synthedge_client.site_fill import fill_site

    with open_site(dir) as site:
        result = fill_site(site, output, seed)
    emit(
        result,
        as_json=json,
        render=_lines(
            f"{output}: {result['observed']} own rows, {result['received']} received, "
            f"{result['synthetic']} synthetic.",
            *result["notes"],
        ),
    )


@audit_app.command("report")
def audit_report(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Show which gaps were found, what left, what was received, and who decided."""
    from synthedge_client import audit
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        report = audit.collect(site)
    emit(report, as_json=json, render=lambda console: audit.render(report, console))
