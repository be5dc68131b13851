"""Chromium of this machine, for tests that look at pages as a person does."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest


@asynccontextmanager
async def real_browser() -> AsyncIterator[Any]:
    """A started browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.async_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine; install it to look at pages in a browser")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-background-networking", "--no-first-run"],
        )
        yield browser
        await browser.close()
