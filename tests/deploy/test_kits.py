"""The page that tells how to use the kits: the commands on it are ones the programs understand."""

import re
import shlex

from kit_commands import DEPLOY, command_of

PAGE = DEPLOY / "README.md"
PROGRAMS = ("synthedge", "synthedge-coordinator")
# Compose hands what stands behind a service's name to its image's entry point.
ENTRYPOINTS = {"coordinator": "synthedge-coordinator", "site": "synthedge"}


def typed(line: str) -> list[str]:
    """The program's own part of a line for a shell; nothing if there is none."""
    words = shlex.split(line, comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    if words[:1] == ["systemctl"]:
        return []
    if words[:1] == ["once"] or "--rm" in words:
        service = next(i for i, word in enumerate(words) if word in ENTRYPOINTS)
        return [ENTRYPOINTS[words[service]], *words[service + 1 :]]
    places = [
        i
        for i, word in enumerate(words)
        if word in PROGRAMS or word.startswith("/opt/synthedge/bin/synthedge")
    ]
    return words[places[-1] :] if places else []


def test_the_commands_on_the_page_are_understood() -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    # The shell function is where 'once' comes from.
    commands = [typed(line) for line in lines if not line.startswith("once()")]
    names = [command_of(command)[0] for command in commands if command]
    assert len(names) >= 10
    for name in ("init", "invite"):
        assert f"synthedge-coordinator {name}" in names
    for name in ("init", "enrol", "doctor", "keys protect"):
        assert f"synthedge site {name}" in names


def test_every_folder_of_the_kits_is_on_the_page() -> None:
    folders = {path.name for path in DEPLOY.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert {name for name in folders if f"`{name}/`" not in PAGE.read_text()} == set()
