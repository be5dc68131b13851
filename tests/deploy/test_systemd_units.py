"""The systemd units: systemd's own checks, and commands that exist."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from kit_commands import DEPLOY, command_of

FOLDER = DEPLOY / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
UNITS = [*SERVICES, *sorted(FOLDER.glob("*.timer"))]
# Of 10; an unconfined service has 9.6.
MOST_EXPOSED = "1.5"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here"
)


def parsed(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return parser


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A file system with systemd's own units, the installed programs and ours."""
    for name in (
        "opt/synthedge/bin/synthedge",
        "opt/synthedge/bin/synthedge-coordinator",
        "usr/bin/find",
    ):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    system = tmp_path / "etc" / "systemd" / "system"
    system.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, system)
    own = Path("/lib/systemd/system")
    (tmp_path / "lib" / "systemd").mkdir(parents=True)
    shutil.copytree(own, tmp_path / own.relative_to("/"), symlinks=True)
    return tmp_path


def verify(machine: Path, name: str) -> str:
    done = subprocess.run(
        [  # noqa: S607 - of the machine
            "systemd-analyze",
            "verify",
            "--man=no",
            f"--root={machine}",
            f"/etc/systemd/system/{name}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


@needs_systemd
def test_systemd_accepts_every_unit_and_would_notice_a_mistake(machine: Path) -> None:
    assert [verify(machine, unit.name) for unit in UNITS] == [""] * len(UNITS)

    broken = machine / "etc" / "systemd" / "system" / "synthedge-site.service"
    broken.write_text(broken.read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
    assert "ProtectSystm" in verify(machine, broken.name)
    (machine / "opt" / "synthedge" / "bin" / "synthedge").unlink()
    assert "not executable" in verify(machine, broken.name)


@needs_systemd
@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_systemd_finds_every_service_confined(service: Path) -> None:
    done = subprocess.run(
        [  # noqa: S607
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={float(MOST_EXPOSED) * 10:.0f}",
            str(service),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_service_starts_a_command_that_exists_on_its_own_folder(service: Path) -> None:
    section = parsed(service)["Service"]
    line = shlex.split(section["ExecStart"].replace("%", ""))
    name, options = command_of(line)
    assert Path(line[0]).parent == Path("/opt/synthedge/bin")
    assert f"/var/lib/{section['StateDirectory']}" in options.values(), name


def test_users_and_folders_are_made_before_a_service_needs_them() -> None:
    users = set(re.findall(r"^u (\S+)", (FOLDER / "synthedge.sysusers.conf").read_text(), re.M))
    folders = dict(
        re.findall(
            r"^d (\S+) 0700 (\S+) \2", (FOLDER / "synthedge.tmpfiles.conf").read_text(), re.M
        )
    )
    for service in SERVICES:
        section = parsed(service)["Service"]
        assert section["User"] in users
        assert folders[f"/var/lib/{section['StateDirectory']}"] == section["User"]
        for writable in section.get("ReadWritePaths", "").split():
            assert folders[writable] == section["User"]


def test_every_timer_has_its_service() -> None:
    timers = [path for path in UNITS if path.suffix == ".timer"]
    assert timers
    for timer in timers:
        assert timer.with_suffix(".service") in SERVICES


def test_backups_are_written_where_they_may_be_and_old_ones_deleted_there_only() -> None:
    section = parsed(FOLDER / "synthedge-coordinator-backup.service")["Service"]
    _, options = command_of(shlex.split(section["ExecStart"]))
    deleting = shlex.split(section["ExecStartPost"])
    assert deleting[0] == "/usr/bin/find"
    assert options["output"] == deleting[1] == section["ReadWritePaths"]


def test_the_hardening_is_the_same_everywhere() -> None:
    """The difference between two units is what they do, not what they may."""
    starts = "# Nothing but its own folder can be written"
    blocks = {
        service.read_text().split(starts)[1].split("\n\n[Install]")[0].strip()
        for service in SERVICES
    }
    assert len(blocks) == 1
