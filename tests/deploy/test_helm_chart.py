"""The Helm chart, rendered and linted by Helm itself and held against Kubernetes' schemas."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, lint
from helm_python.errors import HelmError

from kit_commands import DEPLOY, command_of
from synthedge_core import __version__
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_server.settings import parse_settings

CHART = DEPLOY / "helm" / "synthedge-coordinator"
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.30", "1.36"
ONE: dict[str, Any] = {
    "claim": "coordinator",
    "consortium": {"name": "heart", "hosts": ["coordinator.example.org", "192.0.2.7"]},
    "dictionary": public_dictionary("heart"),
}
SEVERAL: dict[str, Any] = {
    **ONE,
    "replicas": 3,
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "database": {
        "url": "postgresql://synthedge@db.example.org:5432/synthedge",
        "passwordSecret": {"name": "synthedge-database"},
    },
    "setup": {"upgrade": True},
    "service": {
        "type": "LoadBalancer",
        "annotations": {"example.org/proxy": "tcp"},
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
    },
    "networkPolicy": {
        "databaseTo": [{"ipBlock": {"cidr": "192.0.2.9/32"}}],
        "sitesFrom": [{"ipBlock": {"cidr": "0.0.0.0/0"}}],
    },
    "backup": {"enabled": True, "claim": "backups"},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "podAnnotations": {"example.org/note": "x"},
}
MEASURED: dict[str, Any] = {
    **ONE,
    "metrics": {"enabled": True, "serviceMonitor": {"enabled": True, "labels": {"team": "a"}}},
    "networkPolicy": {
        "monitoringFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    },
}
RESTORED: dict[str, Any] = {
    **ONE,
    "dictionary": "",
    "setup": {"init": False},
    "claim": "restored",
    "networkPolicy": {"enabled": False},
}
VALUES = {"one": ONE, "several": SEVERAL, "measured": MEASURED, "restored": RESTORED}


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as loaded:
        yield loaded


def manifests(chart: Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    rendered = chart.render(values, name="heart", namespace="consortium")
    return [
        document
        for name, text in sorted(rendered.items())
        if not name.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    specs = [
        document["spec"].get("jobTemplate", document)["spec"]
        for document in documents
        if document["kind"] in ("Deployment", "Job", "CronJob")
    ]
    return [spec["template"]["spec"] for spec in specs]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_helm_has_nothing_to_say_against_the_chart(values: dict[str, Any]) -> None:
    report = lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_manifest_fits_the_schemas_of_kubernetes(
    chart: Chart, values: dict[str, Any]
) -> None:
    documents = manifests(chart, values)
    assert {"Deployment", "Service", "ConfigMap"} <= {d["kind"] for d in documents}
    for document in documents:
        if document["kind"] == "ServiceMonitor":  # Prometheus operator's, not Kubernetes'
            continue
        # Reading the schemas takes most of the time; the largest of the values stand for the older release.
        for version in (OLDEST_KUBERNETES, NEWEST_KUBERNETES)[values is not SEVERAL :]:
            kubernetes_validate.validate(document, version, strict=True)
    wrong = of_kind(documents, "Deployment")[0]
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST_KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dictionary": ""}, "a new consortium needs"),
        ({"replicas": 2}, "SQLite serves one process"),
        ({"claim": ""}, "set claim to a PersistentVolumeClaim"),
        ({"database": {"url": "postgresql://user:secret@db/x"}}, "pattern"),
        ({"backup": {"enabled": True}}, "needs backup.claim"),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "needs metrics.enabled"),
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"image": {"digest": "latest"}}, "pattern"),
    ],
)
def test_values_that_cannot_work_are_refused_with_a_sentence(
    chart: Chart, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(HelmError, match=complaint):
        manifests(chart, {**ONE, **change})


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_pods_keep_to_the_restricted_standard(chart: Chart, values: dict[str, Any]) -> None:
    for pod in pods(manifests(chart, values)):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["fsGroupChangePolicy"] == "OnRootMismatch"
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} <= {
                "persistentVolumeClaim",
                "emptyDir",
                "configMap",
                "secret",
            }


def test_no_secret_is_in_a_manifest(chart: Chart) -> None:
    documents = manifests(chart, SEVERAL)
    assert of_kind(documents, "Secret") == []
    (deployment,) = of_kind(documents, "Deployment")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    (secret,) = [volume["secret"] for volume in volumes if "secret" in volume]
    assert secret["secretName"] == "synthedge-database"
    assert secret["defaultMode"] == 0o400


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_command_exists_and_works_on_the_same_folder(
    chart: Chart, values: dict[str, Any]
) -> None:
    folders, names = set(), set()
    for pod in pods(manifests(chart, values)):
        for container in pod["containers"]:
            if container["name"] == "metrics":
                continue
            lines = [["synthedge-coordinator", *container["args"]]]
            lines += [
                container[probe]["exec"]["command"]
                for probe in ("startupProbe", "readinessProbe", "livenessProbe")
                if probe in container
            ]
            for line in lines:
                name, options = command_of(line)
                names.add(name)
                folders.add(options["folder"])
    assert {"synthedge-coordinator serve", "synthedge-coordinator ping"} <= names
    assert folders == {"/var/lib/synthedge/coordinator"}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_settings_are_ones_the_coordinator_reads(chart: Chart, values: dict[str, Any]) -> None:
    maps = of_kind(manifests(chart, values), "ConfigMap")
    (text,) = [m["data"]["coordinator.toml"] for m in maps if "coordinator.toml" in m["data"]]
    settings = parse_settings(text)
    assert settings.consortium == "heart"
    assert settings.names == ("coordinator.example.org", "192.0.2.7")
    assert settings.database == values.get("database", {}).get("url")


@pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx here")
def test_nginx_accepts_the_proxy_before_the_metrics(chart: Chart, tmp_path: Path) -> None:
    maps = of_kind(manifests(chart, MEASURED), "ConfigMap")
    (text,) = [m["data"]["nginx.conf"] for m in maps if "nginx.conf" in m["data"]]
    config = tmp_path / "nginx.conf"
    config.write_text(text.replace("/tmp/", f"{tmp_path}/"))  # noqa: S108 - the container's own
    done = subprocess.run(
        ["nginx", "-t", "-q", "-e", "stderr", "-c", str(config)],  # noqa: S607 - of the machine
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_consortium_is_made_with_the_settings_it_then_runs_with(chart: Chart) -> None:
    documents = manifests(chart, SEVERAL)
    (job,) = [d for d in of_kind(documents, "Job") if d["metadata"]["name"].endswith("-init")]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    _, options = command_of(["synthedge-coordinator", *container["args"]])
    maps = {d["metadata"]["name"]: d["data"] for d in of_kind(documents, "ConfigMap")}
    settings = parse_settings(maps["heart-synthedge"]["coordinator.toml"])
    assert options["name"] == settings.consortium
    assert options["listen"] == str(settings.listen)
    assert options["enrolment_listen"] == str(settings.enrolment_listen)
    assert tuple(options["host"]) == settings.names  # type: ignore[arg-type]
    assert options["database"] == settings.database
    assert options["database_password_file"] == settings.database_password_file
    assert (
        maps["heart-synthedge-dictionary"]["consortium.toml"].strip() == ONE["dictionary"].strip()
    )


def test_several_replicas_are_rolled_one_replica_with_sqlite_is_replaced(chart: Chart) -> None:
    (one,) = of_kind(manifests(chart, ONE), "Deployment")
    (several,) = of_kind(manifests(chart, SEVERAL), "Deployment")
    assert one["spec"]["strategy"] == {"type": "Recreate"}
    assert several["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert of_kind(manifests(chart, ONE), "PodDisruptionBudget") == []
    assert len(of_kind(manifests(chart, SEVERAL), "PodDisruptionBudget")) == 1


def test_only_the_database_and_names_are_reached_from_a_coordinator(chart: Chart) -> None:
    for policy in of_kind(manifests(chart, ONE), "NetworkPolicy"):
        assert policy["spec"]["egress"] == []
    for policy in of_kind(manifests(chart, SEVERAL), "NetworkPolicy"):
        ports = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
        assert ports == [53, 53, 5432]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_volume_with_the_certificate_authority_is_not_helms_to_delete(
    chart: Chart, values: dict[str, Any]
) -> None:
    documents = manifests(chart, values)
    assert of_kind(documents, "PersistentVolumeClaim") == []
    for pod in pods(documents):
        (state,) = [volume for volume in pod["volumes"] if volume["name"] == "state"]
        assert state["persistentVolumeClaim"] == {"claimName": values["claim"]}


def test_the_chart_installs_the_program_of_its_version(chart: Chart) -> None:
    assert chart.metadata["appVersion"] == __version__
    (deployment,) = of_kind(manifests(chart, ONE), "Deployment")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"synthedge-coordinator:{__version__}"
    (pinned,) = of_kind(manifests(chart, SEVERAL), "Deployment")
    image = pinned["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "synthedge-coordinator@sha256:" + "0" * 64


def test_the_notes_name_commands_that_exist(chart: Chart) -> None:
    rendered = chart.render(ONE, name="heart", namespace="consortium")
    (notes,) = [text for name, text in rendered.items() if name.endswith("NOTES.txt")]
    lines = [line.split() for line in notes.splitlines() if "synthedge-coordinator " in line]
    names = [command_of(line[: line.index(">")] if ">" in line else line)[0] for line in lines]
    assert names == ["synthedge-coordinator doctor", "synthedge-coordinator invite"]
