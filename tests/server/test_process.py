"""The program itself: its commands, its process, and what a crash cannot take away."""

import asyncio
import errno
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from coordinator_processes import coordinator_command, free_ports, serving
from server_fixtures import (
    DICTIONARY,
    DICTIONARY_TOML,
    Clock,
    Consortium,
    Hospital,
    kinds,
    new_folder,
    ship,
)
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.tokens import EnrolmentToken
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server.audit import verify_log
from synthedge_server.cli import app
from synthedge_server.console import run
from synthedge_server.console_server import serve_console
from synthedge_server.doctor import examine
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.locks import alone
from synthedge_server.operations import create_coordinator
from synthedge_server.settings import Address, Settings, parse_settings, settings_toml
from synthedge_server.status import read_status

PAYLOAD = bytes(50_000)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    dictionary = tmp_path / "consortium.toml"
    dictionary.write_text(DICTIONARY_TOML)
    made = Consortium(CoordinatorFolder(tmp_path / "coordinator"), Clock())
    made.sites_port, made.enrolment_port = free_ports(2)
    coordinator_command(
        "init",
        str(made.folder.path),
        "--name=test-consortium",
        f"--dictionary={dictionary}",
        f"--listen=127.0.0.1:{made.sites_port}",
        f"--enrolment-listen=127.0.0.1:{made.enrolment_port}",
    )
    return made


async def test_kill_9_loses_nothing_that_was_acknowledged(consortium: Consortium) -> None:
    async with serving(consortium.folder) as process:
        north, south, _ = await consortium.reporting("north", "south", "west")
        before = await north.inbox()
        shipped = await ship(north, south, PAYLOAD)
        await south.upload(shipped.identifier, shipped.ciphertext, until=20_000)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        with pytest.raises(UnavailableError):
            await north.inbox()

    async with serving(consortium.folder) as process:
        for hospital in (north, south):
            consortium.connect(hospital)
        after = await north.inbox()
        assert after[: len(before)] == before
        assert after[-1].statement == shipped.approval
        assert await south.submit(shipped.shipment) == await south.submit(shipped.shipment)
        stored = (await south.progress(shipped.identifier)).stored_bytes
        assert stored == 20_000
        progress = await south.upload(shipped.identifier, shipped.ciphertext, stored)
        assert progress.complete
        assert await north.download(shipped.identifier) == shipped.ciphertext
        assert kinds(await north.inbox(after[-1].sequence)) == ["shipment"]
        rss_mb = psutil.Process(process.pid).memory_info().rss / 2**20
        assert rss_mb < 150
        await consortium.close()


async def test_a_token_of_the_command_line_enrols_and_no_secret_is_kept(
    consortium: Consortium,
) -> None:
    text = coordinator_command("invite", "north", f"--dir={consortium.folder.path}")
    token = EnrolmentToken.decode(text)
    async with serving(consortium.folder):
        await consortium.ask_to_enrol(Hospital("north").enrol_request(token))
        await consortium.close()

    listed = json.loads(coordinator_command("sites", "--json", f"--dir={consortium.folder.path}"))
    assert [(row["site"], row["state"]) for row in listed["data"]] == [("north", "active")]
    for path in consortium.folder.path.glob("coordinator.db*"):
        assert token.secret not in path.read_bytes()


async def test_a_caller_below_tls_1_3_is_not_understood(consortium: Consortium) -> None:
    context = ssl.create_default_context(cadata=consortium.ca_pem.decode())
    async with serving(consortium.folder):
        _, writer = await asyncio.open_connection(
            "127.0.0.1", consortium.enrolment_port, ssl=context
        )
        writer.close()
        await writer.wait_closed()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", consortium.enrolment_port, ssl=context)


async def test_sigterm_ends_open_streams_and_the_process_in_order(consortium: Consortium) -> None:
    async with serving(consortium.folder) as process:
        north, _, _ = await consortium.reporting("north", "south", "west")
        stream = north.stub.Inbox(wire.InboxRequest(follow=True), timeout=20)
        await stream.read()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
        await consortium.close()


async def test_a_second_coordinator_on_the_same_folder_is_refused(consortium: Consortium) -> None:
    async with serving(consortium.folder):
        error = await asyncio.to_thread(
            coordinator_command, "serve", f"--dir={consortium.folder.path}", code=1
        )
    assert "another coordinator runs" in error


def test_a_port_that_is_taken_is_a_connection_error(consortium: Consortium) -> None:
    with socket.create_server(("127.0.0.1", consortium.sites_port)):
        error = coordinator_command("serve", f"--dir={consortium.folder.path}", code=2)
    assert "the port is taken" in error


def test_a_folder_that_cannot_be_locked_is_one_sentence(tmp_path: Path) -> None:
    folder = CoordinatorFolder(tmp_path)
    folder.lock.mkdir()
    with (
        pytest.raises(UnavailableError, match="lock cannot be locked: Is a directory; the folder"),
        alone(folder),
    ):
        pass


def test_the_folder_tells_what_it_holds(consortium: Consortium) -> None:
    directory = f"--dir={consortium.folder.path}"
    status = json.loads(coordinator_command("status", "--json", directory))
    shown = json.loads(coordinator_command("dictionary", "show", "--json", directory))

    assert status["status"] == "ok"
    assert status["data"]["sites"] == 0
    assert shown["data"] == {
        "version": 1,
        "digest": DICTIONARY.digest,
        "toml": DICTIONARY_TOML,
        "accepted": [],
    }
    for command in ("matches", "transfers"):
        assert json.loads(coordinator_command(command, "--json", directory))["data"] == []


def test_private_files_are_readable_by_their_owner_only(consortium: Consortium) -> None:
    folder = consortium.folder
    for path in (
        folder.ca_key,
        folder.ca_passphrase,
        folder.tls_key,
        folder.tls_passphrase,
        folder.database,
    ):
        assert path.stat().st_mode & 0o077 == 0


def test_sites_are_told_the_name_that_init_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, dictionary = tmp_path / "coordinator", tmp_path / "consortium.toml"
    dictionary.write_text(DICTIONARY_TOML)
    arguments = [str(folder), "--name=test", f"--dictionary={dictionary}", "--listen=0.0.0.0:7443"]

    refused = coordinator_command("init", *arguments, "--host=no host", code=4)
    assert "'no host' is neither a host name nor an IP address" in refused
    monkeypatch.setattr("socket.getfqdn", lambda: "localhost")
    everywhere = Address(host="0.0.0.0", port=7443)  # noqa: S104
    with pytest.raises(UsageError, match="name with --host what sites dial"):
        create_coordinator(
            CoordinatorFolder(folder),
            name="test",
            dictionary_toml=DICTIONARY_TOML,
            listen=everywhere,
            enrolment_listen=everywhere,
        )
    assert not folder.exists()
    coordinator_command("init", *arguments, "--host=coordinator.example.org", "--host=10.0.0.7")

    settings = parse_settings((folder / "coordinator.toml").read_text())
    assert settings.names == ("coordinator.example.org", "10.0.0.7")
    token = EnrolmentToken.decode(coordinator_command("invite", "north", f"--dir={folder}"))
    assert token.address == "coordinator.example.org:7443"


def test_init_refuses_a_used_folder_and_a_wrong_dictionary(
    consortium: Consortium, tmp_path: Path
) -> None:
    folder, bad = tmp_path / "new", tmp_path / "bad.toml"
    bad.write_text(DICTIONARY_TOML.replace("similarity = 0.7\n", ""))
    arguments = ["--name=test", f"--dictionary={bad}"]

    assert "similarity" in coordinator_command("init", str(folder), *arguments, code=4)
    assert not folder.exists()
    bad.write_text(DICTIONARY_TOML)
    used = coordinator_command("init", str(consortium.folder.path), *arguments, code=4)
    assert "not empty" in used
    below = coordinator_command("init", str(bad / "new"), *arguments, code=4)
    assert f"folder {bad}/new cannot be made: Not a directory" in below


def test_an_init_that_fails_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("synthedge_server.operations.create_log_key", full)
    with pytest.raises(UnavailableError, match="cannot be written: No space left on device"):
        new_folder(tmp_path / "coordinator")
    monkeypatch.undo()
    assert read_status(new_folder(tmp_path / "coordinator"))["sites"] == 0


@pytest.mark.parametrize("command", ["suspend", "resume", "revoke", "recover", "reset-keys"])
def test_a_folder_named_before_the_subcommand_is_not_passed_over(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["synthedge-coordinator", "sites", "--dir", str(tmp_path), command, "north"]
    monkeypatch.setattr(sys, "argv", line)
    assert run(app, "synthedge-coordinator") == 4
    assert f"stand behind '{command}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ModuleNotFoundError("grpc_health", name="grpc_health"), 4, "federation[coordinator]"),
        (ModuleNotFoundError("synthedge_core.x", name="synthedge_core.x"), 5, "this is a bug"),
        (UnavailableError("no"), 2, "error: no"),
    ],
)
def test_an_installation_without_the_extra_is_no_bug(
    raised: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("synthedge_server.status.read_status", Mock(side_effect=raised))
    monkeypatch.setattr(sys, "argv", ["synthedge-coordinator", "status"])
    assert run(app, "synthedge-coordinator") == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("look", [read_status, examine, verify_log])
def test_every_look_at_another_folder_says_that_it_is_no_coordinators(
    look: Callable[[CoordinatorFolder], object], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not a coordinator's folder"):
        look(CoordinatorFolder(tmp_path))


def test_the_console_listens_nowhere_but_on_loopback(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "coordinator")
    with pytest.raises(UsageError, match="not on loopback, where alone the console"):
        serve_console(folder, Address(host="0.0.0.0", port=0), lambda *_: None)  # noqa: S104


def test_a_folder_without_settings_is_no_coordinators(tmp_path: Path) -> None:
    answer = coordinator_command("status", f"--dir={tmp_path}", code=4)
    assert "run 'synthedge-coordinator init'" in answer


def test_unknown_settings_are_errors() -> None:
    with pytest.raises(UsageError, match=r"(?s)'colour'.*|.*names"):
        parse_settings('consortium = "a"\nlisten = "h:1"\nenrolment_listen = "h:2"\ncolour = 1')


@pytest.mark.parametrize("address", ["0.0.0.0:9092", "10.0.0.7:9092", "coordinator:9092", "9092"])
def test_flowers_control_interface_listens_nowhere_but_on_loopback(address: str) -> None:
    settings = Settings(
        consortium="a",
        listen=Address(host="h", port=1),
        enrolment_listen=Address(host="h", port=2),
        names=("h",),
        flower_listen=Address(host="::1", port=9999),
    )
    text = settings_toml(settings)
    assert parse_settings(text) == settings
    with pytest.raises(UsageError, match=r"flower_listen: .*(not on loopback|not host:port)"):
        parse_settings(text.replace("[::1]:9999", address))


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from synthedge_server.cli import app; import typer;"
        "typer.main.get_command(app);"
        "print([m for m in ('grpc', 'sqlalchemy', 'cryptography', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


def test_serving_imports_no_table_or_training_library() -> None:
    code = (
        "import sys, synthedge_server.serve;"
        "print([m for m in ('pandas', 'sklearn', 'scipy', 'torch', 'pyarrow', "
        "'prometheus_client', 'grpc_reflection.v1alpha') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == "[]"
