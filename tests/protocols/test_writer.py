import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, column, table, text
from sqlalchemy import insert as insert_into
from sqlalchemy.exc import IntegrityError, OperationalError

from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.writer import Writer, sqlite_engine

CRASHING = """
import sys
from pathlib import Path
from sqlalchemy import text
from synthedge_protocols.writer import Writer, sqlite_engine

writer = Writer(sqlite_engine(Path(sys.argv[1])))
def acknowledge(future):
    sys.stdout.write(f"{future.result()}\\n")
    sys.stdout.flush()
def insert(n):
    def work(connection):
        connection.execute(text("INSERT INTO rows VALUES (:n)"), {"n": n})
        return n
    return work
n = 0
while True:
    futures = [writer.submit(insert(n + i)) for i in range(20)]
    n += 20
    for future in futures:
        future.add_done_callback(acknowledge)
    futures[-1].result()
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = sqlite_engine(tmp_path / "store.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rows (n INTEGER PRIMARY KEY)"))
    yield engine
    engine.dispose()


@pytest.fixture
def writer(engine: Engine) -> Iterator[Writer]:
    writer = Writer(engine)
    yield writer
    writer.close()


def insert(n: int) -> Callable[[Connection], int]:
    def work(connection: Connection) -> int:
        connection.execute(text("INSERT INTO rows VALUES (:n)"), {"n": n})
        return n

    return work


def stored(engine: Engine) -> set[int]:
    with engine.connect() as connection:
        return set(connection.execute(text("SELECT n FROM rows")).scalars())


@contextmanager
def held_back(writer: Writer) -> Iterator[None]:
    """Keep the writer busy, so that all that is submitted meanwhile shares one transaction."""
    entered, gate = threading.Event(), threading.Event()

    def hold(_: Connection) -> bool:
        entered.set()
        return gate.wait(10)

    held = writer.submit(hold)
    assert entered.wait(10)
    yield
    gate.set()
    assert held.result(10)


def test_a_result_is_set_when_the_row_is_there(engine: Engine, writer: Writer) -> None:
    assert writer.submit(insert(1)).result(10) == 1
    assert stored(engine) == {1}


def test_a_failing_function_undoes_its_own_work_alone(engine: Engine, writer: Writer) -> None:
    def half_done(connection: Connection) -> None:
        insert(7)(connection)
        raise KeyError("a bug in the caller's function")

    with held_back(writer):
        first, bad = writer.submit(insert(1)), writer.submit(half_done)
        clash, last = writer.submit(insert(1)), writer.submit(insert(2))
    assert (first.result(10), last.result(10)) == (1, 2)
    with pytest.raises(KeyError, match="a bug"):
        bad.result(10)
    with pytest.raises(IntegrityError):
        clash.result(10)
    assert stored(engine) == {1, 2}


def test_nothing_is_acknowledged_before_the_commit(engine: Engine, writer: Writer) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(_: Connection) -> bool:
        entered.set()
        return gate.wait(10)

    with held_back(writer):
        first, second = writer.submit(insert(1)), writer.submit(slow)
    assert entered.wait(10)
    # `first` has run in this very transaction, which is still open.
    assert not first.done()
    assert stored(engine) == set()
    gate.set()
    assert second.result(10)
    assert first.result(10) == 1
    assert stored(engine) == {1}


def test_a_broken_transaction_is_reported_to_everybody_in_it_and_the_writer_lives(
    engine: Engine, writer: Writer
) -> None:
    with held_back(writer):
        first = writer.submit(insert(1))
        breaks = writer.submit(lambda connection: connection.exec_driver_sql("ROLLBACK"))
    for future in (first, breaks):
        with pytest.raises(OperationalError, match="no such savepoint"):
            future.result(10)
    assert stored(engine) == set()
    assert writer.submit(insert(2)).result(10) == 2


def test_a_disk_that_is_full_in_the_middle_of_a_change_undoes_the_whole_transaction(
    engine: Engine, writer: Writer
) -> None:
    prepared = Prepared(insert_into(table("rows", column("n"))))

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 3")
        for n in range(2, 5000):
            prepared.run(connection, n=n)

    with held_back(writer):
        first, full = writer.submit(insert(1)), writer.submit(fill)
    for future in (first, full):
        with pytest.raises(UnavailableError, match=r"cannot be written now .* is full"):
            future.result(10)
    assert stored(engine) == set()
    assert writer.submit(insert(1)).result(10) == 1


def test_a_store_that_another_program_holds_is_named_and_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthedge_protocols.writer._BUSY_TIMEOUT_MS", 20)
    engine = sqlite_engine(tmp_path / "store.db")
    writer = Writer(engine)
    create = text("CREATE TABLE rows (n INTEGER PRIMARY KEY)")
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="held by another program for longer"):
            writer.submit(lambda connection: connection.execute(create)).result(10)
    writer.submit(lambda connection: connection.execute(create)).result(10)
    assert writer.submit(insert(1)).result(10) == 1
    writer.close()
    engine.dispose()


def test_closing_finishes_what_was_queued_and_then_refuses(engine: Engine) -> None:
    writer = Writer(engine)
    futures = [writer.submit(insert(n)) for n in range(600)]
    writer.close()
    writer.close()
    assert all(future.done() for future in futures)
    assert stored(engine) == set(range(600))
    with pytest.raises(UnavailableError, match="closed"):
        writer.submit(insert(601))


def test_many_callers_lose_nothing(engine: Engine, writer: Writer) -> None:
    def caller(first: int) -> None:
        for n in range(first, first + 25):
            assert writer.submit(insert(n)).result(10) == n

    threads = [threading.Thread(target=caller, args=(25 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(engine) == set(range(200))


def test_a_cancelled_function_does_not_run(engine: Engine, writer: Writer) -> None:
    with held_back(writer):
        cancelled, kept = writer.submit(insert(1)), writer.submit(insert(2))
        assert cancelled.cancel()
    assert kept.result(10) == 2
    assert stored(engine) == {2}


async def test_callers_on_an_event_loop_get_results_and_errors(
    engine: Engine, writer: Writer
) -> None:
    answers = await asyncio.gather(
        *(writer.write(insert(n)) for n in (1, 2, 1, 3)), return_exceptions=True
    )
    assert answers[:2] == [1, 2]
    assert isinstance(answers[2], IntegrityError)
    assert answers[3] == 3
    assert stored(engine) == {1, 2, 3}
    writer.close()
    with pytest.raises(UnavailableError, match="closed"):
        await writer.write(insert(4))


async def test_a_caller_that_goes_away_stops_neither_its_change_nor_the_writer(
    engine: Engine, writer: Writer
) -> None:
    with held_back(writer):
        leaving = asyncio.create_task(writer.write(insert(1)))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert await writer.write(insert(2)) == 2
    assert stored(engine) == {1, 2}


def test_an_event_loop_that_was_closed_does_not_stop_the_writer(
    engine: Engine, writer: Writer
) -> None:
    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.write(insert(1)), 0.01)

    with held_back(writer):
        asyncio.run(leave())
    assert writer.submit(insert(2)).result(10) == 2
    assert stored(engine) == {1, 2}


def test_a_reader_does_not_wait_for_the_writer(engine: Engine, writer: Writer) -> None:
    inside, gate = threading.Event(), threading.Event()

    def slow(connection: Connection) -> bool:
        insert(1)(connection)
        inside.set()
        return gate.wait(10)

    future = writer.submit(slow)
    assert inside.wait(10)
    assert stored(engine) == set()
    gate.set()
    assert future.result(10)


def test_a_store_is_private_durable_and_checks_foreign_keys(tmp_path: Path) -> None:
    path = tmp_path / "odd name %20?.db"
    engine = sqlite_engine(path)
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        connection.exec_driver_sql("CREATE TABLE rows (n INTEGER)")
        connection.commit()
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    engine.dispose()
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 10_000,
    }
    assert path.name in modes
    assert set(modes.values()) == {0o600}


def test_a_store_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"missing/store\.db.*No such file"):
        sqlite_engine(tmp_path / "missing" / "store.db")


@pytest.mark.parametrize("n_before", [1, 50, 200])
def test_everything_acknowledged_survives_kill_9(
    engine: Engine, tmp_path: Path, n_before: int
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CRASHING, tmp_path / "store.db"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged = {int(child.stdout.readline()) for _ in range(n_before)}
    child.send_signal(signal.SIGKILL)
    # The last line may be cut off in the middle.
    rest = child.stdout.read()
    acknowledged |= {int(line) for line in rest[: rest.rfind("\n") + 1].split()}
    child.wait(10)
    child.stdout.close()
    assert len(acknowledged) >= n_before
    assert acknowledged <= stored(engine)
    # Rows are written in order, so what is stored is a prefix: no hole, nothing twice.
    assert stored(engine) == set(range(len(stored(engine))))
