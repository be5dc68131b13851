import errno
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_tables import ward_table
from synthedge_client import console, parquet_scan
from synthedge_client.cli import app
from synthedge_client.local_table import write_table
from synthedge_client.model_folder import ModelFolder
from synthedge_core.errors import TableError
from synthedge_core.scan import scan

Run = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "ward.csv"
    ward_table(800, has_gap=True).to_csv(path, index=False)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Run:
    given = [str(argument) for argument in arguments]
    code = console.run_app(app, [*given, "--json"], program="synthedge")
    envelope = json.loads(capsys.readouterr().out)
    return code, envelope["data"]


def test_analyze_shows_columns_gaps_and_the_verdict(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", str(data), "--target", "progressed", "--positive", "yes"]
    code, found = run(capsys, *arguments)
    assert code == 0
    assert found["severity"] in {"MODERATE", "SEVERE"}
    assert found["signals"]["regions"][0]["region"] == "sex = M, smoker = True"
    kinds = {column["name"]: column["kind"] for column in found["columns"]}
    assert kinds["mrn"] is None
    assert kinds["ward"] == "categorical"
    assert console.run_app(app, [*arguments, "--no-benefit"], program="synthedge") == 0
    shown = capsys.readouterr().out
    assert "sex = M, smoker = True" in shown
    assert "Will filling help: yes" in shown


def test_fill_writes_the_rows_and_one_seed_gives_the_same_bytes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for name in ("a.csv.gz", "b.csv.gz"):
        code, found = run(
            capsys,
            *("fill", data, "--target", "progressed", "--positive", "yes", "--seed", 3),
            *("--output", tmp_path / name, "--rows", 12, "--constraint", "diastolic < systolic"),
        )
        assert code == 0
        assert found["rows_added"] == 12
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    table = pd.read_csv(tmp_path / "a.csv.gz")
    assert gzip.decompress(written[0]).count(b"synthetic:copula") == 12
    pd.testing.assert_frame_equal(
        table.iloc[:-12][["age", "sex"]], pd.read_csv(data)[["age", "sex"]]
    )


def test_fill_writes_parquet_with_the_table_s_types(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "filled.parquet"
    code, _ = run(capsys, "fill", data, "--target", "progressed", "--output", output)
    assert code == 0
    assert pd.read_parquet(output)["age"].dtype == np.int64
    before = data.read_bytes()
    for command in ("fill", "report", "rebalance"):
        code, refused = run(capsys, command, data, "--target", "progressed", "--output", data)
        assert (code, "is the table itself" in refused["message"]) == (4, True)
    assert data.read_bytes() == before
    code, refused = run(capsys, "fill", data, "--target", "progressed", "--output", "x.doc")
    assert code == 4
    assert "no known ending" in refused["message"]


def test_compare_prints_every_method(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", str(data), "--target", "progressed", "--splits", "2"]
    code, found = run(capsys, *arguments)
    assert code == 0
    assert {r["method"] for r in found["results"]} >= {"none", "class weights", "ADASYN"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "nothing"], "no column 'nothing'"),
        (["--target", "progressed", "--missing", "chol"], "COLUMN=CODE"),
        (["--target", "progressed", "--discrete", "nothing"], "'nothing' is named as discrete"),
        (["--target", "progressed", "--dictionary", "none.toml"], "cannot be read"),
        (["--target", "progressed", "--query", "SELECT 1"], "drop --query"),
    ],
)
def test_wrong_options_get_a_sentence_and_exit_code_4(
    data: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(capsys, "analyze", data, *arguments)
    assert code == 4
    assert message in found["message"]


def write_parquet(path: Path, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n_rows, 4))
    values[::11, 1] = np.nan
    labels = rng.integers(0, 2, n_rows)
    columns: dict[str, Any] = {f"x{i}": pa.array(values[:, i], from_pandas=True) for i in range(4)}
    words = pa.array(["a"] * n_rows)
    pq.write_table(pa.table({**columns, "word": words, "y": labels}), path, row_group_size=7_000)
    return values, labels


def test_a_large_parquet_file_is_scanned_by_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.parquet"
    values, labels = write_parquet(path, 30_000)
    found = parquet_scan.scan_parquet(path, "y")
    whole = scan(values, labels == 1)
    assert found.left_out == ("word",)
    assert [v.label for v in found.scan.voxels] == [v.label for v in whole.voxels]
    np.testing.assert_array_equal(found.scan.counts, whole.counts)
    monkeypatch.setattr(parquet_scan, "LARGE_CELLS", 1_000)
    code, shown = run(capsys, "analyze", path, "--target", "y")
    assert code == 0
    assert shown["rows"] == 30_000
    assert shown["gaps"][0]["voxel"] == whole.top[0].label


def test_a_parquet_label_that_does_not_serve_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    write_parquet(path, 500)
    with pytest.raises(TableError, match="no column 'z'"):
        parquet_scan.scan_parquet(path, "z")
    with pytest.raises(TableError, match="never has the value"):
        parquet_scan.scan_parquet(path, "y", positive="7")
    with pytest.raises(TableError, match="say with --positive"):
        parquet_scan.scan_parquet(path, "x0")


def test_trained_models_are_kept_for_the_owner_alone(tmp_path: Path) -> None:
    models = ModelFolder(tmp_path / "models")
    assert models.get("digest") is None
    models["digest"] = b"trained"
    assert dict(models) == {"digest": b"trained"}
    assert (tmp_path / "models").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "models" / "digest.model").stat().st_mode & 0o777 == 0o600
    del models["digest"]
    assert len(models) == 0
    (tmp_path / "models").chmod(0o777)
    with pytest.raises(TableError, match="others can write"):
        models.get("digest")


def test_options_of_another_engine_are_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fill", data, "--target", "progressed", "--output", "x.csv"]
    for more in (["--steps", 5], ["--models", "m"], ["--where", "everywhere"]):
        assert run(capsys, *arguments, *more)[0] == 4


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet"])
def test_a_table_that_cannot_be_written_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    table, output = pd.DataFrame({"age": [51, 60]}), tmp_path / name
    write_table(table, output)
    before = output.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TableError, match="No space left on device; nothing was"):
        write_table(table.assign(age=0), output)
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]
