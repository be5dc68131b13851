"""The coordinator holds and is sent nothing of a patient outside the sealed payloads, and nothing there can be read."""

import base64
import struct
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from synthedge_client.received import load_samples
from synthedge_client.site import open_site
from synthedge_deploy.leak_search import LeakSearch
from synthedge_deploy.summary import patient_tables
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from system_consortium import Finished

# What a consortium cannot do without: had one of these not been recorded, silence would prove nothing.
EXPECTED = {"Enrol", "GetDirectory", "Inbox", "Submit", "Upload", "Download", "ReleaseKey"}


@pytest.fixture(scope="module")
def search(finished: Finished) -> LeakSearch:
    """Searches for all patients of all hospitals in every form they have at home and on the way."""
    dictionary = finished.cohort.dictionary
    return LeakSearch(
        [t for site in finished.sites for t in patient_tables(finished.folder / site, dictionary)]
    )


def test_the_coordinators_files_hold_no_patient_value(
    finished: Finished, search: LeakSearch
) -> None:
    report = search.in_folder(finished.folder / "coordinator")
    assert report.n_files >= 5
    assert report.findings == ()


def test_the_logs_hold_no_patient_value(finished: Finished, search: LeakSearch) -> None:
    logs = finished.folder / "logs"
    assert (logs / "coordinator.log").stat().st_size
    assert search.in_folder(logs).findings == ()


def test_the_same_search_finds_the_patients_at_every_hospital(
    finished: Finished, search: LeakSearch
) -> None:
    for site in finished.sites:
        found = search.in_folder(finished.folder / site).findings
        own = {f.row for f in found if f.site == site and f.file == "patients.csv"}
        lines = (finished.folder / site / "patients.csv").read_text().splitlines()
        assert len(own) == len(lines) - 1


def test_the_coordinator_keeps_no_sealed_bytes_after_the_receipt(finished: Finished) -> None:
    assert all(t["state"] == "ACTIVE" for t in finished.summary["transfers"] if t["rows"])
    assert list((finished.folder / "coordinator" / "spool").iterdir()) == []


def test_every_kind_of_message_was_recorded(finished: Finished) -> None:
    counts = Counter(message.method for message in finished.messages)
    assert counts.keys() >= EXPECTED
    kinds = Counter(statement.type for statement in finished.statements())
    n_active = sum(t["state"] == "ACTIVE" for t in finished.summary["transfers"])
    assert kinds["gap-report"] == len(finished.sites)
    for kind in ("transfer-request", "approval", "shipment", "receipt"):
        assert kinds[kind] >= n_active, kind


def test_no_message_holds_a_patient_value(finished: Finished, search: LeakSearch) -> None:
    for number, message in enumerate(finished.messages):
        assert search.in_bytes(f"{number} {message.method}", message.data) == []
    # Also across messages: a value could be cut in two by a chunk's border.
    everything = b"".join(message.data for message in finished.messages)
    assert search.in_bytes("all messages", everything) == []


def test_sealed_bytes_look_like_chance(finished: Finished) -> None:
    chunks = [
        wire.UploadChunk.FromString(message.data).data
        for message in finished.messages
        if message.method == "Upload" and not message.is_answer
    ]
    sealed = np.frombuffer(b"".join(chunks), dtype=np.uint8)
    assert len(sealed) >= 1_000
    shares = np.bincount(sealed, minlength=256) / len(sealed)
    entropy = -np.sum(shares[shares > 0] * np.log2(shares[shares > 0]))
    # Of n random bytes: 8 bits less (256 - 1) / (2 n ln 2) on average (Miller 1955).
    assert entropy > 8 - 2 * 255 / (2 * len(sealed) * np.log(2))


def test_a_row_sent_in_the_open_would_have_been_found(
    finished: Finished, search: LeakSearch
) -> None:
    transfer = next(t for t in finished.summary["transfers"] if t["rows"])
    leaving = patient_tables(finished.folder / transfer["donor"], finished.cohort.dictionary)
    table = leaving[-1]
    batch = pb.SampleBatch(
        samples=[pb.Sample(token=b"t" * 16, values=row.tolist()) for row in table.values]
    ).SerializeToString()
    plain = wire.UploadChunk(transfer_id=b"x" * 32, data=batch).SerializeToString()
    for form in (plain, base64.b64encode(plain), plain.hex().encode()):
        found = search.in_bytes("control", form)
        rows = {finding.row for finding in found if finding.site == table.site}
        assert rows >= set(range(len(table.values)))


def test_the_recipients_store_keeps_received_rows_unreadable_without_its_keys(
    finished: Finished,
) -> None:
    """The database alone, without the keys folder, gives no received value away."""
    transfer = next(t for t in finished.summary["transfers"] if t["rows"])
    folder = finished.folder / transfer["recipient"]
    with open_site(folder) as site:
        numbers = load_samples(site).select_dtypes("number").to_numpy(dtype=np.float64)
    database = b"".join(path.read_bytes() for path in sorted(folder.glob("site.db*")))
    for row in numbers:
        for first, second in pairwise(row):
            if first and second:
                assert struct.pack("<2d", first, second) not in database
                assert f"{first}, {second}".encode() not in database
