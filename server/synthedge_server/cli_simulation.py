"""`synthedge-coordinator simulate`: plan a consortium before there is one."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from synthedge_server.cli_watch import Json
from synthedge_server.console import emit, table

_MILLION: Final = 1_000_000


def simulate(
    sites: Annotated[int, typer.Option(help="Simulated are 10, 100, ... up to so many sites.")],
    shift: Annotated[
        float,
        typer.Option(
            help="How much hospitals differ: standard deviation of the shift in every feature, in the dictionary's "
            "scales, and in the log-odds of the outcome; 0 is one population."
        ),
    ] = 0.3,
    patients: Annotated[int, typer.Option(help="Patients of the median hospital.")] = 400,
    holes: Annotated[
        float, typer.Option(help="Share of hospitals that lack the positives of one region.")
    ] = 0.3,
    dictionary: Annotated[
        Path | None,
        typer.Option(help="A consortium.toml; without it, the heart dictionary that comes along."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="'grid': in this process, up to 200 sites; 'ray': Flower's simulation engine. Without it, 'grid' "
            "where it is enough."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the hospitals and the rows that move.")] = 0,
    as_json: Json = False,
) -> None:
    """Generate hospitals with known holes, run the product on them, say what it finds, moves and costs.

    Nothing leaves this machine and no folder of a coordinator is touched.
    """
    planning = _planning()
    found = planning.simulate(
        None if dictionary is None else _text(dictionary),
        planning.steps(sites),
        engine=planning.engine_for(engine, sites),
        shift=shift,
        patients=patients,
        holes=holes,
        seed=seed,
        say=lambda line: typer.echo(f"{line} ...", err=True),
    )
    emit(found, _in_words(found), as_json=as_json)


def _planning() -> Any:
    import importlib

    from synthedge_core.errors import UsageError

    try:
        # By name: the coordinator itself can import nothing that reads a table.
        return importlib.import_module("synthedge_deploy.planning")
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"the simulation plays the sites too, and '{missing.name}' is not installed: "
            "pip install 'synthedge-federation[all,simulation]'"
        ) from None


def _text(path: Path) -> str:
    from synthedge_core.errors import UsageError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"there is no text file {path}; name a consortium.toml") from None


def _in_words(found: list[dict[str, Any]]) -> str:
    found_out = ("sites", "holes made", "confirmed", "precision", "recall", "first")
    moved = ("proposals", "asks", "transfers", "rows", "rows to made holes", "refused")
    cost = ("sites", "round s", "report ms", "intake ms", "telling ms", "comparing ms")
    wire = ("rounds", "reports", "profiles", "proposals", "directory", "sealed")
    return "\n".join(
        [
            "what was found and moved",
            table((*found_out, *moved), [_moved(one) for one in found]),
            "",
            "time: of the whole round, and of a processor for each site",
            table(cost, [_cost(one) for one in found]),
            "",
            "MB on the wire, of all sites together",
            table(
                ("sites", *wire),
                [
                    [
                        str(one["sites"]),
                        *(f"{one['wire_bytes'].get(kind, 0) / _MILLION:.3f}" for kind in wire),
                    ]
                    for one in found
                ],
            ),
        ]
    )


def _moved(one: dict[str, Any]) -> list[str]:
    numbers = ("sites", "holes_made", "holes_confirmed")
    shares = ("precision", "recall", "first")
    rest = ("proposals", "asks", "transfers", "rows", "rows_to_made", "refused")
    return [
        *(str(one[name]) for name in numbers),
        *("-" if one[name] is None else f"{one[name]:.2f}" for name in shares),
        *(str(one[name]) for name in rest),
    ]


def _cost(one: dict[str, Any]) -> list[str]:
    stages = ("report", "intake", "telling", "comparing")
    return [
        str(one["sites"]),
        f"{one['wall_s']['round']:.1f}",
        *(f"{one['cpu_ms'][stage]:.2f}" for stage in stages),
    ]
