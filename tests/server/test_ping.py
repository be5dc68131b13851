"""The health check of a coordinator: what a container, a balancer or a person is told, and by which exit code."""

import asyncio
import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from server_fixtures import LIMITS, new_folder
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError
from synthedge_server import health
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.ping import ping
from synthedge_server.serve import running
from synthedge_server.settings import Address, read_settings, settings_toml


def told_where_to_ask(folder: CoordinatorFolder, port: int) -> None:
    settings = read_settings(folder.settings)
    there = replace(settings, enrolment_listen=Address(host="0.0.0.0", port=port))  # noqa: S104
    folder.settings.write_text(settings_toml(there))


async def says(folder: CoordinatorFolder, wanted: str) -> None:
    """Ping until it says something, or nothing at all: the coordinator looks every 0.1 s."""
    said = "?"
    async with asyncio.timeout(10):
        while said != wanted:
            try:
                await asyncio.to_thread(ping, folder)
                said = ""
            except UnavailableError as error:
                said = str(error).partition("; ")[0].partition("answers")[2]
            await asyncio.sleep(0.05)


async def test_a_coordinator_without_its_database_is_alive_and_serves_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_EVERY_S", 0.1)
    monkeypatch.setattr(health, "_WRITE_S", 0.2)
    folder = new_folder(tmp_path / "coordinator")
    async with running(folder, limits=LIMITS) as coordinator:
        told_where_to_ask(folder, coordinator.enrolment_port)
        await says(folder, "")
        with contextlib.closing(sqlite3.connect(folder.database)) as database:
            database.execute("BEGIN IMMEDIATE")
            await says(folder, ", but cannot serve now")
            await asyncio.to_thread(ping, folder, is_enough_to_answer=True)
    with pytest.raises(UnavailableError, match=r"does not answer \(UNAVAILABLE\)"):
        await asyncio.to_thread(ping, folder, is_enough_to_answer=True)


async def test_another_consortiums_coordinator_is_not_taken_for_ours(tmp_path: Path) -> None:
    ours, theirs = new_folder(tmp_path / "ours"), new_folder(tmp_path / "theirs")
    async with running(theirs, limits=LIMITS) as coordinator:
        told_where_to_ask(ours, coordinator.enrolment_port)
        with pytest.raises(UnavailableError, match="does not answer"):
            await asyncio.to_thread(ping, ours)


def test_a_folder_of_no_coordinator_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a coordinator's folder"):
        ping(CoordinatorFolder(tmp_path))
