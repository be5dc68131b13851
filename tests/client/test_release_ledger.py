"""A site's release ledger against what the coordinator received, and how many sites must report."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import pytest_asyncio

from enrolled import enrolled, exchange, token_for, write_token
from server_fixtures import DICTIONARY_TOML, Consortium
from sites import accept_dictionary, make_site, patients, steward
from synthedge_client import store
from synthedge_client.dictionaries import accept
from synthedge_client.divergence import recover
from synthedge_client.enrolment import enrol_site
from synthedge_client.gaps import list_gaps
from synthedge_client.ledger_check import repair
from synthedge_client.releases import budget, preview, publish
from synthedge_client.site import Site, open_site
from synthedge_client.status import summarise
from synthedge_core.errors import DisclosureRefusedError, RefusedError
from synthedge_server.operations import recover_site

BY_NOISE = '\n[disclosure]\nmode = "dp"\n'


async def enrolled_site(coordinator: Consortium, parent: Path, settings: str) -> Path:
    folder = make_site(parent, "north", patients("n"), settings)
    token = write_token(folder, token_for(coordinator, "north"))
    await asyncio.to_thread(enrol_site, folder, token)
    with open_site(folder) as site:
        accept(site, steward())
        await exchange(site)
    return folder


def backup(folder: Path) -> bytes:
    copy = folder / "backup.db"
    with (
        closing(sqlite3.connect(folder / "site.db")) as source,
        closing(sqlite3.connect(copy)) as to,
    ):
        source.backup(to)
    return copy.read_bytes()


def restore(folder: Path, copy: bytes) -> None:
    for leftover in ("site.db-wal", "site.db-shm"):
        (folder / leftover).unlink(missing_ok=True)
    (folder / "site.db").write_bytes(copy)


async def recovered(coordinator: Consortium, site: Site) -> None:
    """Operator and steward let a site that was found to be older than the coordinator's record run again."""
    with pytest.raises(RefusedError, match="synthedge site recover"):
        await exchange(site)
    recover_site(coordinator.folder, site.settings.id)
    recover(site, steward())


def shift(site: Site, n: int) -> None:
    table = pd.read_csv(site.settings.data)
    table.loc[table.index[:n], "bp"] = 140.0
    table.to_csv(site.settings.data, index=False)


async def published(folder: Path, n_shifted: int) -> None:
    with open_site(folder) as site:
        shift(site, n_shifted)
        publish(site, steward())
        await exchange(site)


def received_by(coordinator: Consortium) -> int:
    with closing(sqlite3.connect(coordinator.folder.database)) as connection:
        (n,) = connection.execute("SELECT count(*) FROM reports WHERE site = 'north'").fetchone()
        return int(n)


@pytest_asyncio.fixture
async def restored(coordinator: Consortium, tmp_path: Path) -> AsyncIterator[Site]:
    """A site by noise whose database is older than its second release."""
    folder = await enrolled_site(coordinator, tmp_path, BY_NOISE)
    await published(folder, 0)
    copy = backup(folder)
    await published(folder, 2)
    restore(folder, copy)
    with open_site(folder) as site:
        await recovered(coordinator, site)
        yield site


async def test_a_site_restored_from_an_old_backup_does_not_spend_again(
    coordinator: Consortium, restored: Site
) -> None:
    shift(restored, 4)
    publish(restored, steward())  # offline, it cannot know better

    await exchange(restored)

    assert received_by(coordinator) == 2
    assert "a steward must run 'synthedge site gaps repair'" in summarise(restored)["report"]
    with pytest.raises(DisclosureRefusedError, match="received 1 release"):
        publish(restored, steward())


async def test_a_steward_takes_the_lost_release_in_and_the_site_goes_on(
    coordinator: Consortium, restored: Site
) -> None:
    shift(restored, 4)
    publish(restored, steward())
    await exchange(restored)

    told = repair(restored, steward())
    assert told == {"taken_in": 1, "spent": 2.0, "left": 2.0, "total": 4.0}
    publish(restored, steward())
    await exchange(restored)

    assert received_by(coordinator) == 3
    assert budget(restored)["spent"] == 3.0
    assert budget(restored)["frozen"] is None
    assert [r["known_from"] for r in budget(restored)["releases"]].count("the coordinator") == 1


async def test_by_threshold_nothing_follows_a_release_that_was_lost(
    coordinator: Consortium, tmp_path: Path
) -> None:
    folder = await enrolled_site(coordinator, tmp_path, "")
    copy = backup(folder)
    await published(folder, 2)
    restore(folder, copy)

    with open_site(folder) as site:
        await recovered(coordinator, site)
        await exchange(site)
        repair(site, steward())
        with pytest.raises(DisclosureRefusedError, match="ledger has lost"):
            publish(site, steward())


async def test_what_the_coordinator_holds_is_what_the_preview_showed(
    coordinator: Consortium, tmp_path: Path
) -> None:
    folder = await enrolled_site(coordinator, tmp_path, BY_NOISE)
    with open_site(folder) as site:
        shown = preview(site).release.report
        publish(site, steward())
        await exchange(site)

    with closing(sqlite3.connect(coordinator.folder.database)) as connection:
        assert connection.execute("SELECT payload FROM reports").fetchall() == [(shown,)]


async def test_a_ledger_that_lacks_nothing_is_not_frozen(
    coordinator: Consortium, tmp_path: Path
) -> None:
    folder = await enrolled_site(coordinator, tmp_path, BY_NOISE)
    await published(folder, 0)
    await published(folder, 2)

    with open_site(folder) as site:
        await exchange(site)
        assert budget(site)["frozen"] is None
        with pytest.raises(RefusedError, match="nothing to repair"):
            repair(site, steward())


def test_reports_under_an_earlier_dictionary_cost_the_new_one_nothing(tmp_path: Path) -> None:
    folder = make_site(tmp_path, "north", patients("n"), BY_NOISE)
    accept_dictionary(folder, DICTIONARY_TOML)
    with open_site(folder) as site:
        publish(site, steward())
        other = site.under(replace(site.dictionary, name="another"))
        assert budget(site)["spent"] == 1.0
        assert budget(other)["spent"] == 0.0
        assert budget(other)["report"]["state"] == "none"


async def test_two_hospitals_learn_nothing_of_each_other_until_a_third_reports(
    consortium: Consortium, pair: list[Site], tmp_path: Path
) -> None:
    await exchange(*pair)
    assert [list_gaps(site) for site in pair] == [[], []]
    for site in pair:
        with site.store.read() as connection:
            assert connection.execute(store.hints.select()).all() == []

    async with enrolled(consortium, tmp_path, west=patients("w")):
        await exchange(*pair)

    assert [gap.id for gap in list_gaps(pair[0])][:1] == ["sex x bp/7"]
