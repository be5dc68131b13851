"""What a hospital owes an account of: disclosures, processing, and where a received row is from."""

from collections.abc import AsyncIterator
from pathlib import Path

import pandas as pd
import pytest
import pytest_asyncio

from asked_and_given import asked_and_given
from enrolled import exchange
from synthedge_client.accounts import disclosures, list_received, records_of_processing, trace
from synthedge_client.received_files import export_received
from synthedge_client.site import Site
from synthedge_client.withdrawals import withdraw_patient
from synthedge_core.errors import UsageError


@pytest_asyncio.fixture
async def moved(pair: list[Site]) -> AsyncIterator[list[Site]]:
    """South gave north five rows."""
    north, south = pair
    await asked_and_given(north, south)
    await exchange(south, north, south)
    yield pair


async def test_disclosures_of_a_patient_are_found_by_the_tables_own_id(moved: list[Site]) -> None:
    _, south = moved
    (everything,) = disclosures(south)
    assert everything["recipient"] == "north"
    assert everything["description"].startswith("5 pseudonymised rows, male, ")
    assert everything["purpose"] == "DUO:0000007 (disease-specific research)"
    assert everything["date"]
    given = pd.read_csv(south.settings.data)["mrn"]
    told = [mrn for mrn in given if disclosures(south, mrn)]
    assert len(told) == 5
    assert "1 pseudonymised row," in disclosures(south, told[0])[0]["description"]
    assert told[0] not in str(disclosures(south))
    assert disclosures(south, "nobody") == []


async def test_a_withdrawal_shows_in_the_account(moved: list[Site]) -> None:
    _, south = moved
    mrn = next(m for m in pd.read_csv(south.settings.data)["mrn"] if disclosures(south, m))
    withdraw_patient(south, mrn)
    assert [entry["withdrawn"] for entry in disclosures(south)] == [1]


async def test_a_row_is_traced_to_its_donor_its_agreement_its_end_and_its_files(
    moved: list[Site], tmp_path: Path
) -> None:
    north, _ = moved
    export_received(north, tmp_path / "received.csv")
    names = pd.read_csv(tmp_path / "received.csv", dtype=str)["_row"]
    assert sorted(names) == sorted(row["row"] for row in list_received(north))
    found = trace(north, names[0])
    assert (found["donor"], found["state"]) == ("south", "ACTIVE")
    assert found["requested_by"] == "steward 'ada' of site 'north'"
    assert found["approved_by"] == "steward 'ada' of site 'south'"
    assert found["until"] > found["arrived"]
    assert [file["state"] for file in found["files"]] == ["there"]
    with pytest.raises(UsageError, match="no received rows"):
        trace(north, "")
    with pytest.raises(UsageError, match="0 received rows"):
        trace(north, "zz")


async def test_the_record_of_processing_names_what_leaves_and_what_only_the_hospital_knows(
    moved: list[Site],
) -> None:
    record = {entry["heading"]: entry["text"] for entry in records_of_processing(moved[1])}
    assert "north" in record["recipients"]
    assert "bp (measurement)" in record["personal data that may leave"]
    assert "note (no class)" in record["personal data that never leaves"]
    assert "to be filled in by the hospital" in record["legal basis"]
