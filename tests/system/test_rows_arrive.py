"""The recipient holds exactly the donor's consented positives of the region, in own units, and both sides say so."""

import io
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from own_mapping import OwnMapping, Patient, in_region, same
from synthedge_client import store
from synthedge_client.received import load_samples
from synthedge_client.site import open_site
from synthedge_deploy.demo import STEWARD
from synthedge_protocols.sealing import stream_digest
from synthedge_protocols.v1 import coordinator_pb2 as wire
from synthedge_protocols.v1 import statements_pb2 as pb
from system_consortium import Finished, answer


@pytest.fixture(scope="module")
def dictionary(finished: Finished) -> dict[str, Any]:
    return tomllib.loads(finished.cohort.dictionary_text)


@pytest.fixture(scope="module")
def at_coordinator(finished: Finished) -> list[dict[str, Any]]:
    folder = finished.folder / "coordinator"
    found = answer("transfers", "--dir", folder, program="synthedge-coordinator")
    return [transfer for transfer in found if transfer["state"] == "ACTIVE"]


def received(finished: Finished, recipient: str, donor: str) -> list[dict[str, Any]]:
    with open_site(finished.folder / recipient) as site:
        samples = load_samples(site)
    rows: list[Any] = samples[samples["_donor"] == donor].to_dict(orient="records")
    return rows


def of_region(
    finished: Finished, transfer: dict[str, Any], dictionary: dict[str, Any]
) -> tuple[OwnMapping, list[Patient]]:
    donor = OwnMapping(finished.folder / transfer["donor"], dictionary)
    patients = [
        patient
        for patient in donor.patients()
        if in_region(patient.values, transfer["grid"], transfer["voxel"], dictionary)
    ]
    return donor, patients


def test_rows_were_transferred(at_coordinator: list[dict[str, Any]]) -> None:
    assert at_coordinator
    pairs = Counter((transfer["donor"], transfer["recipient"]) for transfer in at_coordinator)
    assert set(pairs.values()) == {1}, "the tests below take one transfer a pair of sites"


def test_each_received_row_is_one_consented_positive_of_the_region_in_own_units(
    finished: Finished, at_coordinator: list[dict[str, Any]], dictionary: dict[str, Any]
) -> None:
    for transfer in at_coordinator:
        donor, patients = of_region(finished, transfer, dictionary)
        eligible = [donor.leaving(p.values) for p in patients if p.positive and p.consented]
        recipient = OwnMapping(finished.folder / transfer["recipient"], dictionary)
        rows = [
            recipient.read_received(sample)
            for sample in received(finished, transfer["recipient"], transfer["donor"])
        ]
        given = [[i for i, patient in enumerate(eligible) if same(row, patient)] for row in rows]
        assert [len(found) for found in given] == [1] * len(rows)
        assert len({found[0] for found in given}) == len(rows)
        assert len(rows) == min(transfer["rows"], len(eligible))


def test_received_labels_are_the_recipients_own_positive_code(
    finished: Finished, at_coordinator: list[dict[str, Any]], dictionary: dict[str, Any]
) -> None:
    for transfer in at_coordinator:
        label = OwnMapping(finished.folder / transfer["recipient"], dictionary).label
        rows = received(finished, transfer["recipient"], transfer["donor"])
        assert {str(row[label["column"]]) for row in rows} == {label["positive"][0]}


def test_no_row_of_a_patient_without_consent_was_sent(
    finished: Finished, at_coordinator: list[dict[str, Any]], dictionary: dict[str, Any]
) -> None:
    n_without = 0
    for transfer in at_coordinator:
        donor = OwnMapping(finished.folder / transfer["donor"], dictionary)
        without = [donor.leaving(p.values) for p in donor.patients() if not p.consented]
        n_without += len(without)
        recipient = OwnMapping(finished.folder / transfer["recipient"], dictionary)
        for sample in received(finished, transfer["recipient"], transfer["donor"]):
            row = recipient.read_received(sample)
            assert not any(same(row, patient) for patient in without)
    assert n_without, "no donor has a patient without consent: this test would show nothing"


def test_filled_tables_mark_the_received_rows(
    finished: Finished, at_coordinator: list[dict[str, Any]]
) -> None:
    for recipient in {transfer["recipient"] for transfer in at_coordinator}:
        lines = (finished.folder / recipient / "filled.csv").read_text().splitlines()
        origin = lines[0].split(",").index("_origin")
        n_received = sum(line.split(",")[origin].startswith("received") for line in lines[1:])
        with open_site(finished.folder / recipient) as site:
            assert n_received == len(load_samples(site))


def test_both_audit_reports_agree_with_each_other_and_with_the_coordinator(
    finished: Finished, at_coordinator: list[dict[str, Any]]
) -> None:
    reports = finished.reports()
    assert set(reports) == set(finished.sites)
    assert len({report["dictionary_digest"] for report in reports.values()}) == 1
    agreed = (
        "transfer_id", "donor", "recipient", "region", "purpose", "features", "rows", "state",
        "retention_days",
    )  # fmt: skip
    sent = {t["transfer_id"]: t for report in reports.values() for t in report["sent"]}
    got = {t["transfer_id"]: t for report in reports.values() for t in report["received"]}
    assert sent.keys() == got.keys()
    for identifier, transfer in got.items():
        assert {k: transfer[k] for k in agreed} == {k: sent[identifier][k] for k in agreed}
    active = {identifier for identifier, t in got.items() if t["state"] == "ACTIVE"}
    assert active == {transfer["transfer_id"] for transfer in at_coordinator}
    for transfer in at_coordinator:
        rows = received(finished, transfer["recipient"], transfer["donor"])
        assert got[transfer["transfer_id"]]["rows"] == len(rows)
        for event, known in (("requested", got), ("approved", sent)):
            decided = known[transfer["transfer_id"]]["decided_by"]
            assert any(line.startswith(f"{event} by {STEWARD} (key ") for line in decided)


def test_both_hold_the_shipment_that_went_over_the_wire(
    finished: Finished, at_coordinator: list[dict[str, Any]]
) -> None:
    submitted = {
        shipment.transfer_id: shipment
        for shipment in (
            pb.Shipment.FromString(statement.payload)
            for statement in finished.statements()
            if statement.type == "shipment"
        )
    }
    for transfer in at_coordinator:
        identifier = bytes.fromhex(transfer["transfer_id"])
        for name in (transfer["donor"], transfer["recipient"]):
            assert shipment_at(finished.folder / name, identifier) == submitted[identifier]
        chunks = [
            wire.UploadChunk.FromString(message.data)
            for message in finished.messages
            if message.method == "Upload" and not message.is_answer
        ]
        sealed = b"".join(chunk.data for chunk in chunks if chunk.transfer_id == identifier)
        digest = stream_digest(io.BytesIO(sealed), len(sealed))
        assert digest == submitted[identifier].ciphertext_digest


def shipment_at(folder: Path, identifier: bytes) -> pb.Shipment:
    with open_site(folder) as site, site.store.read() as connection:
        blob = connection.execute(
            sa.select(store.transfers.c.shipment).where(store.transfers.c.transfer_id == identifier)
        ).scalar_one()
    signed = pb.SignedStatement.FromString(blob)
    return pb.Shipment.FromString(pb.Statement.FromString(signed.statement).payload)
