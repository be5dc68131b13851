"""The Merkle log: what an entry costs beyond the fsync, and beyond a plain row with the same text, in one run.

The product's own log and a plain table of the same columns take entries in turns, each many to a transaction on the
same database, so that what is left of the difference is salt, hashes, tree and look-up. CPU time of this process: other
processes of a busy machine do not count.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from bench import Bar, run_benchmark

from synthedge_client import store
from synthedge_protocols.merkle import verify_inclusion
from synthedge_protocols.writer import WRITES, sqlite_engine

ENTRIES: Final = 20_000
QUICK_ENTRIES: Final = 4_000
ROUNDS: Final = 7
BAR_US: Final = 25.0
_TEXTS: Final = {"what": "transfer approved", "who": "ada", "details": '{"transfer_id":"00"}'}

plain = sa.Table(
    "plain",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_ms", sa.BigInteger),
    *(sa.Column(name, sa.Text) for name in _TEXTS),
)


def measure(*, quick: bool) -> list[Bar]:
    """Time entries of both tables, and verify the log that came of it.

    Parameters
    ----------
    quick : bool
        Fewer entries.

    Returns
    -------
    list of Bar
    """
    n = QUICK_ENTRIES if quick else ENTRIES
    with tempfile.TemporaryDirectory() as folder:
        engine = sqlite_engine(Path(folder) / "site.db")
        store.metadata.create_all(engine)
        plain.metadata.create_all(engine)
        ours, theirs = [], []
        with engine.connect().execution_options(**{WRITES: True}) as connection:
            insert = sa.insert(plain)
            for _ in range(ROUNDS):
                with connection.begin():
                    begin = time.process_time()
                    for at_ms in range(n):
                        store.event_log.append(connection, at_ms, **_TEXTS)
                    ours.append((time.process_time() - begin) / n * 1e6)
                    begin = time.process_time()
                    for at_ms in range(n):
                        connection.execute(insert, {"at_ms": at_ms, **_TEXTS})
                    theirs.append((time.process_time() - begin) / n * 1e6)
        with engine.connect() as connection:
            head = store.event_log.head(connection, "benchmark")
            begin = time.process_time()
            store.event_log.verify(connection)
            verified = (time.process_time() - begin) / head.size * 1e6
            begin = time.process_time()
            proof = store.event_log.inclusion(connection, head.size // 3, head.size)
            proved = (time.process_time() - begin) * 1e6
            (entry,) = (
                e for e in store.event_log.entries(connection) if e.number == head.size // 3
            )
            verify_inclusion(entry.leaf, entry.number - 1, head.size, proof, head.root)
        engine.dispose()
    extra = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    return [
        Bar("an entry of the log, without the fsync, us", statistics.median(ours), BAR_US),
        Bar("a plain row with the same text, us", statistics.median(theirs)),
        Bar("what the Merkle log adds to an entry, us", extra, BAR_US),
        Bar("verifying the whole log, us an entry", verified),
        Bar(f"an inclusion proof in {head.size} entries, us", proved),
    ]


if __name__ == "__main__":
    run_benchmark("audit_log", measure)
