"""How databases grow: by a report, a transfer of five rows, a withdrawal; at the coordinator and at sites (SQLite).

Whole transfers through the product's own programs in one process; sizes are the pages in use after a checkpoint.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import sqlalchemy as sa
from bench import Bar, run_benchmark

# The tests' hospitals and their made-up patients.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from asked_and_given import ask, give, states
from memory_consortium import MemoryConsortium, new_consortium
from sites import patients, steward, with_hole
from synthedge_client import store as site_store
from synthedge_client.releases import publish
from synthedge_client.withdrawals import withdraw_patient
from synthedge_server import store

PARTIES = ("coordinator", "north", "south")


# Blood pressures of one voxel, whole numbers: more rows than that would be taken for each other.
N_DISTINCT = 60
N = 10


def measure(*, quick: bool) -> list[Bar]:
    """Measure; in under a minute if `quick`."""
    runs = [_one_consortium() for _ in range(1 if quick else 3)]
    return [
        Bar(same[0].what, statistics.mean(bar.value for bar in same))
        for same in zip(*runs, strict=True)
    ]


def _one_consortium() -> list[Bar]:
    given = np.full((2, 4), N_DISTINCT)
    with tempfile.TemporaryDirectory() as name:
        consortium = new_consortium(
            Path(name),
            north=patients("n", with_hole(30), np.full((2, 4), 30)),
            south=patients("s", given, np.full((2, 4), 30)),
            west=patients("w", np.full((2, 4), 25), np.full((2, 4), 30)),
        )
        try:
            enrolled = _used(_engine(consortium, "coordinator"))
            bars = [Bar("coordinator, with three sites that have published, kB", enrolled / 1_000)]
            bars += _grown(consortium, "report published anew", _publish)
            bars += _grown(consortium, "transfer of 5 rows", _transfer)
            bars += _grown(consortium, "withdrawal of one row", _withdraw)
        finally:
            consortium.close()
    return bars


def _grown(
    consortium: MemoryConsortium, what: str, act: Callable[[MemoryConsortium], None]
) -> list[Bar]:
    act(consortium)  # the first one touches pages that all share
    before = {party: _used(_engine(consortium, party)) for party in PARTIES}
    entries = _entries(consortium)
    for _ in range(N):
        act(consortium)
    grown = {party: _used(_engine(consortium, party)) - before[party] for party in PARTIES}
    return [
        *(Bar(f"{party}, {what}, kB", grown[party] / N / 1_000) for party in PARTIES),
        Bar(f"its entries in the coordinator's log, {what}", (_entries(consortium) - entries) / N),
    ]


def _publish(consortium: MemoryConsortium) -> None:
    north = consortium.sites["north"]
    table = pd.read_csv(north.settings.data)
    # Another five patients in another voxel: a release of its own.
    rng = np.random.default_rng(len(table) + consortium.clock())
    table["progressed"] = rng.permutation(table["progressed"].to_numpy())
    table.to_csv(north.settings.data, index=False)
    publish(north, steward())
    _exchange(consortium, "north")


def _transfer(consortium: MemoryConsortium) -> None:
    north, south = consortium.sites["north"], consortium.sites["south"]
    identifier = ask(north)
    _exchange(consortium, "north", "south")
    give(south, identifier)
    _exchange(consortium, "south", "north", "south")
    reached = states(identifier, north, south)
    if reached != ["ACTIVE", "ACTIVE"]:
        raise RuntimeError(f"the transfer ended as {reached}")


def _withdraw(consortium: MemoryConsortium) -> None:
    south = consortium.sites["south"]
    with south.store.read() as connection:
        gone = set(
            connection.execute(sa.select(site_store.withdrawn_patients.c.patient_tag)).scalars()
        )
        given = set(connection.execute(sa.select(site_store.disclosed.c.patient_tag)).scalars())
    tags = {south.keys.tag(patient): patient for patient in pd.read_csv(south.settings.data)["mrn"]}
    withdraw_patient(south, next(tags[tag] for tag in sorted(given - gone)))
    _exchange(consortium, "south", "north", "south")


def _exchange(consortium: MemoryConsortium, *names: str) -> None:
    for name in names:
        consortium.exchange(name)
        consortium.keep_house()


def _engine(consortium: MemoryConsortium, party: str) -> sa.Engine:
    if party == "coordinator":
        return consortium.database
    return consortium.sites[party].store._engine


def _entries(consortium: MemoryConsortium) -> int:
    with consortium.database.connect() as connection:
        return store.event_log.size(connection)


def _used(engine: sa.Engine) -> int:
    """Bytes of a SQLite database's pages in use."""
    with engine.connect() as connection:
        pages, free, size = (
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size


if __name__ == "__main__":
    run_benchmark("growth", measure)
