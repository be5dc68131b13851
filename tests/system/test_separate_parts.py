"""Nothing is one process that would be two at hospitals, every site has its own keys, the summary is complete."""

import json
import os
from itertools import combinations

import psutil

from system_consortium import Finished, processes_of


def test_coordinator_and_agents_were_processes_of_their_own(finished: Finished) -> None:
    programs = finished.observed.programs
    assert set(programs) == {"coordinator", *finished.sites}
    pids = [pid for pid, _ in programs.values()]
    assert len({*pids, os.getpid()}) == len(programs) + 1
    for site in finished.sites:
        assert f"site run --dir {finished.folder / site}" in programs[site][1]
    assert f"serve --dir {finished.folder / 'coordinator'}" in programs["coordinator"][1]


def test_the_demonstration_leaves_no_process_behind(finished: Finished) -> None:
    assert not any(psutil.pid_exists(pid) for pid, _ in finished.observed.programs.values())
    assert processes_of(finished.folder) == []


def test_every_site_has_its_own_folder_keys_and_database(finished: Finished) -> None:
    names = (
        "site.db",
        "keys/site.secret",
        "keys/statement.key",
        "keys/hpke.key",
        "keys/tls.key",
    )
    for name in names:
        files = [finished.folder / site / name for site in finished.sites]
        for one, other in combinations(files, 2):
            assert one.read_bytes() != other.read_bytes(), name
    for site in finished.sites:
        for key in (finished.folder / site / "keys").rglob("*.key"):
            assert key.stat().st_mode & 0o077 == 0, key


def test_only_the_authority_folder_holds_the_authoritys_key(finished: Finished) -> None:
    keys = {
        str(path.relative_to(finished.folder))
        for path in finished.folder.rglob("*")
        if path.is_file() and path.parts[-2] == "ca"
    }
    assert keys
    assert all(name.startswith("coordinator/ca/") for name in keys)


def test_the_summary_has_what_programs_rely_on(finished: Finished) -> None:
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["sites"] == finished.sites
    assert isinstance(summary["gaps_published"], int)
    assert summary["gaps_published"] > 0
    assert isinstance(summary["matches"], int)
    assert summary["matches"] > 0
    assert summary["coordinator_patient_values"] == 0
    assert isinstance(summary["seconds"], float)
    for transfer in summary["transfers"]:
        texts = ("donor", "recipient", "region", "state")
        assert all(isinstance(transfer[key], str) and transfer[key] for key in texts)
        assert isinstance(transfer["rows"], int)
        assert transfer["donor"] in finished.sites
        assert transfer["recipient"] in finished.sites
    for line in summary["heldout"]:
        assert line["site"] == finished.cohort.carved_site
        assert isinstance(line["measure"], str)
        assert 0 <= line["before"] <= 1
        assert 0 <= line["after"] <= 1
    assert len(summary["heldout"]) == 4


def test_no_process_takes_more_memory_than_it_may(finished: Finished) -> None:
    peaks = finished.summary["peak_memory_mb"]
    assert 20 < peaks["coordinator"] < 150
    for site in finished.sites:
        assert 20 < peaks[site] < 400
    assert peaks["largest command"] < 400
