"""Both programs where nothing can be written but their own folder, as images and units confine them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server_fixtures import DICTIONARY_TOML
from sites import patients

PROGRAMS = Path(sys.executable).parent
# A mount namespace of its own: the folder stays writable, everything else on the root file system does not; then no
# capability is left, so that root's programs obey modes as anybody's do.
CONFINE = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro /
shift
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def can_confine() -> bool:
    return os.geteuid() == 0 and (
        subprocess.run(
            ["unshare", "--mount", "true"],  # noqa: S607 - of the machine
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_confine(), reason="mount namespaces need root's capabilities"),
]


def confined(folder: Path, program: str, *arguments: str) -> list[str]:
    line = [str(PROGRAMS / program), *arguments]
    return ["unshare", "--mount", "sh", "-c", CONFINE, "sh", str(folder), *line]


def run(folder: Path, program: str, *arguments: str) -> str:
    done = subprocess.run(
        confined(folder, program, *arguments),
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def bare_environment() -> dict[str, str]:
    """No home, no folder for temporary files: what a service has."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return kept | {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}


@contextmanager
def running(folder: Path, program: str, *arguments: str) -> Iterator[None]:
    """Run a program until the body ends; it must then end in order at SIGTERM."""
    process = subprocess.Popen(
        confined(folder, program, *arguments),
        env=bare_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def wait_until_it_answers(folder: Path, program: str, *arguments: str) -> None:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        done = subprocess.run(
            confined(folder, program, *arguments),
            env=bare_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError(done.stderr)


def test_the_confinement_holds(tmp_path: Path) -> None:
    own, other = tmp_path / "own", Path("/usr/synthedge-was-here")
    own.mkdir()
    touch = ["sh", "-c", f"touch {own}/a; touch {other} 2>/dev/null && echo written"]
    line = ["unshare", "--mount", "sh", "-c", CONFINE, "sh", str(own), *touch]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    was_written = other.exists()
    other.unlink(missing_ok=True)
    assert done.stdout == ""
    assert (own / "a").exists()
    assert not was_written


def test_a_site_and_its_coordinator_write_into_their_own_folders_only(tmp_path: Path) -> None:
    coordinator, site = tmp_path / "coordinator", tmp_path / "site"
    coordinator.mkdir()
    site.mkdir()
    (tmp_path / "consortium.toml").write_text(DICTIONARY_TOML)
    patients("n").to_csv(tmp_path / "patients.csv", index=False)
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = [one.getsockname()[1], two.getsockname()[1]]
    here = (coordinator, "synthedge-coordinator")
    folder = f"--dir={coordinator}/made"
    run(
        *here,
        "init",
        f"{coordinator}/made",
        "--name=test",
        f"--dictionary={tmp_path}/consortium.toml",
        f"--listen=127.0.0.1:{ports[0]}",
        f"--enrolment-listen=127.0.0.1:{ports[1]}",
    )
    with running(*here, "serve", folder):
        wait_until_it_answers(*here, "ping", folder)
        token = tmp_path / "north.token"
        token.write_text(run(*here, "invite", "north", folder))
        token.chmod(0o600)

        there = (site, "synthedge", "site")
        made = f"--dir={site}/made"
        table = f"--data={tmp_path}/patients.csv"
        run(
            *there,
            "init",
            f"{site}/made",
            "--id=north",
            table,
            "--patient-id=mrn",
            "--consent=consent",
        )
        run(*there, "enrol", f"--token-file={token}", made)
        run(*there, "doctor", made)
        with running(*there, "run", made):
            wait_until_it_answers(*there, "ping", made)
