import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from imbalanced_patients import imbalanced_patients
from synthedge_client.cli import app
from synthedge_client.console import run_app

TABLE = imbalanced_patients()
N_ALIVE = int((TABLE["died"] == 0).sum())

CONTRADICTION = ["--marginal", "pregnant: y=0.9,n=0.1", "--marginal", "sex: F=0.1,M=0.9"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    TABLE.to_csv(path, index=False)
    return path


def _run(*arguments: object) -> int:
    return run_app(app, [str(a) for a in ("rebalance", *arguments)], program="synthedge")


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)["data"]


def test_everything_at_once_as_documented(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, report = tmp_path / "output.csv", tmp_path / "out.html"
    code = _run(
        data, "--target", "died", "--output", output, "--ratio", 0.5, "--strategy", "hybrid",
        "--discrete-columns", "sex,ward", "--constraint", "age in [0,120]",
        "--marginal", "sex: F=0.5,M=0.5", "--report", report, "--seed", 1,
    )  # fmt: skip
    assert code == 0
    out = pd.read_csv(output)
    sexes, classes = out["sex"].value_counts(), out["died"].value_counts()
    assert abs(sexes["F"] - sexes["M"]) <= 1
    assert classes[1] == pytest.approx(classes[0] / 2, abs=1)
    assert out["_synthetic"].sum() == out["_origin"].ne("observed").sum() > 0
    page = report.read_text()
    assert "age &lt;= 120" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)\s*=\s*\"(?!data:)", page)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert f"{len(out)} rows written" in capsys.readouterr().out


def test_the_same_seed_writes_the_same_bytes(data: Path, tmp_path: Path) -> None:
    written = []
    for name in ("a.csv", "b.csv"):
        arguments = ("--target", "died", "--output", tmp_path / name, "--ratio", 0.4, "--seed", 3)
        assert _run(data, *arguments) == 0
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(data, "--target", "died", "--dry-run", "--json") == 0
    plan = _json(capsys)["plan"]
    assert {c["level"]: c["n_wanted"] for c in plan["classes"]} == {0: N_ALIVE, 1: N_ALIVE}
    assert list(tmp_path.iterdir()) == [data]


def test_counts_per_class_and_bins_are_taken(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run(
        data, "--target", "died", "--output", tmp_path / "o.csv", "--strategy", "hybrid",
        "--target-count", "0=120", "--target-count", "1=80",
        "--marginal", "age: [0,60)=0.5,[60,100)=0.5", "--json",
    )  # fmt: skip
    assert code == 0
    answer = _json(capsys)
    assert answer["n_rows"] == 200
    assert answer["n_generated"] == answer["n_accepted"] + sum(answer["rejected"].values())
    out = pd.read_csv(tmp_path / "o.csv")
    assert (out["age"] < 60).sum() == 100
    assert out["died"].value_counts().to_dict() == {0: 120, 1: 80}


def test_the_downstream_check_is_shown(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.parquet"
    arguments = ("--target", "died", "--output", output, "--strategy", "undersample")
    assert _run(data, *arguments, "--evaluate", 1) == 0
    assert "boosting trained on altered: ROC-AUC" in capsys.readouterr().out
    assert len(pd.read_parquet(output)) == 2 * (len(TABLE) - N_ALIVE)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--output", "o.csv", "--marginal", "sex: F=0.5,M=0.4"], 4, "sum to 0.9"),
        (["--output", "o.csv", "--marginal", "sex F=0.5"], 4, "cannot be read"),
        (["--output", "o.csv", "--marginal", "sex: F=0.5,M"], 4, "cannot be read"),
        (["--output", "o.csv", "--marginal", "sex: F=half,M=0.5"], 4, "no number"),
        (["--output", "o.csv", "--constraint", "age in [9,0]"], 4, "leaves nothing"),
        (["--output", "o.csv", "--target-count", "1"], 4, "CLASS=ROWS"),
        (["--output", "o.csv", "--discrete-columns", "weight"], 4, "'weight'"),
        (["--output", "o.csv", "--strategy", "magic"], 4, "no strategy"),
        ([], 4, "--output is missing"),
        (
            ["--output", "o.csv", "--strategy", "hybrid", *CONTRADICTION],
            1,
            "cannot hold together",
        ),
    ],
)
def test_what_cannot_be_done_ends_in_one_sentence(
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(data.parent)
    assert _run(data, "--target", "died", *arguments) == code
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert not Path("o.csv").exists()
