"""site.toml and the keys beside it: checked before anything else happens."""

from pathlib import Path

import pytest

from sites import make_site, patients
from synthedge_client.keystore import load_keys, protect_secret
from synthedge_client.settings import load_settings
from synthedge_client.site import create_site
from synthedge_client.stewards import add_steward, list_stewards, open_steward
from synthedge_core.errors import SynthEdgeError, TableError, UsageError, VerificationError
from synthedge_protocols.errors import IdentityError, MalformedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_site(tmp_path, "north", patients("n"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[site\n", "is not valid TOML"),
        ("colour = 1\n", "unknown key 'colour'"),
        ("[columns.bp]\nscale = 2\n", r"unknown key 'scale' in \[columns.bp\]"),
        ('[columns.bp]\nabsent = "yes"\n', "absent in .* must be true or false"),
        ("[columns.bp]\nmissing = [0.5]\n", "missing in .* must be a list of codes"),
        ("[label]\npositive = []\n", "positive in .* lists no code"),
        (
            '[label]\npositive = ["1"]\nnegative = ["1"]\n',
            "'1' in .* as positive and as negative",
        ),
        ('[disclosure]\nmode = "none"\n', "mode in .* is 'none', expected 'dp' or 'threshold'"),
        ('[disclosure]\nepsilon = "1"\n', "epsilon in .* must be a number"),
        ("[disclosure]\nmin_count = 7.5\n", "min_count in .* must be a whole number"),
        ('[discovery]\nengines = "flower"\n', "engines in .* must be a list of channel and flower"),
        ('[discovery]\nengines = ["grpc"]\n', "engines in .* must be a list of channel and flower"),
        ("[discovery]\nsend_stale = 1\n", "send_stale in .* must be true or false"),
        ("[discovery]\nround = 1\n", "unknown key 'round'"),
    ],
)
def test_a_site_toml_that_makes_no_sense_is_told(folder: Path, text: str, match: str) -> None:
    file = folder / "site.toml"
    file.write_text(file.read_text() + text)

    with pytest.raises(TableError, match=match):
        load_settings(folder)


def test_a_folder_without_a_site_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="run 'synthedge site init'"):
        load_settings(tmp_path)


def test_making_a_site_again_never_touches_its_keys(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "keys").iterdir()}
    table = folder.parent / "north.csv"

    with pytest.raises(UsageError, match="holds a site already"):
        create_site(folder, id="north", data=table, patient_id="mrn", consent="consent")
    (folder / "site.toml").unlink()
    with pytest.raises(UsageError, match=r"keys is there, but no site\.toml"):
        create_site(folder, id="north", data=table, patient_id="mrn", consent="consent")

    assert {path.name: path.read_bytes() for path in (folder / "keys").iterdir()} == before


def test_a_site_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        create_site(tmp_path / "x", id="x", data=Path("no.csv"), patient_id="a", consent="b")
    with pytest.raises(MalformedError):
        create_site(tmp_path / "x", id="X Y", data=Path("no.csv"), patient_id="a", consent="b")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("mrn,consent\n1,active\n", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be made: File exists"):
        create_site(
            tmp_path / "patients.csv", id="north", data=tmp_path / "patients.csv", patient_id="mrn", consent="consent"
        )  # fmt: skip


def test_keys_and_database_are_for_their_owner_alone(folder: Path) -> None:
    files = [*(folder / "keys").iterdir(), folder / "site.db"]

    assert len(files) == 5
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["site.secret", "statement.key", "hpke.key", "tls.key"])
def test_a_key_that_others_may_read_or_that_is_gone_is_refused(folder: Path, name: str) -> None:
    key = folder / "keys" / name
    key.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_keys(folder / "keys")
    key.unlink()
    with pytest.raises(IdentityError, match="does not exist"):
        load_keys(folder / "keys")


def test_a_mounted_secret_may_be_replaced_under_its_link(folder: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts one: a link into a folder that is another one after every update."""
    for version in ("first", "second"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "passphrase").write_text("correct horse")
        (tmp_path / version / "passphrase").chmod(0o600)
    mounted = tmp_path / "passphrase"
    mounted.symlink_to(tmp_path / "first" / "passphrase")
    secret = load_keys(folder / "keys").secret
    protect_secret(folder / "keys", mounted)

    (tmp_path / "first" / "passphrase").unlink()
    mounted.unlink()
    mounted.symlink_to(tmp_path / "second" / "passphrase")

    assert load_keys(folder / "keys").secret == secret


def test_every_service_of_a_site_opens_its_keys_with_its_own_credential(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents, others = tmp_path / "agent.service", tmp_path / "other.service"
    for directory in (agents, others):
        directory.mkdir()
        (directory / "site-passphrase").write_text("correct horse")
        (directory / "site-passphrase").chmod(0o400)
    secret = load_keys(folder / "keys").secret
    protect_secret(folder / "keys", agents / "site-passphrase")
    (agents / "site-passphrase").unlink()

    with pytest.raises(IdentityError, match=r"agent\.service/site-passphrase' does not exist"):
        load_keys(folder / "keys")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(others))
    assert load_keys(folder / "keys").secret == secret


def test_a_link_to_a_passphrase_in_the_sites_own_folder_protects_nothing(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "passphrase").write_text("correct horse")
    (tmp_path / "link").symlink_to(folder / "passphrase")
    with pytest.raises(UsageError, match="own folder"):
        protect_secret(folder / "keys", tmp_path / "link")


def test_a_stewards_key_opens_with_the_right_passphrase_only(folder: Path) -> None:
    keys = folder / "keys"
    fingerprint = add_steward(keys, "ada", b"correct horse")

    assert open_steward(keys, "ada", b"correct horse").key.fingerprint == fingerprint
    with pytest.raises(IdentityError, match="passphrase is wrong") as refused:
        open_steward(keys, "ada", b"wrong horse")
    assert refused.value.exit_code == 2
    assert list_stewards(keys) == ["ada"]


@pytest.mark.parametrize(
    ("name", "passphrase", "error"),
    [
        ("ada", b"short", UsageError),
        ("../ada", b"long enough", MalformedError),
        ("", b"long enough", MalformedError),
    ],
)
def test_a_steward_that_cannot_be_added_leaves_no_key(
    folder: Path, name: str, passphrase: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        add_steward(folder / "keys", name, passphrase)

    assert list_stewards(folder / "keys") == []


def test_a_name_that_is_no_stewards_reads_no_file(folder: Path) -> None:
    with pytest.raises(UsageError, match="there is no steward"):
        open_steward(folder / "keys", "../statement", b"passphrase")


def test_what_is_stored_opens_only_unchanged_and_in_its_place(folder: Path) -> None:
    keys = load_keys(folder / "keys")
    blob = keys.encrypt(b"a row", b"sample" + bytes(16))

    assert keys.decrypt(blob, b"sample" + bytes(16)) == b"a row"
    for changed, context in (
        (blob[:-1] + bytes([blob[-1] ^ 1]), b"sample" + bytes(16)),
        (blob, b"patient" + bytes(16)),
        (blob[:20], b"sample" + bytes(16)),
        (b"", b"sample" + bytes(16)),
    ):
        with pytest.raises(VerificationError, match="does not open") as refused:
            keys.decrypt(changed, context)
        assert isinstance(refused.value, SynthEdgeError)
        assert refused.value.exit_code == 7


def test_another_sites_secret_finds_no_patient_again(tmp_path: Path, folder: Path) -> None:
    other = load_keys(make_site(tmp_path, "south", patients("s")) / "keys")
    keys = load_keys(folder / "keys")

    assert keys.tag("n-1") == keys.tag("n-1") != other.tag("n-1")
    with pytest.raises(VerificationError):
        other.decrypt(keys.encrypt(b"a row", b""), b"")
