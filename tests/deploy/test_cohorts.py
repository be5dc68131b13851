"""Each hospital's own table, mapped as its site maps it, is the cohort's canonical table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w

from clinical_data import clinical_data_dir
from synthedge_client.settings import load_settings
from synthedge_client.site_table import examine_site_table
from synthedge_core.errors import TableError
from synthedge_deploy.cohorts import Cohort, Hospital, write_site_files
from synthedge_deploy.diabetes import diabetes_cohort
from synthedge_deploy.uci import SITES, uci_cohort


@pytest.fixture(params=["diabetes", "uci"])
def cohort(request: pytest.FixtureRequest) -> Cohort:
    if request.param == "diabetes":
        return diabetes_cohort(3)
    return uci_cohort(clinical_data_dir(), 3)


def set_up(hospital: Hospital, folder: Path) -> None:
    mapping = write_site_files(hospital, folder)
    site = {
        "id": hospital.site,
        "data": "patients.csv",
        "patient_id": hospital.patient_id,
        "consent": hospital.consent,
    }
    (folder / "site.toml").write_text(tomli_w.dumps({"site": site, **mapping}), encoding="utf-8")


def test_a_site_maps_its_table_to_the_canonical_one(cohort: Cohort, tmp_path: Path) -> None:
    for hospital in cohort.hospitals:
        set_up(hospital, tmp_path / hospital.site)

        table, problems = examine_site_table(
            load_settings(tmp_path / hospital.site), cohort.dictionary
        )

        assert [p for p in problems if p.stops] == []
        assert table is not None
        np.testing.assert_allclose(table.values, hospital.samples.values, rtol=1e-6)
        np.testing.assert_array_equal(table.positive, hospital.samples.positive)
        np.testing.assert_array_equal(table.consents.to("DUO:0000007"), hospital.has_consent)
        assert table.patient_ids == list(hospital.table[hospital.patient_id])


def test_no_patient_is_in_two_places(cohort: Cohort) -> None:
    ids = pd.concat([hospital.table[hospital.patient_id] for hospital in cohort.hospitals])
    n_rows = len(ids) + len(cohort.held_out) + len(cohort.carved)

    assert ids.is_unique
    assert n_rows == (442 if "diabetes" in cohort.dictionary.name else 920)


def test_the_carved_hospital_trains_on_no_positive_of_the_subgroup(cohort: Cohort) -> None:
    dictionary, group = cohort.dictionary, cohort.subgroup
    own = cohort.recipient.samples
    held_out = cohort.held_out.positive & group.contains(cohort.held_out.values, dictionary)

    assert not (own.positive & group.contains(own.values, dictionary)).any()
    assert (~own.positive & group.contains(own.values, dictionary)).any()
    assert cohort.carved.positive.all()
    assert group.contains(cohort.carved.values, dictionary).all()
    assert abs(int(held_out.sum()) - len(cohort.carved)) <= 1


def test_the_donors_have_enough_consented_positives_to_give(cohort: Cohort) -> None:
    givable = [
        h.samples.positive
        & h.has_consent
        & cohort.subgroup.contains(h.samples.values, cohort.dictionary)
        for h in cohort.donors
    ]

    assert max(int(rows.sum()) for rows in givable) >= 20


def test_most_patients_consent_and_some_do_not(cohort: Cohort) -> None:
    has_consent = np.concatenate([hospital.has_consent for hospital in cohort.hospitals])

    assert 0.9 < has_consent.mean() < 0.99


def test_hospitals_have_different_patients() -> None:
    cohort = diabetes_cohort(0)
    ages = {
        h.site: np.mean(h.samples.values[:, cohort.dictionary.index("age")])
        for h in cohort.hospitals
    }
    weights = {
        h.site: np.mean(h.samples.values[:, cohort.dictionary.index("bmi")])
        for h in cohort.hospitals
    }

    assert ages["east"] > ages["north"] > ages["south"]
    assert weights["west"] == min(weights.values())


def test_a_seed_decides_the_cohort() -> None:
    first, again, other = diabetes_cohort(1), diabetes_cohort(1), diabetes_cohort(2)

    assert all(
        a.table.equals(b.table) for a, b in zip(first.hospitals, again.hospitals, strict=True)
    )
    assert len(first.recipient.table) != len(other.recipient.table)


def test_zeros_that_mean_missing_and_absent_features_are_declared() -> None:
    hospitals = {h.site: h for h in uci_cohort(clinical_data_dir(), 0).hospitals}

    assert hospitals["cleveland"].columns == {}
    assert hospitals["long-beach"].columns["chol"] == {"missing": ["0"]}
    assert hospitals["long-beach"].columns["trestbps"] == {"missing": ["0"]}
    assert hospitals["zurich-basel"].columns["chol"] == {"absent": True}
    assert set(hospitals["budapest"].columns) == {"slope", "ca", "thal"}


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no folder .*nowhere; give --data the folder that holds"):
        uci_cohort(tmp_path / "nowhere", 0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no file .*uci_heart_cleveland\.csv"):
        uci_cohort(tmp_path, 0)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("age,sex\n63,1\n", "lacks the column 'cp'"),
        ("", "is not a comma-separated"),
        (
            "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num\n"
            "63,7,1,145,233,1,2,150,0,2.3,3,0,6,0\n",
            "column 'sex' of uci_heart_cleveland.csv holds 1 values",
        ),
        (
            "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num\n"
            "63,1,1,145,233,1,2,150,0,2.3,3,0,6,9\n",
            "holds 1 codes other than 0 to 4",
        ),
    ],
)
def test_an_unusable_file_is_one_sentence_without_a_value(
    tmp_path: Path, content: str, complaint: str
) -> None:
    for file, _, _ in SITES.values():
        (tmp_path / file).write_text(content, encoding="utf-8")

    with pytest.raises(TableError, match=complaint):
        uci_cohort(tmp_path, 0)


def test_a_cohort_reads_its_dictionary_once() -> None:
    cohort = diabetes_cohort(0)

    assert cohort.dictionary is cohort.dictionary
    assert replace(cohort).dictionary.digest == cohort.dictionary.digest
