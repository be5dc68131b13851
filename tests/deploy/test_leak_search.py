"""The search for patient values finds every encoding it claims to find, and nothing else."""

import base64
import gzip
import json
import pickle
import sqlite3
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from synthedge_core.errors import TableError
from synthedge_deploy.diabetes import diabetes_cohort
from synthedge_deploy.leak_patterns import PatientTable
from synthedge_deploy.leak_search import LeakSearch, search
from synthedge_protocols.v1 import statements_pb2 as pb

COHORT = diabetes_cohort(0)
EAST = COHORT.hospitals[1]
TABLE = PatientTable(
    site="east",
    patient_ids=tuple(EAST.table[EAST.patient_id]),
    values=EAST.samples.values,
)
SEARCH = LeakSearch([TABLE])
ROW = TABLE.values[7]
ID = TABLE.patient_ids[7]
DOUBLES = struct.pack("<10d", *ROW)
# Whole numbers of few digits, as the UCI hospitals have: only runs can give them away.
PLAIN_ROW = np.array([63.0, 1.0, 4.0, 145.0, 233.0, 1.0, 2.0, 150.0])
PLAIN = LeakSearch(
    [PatientTable(site="cleveland", patient_ids=["CLE-00000001"], values=PLAIN_ROW[None, :])]
)
NAMES = COHORT.dictionary.feature_names


def hidden(what: bytes) -> bytes:
    """Put something between random bytes, at an odd place."""
    noise = np.random.default_rng(3).bytes(4_001)
    return noise[:1_013] + what + noise[1_013:]


def plain(values: np.ndarray) -> list[str]:
    return [f"{v:g}" for v in values]


BINARY = {
    "one float64 LE": struct.pack("<d", ROW[8]),
    "one float64 BE": struct.pack(">d", ROW[8]),
    "float32 LE": struct.pack("<2f", *ROW[4:6]),
    "float32 BE": struct.pack(">2f", *ROW[4:6]),
    "protobuf packed doubles": pb.Sample(token=b"t" * 16, values=ROW.tolist()).SerializeToString(),
    "pickle": pickle.dumps(ROW.tolist()),
    "gzip": gzip.compress(DOUBLES),
    "zlib": zlib.compress(DOUBLES),
    "zstd": zstandard.compress(DOUBLES),
    "gzip of a CSV": gzip.compress(",".join(plain(ROW)).encode()),
    "id": ID.encode(),
    "id UTF-16": ID.encode("utf-16-le"),
    "id UTF-16 BE": ID.encode("utf-16-be"),
}

TEXT = {
    "CSV": ",".join(plain(ROW)),
    "CSV with decimals": ",".join(str(float(v)) for v in ROW),
    "semicolons": ";".join(plain(ROW)),
    "TSV": "\t".join(plain(ROW)),
    "spaces": "  ".join(plain(ROW)),
    "two values": ", ".join(plain(ROW[4:6])),
    "JSON array": json.dumps(ROW.tolist()),
    "JSON object": json.dumps(dict(zip(NAMES, ROW.tolist(), strict=True))),
    "JSON object in a JSON string": json.dumps(
        json.dumps(dict(zip(NAMES, ROW.tolist(), strict=True)))
    ),
    "quoted": ",".join(f'"{v}"' for v in plain(ROW)),
    "numpy": repr(ROW.tolist()).replace("[", "[np.float64(").replace(", ", "), np.float64("),
    "protobuf text": " ".join(f"values: {v}" for v in plain(ROW)),
    "logged keys": " ".join(f"{n}={v}" for n, v in zip(NAMES, plain(ROW), strict=True)),
    "HTML": "".join(f"<td>{v}</td>" for v in plain(ROW)),
    "hex": DOUBLES.hex(),
    "HEX": "x" + DOUBLES.hex().upper(),
    "logged bytes": repr(DOUBLES),
    "octal escapes": "".join(f"\\{byte:03o}" for byte in DOUBLES),
    "base64": base64.b64encode(DOUBLES).decode(),
    "base64, shifted by one": base64.b64encode(b"a" + DOUBLES).decode(),
    "base64, shifted by two": base64.b64encode(b"ab" + DOUBLES).decode(),
    "base64 in lines": base64.encodebytes(DOUBLES).decode(),
    "base64 of zstd": base64.b64encode(zstandard.compress(DOUBLES)).decode(),
    "base64 of a CSV": base64.urlsafe_b64encode(",".join(plain(ROW)).encode()).decode(),
    "id base64": base64.b64encode(b"id " + ID.encode()).decode(),
    "id hex": ID.encode().hex(),
    "id in a log": f"took patient {ID} in",
}


@pytest.mark.parametrize("what", BINARY)
def test_a_planted_binary_form_is_found(what: str) -> None:
    findings = SEARCH.in_bytes("file", hidden(BINARY[what]))

    assert {f.row for f in findings} == {7}
    assert {f.site for f in findings} == {"east"}


@pytest.mark.parametrize("what", TEXT)
def test_a_planted_text_form_is_found(what: str) -> None:
    findings = SEARCH.in_bytes("file", f"INFO got {TEXT[what]}\nINFO done\n".encode())

    assert 7 in {f.row for f in findings}


@pytest.mark.parametrize("what", ["CSV", "JSON array", "logged keys"])
def test_text_in_utf_16_is_found(what: str) -> None:
    assert SEARCH.in_bytes("file", f"row {TEXT[what]}".encode("utf-16"))


@pytest.mark.parametrize(
    "form",
    [
        b"63,1,4,145,233",
        b"63.0\t1.0\t4.0\t145.0",
        struct.pack("<4d", 63, 1, 4, 145),
        struct.pack(">4f", 63, 1, 4, 145),
        bytes.fromhex("3f040091 00e9 02 0096"),
    ],
)
def test_a_run_of_small_whole_numbers_is_found(form: bytes) -> None:
    assert PLAIN.in_bytes("file", hidden(form if form[:1] != b"6" else b"\n" + form + b"\n"))


@pytest.mark.parametrize(
    "stored",
    [
        PLAIN_ROW.tolist(),
        [int(value) for value in PLAIN_ROW],
        [json.dumps(PLAIN_ROW.tolist()), *[None] * 7],
        [PLAIN_ROW.tobytes(), *[None] * 7],
    ],
    ids=["numbers", "whole numbers", "JSON", "bytes"],
)
def test_rows_in_an_sqlite_file_are_found(tmp_path: Path, stored: list[object]) -> None:
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("CREATE TABLE t (id TEXT, a REAL, b, c, d, e, f, g, h)")
    connection.execute("INSERT INTO t VALUES ('row', ?, ?, ?, ?, ?, ?, ?, ?)", stored)
    connection.commit()
    connection.close()

    assert PLAIN.in_folder(tmp_path).n_patient_values > 0


def test_a_column_of_a_table_is_found() -> None:
    ages = TABLE.values[10:30, 0]

    assert SEARCH.in_bytes("file", ages.astype("<f4").tobytes())
    assert SEARCH.in_bytes("file", json.dumps({"age": ages.astype(int).tolist()}).encode())


def test_every_row_of_every_hospital_is_found_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "rows.npy", TABLE.values)

    report = search(tmp_path, [TABLE])

    assert {f.row for f in report.findings} == set(range(len(TABLE.values)))
    assert {f.file for f in report.findings} == {"deep/rows.npy"}
    assert report.n_bytes == (tmp_path / "deep" / "rows.npy").stat().st_size


def test_random_bytes_hold_nothing_and_are_searched_fast() -> None:
    ciphertext = np.random.default_rng(0).bytes(5_000_000)
    started = time.process_time()

    findings = [*SEARCH.in_bytes("file", ciphertext), *PLAIN.in_bytes("file", ciphertext)]

    assert findings == []
    assert time.process_time() - started < 8


def test_random_bytes_in_base64_and_hex_hold_nothing() -> None:
    ciphertext = np.random.default_rng(1).bytes(400_000)

    assert SEARCH.in_bytes("file", base64.b64encode(ciphertext)) == []
    assert SEARCH.in_bytes("file", ciphertext.hex().encode()) == []


def test_what_a_coordinator_holds_anyway_is_no_finding() -> None:
    times = "".join(
        f"2025-11-{d:02} {h:02}:{m:02}:07,123 INFO inbox of 'east': 17 waiting, 20 rows\n"
        for d in range(1, 29)
        for h in range(24)
        for m in range(0, 60, 7)
    )
    held = [COHORT.dictionary_text, COHORT.dictionary.canonical_json().decode(), times]

    for search_ in (SEARCH, PLAIN):
        assert search_.in_bytes("file", "\n".join(held).encode()) == []
        assert search_.in_bytes("file", bytes(100_000)) == []
        assert search_.in_bytes("file", np.arange(5_000.0).tobytes()) == []


def test_a_finding_never_carries_a_value() -> None:
    findings = SEARCH.in_bytes("file", TEXT["CSV"].encode() + BINARY["id"])

    assert findings
    for finding in findings:
        assert ID not in str(finding)
        assert not any(len(v) > 2 and v in str(finding) for v in plain(ROW))


@given(st.binary(max_size=300))
def test_any_bytes_can_be_searched(data: bytes) -> None:
    assert SEARCH.in_bytes("file", data) == []


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no file below"):
        search(tmp_path, [TABLE])


def test_a_search_for_nothing_is_refused() -> None:
    with pytest.raises(TableError, match="no patient rows"):
        LeakSearch([])


def test_an_id_too_short_to_tell_from_chance_is_refused() -> None:
    with pytest.raises(TableError, match="patient id below 8 bytes"):
        LeakSearch([PatientTable(site="x", patient_ids=["17"], values=np.array([[4.8598]]))])
