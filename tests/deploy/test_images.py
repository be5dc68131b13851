"""The container images and compose files: what they copy, run and may do."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from compose_spec import PyCompose

from kit_commands import DEPLOY, command_of

ROOT = DEPLOY.parent
IMAGES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))
COMPOSE_FILES = sorted((DEPLOY / "compose").glob("*.yaml"))
STATE = "/var/lib/synthedge"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def last_stage(dockerfile: Path) -> dict[str, str]:
    """The instructions of the image that is kept; of several of one name the last one counts."""
    found = instructions(dockerfile)
    start = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return dict(found[start:])


def interpolated(path: Path) -> dict[str, Any]:
    """A compose file as compose sees it with nothing set but what has no default."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", path.read_text())
    document = yaml.safe_load(re.sub(r"\$\{\w+:\?[^}]*\}", "/srv/somewhere", text))
    assert isinstance(document, dict)
    return document


def test_there_is_an_image_of_either_program_and_a_compose_file_of_either_side() -> None:
    assert [path.name for path in IMAGES] == ["Dockerfile.coordinator", "Dockerfile.site"]
    assert [path.name for path in COMPOSE_FILES] == ["coordinator.yaml", "site.yaml"]


@pytest.mark.parametrize("dockerfile", IMAGES, ids=lambda path: path.name)
def test_a_linter_finds_nothing_in_the_dockerfile(dockerfile: Path) -> None:
    linted = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), "--format=json", str(dockerfile)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(linted.stdout) == []


@pytest.mark.parametrize("dockerfile", IMAGES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_in_the_context(dockerfile: Path) -> None:
    copied = [
        source
        for name, value in instructions(dockerfile)
        if name == "COPY" and "--from" not in value
        for source in value.split()[:-1]
    ]
    assert len(copied) > 5
    let_in = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in let_in, source
    tracked = subprocess.run(
        ["git", "ls-files", "--", *copied],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {name.split("/")[0] for name in tracked.stdout.splitlines()} == {
        source.split("/")[0] for source in copied
    }


@pytest.mark.parametrize("dockerfile", IMAGES, ids=lambda path: path.name)
def test_an_image_runs_without_root_and_without_a_shell(dockerfile: Path) -> None:
    stage = last_stage(dockerfile)
    user, group = map(int, stage["USER"].split(":"))
    assert user > 0
    assert group > 0
    assert stage["VOLUME"] == STATE
    assert stage["STOPSIGNAL"] == "SIGTERM"
    entrypoint, command = json.loads(stage["ENTRYPOINT"]), json.loads(stage["CMD"])
    check = json.loads(stage["HEALTHCHECK"].split("CMD", 1)[1])

    name, options = command_of([*entrypoint, *command])
    assert name in ("synthedge-coordinator serve", "synthedge site run")
    folder = options.get("folder", options.get("dir"))
    assert Path(str(folder)).parent == Path(STATE)
    checked, options = command_of(check)
    assert checked.endswith(" ping")
    assert folder in options.values()


def test_a_command_that_is_none_would_be_noticed() -> None:
    with pytest.raises(click.ClickException, match="No such command"):
        command_of(["synthedge-coordinator", "sevre"])
    with pytest.raises(click.ClickException, match="No such option"):
        command_of(["synthedge", "site", "run", "--dri", "/x"])


@pytest.mark.parametrize("dockerfile", IMAGES, ids=lambda path: path.name)
def test_the_base_image_is_an_argument_that_a_digest_can_pin(dockerfile: Path) -> None:
    found = instructions(dockerfile)
    assert found[0][0] == "ARG"
    assert found[0][1].startswith("PYTHON_IMAGE=")
    bases = {value.split()[0] for name, value in found if name == "FROM"}
    assert bases == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_a_compose_file_follows_the_specification(path: Path) -> None:
    document = interpolated(path)
    PyCompose.from_yaml(yaml.safe_dump(document))
    service = next(iter(document["services"].values()))
    service["cap_dropp"] = service.pop("cap_drop")
    with pytest.raises(ValueError, match="cap_dropp"):
        PyCompose.from_yaml(yaml.safe_dump(document))


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_every_service_is_confined(path: Path) -> None:
    document = interpolated(path)
    for name, service in document["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        limits = service["deploy"]["resources"]["limits"]
        assert set(limits) == {"cpus", "memory", "pids"}, name
        assert set(service.get("secrets", [])) <= set(document["secrets"])
        for key, value in service.get("environment", {}).items():
            assert "PASSWORD" not in key or value.startswith("/run/secrets/"), name
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert (path.parent / service["build"]["context"]).resolve() == ROOT
    for secret in document["secrets"].values():
        assert set(secret) == {"file"}


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_every_command_of_a_service_is_understood(path: Path) -> None:
    for service in interpolated(path)["services"].values():
        program = service["image"].partition(":")[0].replace("-site", "")
        if "command" in service:
            name, options = command_of([program, *service["command"]])
            assert name in ("synthedge-coordinator flower serve", "synthedge site flower run")
            folder = Path(str(options.get("folder", options.get("dir"))))
            assert folder in (Path(STATE, "coordinator"), Path(STATE, "site"))


def test_flower_is_reached_through_its_proxy_alone() -> None:
    services = interpolated(DEPLOY / "compose" / "coordinator.yaml")["services"]
    link, proxy = services["flower"], services["flower-proxy"]
    for service in (link, proxy):
        # One loopback: the SuperLink listens on nothing else.
        assert service["network_mode"] == "service:coordinator"
        assert service["profiles"] == ["flower"]
    config, keys = proxy["volumes"]
    source = DEPLOY / "compose" / config.split(":")[0]
    assert source.is_file()
    mounted = set(re.findall(r"/var/lib/synthedge-coordinator/\S+/", source.read_text()))
    assert mounted == {keys["target"] + "/"}
    (port,) = set(re.findall(r"listen (\d+) ssl", source.read_text()))
    assert any(published.startswith(f"{port}:") for published in services["coordinator"]["ports"])


def test_the_database_is_reached_by_the_coordinator_alone() -> None:
    document = interpolated(DEPLOY / "compose" / "coordinator.yaml")
    assert document["networks"]["database"] == {"internal": True}
    services = document["services"]
    assert services["database"]["networks"] == ["database"]
    assert "ports" not in services["database"]
    inside = [name for name, s in services.items() if "database" in s.get("networks", [])]
    assert sorted(inside) == ["coordinator", "database"]


def test_a_site_listens_nowhere_and_cannot_change_its_table() -> None:
    site = interpolated(DEPLOY / "compose" / "site.yaml")["services"]["site"]
    assert "ports" not in site
    assert [v["read_only"] for v in site["volumes"] if isinstance(v, dict)] == [True]


def test_the_wheel_holds_everything_a_program_reads(tmp_path: Path) -> None:
    """Pages, dictionaries and migrations come along: an image installs the wheel, not the checkout."""
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    packages = [next(ROOT.glob(f"*/synthedge_{name}")) for name in _PACKAGES]
    tracked = subprocess.run(
        ["git", "ls-files", "--", *map(str, packages)],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    expected = {str(Path(*Path(name).parts[1:])) for name in tracked}
    assert len(expected) > 200
    assert expected - inside == set()


_PACKAGES = ("core", "protocols", "server", "client", "deploy")
