"""Sites enrolled at the real coordinator of `server_fixtures`; what blocks runs in threads beside its event loop.

Enrolling takes most of a second a site, so `pair` copies a consortium that was enrolled once.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding

from server_fixtures import LIMITS, Clock, Consortium, new_folder
from sites import make_site, patients, steward, with_hole
from synthedge_client import store
from synthedge_client.agent import run_once
from synthedge_client.dictionaries import accept
from synthedge_client.enrolment import enrol_site
from synthedge_client.releases import publish
from synthedge_client.site import Site, open_site
from synthedge_protocols.certificates import load_certificate
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.serve import running


def token_for(coordinator: Consortium, name: str, *, valid_ms: int = 60_000) -> EnrolmentToken:
    """A token as the operator's command writes it, with the real CA certificate."""
    ca = load_certificate(coordinator.ca_pem).public_bytes(Encoding.DER)
    return replace(coordinator.invite(name, valid_ms=valid_ms), ca_certificate=ca)


def write_token(folder: Path, token: EnrolmentToken) -> Path:
    """A token in a file beside the site's folder."""
    path = folder.with_suffix(".token")
    path.write_text(token.encode())
    return path


async def exchange(*sites: Site) -> None:
    """One run of ``synthedge site run --once`` at each site in turn."""
    for site in sites:
        connection = site.connect()
        try:
            await asyncio.to_thread(run_once, site, connection)
        finally:
            connection.close()


@asynccontextmanager
async def enrolled(
    coordinator: Consortium, parent: Path, **tables: pd.DataFrame
) -> AsyncIterator[list[Site]]:
    """Opened sites that are enrolled, have published, know each other and compared keys."""
    with ExitStack() as stack:
        opened = []
        for name, rows in tables.items():
            folder = make_site(parent, name, rows)
            token = write_token(folder, token_for(coordinator, name))
            await asyncio.to_thread(enrol_site, folder, token)
            opened.append(stack.enter_context(open_site(folder)))
            accept(opened[-1], steward())
            publish(opened[-1], steward())
        await exchange(*opened)
        await coordinator.everybody_is_told()
        await exchange(*opened)  # the first to come has not seen the last
        for site in opened:
            for other in opened:
                if other is not site:
                    site.verify_peer(other.settings.id, other.fingerprint)
        yield opened


@asynccontextmanager
async def coordinating(folder: CoordinatorFolder) -> AsyncIterator[Consortium]:
    """A coordinator that serves a folder on ports of its own."""
    consortium = Consortium(folder, Clock())
    async with running(folder, clock=consortium.clock, limits=LIMITS) as started:
        consortium.listens(started)
        yield consortium
        await consortium.close()


@pytest.fixture(scope="session")
def enrolled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a coordinator and of two sites, north and south, of `enrolled`."""
    parent = tmp_path_factory.mktemp("enrolled")
    tables = {"north": patients("n", with_hole()), "south": patients("s")}

    async def make() -> None:
        async with (
            coordinating(new_folder(parent / "coordinator")) as consortium,
            enrolled(consortium, parent, **tables),
        ):
            pass

    asyncio.run(make())
    return parent


@pytest_asyncio.fixture
async def consortium(enrolled_once: Path, tmp_path: Path) -> AsyncIterator[Consortium]:
    """The running coordinator of `pair`."""
    shutil.copytree(enrolled_once, tmp_path, dirs_exist_ok=True)
    async with coordinating(CoordinatorFolder(tmp_path / "coordinator")) as started:
        yield started


@pytest_asyncio.fixture
async def pair(
    consortium: Consortium, enrolled_once: Path, tmp_path: Path
) -> AsyncIterator[list[Site]]:
    """North has no positives at male, 100 and above; south has eight. Both published and compared keys."""
    with ExitStack() as stack:
        opened = []
        for name in ("north", "south"):
            settings = tmp_path / name / "site.toml"
            settings.write_text(settings.read_text().replace(str(enrolled_once), str(tmp_path)))
            opened.append(stack.enter_context(open_site(tmp_path / name)))
            with opened[-1].store.write() as connection:
                store.set_fact(connection, "address", f"127.0.0.1:{consortium.sites_port}")
                address = f"127.0.0.1:{consortium.enrolment_port}"
                store.set_fact(connection, "enrolment address", address)
        yield opened
