import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthedge_protocols.errors import IdentityError, MalformedError, VerificationError
from synthedge_protocols.keys import (
    HPKE_SUITE,
    HpkeKeyPair,
    HpkePublicKey,
    StatementKey,
    TlsKey,
    check_signature,
    fingerprint,
    key_id,
    same_fingerprint,
)
from synthedge_protocols.private_files import (
    PASSPHRASE_COST,
    read_private_file,
    read_secret,
    write_private_file,
    write_secret,
)

SECRET = b"site secret"


def test_a_fingerprint_is_half_of_a_sha256_in_eight_groups() -> None:
    # printf 'synthedge' | sha256sum
    assert key_id(b"synthedge").hex().startswith(fingerprint(b"synthedge").replace("-", ""))
    assert [len(group) for group in fingerprint(b"synthedge").split("-")] == [4] * 8


def test_a_typed_fingerprint_may_have_spaces_and_capitals_but_no_other_digit() -> None:
    right = fingerprint(b"key")
    assert same_fingerprint(right.upper().replace("-", " ") + " ", b"key")
    assert not same_fingerprint(right[:-1] + ("0" if right[-1] != "0" else "1"), b"key")
    assert not same_fingerprint("", b"key")
    assert not same_fingerprint(right[:-5], b"key")


def test_every_kind_of_key_comes_back_from_its_file(tmp_path: Path) -> None:
    statement, hpke, tls = StatementKey.generate(), HpkeKeyPair.generate(), TlsKey.generate()
    statement.save(tmp_path / "statement.key", SECRET)
    hpke.save(tmp_path / "hpke.key", SECRET)
    tls.save(tmp_path / "tls.key", SECRET)
    assert StatementKey.load(tmp_path / "statement.key", SECRET).key_id == statement.key_id
    assert HpkeKeyPair.load(tmp_path / "hpke.key", SECRET).public_bytes == hpke.public_bytes
    assert TlsKey.load(tmp_path / "tls.key", SECRET).pem() == tls.pem()


def test_a_key_file_is_private_encrypted_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "statement.key"
    StatementKey.from_seed(b"0123456789abcdef" * 2).save(path, SECRET)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"0123456789abcdef" not in path.read_bytes()
    with pytest.raises(FileExistsError):
        StatementKey.generate().save(path, SECRET)
    assert [p.name for p in tmp_path.iterdir()] == ["statement.key"]


def test_a_key_file_others_can_read_is_refused_with_the_command_that_mends_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "statement.key"
    StatementKey.generate().save(path, SECRET)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match=r"mode 0640.*chmod 600"):
        StatementKey.load(path, SECRET)


def test_a_wrong_passphrase_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "ada.key"
    StatementKey.generate().save(path, b"right", cost=PASSPHRASE_COST)
    with pytest.raises(IdentityError, match="passphrase is wrong"):
        StatementKey.load(path, b"wrong")
    with pytest.raises(IdentityError, match="does not exist"):
        StatementKey.load(tmp_path / "bob.key", b"right")


def test_one_kind_of_key_does_not_open_as_another(tmp_path: Path) -> None:
    StatementKey.generate().save(tmp_path / "a.key", SECRET)
    with pytest.raises(IdentityError, match="hpke-key"):
        HpkeKeyPair.load(tmp_path / "a.key", SECRET)


def test_a_secret_file_with_any_flipped_bit_is_refused(tmp_path: Path) -> None:
    write_secret(tmp_path / "good", "kind", b"secret", SECRET, cost=10)
    good = (tmp_path / "good").read_bytes()
    for i_byte in range(len(good)):
        bad = bytearray(good)
        bad[i_byte] ^= 1 << (i_byte % 8)
        path = tmp_path / f"bad-{i_byte}"
        write_private_file(path, bytes(bad))
        with pytest.raises((IdentityError, MalformedError)):
            read_secret(path, "kind", SECRET)
    write_private_file(tmp_path / "short", good[:20])
    with pytest.raises(MalformedError):
        read_secret(tmp_path / "short", "kind", SECRET)


def test_a_private_file_returns_what_was_written(tmp_path: Path) -> None:
    write_private_file(tmp_path / "token", b"one-time")
    assert read_private_file(tmp_path / "token") == b"one-time"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a file to another user")
@pytest.mark.parametrize(
    ("owner", "mode", "complaint"),
    [
        (0, 0o440, None),  # a systemd credential or a mounted Secret
        (0, 0o640, None),
        (0, 0o444, "mode 0444.*chmod 440"),
        (0, 0o460, "mode 0460.*chmod 440"),
        (65534, 0o400, None),
        (65534, 0o440, "mode 0440.*chmod 600"),
        (0, 0o400, "cannot be read by user 65534"),
    ],
)
def test_what_root_hands_to_a_service_may_be_read_by_its_group_and_nobody_else(
    owner: int, mode: int, complaint: str | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        path = Path(folder) / "passphrase"
        path.write_bytes(b"correct horse")
        os.chown(path, owner, 65534)
        path.chmod(mode)
        os.setegid(65534)
        os.seteuid(65534)
        try:
            if complaint is None:
                assert read_private_file(path) == b"correct horse"
            else:
                with pytest.raises(IdentityError, match=complaint):
                    read_private_file(path)
        finally:
            os.seteuid(0)
            os.setegid(0)


@given(st.binary(max_size=100), st.integers(0, 511))
def test_a_signature_holds_for_its_own_bytes_alone(data: bytes, i_bit: int) -> None:
    key = StatementKey.from_seed(b"k" * 32)
    signature = key.sign(data)
    check_signature(key.public_bytes, signature, data)
    flipped = bytearray(signature)
    flipped[i_bit // 8] ^= 1 << (i_bit % 8)
    for bad_signature, bad_data in ((bytes(flipped), data), (signature, data + b"\0")):
        with pytest.raises(VerificationError):
            check_signature(key.public_bytes, bad_signature, bad_data)


@pytest.mark.parametrize("public_key", [b"", b"x" * 31, b"\0" * 32])
def test_what_is_no_key_verifies_nothing(public_key: bytes) -> None:
    with pytest.raises(VerificationError):
        check_signature(public_key, b"\0" * 64, b"data")


def test_an_hpke_key_opens_what_was_sealed_to_its_public_bytes() -> None:
    pair = HpkeKeyPair.generate()
    sealed = HPKE_SUITE.encrypt(b"key", HpkePublicKey(pair.public_bytes).handle, info=b"i")
    assert HPKE_SUITE.decrypt(sealed, pair.handle, info=b"i") == b"key"
    assert pair.public_key.key_id == pair.key_id == key_id(pair.public_bytes)


@pytest.mark.parametrize("n_bytes", [0, 32, 1_215, 1_217])
def test_an_hpke_public_key_of_another_length_is_refused(n_bytes: int) -> None:
    with pytest.raises(MalformedError, match="1216"):
        HpkePublicKey(b"\1" * n_bytes)
