"""`synthedge site withdraw|withdrawals|received ...` and `suspend|resume|leave`: taking back, deleting, leaving."""

from pathlib import Path
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
    transfer_named,
)
from synthedge_client.console import emit

if TYPE_CHECKING:
    from synthedge_client.withdrawals import Withdrawal

received_app = typer.Typer(
    help="What was received; delete it, or write it to a file.", invoke_without_command=True
)

PatientOption = Annotated[
    str, typer.Option("--patient", help="The patient's id at this site; goes nowhere.")
]
ReasonOption = Annotated[
    str, typer.Option("--reason", help="Goes to the other sites; name no patient.")
]

OTHER_DONORS = (
    "Rows that other hospitals gave of the same person stay where they are: nobody but those hospitals can know "
    "them; ask the person to withdraw there too. Models trained already have not unlearned anything."
)


def mount(app: typer.Typer, *, consent: typer.Typer, peers: typer.Typer) -> None:
    """Add the commands of this module to ``synthedge site``, ``site consent`` and ``site peers``."""
    app.add_typer(received_app, name="received")
    for name, command in (
        ("withdraw", withdraw),
        ("withdrawals", withdrawals),
        ("suspend", suspend),
        ("resume", resume),
        ("leave", leave),
    ):
        app.command(name)(command)
    peers.command("forget")(peers_forget)
    consent.command("withdraw")(consent_withdraw)
    consent.command("correct")(consent_correct)


def consent_withdraw(
    patient: PatientOption,
    purpose: Annotated[
        str, typer.Option(help="Only for this DUO code; left out: for every purpose.")
    ] = "",
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take a patient's rows back: undelivered ones stay here, for delivered ones the recipients are told to purge."""
    from synthedge_client.site import open_site
    from synthedge_client.withdrawals import withdraw_patient

    with open_site(dir) as site:
        done = withdraw_patient(site, patient, purpose=purpose)
    _show(done, json, "The patient is not eligible any more.")


def consent_correct(
    patient: PatientOption, dir: FolderOption = HERE, json: JsonOption = False
) -> None:
    """Send a patient's row, as the table has it now, to every site that holds an earlier version."""
    from synthedge_client.site import open_site
    from synthedge_client.withdrawals import correct_patient

    with open_site(dir) as site:
        done = correct_patient(site, patient)
    _show(done, json, "The row goes out as the table has it now.")


def withdraw(
    id: Annotated[str, typer.Argument(help="The first digits of the transfer's id.")],
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take a whole transfer back, as its donor: the recipient must purge every row."""
    from synthedge_client.site import open_site
    from synthedge_client.withdrawals import withdraw_transfer

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        key = ask_steward(site, steward, passphrase_file)
        done = withdraw_transfer(site, transfer, key, reason)
    _show(done, json, "The whole transfer is withdrawn.")


def withdrawals(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """List withdrawals sent and taken in, overdue first, with what each recipient purged and which files held it."""
    from synthedge_client.site import open_site
    from synthedge_client.withdrawal_status import describe_withdrawals

    with open_site(dir) as site:
        entries = describe_withdrawals(site)
    emit(
        entries,
        as_json=json,
        render=table(
            "Withdrawals",
            ["id", "role", "peer", "transfer", "state", "since", "result"],
            [
                [
                    entry["notice_id"][:12],
                    entry["role"],
                    entry["peer"],
                    entry["transfer_id"][:12],
                    "OVERDUE" if entry["overdue"] else entry["state"],
                    entry["since"],
                    entry["problem"] or _result(entry["report"]),
                ]
                for entry in entries
            ],
        ),
    )


@received_app.callback()
def received(context: typer.Context, dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """List what was received: from whom, how many rows, how many of them are here now, and what the gate said."""
    if context.invoked_subcommand is not None:
        return
    from synthedge_client.site import open_site
    from synthedge_client.status import describe_transfers

    with open_site(dir) as site:
        rows = [r for r in describe_transfers(site) if r["role"] == "recipient"]
    emit(
        rows,
        as_json=json,
        render=table(
            "Received",
            ["id", "donor", "region", "rows", "here", "state", "gate"],
            [
                [
                    r["transfer_id"][:12],
                    *(r[key] for key in ("peer", "region", "rows", "rows_here", "state", "reason")),
                ]
                for r in rows
            ],
        ),
    )


@received_app.command("purge")
def received_purge(
    id: Annotated[str, typer.Argument(help="The first digits of the transfer's id.")],
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Delete every row of a received transfer; the donor is told which files were written with them."""
    from synthedge_client.purging import purge_transfer
    from synthedge_client.site import open_site
    from synthedge_client.withdrawals import report_fields

    with open_site(dir) as site:
        transfer = transfer_named(site, id)
        key = ask_steward(site, steward, passphrase_file)
        report = report_fields(purge_transfer(site, transfer, key, reason))
    emit({"transfer_id": transfer.id.hex()} | report, as_json=json, render=lines(_result(report)))


@received_app.command("export")
def received_export(
    output: Annotated[Path, typer.Option(help="Where the rows go (CSV).")],
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Write the received rows to a file; it is on record until their withdrawal or purge."""
    from synthedge_client.received_files import export_received
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        result = export_received(site, output)
    emit(
        result,
        as_json=json,
        render=lines(f"{output}: {result['received']} received rows."),
    )


def suspend(
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Pause this site: nothing new starts, what goes on waits; withdrawals and receipts go on."""
    _stand("suspend", reason, steward, passphrase_file, dir, json)


def resume(
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take part again after a pause."""
    _stand("resume", reason, steward, passphrase_file, dir, json)


def leave(
    reason: ReasonOption,
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Leave the consortium: unfinished transfers end. Let the agent run on until nothing is owed."""
    _stand("leave", reason, steward, passphrase_file, dir, json)


def peers_forget(
    peer: Annotated[str, typer.Argument(help="The other site's id.")],
    reason: Annotated[str, typer.Option("--reason", help="For the audit; stays here.")],
    steward: StewardOption,
    passphrase_file: PassphraseOption = None,
    dir: FolderOption = HERE,
    json: JsonOption = False,
) -> None:
    """Let the key of a peer go that lost its keys and enrolled anew; its new one must be compared."""
    from synthedge_client.recovery import forget_peer
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        key = ask_steward(site, steward, passphrase_file)
        forget_peer(site, peer, key, reason)
    emit(
        {"peer": peer},
        as_json=json,
        render=lines(
            f"The key of '{peer}' is let go. Run the agent, telephone that site, then 'peers verify'."
        ),
    )


def _stand(
    action: str, reason: str, steward: str, passphrase_file: Path | None, dir: Path, json: bool
) -> None:
    from synthedge_client.leaving import change_standing
    from synthedge_client.site import open_site

    with open_site(dir) as site:
        key = ask_steward(site, steward, passphrase_file)
        result = change_standing(site, action, key, reason)
    stands = "has left" if action == "leave" else f"is {result['standing']}"
    emit(
        result,
        as_json=json,
        render=lines(
            f"This site {stands} as soon as its agent has said so.",
            f"It holds rows of: {_counts(result['holds_rows_of'])}.",
            f"Its rows are at: {_counts(result['rows_held_by'])}.",
        ),
    )


def _show(done: "Withdrawal", json: bool, first: str) -> None:
    data = {
        "notices": list(done.notices),
        "recipients": list(done.recipients),
        "rows": done.rows,
        "taken_back": done.taken_back,
        "not_told": list(done.not_told),
        "note": OTHER_DONORS,
    }
    told = ", ".join(f"'{site}'" for site in done.recipients) or "nobody: nothing was delivered"
    emit(
        data,
        as_json=json,
        render=lines(
            first,
            f"{done.rows} delivered rows; told as soon as the agent runs: {told}.",
            f"{done.taken_back} transfers are taken back before their rows leave.",
            *(f"NOT told, {why}" for why in done.not_told),
            OTHER_DONORS,
        ),
    )


def _result(report: dict[str, Any] | None) -> str:
    if report is None:
        return "waits for the recipient's receipt"
    text = f"{report['rows_purged']} rows purged, {report['rows_corrected']} corrected"
    if report["rows_not_held"]:
        text += f", {report['rows_not_held']} not held any more"
    for copy in report["copies"]:
        text += f"; {copy['name']} ({copy['kind']}) held {copy['rows']} of them, {copy['state']}"
    return text


def _counts(peers: dict[str, int]) -> str:
    return ", ".join(f"'{peer}' ({n} transfers)" for peer, n in peers.items()) or "nobody"
