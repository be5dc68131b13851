import bz2
import gzip
import lzma
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from clinical_data import clinical_data_dir
from synthedge_client.tables import read_table, whole_numbers
from synthedge_core.errors import TableError

ROWS = "age,bp,sex\n61,120.5,F\n55,,M\n70,133.0,M\n"
EXPECTED = pd.DataFrame({"age": [61, 55, 70], "bp": [120.5, None, 133.0], "sex": ["F", "M", "M"]})


@pytest.mark.parametrize(
    "written",
    [
        ROWS.encode(),
        ROWS.encode("utf-8-sig"),
        ROWS.encode("utf-16"),
        ROWS.encode("utf-16-le"),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace("\n", "\r").encode(),
        ROWS.replace(",", "\t").encode(),
        ROWS.replace(",", "|").encode(),
        ROWS.replace(",", ";").encode(),
        ROWS.replace(",", ";").replace(".", ",").encode(),
        b"sep=;\n" + ROWS.replace(",", ";").encode(),
        gzip.compress(ROWS.encode("utf-16")),
        bz2.compress(ROWS.encode()),
        lzma.compress(ROWS.encode()),
    ],
    ids=[
        "plain",
        "mark",
        "UTF-16",
        "UTF-16 without mark",
        "Windows line ends",
        "old Macs' line ends",
        "tab",
        "bar",
        "semicolon",
        "decimal comma",
        "Excel's separator line",
        "gzip",
        "bzip2",
        "xz",
    ],
)
def test_every_form_of_a_text_table_reads_alike(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "patients.dat"
    path.write_bytes(written)
    pd.testing.assert_frame_equal(read_table(path), EXPECTED)


def test_windows_text_keeps_its_letters(tmp_path: Path) -> None:
    path = tmp_path / "german.csv"
    path.write_bytes("Größe;Geschlecht\n170;männlich\n160;weiblich\n".encode("cp1252"))
    assert read_table(path)["Geschlecht"].tolist() == ["männlich", "weiblich"]


def test_parquet_and_a_database_query_read_alike(tmp_path: Path) -> None:
    EXPECTED.to_parquet(tmp_path / "patients.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "patients.parquet"), EXPECTED)
    with sqlite3.connect(tmp_path / "wards.db") as database:
        EXPECTED.to_sql("patients", database, index=False)
    database.close()
    url = f"sqlite:///{tmp_path}/wards.db"
    pd.testing.assert_frame_equal(read_table(url, query="SELECT * FROM patients"), EXPECTED)


def test_words_for_no_value_are_missing_and_zero_is_not(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("chol,alcohol\n0,None\n?,NA\n200,\n", encoding="utf-8")
    table = read_table(path)
    assert table.isna().sum().to_dict() == {"chol": 1, "alcohol": 2}
    assert read_table(path, missing={"chol": ["0"]})["chol"].isna().sum() == 2


def test_whole_numbers_beside_missing_cells_are_written_as_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("age,vessels,st\n61,2,1.5\n55,,\n70,0,0.5\n", encoding="utf-8")
    assert whole_numbers(read_table(path)).to_csv(index=False) == path.read_text(encoding="utf-8")


def test_the_clinical_files_keep_their_missing_cells() -> None:
    folder = clinical_data_dir()
    counts = {"cleveland": 6, "hungarian": 782, "switzerland": 273, "va": 698}
    for name, n_missing in counts.items():
        assert read_table(folder / f"uci_heart_{name}.csv").isna().sum().sum() == n_missing


def write(content: bytes) -> Callable[[Path], Path]:
    def at(folder: Path) -> Path:
        (folder / "bad.csv").write_bytes(content)
        return folder / "bad.csv"

    return at


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (write(b""), "is empty"),
        (write(b"  \n \n"), "is empty"),
        (write(b"a,b\n"), "no row"),
        (write(b"a\n1\n"), "1 column"),
        (write(b"a,a\n1,2\n"), "'a' more than once"),
        (write(b"a,b\n1,2\n1,2,3,4\n"), "line 3"),
        (write(b"a,b\n1,2,3\n"), "not a regular table"),
        (write(b'a,b\n1,2\n"1,2\n'), "row 2 that is not closed"),
        (write(b'a,b\n"' + b"x" * 140_000 + b'",2\n'), "more than 131,072 characters"),
        (write(b"\x1f\x8b\x08\x00junk"), "damaged compressed"),
        (write(b"PAR1 is not Parquet"), "is damaged"),
        (write(b"PK\x03\x04"), "Excel or zip"),
        (write(bytes(range(256))), "not a text file"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: folder / "none.csv", "does not exist"),
    ],
)
def test_what_is_no_table_gets_a_sentence(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        read_table(make(tmp_path))


@pytest.mark.parametrize("first", ["61,1,140,ill", "61;1;2,3;ill", "61,1,1,", "61.5,?,1,ill"])
def test_a_file_without_names_shows_no_patient(tmp_path: Path, first: str) -> None:
    path = tmp_path / "patients.csv"
    path.write_text(f"{first}\n{first}\n", encoding="utf-8")
    with pytest.raises(TableError, match="looks like a row") as refused:
        read_table(path)
    assert not {"61", "140", "ill"} & set(str(refused.value).split("'"))
    path.write_text("0,1,2,ill\n61,1,140,yes\n", encoding="utf-8")  # names that count the columns
    assert read_table(path).columns.tolist() == ["0", "1", "2", "ill"]


def test_a_value_that_a_database_cannot_read_is_not_quoted(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "wards.db") as database:
        database.execute("CREATE TABLE p (age INT, name TEXT)")
        database.execute("INSERT INTO p VALUES (61, CAST(x'4df86c6c6572' AS TEXT))")
    database.close()
    with pytest.raises(TableError, match="not of the type") as refused:
        read_table(f"sqlite:///{tmp_path}/wards.db", query="SELECT * FROM p")
    assert "ller" not in str(refused.value)


def test_database_errors_name_no_password_and_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="needs a query"):
        read_table("postgresql://user:secret@host/wards")
    with pytest.raises(TableError, match="no such table") as caught:
        read_table(f"sqlite:///{tmp_path}/new.db", query="SELECT * FROM patients")
    assert "secret" not in str(caught.value)
    with pytest.raises(TableError, match="cannot be opened"):
        read_table("nosuchdriver://user:secret@host/wards", query="SELECT 1")
    (tmp_path / "a.csv").write_text(ROWS, encoding="utf-8")
    with pytest.raises(TableError, match="drop --query"):
        read_table(tmp_path / "a.csv", query="SELECT 1")
    with pytest.raises(TableError, match="is no column"):
        read_table(tmp_path / "a.csv", missing={"chol": ["0"]})
