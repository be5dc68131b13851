"""The site's audit log, verified in place and as a file."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server_fixtures import DICTIONARY_TOML
from sites import patients, sites
from synthedge_client import store
from synthedge_client.audit_log import export_log, parse_day, verify_file, verify_log
from synthedge_core.errors import UsageError
from synthedge_protocols.errors import MalformedError, VerificationError


def test_an_export_verifies_without_the_site_and_names_its_key(tmp_path: Path) -> None:
    with sites(tmp_path, DICTIONARY_TOML, north=patients("n")) as (north,):
        assert verify_log(north)["entries"] > 0
        result = export_log(north, tmp_path / "log.jsonl", None, None)
        fingerprint = north.fingerprint
    verified = verify_file(tmp_path / "log.jsonl")
    assert verified["entries"] == verified["shown"] == result["entries"]
    assert verified["fingerprint"] == fingerprint


def test_the_command_tells_valid_from_changed_by_its_exit_code(tmp_path: Path) -> None:
    with sites(tmp_path, DICTIONARY_TOML, north=patients("n")) as (north,):
        export_log(north, tmp_path / "log.jsonl", None, None)
    command = [str(Path(sys.executable).with_name("synthedge")), "audit", "verify"]

    def run(file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, str(file)], capture_output=True, text=True, check=False, cwd="/"
        )

    assert run(tmp_path / "log.jsonl").stdout.startswith("Valid: ")
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes((tmp_path / "log.jsonl").read_bytes().replace(b"site made", b"site mode"))
    refused = run(changed)
    assert (refused.returncode, "entry 1 was changed" in refused.stderr) == (7, True)


def test_entries_outside_the_period_are_only_counted(tmp_path: Path) -> None:
    with sites(tmp_path, DICTIONARY_TOML, north=patients("n")) as (north,):
        later = datetime.now(UTC) + timedelta(days=1)
        result = export_log(north, tmp_path / "log.jsonl", later, None)
    assert result["shown"] == 0
    assert "site made" not in (tmp_path / "log.jsonl").read_text()
    assert verify_file(tmp_path / "log.jsonl")["entries"] == result["entries"]


def test_an_entry_changed_in_the_database_is_named_and_never_exported(tmp_path: Path) -> None:
    with sites(tmp_path, DICTIONARY_TOML, north=patients("n")) as (north,):
        with north.store.write() as connection:
            connection.exec_driver_sql("UPDATE events SET details = '{}' WHERE id = 2")
        with pytest.raises(VerificationError, match="entry 2 of the audit log was changed"):
            verify_log(north)
        with pytest.raises(VerificationError, match="entry 2"):
            export_log(north, tmp_path / "log.jsonl", None, None)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_file_is_never_overwritten_and_a_wrong_one_is_explained(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n")
    with sites(tmp_path, DICTIONARY_TOML, north=patients("n")) as (north,):
        with pytest.raises(UsageError, match="exists already"):
            export_log(north, other, None, None)
        with north.store.read() as connection:
            assert store.event_log.size(connection) > 0
    with pytest.raises(MalformedError, match="does not begin as an exported audit log"):
        verify_file(other)
    with pytest.raises(UsageError, match="cannot be read"):
        verify_file(tmp_path / "absent")


def test_a_bare_date_ends_with_its_day() -> None:
    assert parse_day("2026-01-31", end=True) == datetime(2026, 1, 31, 23, 59, 59, 999_999, UTC)
    assert parse_day("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    with pytest.raises(UsageError, match="is no date"):
        parse_day("yesterday")
