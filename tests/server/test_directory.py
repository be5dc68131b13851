"""Sites learn every key of a large consortium part by part, and afterwards only what changed."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection as Database
from sqlalchemy import create_engine, insert, update

from synthedge_client.connection import Connection
from synthedge_protocols.errors import LimitExceededError
from synthedge_protocols.limits import Limits
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from synthedge_server import directory, store
from synthedge_server.directory import KeyDirectory

N_SITES = 700
# As long as a signed HPKE key.
STATEMENT = pb.SignedStatement(statement=bytes(1500), signature=bytes(64)).SerializeToString()
LIMITS = Limits()


def enrol(database: Database, *names: str) -> None:
    sites = [
        {
            "site": name,
            "state": "active",
            "statement_public_key": name.encode(),
            "hpke_key_id": name.encode(),
            "tls_key_digest": name.encode(),
            "last_sequence": 0,
            "enrolled_at_ms": 0,
            "certified_at_ms": 0,
        }
        for name in names
    ]
    keys = [
        {
            "key_id": name.encode(),
            "site": name,
            "statement": STATEMENT,
            "registered_at_ms": 0,
        }
        for name in names
    ]
    database.execute(insert(store.sites), sites)
    database.execute(insert(store.keys), keys)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    store.METADATA.create_all(engine)
    with engine.connect() as connection:
        enrol(connection, *(f"site-{i:03}" for i in range(N_SITES)))
        yield connection
    engine.dispose()


def client_of(keys: KeyDirectory, database: Database) -> Connection:
    """A site's connection whose calls end at a directory."""

    def answer(request: wire.DirectoryRequest, timeout: float) -> wire.Directory:
        part = keys.answer(database, request)
        assert part.ByteSize() <= LIMITS.message_bytes
        return part

    connection: Any = Connection.__new__(Connection)
    connection._address = "here"
    connection._stub = SimpleNamespace(GetDirectory=answer)
    return connection  # type: ignore[no-any-return]


def names(parts: list[wire.Directory]) -> list[str]:
    return [keys.site for part in parts for keys in part.sites]


def test_a_site_reads_all_keys_in_parts_and_then_only_what_changed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_LOOK_EVERY_S", 0.0)
    client = client_of(KeyDirectory(LIMITS), database)

    first = list(client.directory())

    assert len(first) > 2
    assert names(first) == [f"site-{i:03}" for i in range(N_SITES)]
    version = first[-1].version
    (nothing,) = client.directory(version)
    assert (names([nothing]), nothing.version) == ([], version)
    enrol(database, "a-new-one")
    rotated = store.sites.c.site.in_(("site-003", "site-600"))
    key = b"site-004"  # any that is on record
    database.execute(update(store.sites).where(rotated).values(hpke_key_id=key))
    database.execute(
        update(store.sites).where(store.sites.c.site == "site-005").values(state="revoked")
    )
    (news,) = client.directory(version)
    assert names([news]) == ["a-new-one", "site-003", "site-600"]
    assert names(list(client.directory(news.version))) == []


def test_who_comes_back_is_told_of_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_LOOK_EVERY_S", 0.0)
    client = client_of(KeyDirectory(LIMITS), database)
    change = update(store.sites).where(store.sites.c.site == "site-005")
    database.execute(change.values(state="suspended"))
    *_, last = client.directory()

    database.execute(change.values(state="active"))

    assert names(list(client.directory(last.version))) == ["site-005"]


@pytest.mark.parametrize("version", [b"", b"x", bytes(16), b"y" * 40])
def test_a_version_of_another_process_is_answered_with_everything(
    database: Database, version: bytes
) -> None:
    *_, elsewhere = client_of(KeyDirectory(LIMITS), database).directory()
    client = client_of(KeyDirectory(LIMITS), database)
    for since in (version, elsewhere.version):
        assert len(names(list(client.directory(since)))) == N_SITES


def test_a_site_of_earlier_software_gets_one_message_while_it_fits(database: Database) -> None:
    request = wire.DirectoryRequest()
    roomy = KeyDirectory(Limits(message_bytes=2 * N_SITES * 1700))
    assert len(roomy.answer(database, request).sites) == N_SITES
    with pytest.raises(LimitExceededError, match=r"keys of 700 sites .* update this site's"):
        KeyDirectory(LIMITS).answer(database, request)


@pytest.mark.parametrize(
    "part", [wire.Directory(more=True), wire.Directory(more=True, sites=[pb.SiteKeys()] * 999)]
)
def test_a_directory_without_an_end_is_not_read_for_ever(part: wire.Directory) -> None:
    client: Any = Connection.__new__(Connection)
    client._address, client._stub = (
        "here",
        SimpleNamespace(GetDirectory=lambda *_, timeout: part),
    )
    with pytest.raises(LimitExceededError, match="does not end"):
        list(client.directory())
