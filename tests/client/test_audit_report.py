"""The audit report: one model, four forms that cannot disagree, and nothing about a patient in any."""

import csv
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytest_asyncio
from rich.console import Console

from enrolled import exchange
from real_browser import real_browser
from sites import MALE_HIGH, steward, transfer_at
from synthedge_client import store
from synthedge_client.asking import request
from synthedge_client.audit import AuditReport, Period, collect
from synthedge_client.audit_files import choose_form, write
from synthedge_client.audit_html import to_html
from synthedge_client.audit_sections import facts, render, sections, to_csv
from synthedge_client.console import plain
from synthedge_client.donating import approve, decline, prepare
from synthedge_client.site import Site
from synthedge_core.errors import UsageError
from synthedge_protocols.v1 import coordinator_pb2 as wire


def ask(north: Site) -> bytes:
    return request(
        north,
        steward(),
        donor="south",
        grid=north.grid("sex x bp"),
        voxel=MALE_HIGH,
        rows=5,
        purpose="DUO:0000007",
        accept_if_gate_passes=True,
    )


@pytest_asyncio.fixture
async def busy(pair: list[Site]) -> AsyncIterator[list[Site]]:
    """North received five rows of south, and was declined once, with a hostile reason."""
    north, south = pair
    given = ask(north)
    await exchange(north, south)
    prepare(south, transfer_at(south, given), "ada")
    approve(south, transfer_at(south, given), steward())
    await exchange(south, north, south)
    declined = ask(north)
    await exchange(north, south)
    decline(south, transfer_at(south, declined), steward(), "=1+1 <script>alert(1)</script>")
    await exchange(south, north)
    assert transfer_at(north, given).state == "ACTIVE"
    yield pair


def as_text(report: AuditReport) -> str:
    buffer = io.StringIO()
    render(report, Console(file=buffer, width=80, highlight=False, color_system=None))
    return buffer.getvalue()


async def test_the_four_forms_show_the_same_and_no_value_of_a_patient(
    busy: list[Site], tmp_path: Path
) -> None:
    for site in busy:
        report = collect(site)
        forms: dict[str, str] = {"text": as_text(report), "html": to_html(report)}
        table = list(csv.DictReader(io.StringIO(to_csv(report))))
        data: dict[str, Any] = plain(report)
        shown = re.sub(r"\s+", " ", forms["text"])
        page = re.sub(r"<[^>]+>", " ", forms["html"]).replace("&#39;", "'")
        for section in sections(report):
            in_csv = [r for r in table if r["section"] == section.key]
            assert len(in_csv) == len(section.rows) * len(section.columns)
            assert len(data[section.key]) == len(section.rows)
            for i_row, row in enumerate(section.rows):
                for i, ((name, _), cell) in enumerate(zip(section.columns, row, strict=True)):
                    said = in_csv[i_row * len(section.columns) + i]["text"]
                    assert said.removeprefix("'") == cell
                    value = data[section.key][i_row][name] if section.key != "alarms" else None
                    if isinstance(value, str):
                        assert value == cell
                    assert re.sub(r"\s+", " ", cell) in shown
                    if "<" not in cell:
                        assert cell in page
        for name, text in facts(report):
            assert text in next(r["text"] for r in table if r["column"] == name)
        patients = pd.read_csv(site.settings.data)
        everything = "".join(forms.values()) + to_csv(report) + json.dumps(data)
        assert not [mrn for mrn in patients["mrn"] if mrn in everything]


async def test_the_report_names_who_decided_what_moved_and_what_was_published(
    busy: list[Site],
) -> None:
    north, south = (collect(site) for site in busy)
    assert [row["rows"] for row in north.received] == [5]
    assert [row["rows"] for row in south.sent] == [5]
    assert north.received[0]["ciphertext_digest"] == south.sent[0]["ciphertext_digest"] != ""
    assert any("ada" in line for line in south.sent[0]["decided_by"])
    assert [row["state"] for row in south.open] == ["DECLINED"]
    whats = [row["what"] for row in south.decisions]
    assert "approved" in whats
    assert "declined" in whats
    assert north.published[0]["statement_digest"]
    assert north.log_entries > 10
    assert north.alarms == []
    assert {row["compared"] != "NOT COMPARED" for row in north.peers} == {True}


async def test_a_peers_words_run_neither_in_a_browser_nor_in_a_spreadsheet(
    busy: list[Site],
) -> None:
    report = collect(busy[0])
    assert "<script" not in to_html(report)
    assert "&lt;script&gt;" in to_html(report)
    assert not any(row.split(",", 3)[3].startswith("=") for row in to_csv(report).splitlines())


async def test_a_period_leaves_out_what_happened_outside_it(busy: list[Site]) -> None:
    report = collect(busy[0], Period(until_ms=1))
    assert report.until == "1970-01-01T00:00:00+00:00"
    assert [report.published, report.decisions, report.sent, report.received, report.open] == [
        [],
        [],
        [],
        [],
        [],
    ]


async def test_a_report_is_there_when_the_table_cannot_be_read(busy: list[Site]) -> None:
    north = busy[0]
    digest = north.dictionary.digest
    profile = wire.HoleProfile(dictionary_digest=bytes.fromhex(digest)).SerializeToString()
    with north.store.write() as connection:
        connection.execute(
            store.hints.insert().values(dictionary_digest=digest, kind="profile", message=profile)
        )
    assert collect(north).gaps_problem == ""
    north.settings.data.unlink()
    report = collect(north)
    assert "could not be computed" in report.gaps_problem
    assert report.gaps_problem in as_text(report)


def test_forms_exclude_each_other_and_no_file_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        choose_form(as_json=True, as_csv=True, as_html=False, out=None)
    with pytest.raises(UsageError, match="name its file"):
        choose_form(as_json=False, as_csv=False, as_html=True, out=None)
    with pytest.raises(UsageError, match="exists already"):
        choose_form(as_json=False, as_csv=False, as_html=False, out=tmp_path)


@pytest.mark.slow
async def test_a_browser_shows_the_page_light_and_dark_wide_and_narrow_and_asks_for_nothing(
    busy: list[Site], tmp_path: Path
) -> None:
    page_file = tmp_path / "report.html"
    write(collect(busy[0]), "html", page_file)
    async with real_browser() as browser:
        grounds = set()
        for scheme, width in (("light", 1280), ("dark", 390)):
            page: Any = await browser.new_page(
                color_scheme=scheme, viewport={"width": width, "height": 800}
            )
            asked: list[str] = []
            said: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda message, said=said: said.append(message.text))
            await page.goto(page_file.as_uri())
            assert await page.locator("figure").count() == 3
            assert await page.locator("svg rect").count() > 3
            wide = "document.documentElement.scrollWidth <= window.innerWidth"
            assert await page.evaluate(wide)
            grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert (asked, said) == ([page_file.as_uri()], [])
            await page.emulate_media(media="print")
            assert await page.evaluate("document.querySelectorAll('h2').length") > 8
        assert len(grounds) == 2
