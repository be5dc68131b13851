"""`synthedge-coordinator dictionary ...`: draft, check, set and show the consortium's data dictionary."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from synthedge_server.console import emit, table
from synthedge_server.folder import CoordinatorFolder

app = typer.Typer(
    help="The consortium's data dictionary: draft, check, set, show.", no_args_is_help=True
)

Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
HERE = Path()


@app.command()
def init(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A public cohort's table, CSV; never a member's own patients."),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(
            "--from-public", help="One that comes along: cardiovascular, diabetes or heart."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The label's column in the table of --from.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the draft goes; stdout without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draft a consortium.toml from a public cohort's table, or take one that comes with the package.

    Reference values (centre, scale, cut points, ranges) must come from a public cohort or the literature, never from
    one member's patients: every site's reports would then be told in that member's terms. A draft from a table leaves
    units, definitions and privacy classes for people to fill in; 'dictionary check' names what is left.
    """
    import sys

    from synthedge_core.errors import UsageError
    from synthedge_core.public_dictionaries import public_dictionary

    if (source is None) == (public is None):
        raise UsageError(
            "name a table with --from, or a dictionary that comes along with --from-public"
        )
    if source is None:
        if target is not None:
            raise UsageError("--target belongs to --from; a public dictionary has its own target")
        text, to_fill_in = public_dictionary(public or ""), []
    else:
        from synthedge_core.dictionary_draft import draft_dictionary
        from synthedge_server.csv_columns import read_columns

        draft = draft_dictionary(source.stem, read_columns(source), target=target)
        text, to_fill_in = draft.toml, list(draft.to_fill_in)
        sys.stderr.write(
            "note: reference values must come from a public cohort or the literature, never from one member's "
            "patients; counts below 5, lowest and highest values of the table are not in the draft\n"
        )
    if output is not None:
        if output.exists():
            raise UsageError(f"{output} exists; name a new file with --output")
        try:
            output.write_text(text, "utf-8")
        except OSError as error:
            raise UsageError(f"{output} cannot be written: {error.strerror}") from None
    emit(
        {"toml": text, "file": None if output is None else str(output), "to_fill_in": to_fill_in},
        text.rstrip() if output is None else _written(output, to_fill_in),
        as_json=as_json,
    )


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="consortium.toml")], as_json: Json = False
) -> None:
    """List every problem of a dictionary file at once (exit code 4), or what it says if there is none."""
    from synthedge_core.dictionary import parse_dictionary
    from synthedge_core.grids import NamedGrid
    from synthedge_server.operations import read_dictionary_file

    dictionary = parse_dictionary(read_dictionary_file(file))
    hints = [
        f"feature '{f.name}' has no privacy class that leaves a site; no transfer holds it"
        for f in dictionary.features
        if not f.is_shareable
    ]
    if not dictionary.grids:
        hints.append("there are no grids; sites have nothing to report")
    if not (dictionary.target.time_window and dictionary.target.exclusions):
        hints.append(
            "target: time_window and exclusions complete the outcome definition; say 'none' where there is none"
        )
    grids = {g.name: NamedGrid(dictionary, g).n_voxels for g in dictionary.grids}
    emit(
        {
            "digest": dictionary.digest,
            "features": len(dictionary.features),
            "grids": grids,
            "hints": hints,
        },
        "\n".join(
            [
                f"valid: {len(dictionary.features)} features, digest {dictionary.digest}",
                *(f"grid '{name}': {n} voxels" for name, n in grids.items()),
                *dictionary.target.in_words(),
                *dictionary.policy.in_words(),
                *(f"hint: {hint}" for hint in hints),
            ]
        ),
        as_json=as_json,
    )


@app.command("set")
def set_version(
    file: Annotated[Path, typer.Argument(help="consortium.toml")],
    folder: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Make a dictionary the current one: every site is told and must accept it before it publishes again.

    A running coordinator takes it up at once. Reports made under earlier versions are not used any more; transfers
    under way finish under the version they were requested with.
    """
    from synthedge_core.dictionary import parse_dictionary
    from synthedge_core.dictionary_diff import differences
    from synthedge_server import dictionaries
    from synthedge_server.operations import change, current_dictionary, read_dictionary_file

    text = read_dictionary_file(file)
    where = CoordinatorFolder(folder)
    before = parse_dictionary(current_dictionary(where))
    version = change(where, lambda t: dictionaries.add(t, text))
    found = differences(before, parse_dictionary(text))
    emit(
        {"version": version.version, "digest": version.digest.hex(), "differences": found},
        "\n".join(
            [
                f"version {version.version} of the dictionary is set, {version.digest.hex()}",
                *found,
                "every site is told through its inbox; 'synthedge-coordinator dictionary show' tells who accepted",
            ]
        ),
        as_json=as_json,
    )


@app.command()
def show(
    version: Annotated[
        int | None, typer.Option("--version", help="Which version; the current one without it.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="List all versions instead of showing one.")
    ] = False,
    folder: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Print a version's text and which sites have accepted it, or all versions."""
    from synthedge_server import dictionaries
    from synthedge_server.operations import reading

    with reading(CoordinatorFolder(folder)) as engine, engine.connect() as connection:
        if history:
            data = [
                {
                    "version": known.version,
                    "digest": known.digest.hex(),
                    "set_at": _time(known.set_at_ms),
                    "accepted_by": [
                        row["site"]
                        for row in dictionaries.acceptances(connection, known.digest)
                        if row["accepted_at_ms"] is not None
                    ],
                }
                for known in dictionaries.history(connection)
            ]
            emit(data, _history_table(data), as_json=as_json)
            return
        shown = dictionaries.find(connection, version)
        sites = [
            {
                "site": row["site"],
                "steward": row["steward"],
                "accepted_at": None
                if row["accepted_at_ms"] is None
                else _time(row["accepted_at_ms"]),
            }
            for row in dictionaries.acceptances(connection, shown.digest)
        ]
    emit(
        {
            "version": shown.version,
            "digest": shown.digest.hex(),
            "toml": shown.toml,
            "accepted": sites,
        },
        "\n".join(
            [
                shown.toml.rstrip(),
                "",
                f"# version {shown.version}, set {_time(shown.set_at_ms)}, {shown.digest.hex()}",
                *(f"# {_acceptance(row)}" for row in sites),
            ]
        ),
        as_json=as_json,
    )


def _acceptance(row: dict[str, Any]) -> str:
    if row["accepted_at"] is None:
        return f"site '{row['site']}' has not accepted it"
    return f"site '{row['site']}': accepted by {row['steward']}, {row['accepted_at']}"


def _history_table(data: list[dict[str, Any]]) -> str:
    return table(
        ["version", "digest", "set_at", "accepted_by"],
        [
            [
                str(row["version"]),
                row["digest"][:16],
                row["set_at"],
                ", ".join(row["accepted_by"]) or "nobody",
            ]
            for row in data
        ],
    )


def _written(output: Path, to_fill_in: list[str]) -> str:
    lines = [f"draft written to {output}"]
    if to_fill_in:
        lines += ["left for people to fill in:", *(f"  {line}" for line in to_fill_in)]
    return "\n".join([*lines, f"next: synthedge-coordinator dictionary check {output}"])


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
