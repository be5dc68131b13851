"""Who consents to what, and on which day: columns, CSV registers and FHIR bundles."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server_fixtures import DICTIONARY_TOML
from sites import asked, patients, prepared, sites, transfer_at, with_hole
from synthedge_client.consent import ConsentEntry, Consents, count_consents
from synthedge_client.consent_register import COLUMNS, load_register, parse_csv
from synthedge_client.donating import approve, prepare
from synthedge_client.fhir_consent import parse_bundle
from synthedge_client.settings import load_settings
from synthedge_client.site import open_site
from synthedge_core.errors import RefusedError, TableError
from synthedge_protocols.purposes import PERMISSIONS, covers

GRU, HMB, DS, POA = "DUO:0000042", "DUO:0000006", "DUO:0000007", "DUO:0000011"
NON_PROFIT = "DUO:0000018"
DAY = date(2026, 5, 1)
HEADER = ",".join(COLUMNS) + "\n"
DUO = "http://purl.obolibrary.org/obo/duo.owl"


def says(entries: str, purpose: str = DS, on: date = DAY) -> bool:
    """Whether patient p1 consents by a CSV register."""
    register = parse_csv(HEADER + entries, "consents.csv")
    return bool(Consents.from_register(register, ["p1"]).to(purpose, on)[0])


@pytest.mark.parametrize(
    ("consented", "asked_for", "is_covered"),
    [
        (GRU, HMB, True),
        (HMB, DS, True),
        (GRU, POA, True),
        (HMB, POA, False),
        (DS, HMB, False),
        ("DUO:0000004", GRU, True),
        (GRU, "DUO:0009999", False),
        ("DUO:0009999", "DUO:0009999", True),
    ],
)
def test_a_consent_covers_narrower_purposes_only(
    consented: str, asked_for: str, is_covered: bool
) -> None:
    assert covers(consented, asked_for) is is_covered


@given(*[st.sampled_from(list(PERMISSIONS))] * 3)
def test_covering_is_transitive(a: str, b: str, c: str) -> None:
    assert not (covers(a, b) and covers(b, c)) or covers(a, c)


@pytest.mark.parametrize(
    ("entries", "consents"),
    [
        (f"p1,active,,,{HMB}", True),
        (f"p1,active,2026-05-01,2026-05-01,{HMB}", True),
        (f"p1,active,2026-05-02,,{HMB}", False),
        (f"p1,active,,2026-04-30,{HMB}", False),
        (f"p1,active,,,{POA}", False),
        (f"p1,active,,,{POA} {HMB}", True),
        (f"p1,active,,,{GRU};{NON_PROFIT}", False),
        (f"p1,active,,,{GRU}\np1,withdrawn,,,", False),
        (f"p1,withdrawn,,,{POA}\np1,active,,,{GRU}", True),
        (f"p1,withdrawn,,,{GRU}\np1,active,,,{DS}", False),
        (f"p1,withdrawn,2026-01-01,2026-02-01,\np1,active,,,{GRU}", True),
        (f"p2,active,,,{GRU}", False),
    ],
)
def test_a_register_permits_what_it_says_on_the_days_it_says(entries: str, consents: bool) -> None:
    assert says(entries) is consents


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (
            "secret7,aktiv,,,DUO:0000042",
            r"status other than active or withdrawn \(1 times, at line 2",
        ),
        ("secret7,active,1.5.2026,,DUO:0000042", "a date not written"),
        ("secret7,active,2026-05-02,2026-05-01,DUO:0000042", "an end before its beginning"),
        ("secret7,active,,,research", "a purpose that is no DUO code"),
        ("secret7,active,,,", "an active consent without a purpose"),
        (",active,,,DUO:0000042", "no patient id"),
        ("secret7,active", "other than 5 cells"),
        ('"secret7', "no regular CSV at line 2"),
    ],
)
def test_one_wrong_line_refuses_the_register_without_a_value(entries: str, match: str) -> None:
    with pytest.raises(TableError, match=match) as refused:
        parse_csv(f"{HEADER}{entries}\n", "consents.csv")
    assert "secret7" not in str(refused.value)


def test_a_register_needs_its_header_its_kind_and_its_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="must begin with the line patient_id,status"):
        parse_csv("id,status\n", "consents.csv")
    with pytest.raises(TableError, match=r"neither \.csv nor \.json"):
        load_register(tmp_path / "consents.xlsx")
    with pytest.raises(TableError, match="cannot be read"):
        load_register(tmp_path / "consents.csv")
    (tmp_path / "consents.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match="not UTF-8"):
        load_register(tmp_path / "consents.csv")


def consent(**changes: Any) -> dict[str, Any]:
    resource: dict[str, Any] = {
        "resourceType": "Consent",
        "status": "active",
        "subject": {"identifier": {"system": "urn:mrn", "value": "p1"}},
        "decision": "deny",
        "period": {"start": "2026-01-01", "end": "2026-12-31T23:59:59+01:00"},
        "provision": [{"purpose": [{"system": DUO, "code": "DUO_0000006"}]}],
    }
    return {k: v for k, v in {**resource, **changes}.items() if v is not None}


def bundle(*resources: dict[str, Any], **more: Any) -> str:
    return json.dumps(
        {"resourceType": "Bundle", "entry": [{"resource": r} for r in resources], **more}
    )


@pytest.mark.parametrize(
    ("changes", "purpose", "consents"),
    [
        ({}, DS, True),
        ({}, GRU, False),
        ({"subject": {"reference": "Patient/p1"}}, DS, True),
        ({"status": "inactive"}, DS, False),
        ({"status": "entered-in-error"}, DS, False),
        ({"period": {"start": "2026-06-01"}}, DS, False),
        ({"decision": None}, DS, False),
        ({"provision": None}, DS, False),
        ({"decision": "permit", "provision": None}, DS, True),
        # The provisions of a permission are refusals.
        ({"decision": "permit"}, DS, False),
        ({"decision": "permit"}, POA, True),
        ({"provision": [{"purpose": [{"system": "urn:x", "code": "y"}]}]}, DS, False),
        (
            {"provision": [{"purpose": [{"system": DUO, "code": HMB}], "actor": [{}]}]},
            DS,
            False,
        ),
        (
            {"decision": "permit", "provision": [{"purpose": [{"system": "urn:x", "code": "y"}]}]},
            DS,
            False,
        ),
        (
            {
                "provision": [
                    {
                        "purpose": [{"system": DUO, "code": HMB}],
                        "period": {"end": "2026-04-30"},
                    }
                ]
            },
            DS,
            False,
        ),
    ],
)
def test_a_fhir_consent_permits_what_the_standard_says(
    changes: dict[str, Any], purpose: str, consents: bool
) -> None:
    register = parse_bundle(bundle(consent(**changes)), "bundle.json")

    assert bool(Consents.from_register(register, ["p1"]).to(purpose, DAY)[0]) is consents


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is no JSON"),
        ('{"x": NaN}', "is no JSON"),
        ('{"resourceType": "Consent"}', "no FHIR Bundle"),
        (bundle(link=[{"relation": "next", "url": "x"}]), "one page of several"),
        (bundle({"resourceType": "Patient"}), r"no Consent \(1 times, at entry 1\)"),
        (bundle(consent(), consent(modifierExtension=[{}])), r"a modifier .* at entry 2"),
        (bundle(consent(implicitRules="urn:x")), "a modifier"),
        (bundle(consent(subject={"display": "secret7"})), "without patient identifier"),
        (bundle(consent(status="ok")), "a status that FHIR R5 does not know"),
        (bundle(consent(decision="maybe")), "a decision other than"),
        (bundle(consent(provision={"type": "permit"})), "R4 instead of R5"),
        (bundle(consent(period={"start": "2026"})), "no full day"),
        (bundle(consent(period={"start": "2026-02-01", "end": "2026-01-01"})), "ends before"),
    ],
)
def test_a_bundle_that_is_not_understood_is_refused_whole(text: str, match: str) -> None:
    with pytest.raises(TableError, match=match) as refused:
        parse_bundle(text, "bundle.json")
    assert "secret7" not in str(refused.value)


KEYS = [
    "resourceType",
    "status",
    "subject",
    "identifier",
    "value",
    "provision",
    "purpose",
    "period",
]


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
        max_leaves=12,
    )
)
def test_no_resource_breaks_the_reader(resource: Any) -> None:
    text = json.dumps({"resourceType": "Bundle", "entry": [{"resource": resource}]})
    with pytest.raises(TableError):
        parse_bundle(text, "bundle.json")


def test_patients_are_counted_by_what_they_said() -> None:
    said = {
        "a": [ConsentEntry(permits=True, purposes=frozenset({HMB}))],
        "b": [ConsentEntry(permits=False)],
        "c": [ConsentEntry(permits=True, purposes=frozenset({GRU, NON_PROFIT}))],
        "d": [ConsentEntry(permits=True, purposes=frozenset({GRU}), valid_to=date(2020, 1, 1))],
    }
    ids = ["a", "a", "b", "c", "d", "e"]

    counts = count_consents(Consents.from_register(said, ids), ids, DAY)

    assert counts["patients"] == 5
    assert list(counts["status"].values()) == [1, 1, 1, 1, 1]
    assert counts["purposes"][f"{DS} disease-specific research"] == 1
    assert counts["purposes"][f"{GRU} general research use"] == 0


def test_a_patient_who_said_no_in_one_row_consents_in_none() -> None:
    consents = Consents.from_column(["active", "withdrawn", "active"], ["a", "a", "b"])

    assert consents.to(DS).tolist() == [False, False, True]


def use_register(folder: Path, ids: list[str], purpose: str) -> None:
    lines = "".join(f"{i},active,,,{purpose}\n" for i in ids)
    (folder / "consents.csv").write_text(HEADER + lines)
    text = (folder / "site.toml").read_text().replace('consent = "consent"\n', "")
    if "[consent]" not in text:
        (folder / "site.toml").write_text(text + '\n[consent]\nregister = "consents.csv"\n')


def test_rows_leave_by_the_register_and_are_looked_at_again(tmp_path: Path) -> None:
    with sites(
        tmp_path, DICTIONARY_TOML, north=patients("n", with_hole()), south=patients("s")
    ) as (north, south):
        region = [f"s-113{i}" for i in range(8)]
        use_register(south.settings.folder, region, HMB)
        with open_site(south.settings.folder) as south:
            transfer = prepared(north, south)
            use_register(south.settings.folder, region, POA)
            with pytest.raises(RefusedError, match="no longer consent"):
                approve(south, transfer_at(south, transfer.id), _nobody())
            with pytest.raises(RefusedError, match="fewer than 5 patients"):
                prepare(south, asked(north, south), "ada")
            (south.settings.folder / "consents.csv").unlink()
            with pytest.raises(TableError, match="until it can, nobody consents"):
                prepare(south, asked(north, south), "ada")


def _nobody() -> Any:
    from sites import steward

    return steward()


@pytest.mark.parametrize("edit", ["both", "neither"])
def test_consents_stand_in_one_place(tmp_path: Path, edit: str) -> None:
    with sites(tmp_path, DICTIONARY_TOML, south=patients("s")) as (south,):
        path = south.settings.folder / "site.toml"
        text = path.read_text()
        if edit == "both":
            text += '\n[consent]\nregister = "consents.csv"\n'
        else:
            text = text.replace('consent = "consent"\n', "")
        path.write_text(text)
        with pytest.raises(TableError, match=f"names {edit} of a consent column"):
            load_settings(south.settings.folder)
