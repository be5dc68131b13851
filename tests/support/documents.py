"""What the documents say, as a test can check it: pages, links, anchors, and every command with its options."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import typer.main

from synthedge_client import cli, cli_site
from synthedge_server import cli as coordinator_cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "deploy" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
PROGRAMS = ("synthedge", "synthedge-coordinator")

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """A command as a page writes it."""

    page: str
    line: str
    whole: bool
    """Whether it is typed as it stands, so that nothing required may be missing."""


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCED.sub("", text)


def links(page: Path) -> list[str]:
    return _LINK.findall(_INLINE.sub("", prose(page.read_text(encoding="utf-8"))))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the built site spell them."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        n = sum(known == slug or known.startswith(f"{slug}_") for known in found)
        found.add(f"{slug}_{n}" if n else slug)
    return found


def commands_of(page: Path) -> Iterator[Written]:
    """Every command line in blocks of code, and every command named within the text."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    for _, language, block in _FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if words.split(" ")[0] in PROGRAMS:
                yield Written(name, words, whole=language == "console")
    rest = prose(text)
    for line in re.findall(r"^    +((?:synthedge|synthedge-coordinator) .+)$", rest, re.MULTILINE):
        yield Written(name, line.rstrip("\\"), whole=False)
    for code in _INLINE.findall(rest):
        words = " ".join(code.split()).removeprefix(".venv/bin/")
        if words.split(" ")[0] in PROGRAMS and "..." not in words:
            yield Written(name, words, whole=False)


def every_command() -> dict[str, click.Command]:
    """All commands of both programs, by the words one types."""
    found: dict[str, click.Command] = {}

    def walk(command: click.Command, words: str) -> None:
        if not isinstance(command, click.Group):
            found[words] = command
            return
        if command.invoke_without_command:
            found[words] = command
        context = click.Context(command)
        for name in command.list_commands(context):
            part = command.get_command(context, name)
            assert part is not None
            if words == "synthedge" and name == "site":  # a door that opens on use
                part = typer.main.get_command(cli_site.app)
            walk(part, f"{words} {name}")

    walk(typer.main.get_command(cli.app), "synthedge")
    walk(typer.main.get_command(coordinator_cli.app), "synthedge-coordinator")
    return found


def named_in(page: Path, known: dict[str, click.Command]) -> set[str]:
    """The commands that a page writes down."""
    lines = [words for written in commands_of(page) for words in _lines_of(written)]
    return {name for words in lines if (name := _name_in(words, known)) is not None}


def problem_of(written: Written, known: dict[str, click.Command]) -> str | None:
    """What is wrong with a command as a page writes it; None if nothing is."""
    problems = [_problem(words, known, whole=written.whole) for words in _lines_of(written)]
    return next((problem for problem in problems if problem), None)


def _lines_of(written: Written) -> list[list[str]]:
    line = re.split(r" [>&#]", written.line.replace("[", "").replace("]", ""))[0]
    return _alternatives(shlex.split(line.replace(" | ", "|"), comments=True))


def _name_in(words: list[str], known: dict[str, click.Command]) -> str | None:
    """The longest command that a line begins with."""
    starts = (" ".join(words[:n]) for n in range(len(words), 0, -1))
    return next((start for start in starts if start in known), None)


def _alternatives(words: list[str]) -> list[list[str]]:
    """Several command lines for one that says ``suspend|resume SITE``; values of options stay."""
    for i, word in enumerate(words):
        if "|" in word and not word.startswith("-") and not words[i - 1].startswith("-"):
            return [
                one
                for choice in word.split("|")
                for one in _alternatives([*words[:i], *choice.split(), *words[i + 1 :]])
            ]
    return [words]


def _problem(words: list[str], known: dict[str, click.Command], *, whole: bool) -> str | None:
    name = _name_in(words, known)
    if name is None:
        group = " ".join(word for word in words if not word.startswith("-"))
        is_group = any(f"{name} ".startswith(f"{group} ") for name in known)
        return None if is_group and not whole else "there is no such command"
    command, rest = known[name], words[len(name.split()) :]
    options = {
        name: option
        for option in command.params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
    }
    given, arguments = set(), []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            arguments.append(word)
            continue
        name, _, value = word.partition("=")
        if name == "--help":
            return None
        if name not in options:
            return f"it has no option {name}"
        given.add(options[name].name)
        if not (options[name].is_flag or value):
            if not rest and whole:
                return f"{name} has no value"
            rest = rest[1:]
    takes = [p for p in command.params if isinstance(p, click.Argument)]
    if len(arguments) > len(takes) and all(argument.nargs == 1 for argument in takes):
        return f"it takes {len(takes)} arguments, not {arguments}"
    if whole and len(arguments) < sum(argument.required for argument in takes):
        return f"it needs {[argument.name for argument in takes]}"
    missing = [o.opts[0] for o in options.values() if o.required and o.name not in given]
    return f"it needs {', '.join(missing)}" if whole and missing else None
