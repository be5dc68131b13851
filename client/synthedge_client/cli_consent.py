"""`synthedge site consent ...`: what this site's patients consent to."""

import typer

from synthedge_client.cli_options import HERE, FolderOption, JsonOption, table
from synthedge_client.console import emit

app = typer.Typer(help="What this site's patients consent to.", no_args_is_help=True)


@app.command("status")
def consent_status(dir: FolderOption = HERE, json: JsonOption = False) -> None:
    """Count patients by what they said, and by what they consent to today. Shown here only."""
    from synthedge_client.consent import count_consents
    from synthedge_client.site import open_site
    from synthedge_client.site_table import load_site_table

    with open_site(dir) as site:
        rows = load_site_table(site.settings, site.dictionary)
    counts = count_consents(rows.consents, rows.patient_ids)
    emit(
        counts,
        as_json=json,
        render=table(
            f"Consents of {counts['patients']} patients",
            ["", "patients"],
            [
                *([said, n] for said, n in counts["status"].items()),
                *([f"consent to {purpose}", n] for purpose, n in counts["purposes"].items()),
            ],
        ),
    )
