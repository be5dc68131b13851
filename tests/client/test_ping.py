"""The health check of a site: an agent that reached the coordinator lately, or a sentence."""

from pathlib import Path

import pytest

from server_fixtures import DICTIONARY_TOML
from sites import accept_dictionary, make_site, patients
from synthedge_client import store
from synthedge_client.ping import ping
from synthedge_core.errors import TableError, UsageError
from synthedge_protocols.errors import UnavailableError


def reached(folder: Path, minutes_ago: float) -> None:
    database = store.Store(folder / "site.db")
    with database.write() as connection:
        at_ms = store.now_ms() - round(minutes_ago * 60_000)
        store.set_fact(connection, "inbox_read_at_ms", str(at_ms))
    database.close()


def test_a_site_is_healthy_for_five_minutes_after_its_agent_reached_the_coordinator(
    tmp_path: Path,
) -> None:
    folder = make_site(tmp_path, "north", patients("n"))
    with pytest.raises(UsageError, match="not enrolled"):
        ping(folder)
    accept_dictionary(folder, DICTIONARY_TOML)
    with pytest.raises(UnavailableError, match="has reached the coordinator yet"):
        ping(folder)

    reached(folder, minutes_ago=4)
    assert 240 <= ping(folder) < 250
    reached(folder, minutes_ago=7)
    with pytest.raises(UnavailableError, match=r"for 7 minutes.*site doctor"):
        ping(folder)


def test_a_folder_of_no_site_is_no_healthy_one(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no site\.toml"):
        ping(tmp_path)


def test_the_keys_need_not_be_opened_to_see_it(tmp_path: Path) -> None:
    """A passphrase costs 128 MiB and a quarter second: too much for every minute."""
    folder = make_site(tmp_path, "north", patients("n"))
    accept_dictionary(folder, DICTIONARY_TOML)
    reached(folder, minutes_ago=1)
    (folder / "keys" / "site.secret").unlink()
    assert ping(folder) > 0
