import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from small_tables import ward_table
from synthedge_client import console
from synthedge_client.cli import app


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    table = ward_table(800, has_gap=True).rename(columns={"stage": "<img src=x onerror=alert(1)>"})
    table.to_csv(folder / "ward.csv", index=False)
    arguments = ["report", str(folder / "ward.csv"), "--target", "progressed", "--positive", "yes"]
    output = folder / "report.html"
    assert console.run_app(app, [*arguments, "--output", str(output)], program="synthedge") == 0
    return output


def test_the_page_holds_no_row_and_refers_to_nothing_outside(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    outside_the_library = page[: page.index("<script>")] + page[page.index("</script>") :]
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", outside_the_library)
    assert "<img" not in outside_the_library
    assert "default-src 'none'" in page
    assert "seen by doctor" not in page


def test_the_page_says_what_the_engine_found(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    for text in ("Will filling help", "sex = M, smoker = True", "gap score", "before", "after"):
        assert text in page


def test_a_browser_draws_every_figure_and_asks_the_network_for_nothing(
    report: Path, tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine; install it to test the report in a browser")
    log = tmp_path / "net.json"
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage"),
        *("--virtual-time-budget=8000", "--disable-background-networking", "--no-first-run"),
        *("--disable-component-update", "--enable-logging=stderr", f"--log-net-log={log}"),
        *(f"--user-data-dir={tmp_path / 'profile'}", report.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = done.stdout
    for name in ("map", "regions", "distributions"):
        drawn = page.index(f'id="figure-{name}"')
        assert "js-plotly-plot" in page[drawn - 60 : drawn + 200]
    assert "<canvas" in page  # the map in 3-D
    assert page.count('class="main-svg"') >= 3
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
    assert requested_by_the_page(log) == set()


def requested_by_the_page(log: Path) -> set[str]:
    """Give the addresses outside the file that were asked for, but for the browser's own services.

    The browser asks its maker for updates of its own; the page is told apart by the initiator.
    """
    text = log.read_text(encoding="utf-8").rstrip().rstrip(",")
    events = json.loads(text if text.endswith("}") else text + "]}")["events"]
    found = set()
    for event in events:
        params = event.get("params") or {}
        url, initiator = params.get("url", ""), params.get("initiator", "")
        if url.startswith(("http:", "https:", "ws:")) and initiator.startswith(("file", "null")):
            found.add(url)
    return found
