"""Flower for real: SuperLink, three SuperNodes with their runners, the shipped nginx file; one running set for all."""

import json
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa
from flwr.proto.control_pb2 import ListNodesRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab

from hostile_supernode import reply_with_no_message
from server_fixtures import CONSORTIUM, DICTIONARY_TOML
from sites import make_site, patients, steward
from synthedge_client import store as site_store
from synthedge_client.dictionaries import accept
from synthedge_client.enrolment import enrol_site
from synthedge_client.flower_node import approve_app
from synthedge_client.releases import publish
from synthedge_client.site import open_site
from synthedge_core.errors import RefusedError, UsageError
from synthedge_deploy.consortium import Consortium, free_port
from synthedge_protocols.discovery import Refusal
from synthedge_protocols.errors import UnavailableError
from synthedge_protocols.flower_app import App, app
from synthedge_server import flower_run, operations, store
from synthedge_server.flower_nodes import announced_keys
from synthedge_server.folder import CoordinatorFolder
from synthedge_server.rounds import close_round, n_waiting, open_round
from synthedge_server.settings import Address
from synthedge_server.superlink import SuperLink, serve_superlink

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]

NGINX = Path(__file__).parents[2] / "deploy" / "flower" / "nginx.conf"
NAMES = ("north", "south", "west")
OK = dict.fromkeys(NAMES, ("ok", ""))
# Two missed signs of life of ten seconds each, and a start on a busy machine.
BACK_WITHIN_S = 60.0
# What a SuperNode writes once the SuperLink has taken it.
UP = "SuperNode ID:"


class Running:
    """A coordinator with SuperLink and proxy, and three sites with agents and Flower runners."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium = consortium
        self.folder = CoordinatorFolder(consortium.folder / "coordinator")
        self.superlink = free_port()
        self.proxy = free_port()

    def discover(self, *options: str) -> "subprocess.Popen[bytes]":
        """Type ``discover``; `outcomes` waits for its end."""
        program = Path(sys.executable).parent / "synthedge-coordinator"
        command = [str(program), "discover", "--dir", str(self.folder.path), "--json", *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def nodes(self) -> dict[str, str]:
        """Site to the status of its SuperNode at the SuperLink."""
        with operations.reading(self.folder) as engine, engine.connect() as connection:
            site_of = {key: site for site, key in announced_keys(connection).items()}
        with SuperLink(self.folder).control() as control:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
        return {site_of.get(node.public_key, "?"): node.status for node in nodes}

    def wait_online(self, *names: str) -> None:
        def are_online() -> bool:
            nodes = self.nodes()
            return all(nodes.get(name) == "online" for name in names)

        self.consortium.wait_for(f"SuperNodes of {names}", are_online, BACK_WITHIN_S)

    def start_superlink(self) -> None:
        log = self.consortium.log("superlink")
        n_before = log.read_text().count("ready:") if log.exists() else 0
        where = ("--dir", str(self.folder.path))
        self.consortium.start("superlink", "synthedge-coordinator", "flower", "serve", *where)
        self.consortium.wait_for(
            "the SuperLink", lambda: log.read_text().count("ready:") > n_before
        )

    def start_runner(self, name: str) -> None:
        folder = str(self.consortium.folder / name)
        where = f"127.0.0.1:{self.proxy}"
        command = ("synthedge", "site", "flower", "run", "--superlink", where, "--dir", folder)
        self.consortium.start(f"{name}-flower", *command)


def outcomes(typed: "subprocess.Popen[bytes]", code: int = 0) -> dict[str, tuple[str, str]]:
    output, errors = typed.communicate(timeout=120)
    assert typed.returncode == code, errors.decode()
    return as_outcomes(json.loads(output)["data"]["sites"])


def as_outcomes(rows: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {row["site"]: (row["outcome"], row["reason"]) for row in rows}


def write_nginx(running: Running) -> Path:
    """The shipped file, its marked lines adapted, inside the least that nginx needs around it."""
    folder = running.consortium.folder / "nginx"
    folder.mkdir()
    text = NGINX.read_text()
    for shipped, here in {
        "listen 9093 ssl": f"listen 127.0.0.1:{running.proxy} ssl",
        "/var/lib/synthedge-coordinator/": f"{running.folder.path}/",
        "https://127.0.0.1:9092$uri": f"https://127.0.0.1:{running.superlink}$uri",
    }.items():
        assert shipped in text
        text = text.replace(shipped, here)
    (folder / "door.conf").write_text(text)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"""
        user root; daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
        events {{}}
        http {{ access_log off; {paths} include {folder}/door.conf; }}
    """
    (folder / "nginx.conf").write_text(whole)
    return folder / "nginx.conf"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("flower")
    with Consortium(folder, lambda line: None) as consortium:
        running = Running(consortium)
        operations.create_coordinator(
            running.folder,
            name=CONSORTIUM,
            dictionary_toml=DICTIONARY_TOML,
            listen=Address(host="127.0.0.1", port=free_port()),
            enrolment_listen=Address(host="127.0.0.1", port=free_port()),
        )
        with running.folder.settings.open("a") as file:
            file.write(f'flower_listen = "127.0.0.1:{running.superlink}"\n')
        where = ("--dir", str(running.folder.path))
        consortium.start("coordinator", "synthedge-coordinator", "serve", *where)
        log = consortium.log("coordinator")
        consortium.wait_for("the coordinator", lambda: "ready:" in log.read_text())
        running.start_superlink()
        for name in NAMES:
            make_site(folder, name, patients(name))
            token = folder / f"{name}.token"
            token.write_text(operations.invite(running.folder, name, 24).encode())
            enrol_site(folder / name, token)
            with open_site(folder / name) as site:
                accept(site, steward())
                publish(site, steward())
                approve_app(site, app().digest if name != "north" else "0" * 64)
            here = ("--dir", str(folder / name))
            if name == "north":  # as a data manager types it; a command takes a second
                consortium.command("synthedge", "site", "flower", "approve", app().digest, *here)
            consortium.start(f"{name}-agent", "synthedge", "site", "run", *here)
        consortium.start("proxy", shutil.which("nginx") or "", "-c", str(write_nginx(running)))
        for name in NAMES:
            running.start_runner(name)
        running.wait_online(*NAMES)
        yield running


def test_a_round_brings_what_three_stewards_published(running: Running) -> None:
    assert outcomes(running.discover("--engine", "flower", "--timeout", "60")) == OK
    with operations.reading(running.folder) as engine, engine.connect() as connection:
        rows = connection.execute(sa.select(store.reports))
        stored = {row.site: row.payload for row in rows}
    for name in NAMES:
        with open_site(running.consortium.folder / name) as site, site.store.read() as connection:
            report = connection.execute(sa.select(site_store.releases.c.report)).scalar_one()
        assert stored[name] == report


def test_the_channel_brings_the_same(running: Running) -> None:
    assert outcomes(running.discover("--engine", "channel", "--timeout", "60")) == OK


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-task-input",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/pull-messages%2f..%2f..%2fcontrol/list-nodes",
        "//v1/control/list-nodes",
        "/V1/control/list-nodes",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
def test_a_site_reaches_no_control_or_runtime_call_through_the_proxy(
    running: Running, path: str
) -> None:
    trusted = ssl.create_default_context(cafile=str(running.folder.ca_certificate))
    with httpx.Client(verify=trusted) as client:
        url = httpx.URL(f"https://127.0.0.1:{running.proxy}").copy_with(raw_path=path.encode())
        answer = client.post(url, content=b"", headers={"content-type": "application/protobuf"})
    assert answer.status_code in (400, 403)
    assert "nginx" in answer.text  # the door's own answer, not what is behind it


def test_the_calls_of_supernodes_pass_and_without_a_registered_key_get_nowhere(
    running: Running,
) -> None:
    trusted = ssl.create_default_context(cafile=str(running.folder.ca_certificate))
    with httpx.Client(verify=trusted) as client:
        answer = client.post(
            f"https://127.0.0.1:{running.proxy}/v1/fleet/pull-messages",
            content=b"",
            headers={"content-type": "application/protobuf"},
        )
    assert answer.status_code not in (200, 403)
    assert "nginx" not in answer.text


def test_an_altered_app_is_refused_by_every_site(running: Running) -> None:
    folder = running.folder
    altered = App(app().content + b"\0")
    with flower_run.ready(folder) as link:
        with (
            link.control() as control
        ):  # what a round that was killed leaves behind is in nobody's way
            fab = Fab(hash_str=app().digest, content=app().content)
            control.StartRun(StartRunRequest(fab=fab))
        asked = operations.change(folder, lambda t: open_round(t, "flower", None, 60.0))
        unreached = flower_run.carry(folder, link, asked, shipped=altered)
        closed = operations.change(folder, lambda t: close_round(t, asked.round_id, unreached))
    assert as_outcomes(closed) == dict.fromkeys(NAMES, ("refused", Refusal.APP.in_words))
    assert altered.digest in running.consortium.log("north-flower").read_text()


def test_a_killed_supernode_and_a_killed_superlink_lose_what_was_under_way_and_nothing_else(
    running: Running,
) -> None:
    consortium, log = running.consortium, running.consortium.log("west-flower")
    runner = psutil.Process(consortium.process("west-flower").pid)
    (node,) = runner.children()
    n_messages, n_starts = log.read_text().count("Receiving:"), log.read_text().count(UP)
    runner.suspend()  # the message stays with the SuperNode
    try:
        typed = running.discover("--engine", "flower", "--timeout", "10")
        consortium.wait_for("it", lambda: log.read_text().count("Receiving:") > n_messages)
        node.send_signal(signal.SIGKILL)
    finally:
        runner.resume()
    north_and_south = {"north": ("ok", ""), "south": ("ok", "")}
    late = ("timed out", "no answer in time")
    assert outcomes(typed, code=3) == {**north_and_south, "west": late}

    # West is not back yet: its SuperLink has to miss two signs of life first. It dies meanwhile, in mid-round.
    def others_answered() -> bool:
        with operations.reading(running.folder) as engine, engine.connect() as connection:
            return n_waiting(connection, asked.round_id) == 1

    with flower_run.ready(running.folder) as link, ThreadPoolExecutor() as pool:
        asked = operations.change(running.folder, lambda t: open_round(t, "flower", None, 60.0))
        done = pool.submit(flower_run.carry, running.folder, link, asked)
        consortium.wait_for("the other two", others_answered)
        consortium.process("superlink").kill()
        consortium.process("superlink").wait()
        with pytest.raises(UnavailableError, match="does not answer"):
            done.result()
    closed = operations.change(running.folder, lambda t: close_round(t, asked.round_id, {}))
    assert as_outcomes(closed) == {**north_and_south, "west": late}

    running.start_superlink()
    consortium.wait_for("west", lambda: log.read_text().count(UP) > n_starts, BACK_WITHIN_S)
    assert outcomes(running.discover("--engine", "flower", "--timeout", "60")) == OK


def test_sites_that_are_away_and_sites_that_are_shut_out_are_told_apart(running: Running) -> None:
    running.consortium.process("west-flower").terminate()
    running.consortium.process("west-flower").wait(20)
    del running.consortium._processes["west-flower"]
    found = outcomes(running.discover("--engine", "flower", "--timeout", "30"), code=3)
    assert found == {**OK, "west": ("offline", "its SuperNode gives no sign of life")}
    with ThreadPoolExecutor() as pool:
        west, door = running.consortium.folder / "west", f"127.0.0.1:{running.proxy}"
        sent = pool.submit(reply_with_no_message, west, door)
        running.wait_online("west")
        found = outcomes(running.discover("--engine", "flower", "--timeout", "30"))
        sent.result()
    unreadable = "its SuperNode answered with error 0: what it sent cannot be read"
    assert found == {**OK, "west": ("rejected", unreadable)}
    operations.set_site_state(running.folder, "south", "suspended")
    running.consortium.wait_for("the cut", lambda: "south" not in running.nodes(), 20.0)
    found = outcomes(running.discover("--engine", "flower", "--sites", "north"))
    assert found == {"north": ("ok", "")}
    operations.set_site_state(running.folder, "south", "active")
    running.wait_online("south")
    found = outcomes(running.discover("--engine", "flower", "--sites", "south"))
    assert found == {"south": ("ok", "")}


def test_a_second_superlink_and_a_taken_port_are_refused(running: Running, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"a SuperLink runs on .* already; stop it first"):
        serve_superlink(running.folder, print)
    other = CoordinatorFolder(tmp_path)
    other.settings.write_text(running.folder.settings.read_text())
    with pytest.raises(UsageError, match=r"cannot listen on .* set flower_listen"):
        serve_superlink(other, print)


def test_the_log_of_the_superlink_tells_of_no_call_that_was_answered(running: Running) -> None:
    lines = running.consortium.log("superlink").read_text().splitlines()
    assert not [line for line in lines if line.endswith(" 200")]
