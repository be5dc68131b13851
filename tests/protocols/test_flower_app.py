"""The app that names a Flower round: its bytes, and the version of Flower it is spoken with."""

import io
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from synthedge_protocols import flower_app
from synthedge_protocols.flower_app import app, problem_with_flower

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_digest_that_sites_approved_does_not_change_by_accident() -> None:
    assert app().digest == "52a838870dc7dfed3cd46150daaff0776ac7c2d866c02aed3290a22ed2d3802e"


def test_the_shipped_app_holds_no_code_that_could_run() -> None:
    with zipfile.ZipFile(io.BytesIO(app().content)) as bundle:
        assert sorted(bundle.namelist()) == [".info/CONTENT", "nothing.py", "pyproject.toml"]
        with pytest.raises(ImportError, match="never one that Flower shipped"):
            exec(bundle.read("nothing.py"))  # noqa: S102 - what a stock SuperNode would do
        assert (
            tomllib.loads(bundle.read("pyproject.toml").decode())["project"]["dependencies"] == []
        )


def test_another_flower_than_the_pinned_one_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["flower"]
    assert pinned == [f"flwr=={flower_app._FLWR}"]
    assert problem_with_flower() is None
    monkeypatch.setattr(flower_app, "version", lambda name: "1.42.0")
    assert "1.42.0 is installed, this release works with" in (problem_with_flower() or "")

    def absent(name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(flower_app, "version", absent)
    assert "pip install 'synthedge-federation[flower]'" in (problem_with_flower() or "")
