"""What an operator's programs see of a running coordinator, and what they never see."""

import asyncio
import contextlib
import json
import logging
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server_fixtures import (
    DAY_MS,
    LIMITS,
    TIMEOUT_S,
    Clock,
    Consortium,
    as_protocol_error,
    eventually,
    new_folder,
    ship,
)
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import LifecycleError, UnavailableError
from synthedge_protocols.lifecycle import State
from synthedge_protocols.standing import Standing
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_server import doctor, health
from synthedge_server.ledger import system_clock
from synthedge_server.log import LOGGER, JsonLines
from synthedge_server.ping import ping
from synthedge_server.serve import Coordinator, running
from synthedge_server.settings import Address, parse_settings, read_settings
from synthedge_server.status import read_status

ROOT = Path(__file__).parents[2]
CANARY = b"42.4242 mm[Hg] of a patient"
METHODS = {m.name for s in wire.DESCRIPTOR.services_by_name.values() for m in s.methods}
LABELS = {
    "method": METHODS | {"Check", "Watch"},
    "status": {code.name for code in grpc.StatusCode},
    "standing": {s.value for s in Standing},
    "state": {s.value for s in State},
    "limit": {"calls", "statements", "kept", "reads", "at-once"},
    "certificate": {"ca", "server"},
}


class Running(Consortium):
    """A consortium whose coordinator is watched."""

    coordinator: Coordinator

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.coordinator.metrics_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    async def asked(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self.get, path)

    async def metrics(self) -> dict[str, Metric]:
        status, text = await self.asked("/metrics")
        assert status == 200
        return {metric.name: metric for metric in text_string_to_metric_families(text)}


@pytest_asyncio.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(health, "_EVERY_S", 0.1)
    monkeypatch.setattr(health, "_WRITE_S", 0.3)
    consortium = Running(new_folder(tmp_path / "coordinator"), Clock())
    settings = replace(
        read_settings(consortium.folder.settings), metrics_listen=Address(host="127.0.0.1", port=0)
    )
    async with running(consortium.folder, limits=LIMITS, settings=settings) as started:
        consortium.listens(started)
        consortium.coordinator = started
        yield consortium
        await consortium.close()


def value(metric: Metric, **labels: str) -> float:
    (found,) = [s.value for s in metric.samples if s.labels == labels]
    return found


async def test_metrics_tell_what_happened_and_nothing_that_is_not_ours(watched: Running) -> None:
    north, south, _ = await watched.reporting("north", "south", "west")
    shipped = await ship(north, south, CANARY * 100)
    await south.upload(shipped.identifier, shipped.ciphertext)
    with pytest.raises(LifecycleError):
        await north.progress(shipped.identifier)
    stream = north.stub.Inbox(wire.InboxRequest(follow=True), timeout=TIMEOUT_S)
    await stream.read()

    metrics = await watched.metrics()
    assert value(metrics["synthedge_sites"], standing="active") == 3
    assert value(metrics["synthedge_transfers"], state="RELAYED") == 1
    assert value(metrics["synthedge_sealed_bytes"]) == len(shipped.ciphertext)
    assert value(metrics["synthedge_calls_under_way"], method="Inbox") == 1
    calls = metrics["synthedge_calls"].samples
    failed = {"method": "GetUpload", "status": "FAILED_PRECONDITION"}
    assert [s.value for s in calls if s.labels == failed] == [1]
    for metric in metrics.values():
        for sample in metric.samples:
            for label, text in sample.labels.items():
                assert label == "le" or text in LABELS[label], (metric.name, label, text)
    _, text = await watched.asked("/metrics")
    secrets = [*["north", "south", "west", "ada"], shipped.identifier.hex()]
    assert not [s for s in secrets if s in text]
    assert not re.search(r"42\.42", text)


async def test_the_document_lists_every_metric_and_the_alerts_use_no_other(
    watched: Running,
) -> None:
    await watched.reporting("north")
    shown = {n for n in await watched.metrics() if n.startswith("synthedge_")}
    document = (ROOT / "docs" / "observability.md").read_text("utf-8")
    table = document.split("| name | type, labels | tells |")[1].split("\n\n")[0]
    named = {
        "synthedge_" + name.removesuffix("_total")
        for row in table.splitlines()
        for name in re.findall(r"`([a-z_]+)`", row.split("|")[1] if row else "")
    }
    assert named == shown

    rules = yaml.safe_load((ROOT / "deploy/prometheus/synthedge.rules.yml").read_text("utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 5
    for alert in alerts:
        assert {"alert", "expr", "labels", "annotations"} <= alert.keys()
        for name in re.findall(r"synthedge_[a-z_]+", alert["expr"]):
            assert re.sub(r"_(total|bucket)$", "", name) in shown, name


async def test_probes_and_the_health_service_say_when_the_database_takes_no_change(
    watched: Running,
) -> None:
    credentials = grpc.ssl_channel_credentials(watched.ca_pem)
    stub = health_pb2_grpc.HealthStub(watched.channel(watched.enrolment_port, credentials))

    async def served() -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    await asyncio.sleep(0.5)
    assert await watched.asked("/readyz") == (200, "ok\n")
    assert await served()
    with contextlib.closing(sqlite3.connect(watched.folder.database)) as database:
        database.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(1.0)
        assert await watched.asked("/readyz") == (503, "the database takes no change\n")
        assert not await served()
        assert await watched.asked("/healthz") == (200, "ok\n")
        database.rollback()
    await asyncio.sleep(1.0)
    assert await served()
    assert (await watched.asked("/secrets"))[0] == 404


async def test_a_refusal_in_the_log_names_the_call_that_the_site_was_told(
    watched: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonLines())
    caplog.set_level(logging.INFO, LOGGER.name)
    north = await watched.enrol("north")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await north.stub.GetUpload(wire.UploadQuery(transfer_id=bytes(32)), timeout=TIMEOUT_S)
    told = dict(caught.value.trailing_metadata() or ())["synthedge-call"]
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    (line,) = [line for line in lines if line.get("call") == told]
    assert (line["event"], line["method"], line["site"]) == ("refused", "GetUpload", "north")
    assert line["status"] == "FAILED_PRECONDITION"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["ms"] >= 0


async def test_a_flood_is_one_line_in_the_log(
    watched: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonLines())
    caplog.set_level(logging.INFO, LOGGER.name)
    north = await watched.enrol("north")

    async def follow() -> None:
        async with as_protocol_error():
            call = north.stub.Inbox(wire.InboxRequest(follow=True), timeout=3)
            await call.read()

    await asyncio.gather(*(follow() for _ in range(40)), return_exceptions=True)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    limited = [line for line in lines if line["event"] == "limited"]
    assert [(line["site"], line["limit"]) for line in limited] == [("north", "at-once")]


async def test_what_runs_out_stands_in_the_log_and_in_doctor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.handler.setFormatter(JsonLines())
    caplog.set_level(logging.INFO, LOGGER.name)
    consortium = Consortium(new_folder(tmp_path / "coordinator"), Clock())
    async with running(consortium.folder) as started:
        consortium.listens(started)
        await consortium.enrol("north")
        await consortium.close()
    monkeypatch.setattr(doctor, "system_clock", lambda: system_clock() + 340 * DAY_MS)
    found = {problem.what for problem in doctor.examine(consortium.folder)}
    assert any("sealing key runs out" in what for what in found)
    assert any("does not answer" in what for what in found)
    kept = consortium.folder.ca_certificate.read_bytes()
    for damage in (lambda path: path.write_bytes(b"?"), Path.unlink):
        damage(consortium.folder.ca_certificate)
        answers = {problem.subject: problem for problem in doctor.examine(consortium.folder)}
        assert "restore it from a backup" in answers["ca.pem"].next_step
        with pytest.raises(UnavailableError, match=r"ca\.pem .*; restore it from a backup"):
            ping(consortium.folder)
    consortium.folder.ca_certificate.write_bytes(kept)
    kept = consortium.folder.log_key.read_bytes()
    consortium.folder.log_key.unlink()
    assert "log.key" in {problem.subject for problem in doctor.examine(consortium.folder)}
    consortium.folder.log_key.write_bytes(kept)
    consortium.folder.log_key.chmod(0o600)
    warnings = read_status(consortium.folder)["warnings"]
    assert any(warning.startswith("site north: its sealing key") for warning in warnings)
    async with running(consortium.folder):
        await eventually(lambda: "sealing key runs out" in caplog.text)
    (line,) = [line for line in map(json.loads, caplog.text.splitlines()) if "sealing" in str(line)]
    assert (line["event"], line["subject"]) == ("look-at", "site north")


@pytest.mark.parametrize(
    "address", ["0.0.0.0:9464", "192.0.2.1:9464", "example.org:9464", "[::]:1"]
)
def test_metrics_on_an_address_that_others_reach_are_refused(address: str) -> None:
    text = 'consortium = "a"\nlisten = "h:1"\nenrolment_listen = "h:2"\nnames = ["h"]\n'
    with pytest.raises(UsageError, match="is not on loopback, where alone metrics"):
        parse_settings(f'{text}metrics_listen = "{address}"\n')
    assert parse_settings(f'{text}metrics_listen = "[::1]:9464"\n').metrics_listen
    assert not parse_settings(text).reflection
