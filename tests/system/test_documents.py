"""What the documents name is there, and what they tell people to type would be taken."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from documents import (
    DOCS,
    PAGES,
    ROOT,
    Written,
    anchors,
    commands_of,
    every_command,
    links,
    named_in,
    problem_of,
    prose,
)

COMMANDS = cache(every_command)


def test_every_test_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "threat-model.md").read_text()))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 40
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        url = urlsplit(target)
        if url.scheme:
            assert url.scheme == "https", f"{page.name} links to {target}"
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", url.netloc), target
            continue
        to = (page.parent / url.path).resolve() if url.path else page
        assert to.exists(), f"{page.name} links to {target}"
        if url.fragment:
            assert url.fragment in anchors(to), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_in_a_document_exists_with_these_options(page: Path) -> None:
    wrong = {
        written.line: problem
        for written in commands_of(page)
        if (problem := problem_of(written, COMMANDS()))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("synthedge site requests new G --rows 2 --purpose P --steward A", None),
        ("synthedge site requests new G --rows 2 --purpose P", "needs --steward"),
        ("synthedge site requests approve --steward A", "needs"),
        ("synthedge site requests approve ID OTHER --steward A", "arguments"),
        ("synthedge site requests grant ID", "no such command"),
        ("synthedge site status --loud", "no option --loud"),
        ("synthedge-coordinator sites suspend|dismiss north", "arguments"),
    ],
)
def test_a_command_that_is_none_would_be_found(line: str, problem: str | None) -> None:
    found = problem_of(Written("page", line, whole=True), COMMANDS())
    assert found is None if problem is None else problem in str(found)


def test_every_command_is_in_the_handbook_of_who_types_it() -> None:
    operators, sites = (
        named_in(DOCS / f"{name}-handbook.md", COMMANDS()) for name in ("operator", "site")
    )
    anywhere = set().union(*(named_in(page, COMMANDS()) for page in PAGES))
    missing = []
    for words in COMMANDS():
        at_site = words.startswith("synthedge site ")
        at_operator = words.startswith("synthedge-coordinator ")
        if words not in (sites if at_site else operators if at_operator else anywhere):
            missing.append(words)
    assert missing == []


def test_blocks_inside_lists_are_indented_as_the_site_and_github_both_read_them() -> None:
    for page in DOCS.rglob("*.md"):
        indents = {
            len(indent) for indent in re.findall(r"^( *)```", page.read_text(), re.MULTILINE)
        }
        assert {indent for indent in indents if indent % 4} == set(), page.name


def test_every_document_is_in_the_sites_navigation() -> None:
    listed = set(re.findall(r": ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_documents_name_no_file_of_the_repository_that_is_gone() -> None:
    top = "protocols|client|server|synthedge_core|deploy|tests|benchmarks|docs"
    for page in PAGES[:1] + PAGES[2:]:
        for path in re.findall(rf"`((?:{top})/[\w./-]+)`", prose(page.read_text())):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
