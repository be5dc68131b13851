"""A coordinator on a real PostgreSQL: how it is opened, and what happens when the database goes away."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from coordinator_processes import coordinator_command
from postgres_server import PostgresServer, open_engine, over_tls, postgres_server
from server_fixtures import (
    DICTIONARY_TOML,
    LIMITS,
    TIMEOUT_S,
    Clock,
    Consortium,
    counts_of_site,
    gap_report,
    new_folder,
    request_of,
)
from synthedge_core.errors import UsageError
from synthedge_protocols.certificates import create_ca, issue_server_certificate, pem
from synthedge_protocols.errors import MalformedError, UnavailableError
from synthedge_protocols.keys import TlsKey
from synthedge_protocols.prepared import Prepared
from synthedge_protocols.writer import WRITES, Writer
from synthedge_server import store
from synthedge_server.doctor import examine
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ledger import Transaction
from synthedge_server.operations import change, reading, rows
from synthedge_server.postgres import WRITE_LOCK, connect_arguments
from synthedge_server.serve import running

pytestmark = pytest.mark.slow


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that a test may stop and start."""
    with postgres_server() as server:
        yield server


def events(consortium: Consortium, action: str) -> list[dict[str, Any]]:
    return rows(consortium.folder, sa.select(store.events).where(store.events.c.action == action))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (
            "postgresql://postgres@127.0.0.1:1/heart",
            r"127\.0\.0\.1:1/heart cannot be reached: .*re",
        ),
        (
            "postgresql://postgres@nowhere.invalid/heart",
            "cannot be reached: .*check that PostgreSQL",
        ),
        ("postgresql://me:hunter2@localhost/heart", "URL holds a password; give it by PGPASSFILE"),
        ("postgresql://me@localhost/heart?sslpassword=hunter2", "URL holds a password"),
        ("mysql://me@localhost/heart", "named as postgresql://USER@HOST:PORT/NAME"),
        ("postgresql://me@localhost", "named as postgresql://USER@HOST:PORT/NAME"),
        ("postgresql://me@a:5432,b:5432/heart", r"several hosts as .*\?host=HOST,HOST&port"),
    ],
)
def test_a_url_that_leads_nowhere_is_one_sentence(tmp_path: Path, url: str, sentence: str) -> None:
    with pytest.raises((UnavailableError, UsageError), match=sentence) as caught:
        new_folder(tmp_path / "coordinator", database=url)
    assert "hunter2" not in str(caught.value)


def test_a_database_that_will_not_do_is_one_sentence(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    latin = postgres.new_database("TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    used, foreign = postgres.new_database(), postgres.new_database()
    new_folder(tmp_path / "first", database=used)
    postgres.execute("CREATE ROLE guest LOGIN")
    for url, sentence in (
        (
            postgres.url("missing"),
            'is not there: .*"missing" does not exist; make it with createdb',
        ),
        (latin, "keeps text as LATIN1; make one with UTF8"),
        (used, "holds tables already; name an empty one"),
        (foreign.replace("postgres@", "guest@"), "permission denied .*make it the owner"),
    ):
        with pytest.raises((UnavailableError, UsageError), match=sentence):
            new_folder(tmp_path / "second", database=url)
    assert list((tmp_path / "second").iterdir()) == []


def test_a_password_comes_from_a_private_file_and_is_written_nowhere(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    postgres.new_user("locked", "hunter2")
    url = postgres.new_database().replace("postgres@", "locked@")
    password, dictionary = tmp_path / "password", tmp_path / "consortium.toml"
    dictionary.write_text(DICTIONARY_TOML)
    for secret, sentence in (("", "no password supplied"), ("wrong", "password authentication")):
        password.write_text(secret)
        password.chmod(0o600)
        with pytest.raises(UnavailableError, match=f"lets nobody in: .*{sentence}") as caught:
            new_folder(tmp_path / "coordinator", database=url, password_file=str(password))
        assert not secret or secret not in str(caught.value)
    error = coordinator_command(
        "init",
        f"--database={url}",
        "--database-password-file=here",
        "--name=heart",
        f"--dictionary={dictionary}",
        str(tmp_path / "coordinator"),
        code=2,
    )
    assert f"'{Path('here').absolute()}' does not exist" in error
    password.write_text("hunter2\n")
    folder = new_folder(tmp_path / "coordinator", database=url, password_file=str(password))
    assert rows(folder, sa.select(store.dictionaries.c.version)) == [{"version": 1}]
    assert "hunter2" not in "".join(
        path.read_text("latin-1") for path in folder.path.rglob("*") if path.is_file()
    )


async def test_a_database_over_tls_is_the_one_it_says_it_is_or_not_taken(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url, now = postgres.new_database(), datetime.now(UTC)
    (key, ca), (_, other) = create_ca("heart", now=now), create_ca("heart", now=now)
    server = TlsKey.generate()
    leaf = issue_server_certificate(key, ca, server, names=["localhost"], now=now)
    (tmp_path / "server.pem").write_bytes(server.pem() + pem(leaf))
    for name, certificate in (("ca", ca), ("other", other)):
        (tmp_path / f"{name}.pem").write_bytes(pem(certificate))
    async with over_tls(url, tmp_path / "server.pem") as port:

        async def begin(host: str, authority: str) -> CoordinatorFolder:
            query = f"sslmode=verify-full&sslrootcert={tmp_path / authority}.pem"
            over = f"postgresql://postgres@{host}:{port}/{sa.make_url(url).database}"
            return await asyncio.to_thread(
                new_folder, tmp_path / "coordinator", database=f"{over}?{query}"
            )

        for host, authority, sentence in (
            ("localhost", "missing", "does not exist"),
            ("localhost", "other", "verify failed"),
            ("127.0.0.1", "ca", "does not match"),
        ):
            with pytest.raises(
                UnavailableError, match=f"by TLS: .*{sentence}.* by sslrootcert there"
            ):
                await begin(host, authority)
        folder = await begin("localhost", "ca")
        version = await asyncio.to_thread(rows, folder, sa.select(store.dictionaries.c.version))
    assert version == [{"version": 1}]


async def test_a_database_that_goes_away_and_comes_back_or_changes_its_server_needs_no_restart(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    folder = new_folder(tmp_path / "coordinator", database=own_postgres.new_database())
    consortium = Consortium(folder, Clock())
    async with running(folder, clock=consortium.clock, limits=LIMITS) as started:
        consortium.listens(started)
        north = await consortium.enrol("north")
        report = north.sign_as_steward(gap_report(*counts_of_site(0)))
        own_postgres.halt()
        for _ in range(3):
            with pytest.raises(UnavailableError, match="database cannot be used now") as caught:
                await north.submit(report)
            assert str(tmp_path) not in str(caught.value)
            await asyncio.sleep(0.3)
        own_postgres.start()
        await asyncio.sleep(1.1)
        receipt = await north.submit(report)
        assert await north.submit(report) == receipt
        own_postgres.stand_by()
        await asyncio.sleep(1.1)
        later = north.sign_as_steward(gap_report(*counts_of_site(1)))
        for _ in range(2):
            with pytest.raises(UnavailableError) as caught:
                await north.submit(later)
        assert "it is a standby" in str(caught.value)
        with pytest.raises(UnavailableError, match="it is a standby"):
            async with running(folder):
                pass
        told = await asyncio.to_thread(
            coordinator_command, "sites", "suspend", "north", f"--dir={folder.path}", code=2
        )
        assert '"reason": "cannot set transaction read-write mode during recovery"' in told
        own_postgres.promote()
        await north.submit(later)
        await consortium.close()
    assert len(events(consortium, "gap-report-accepted")) == 2
    assert events(consortium, "statement-refused") == []


async def test_a_commit_whose_answer_was_lost_is_not_made_twice_and_wakes_whom_it_concerns(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    folder = new_folder(tmp_path / "coordinator", database=postgres.new_database())
    consortium = Consortium(folder, Clock())
    async with running(folder, clock=consortium.clock, limits=LIMITS) as started:
        consortium.listens(started)
        north, *_ = await consortium.reporting("north", "south", "west")
        signed, lost = north.sign_as_steward(request_of(north, "south")), list[bool]()

        asked = sa.select(store.statements.c.digest).where(
            store.statements.c.type == "transfer-request"
        )

        def commit_and_lose(connection: sa.Connection) -> None:
            # Others write too: who keeps house, and who looks whether changes are taken.
            if lost or connection.execute(asked).first() is None:
                return
            lost.append(True)
            raw: Any = connection.connection.dbapi_connection
            raw.commit()
            raw.close()

        woken = started._ledger.listen("south")
        sa.event.listen(started._ledger.engine, "commit", commit_and_lose)
        with pytest.raises(UnavailableError):
            await north.submit(signed)
        await asyncio.wait_for(woken.wait(), TIMEOUT_S)
        assert len(events(consortium, "transfer-request-accepted")) == 1
        await north.submit(signed)
        await consortium.close()
    assert len(events(consortium, "transfer-request-accepted")) == 1


def test_writers_of_several_connections_write_one_chain(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = postgres.new_database()
    new_folder(tmp_path / "coordinator", database=url)

    def write(name: str) -> None:
        engine = open_engine(url)
        writer = Writer(engine)
        for n in range(50):
            writer.submit(lambda c, n=n: Transaction(c, n).record(name, "counted", str(n))).result()  # type: ignore[misc]
        writer.close()
        engine.dispose()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine = open_engine(url)
    with engine.connect() as connection:
        assert store.event_log.verify(connection).size == 200 + 1
    engine.dispose()


def test_text_that_postgresql_cannot_keep_is_refused_readers_cannot_write_and_what_fails_is_told(
    postgres: PostgresServer,
) -> None:
    engine = open_engine(postgres.new_database())
    table = sa.Table("texts", sa.MetaData(), sa.Column("text", sa.Text))
    writer = Writer(engine)
    writer.submit(lambda c: table.create(c)).result()
    with pytest.raises(MalformedError, match="no database keeps"):
        writer.submit(lambda c: c.execute(table.insert().values(text="a\0b"))).result()
    with engine.connect() as connection, pytest.raises(UnavailableError):
        connection.execute(table.insert().values(text="a"))
    pause = Prepared(sa.select(sa.func.pg_sleep(1)))

    def take_too_long(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL statement_timeout = '50ms'")
        pause.run(connection)

    with pytest.raises(UnavailableError, match="cannot be used now"):
        writer.submit(take_too_long).result()
    writer.close()
    engine.dispose()


def test_who_stalls_with_the_lock_is_cut_off_and_holds_nobody_up(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    engine = open_engine(url)
    writer = Writer(engine)
    show = "SHOW idle_in_transaction_session_timeout"
    assert writer.submit(lambda c: c.exec_driver_sql(show).scalar_one()).result() == "15s"
    with engine.connect() as reader:
        assert reader.exec_driver_sql(show).scalar_one() == "0"
    with closing(psycopg.connect(**connect_arguments(url))) as stalled:
        stalled.execute(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
        stalled.execute("SET LOCAL idle_in_transaction_session_timeout = '200ms'")
        # Waits for the lock, and gets it.
        assert writer.submit(lambda c: c.exec_driver_sql("SELECT 1").scalar_one()).result() == 1
    writer.close()
    engine.dispose()


def test_a_server_that_says_nothing_is_given_up_by_who_waits(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthedge_server.postgres._READER_WAITS_S", 0.3)
    engine = open_engine(postgres.new_database())
    started_s = time.monotonic()
    with engine.connect() as reader, pytest.raises(UnavailableError, match="cannot be used now"):
        reader.exec_driver_sql("SELECT pg_sleep(5)")
    assert time.monotonic() - started_s < 2
    # It was this statement alone.
    with engine.execution_options(**{WRITES: True}).begin() as writer:
        writer.exec_driver_sql("SELECT pg_sleep(0.4)")
    # Its connection is a reader's again, and one that broke in the pool is made anew.
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COMMIT%'"
    )
    with engine.connect() as reader:
        assert reader.exec_driver_sql("SELECT 1").scalar_one() == 1
    engine.dispose()


def test_what_a_command_reads_is_of_one_moment(postgres: PostgresServer, tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "coordinator", database=postgres.new_database())
    with reading(folder) as engine, engine.connect() as connection:
        before = store.event_log.size(connection)
        change(folder, lambda t: t.record("operator", "invited", "north"))
        assert store.event_log.size(connection) == before
    with reading(folder) as engine, engine.connect() as connection:
        assert store.event_log.size(connection) == before + 1


def test_a_connection_that_breaks_in_a_write_fails_all_in_it_as_away_and_no_later_one(
    postgres: PostgresServer,
) -> None:
    engine = open_engine(postgres.new_database())
    writer = Writer(engine)
    # The next three wait for this one, and share a transaction.
    started, going = threading.Event(), threading.Event()

    def hold(_: sa.Connection) -> None:
        started.set()
        going.wait()

    held = writer.submit(hold)
    started.wait()
    terminate = "SELECT pg_terminate_backend(pg_backend_pid())"
    group = [
        writer.submit(lambda c, sql=sql: c.exec_driver_sql(sql).scalar_one())  # type: ignore[misc]
        for sql in ("SELECT 1", terminate, "SELECT 1")
    ]
    going.set()
    held.result()
    for future in group:
        with pytest.raises(UnavailableError):
            future.result()
    assert writer.submit(lambda c: c.exec_driver_sql("SELECT 1").scalar_one()).result() == 1
    writer.close()
    engine.dispose()


def test_the_doctor_names_a_connection_that_leaves_the_machine_unchecked(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_folder(tmp_path / "coordinator", database=postgres.new_database())
    assert [p for p in examine(folder) if p.subject == "the database's connection"] == []
    monkeypatch.setattr(psycopg.ConnectionInfo, "host", "db.example.org")
    assert [p.next_step for p in examine(folder) if p.subject == "the database's connection"] == [
        "add ?sslmode=verify-full&sslrootcert=FILE to 'database' in coordinator.toml"
    ]


def test_a_coordinator_on_sqlite_loads_neither_the_driver_nor_alembic() -> None:
    program = "import sys, synthedge_server.serve; print({'psycopg', 'alembic'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"
