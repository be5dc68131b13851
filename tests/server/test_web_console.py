"""The operator's web console: in a real browser, and against callers that are none."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from real_browser import real_browser
from server_fixtures import Consortium
from synthedge_server.status import read_status
from synthedge_server.web import create_app, operator_token

PAGES = ("", "sites", "network", "proposals", "transfers", "log")
TOO_WIDE = """[...document.querySelectorAll("body, body *")].filter(
    e => e.getBoundingClientRect().right > window.innerWidth + 1 && !e.closest(".scroll, .note")
).map(e => e.outerHTML.slice(0, 80))"""
PROGRAM = Path(sys.executable).with_name("synthedge-coordinator")


@pytest.fixture
async def reported(coordinator: Consortium) -> Consortium:
    """A coordinator with four sites, one of them with a hole, and its proposals."""
    hospitals = await coordinator.reporting("north", "south", "west", "east")
    for hospital in hospitals:
        await hospital.close()
    return coordinator


def listed_sites(folder: Path) -> list[dict[str, Any]]:
    command = [str(PROGRAM), "sites", "--json", "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["data"]
    return found


@pytest.fixture
async def asking(reported: Consortium) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the console, not logged in."""
    app = create_app(reported.folder, operator_token(reported.folder), {"console"})
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
        yield client


async def test_nobody_sees_a_page_without_the_operators_token(
    reported: Consortium, asking: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthedge_server.web._WRONG_TOKEN_S", 0.0)
    for page in PAGES:
        answer = await asking.get(f"/{page}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert "north" not in answer.text
    for wrong in ("", "x" * 43, operator_token(reported.folder) + "x", "t=" * 10_000):
        refused = await asking.post("/login", content=f"token={wrong}")
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
    assert (await asking.get("/sites", headers={"cookie": "session=guess"})).status_code == 303


async def test_every_page_shows_what_the_command_line_shows_and_nothing_can_be_changed(
    reported: Consortium, asking: httpx.AsyncClient
) -> None:
    opened = await asking.post("/login", data={"token": operator_token(reported.folder)})
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    for page in PAGES:
        answer = await asking.get(f"/{page}")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(r"<script|https?://(?!www\.w3\.org)", answer.text)
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await asking.request(method, f"/{page}")).status_code == 405
    reported.invite("another")
    listed = await asyncio.to_thread(listed_sites, reported.folder.path)
    status = read_status(reported.folder)
    assert status["no_report_from"] == []
    assert status["oldest_report"] == {
        row["site"]: row["reported"] for row in [min(listed, key=lambda row: str(row["reported"]))]
    }
    assert set(status["invited_until"]) == {"another"}
    overview = (await asking.get("/")).text
    assert f"another: {status['invited_until']['another']}" in overview
    sites = (await asking.get("/sites")).text
    assert all(row["site"] in sites and row["fingerprint"] in sites for row in listed)
    await asking.post("/logout")
    assert (await asking.get("/sites")).status_code == 303


async def test_a_page_under_another_name_is_not_answered(asking: httpx.AsyncClient) -> None:
    assert (await asking.get("/login", headers={"host": "evil.example"})).status_code == 421


@pytest.fixture
def console_url(reported: Consortium) -> Iterator[str]:
    """The real command, on a free port."""
    folder = str(reported.folder.path)
    command = [str(PROGRAM), "console", "--json", "--listen", "127.0.0.1:0", "--dir", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["data"]["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.slow
async def test_a_browser_shows_every_page_wide_and_narrow_and_asks_nobody_else(
    reported: Consortium, console_url: str
) -> None:
    asked: list[str] = []
    said: list[str] = []
    async with real_browser() as browser:
        for scheme, width in (("light", 1280), ("dark", 390)):
            page: Any = await browser.new_page(
                color_scheme=scheme, viewport={"width": width, "height": 800}
            )
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            await page.goto(console_url)
            await page.fill("#token", "wrong")
            await page.click("main button")
            assert "not the operator" in await page.inner_text("[role=alert]")
            await page.fill("#token", operator_token(reported.folder))
            await page.click("main button")
            assert await page.inner_text("h1") == "Overview"
            for name in PAGES[1:]:
                await page.click(f"nav a[href='/{name}']")
                await page.wait_for_load_state("networkidle")
                assert await page.get_attribute("nav a[aria-current]", "href") == f"/{name}"
                # Wide tables scroll in their frame; the page itself never sideways.
                assert await page.evaluate(TOO_WIDE) == []
            await page.goto(f"{console_url}network")
            assert await page.locator("svg circle").count() == 4
            assert await page.locator("svg path.edge.proposal").count() > 0
            box = await page.locator("svg").bounding_box()
            assert box is not None
            assert box["width"] <= width
    assert all(url.startswith(console_url) for url in asked)
    assert not [text for text in said if "403" not in text and "[DOM]" not in text]
