"""The documents as a site: built strictly, and read in a browser on a network that leads nowhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from real_browser import real_browser

ROOT = Path(__file__).parents[2]
# The code, not the tables, may be wider than a telephone; those scroll in their frame.
TOO_WIDE = "document.documentElement.scrollWidth > window.innerWidth"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every link, anchor and entry of the navigation is checked by the build."""
    site = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted(site.glob("*.html"))


@pytest.mark.slow
async def test_every_page_is_read_light_and_dark_wide_and_narrow_and_asks_nobody_else(
    pages: list[Path],
) -> None:
    assert len(pages) > 20
    asked: list[str] = []
    grounds = set()
    async with real_browser() as browser:
        for scheme, width in (("light", 1280), ("dark", 390)):
            page: Any = await browser.new_page(
                color_scheme=scheme, viewport={"width": width, "height": 800}
            )
            page.on("request", lambda request: asked.append(request.url))
            for path in pages:
                await page.goto(path.as_uri())
                assert await page.locator("article h1").count(), path
                assert not await page.evaluate(TOO_WIDE), path
            grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
