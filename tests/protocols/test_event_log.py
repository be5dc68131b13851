"""The audit log in a database: what was written stays as it was, or it shows."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from synthedge_protocols.errors import MalformedError, VerificationError
from synthedge_protocols.event_log import EventLog
from synthedge_protocols.merkle import verify_consistency, verify_inclusion
from synthedge_protocols.writer import WRITES, sqlite_engine

metadata = sa.MetaData()
log = EventLog(metadata, "who", "what")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sqlite_engine(tmp_path / "log.db")
    metadata.create_all(engine)
    yield engine.execution_options(**{WRITES: True})
    engine.dispose()


def fill(engine: sa.Engine, n_entries: int, log: EventLog = log) -> None:
    with engine.begin() as connection:
        for i in range(n_entries):
            log.append(connection, 1_000 + i, who="agent", what=f"event {i}")


def test_every_entry_can_be_proved_and_every_head_extends_the_earlier_ones(
    engine: sa.Engine,
) -> None:
    fill(engine, 21)
    with engine.connect() as connection:
        heads = [log.head(connection, "o", size) for size in range(22)]
        for entry in log.entries(connection):
            proof = log.inclusion(connection, entry.number, 21)
            verify_inclusion(entry.leaf, entry.number - 1, 21, proof, heads[-1].root)
        for old in heads:
            proof = log.consistency(connection, old.size, 21)
            verify_consistency(old.size, old.root, 21, heads[-1].root, proof)
        assert log.verify(connection).root == heads[-1].root


def test_an_undone_transaction_leaves_no_entry_and_the_next_ones_fit(engine: sa.Engine) -> None:
    fill(engine, 3)
    with engine.connect() as connection:
        undone = connection.begin()
        log.append(connection, 9, who="agent", what="undone")
        undone.rollback()
    fill(engine, 4)
    with engine.connect() as connection:
        assert log.verify(connection).size == 7


def test_two_processes_may_write_one_log_in_turns(engine: sa.Engine) -> None:
    another = EventLog(sa.MetaData(), "who", "what")
    for writer in (log, another, another, log, another):
        fill(engine, 3, writer)
    with engine.connect() as connection:
        assert log.verify(connection).size == 15


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE events SET what = 'other' WHERE id = 3", "entry 3 .* was changed"),
        ("UPDATE events SET at_ms = 5 WHERE id = 3", "entry 3 .* was changed"),
        ("UPDATE events SET salt = zeroblob(32) WHERE id = 3", "entry 3 .* was changed"),
        ("UPDATE events SET subtrees = zeroblob(32) WHERE id = 3", "entry 3 .* was changed"),
        ("DELETE FROM events WHERE id = 3", "entry 3 .* is missing"),
    ],
)
def test_an_entry_changed_behind_the_logs_back_is_named(
    engine: sa.Engine, change: str, told: str
) -> None:
    fill(engine, 5)
    with engine.begin() as connection:
        connection.exec_driver_sql(change)
    with engine.connect() as connection, pytest.raises(VerificationError, match=told):
        log.verify(connection)


def test_entries_removed_from_the_end_show_against_a_head_seen_before(engine: sa.Engine) -> None:
    fill(engine, 5)
    with engine.connect() as connection:
        seen = log.head(connection, "o")
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM events WHERE id = 5")
    with engine.connect() as connection:
        assert log.verify(connection).size == 4
        with pytest.raises(MalformedError, match="has 4 entries, not 5"):
            log.head(connection, "o", seen.size)


def test_equal_entries_have_leaves_that_tell_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for _ in range(2):
            log.append(connection, 1, who="agent", what="same")
    with engine.connect() as connection:
        leaves = {entry.leaf for entry in log.entries(connection)}
        salts = {entry.salt for entry in log.entries(connection)}
    assert len(leaves) == len(salts) == 2
