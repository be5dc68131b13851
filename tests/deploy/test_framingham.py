"""The Framingham extract as four hospitals, and carves of a share of a subgroup."""

from pathlib import Path

import numpy as np
import pytest

from clinical_data import clinical_data_dir
from synthedge_core.dictionary import parse_dictionary
from synthedge_core.errors import TableError
from synthedge_deploy.cohorts import Hospital, carved_cohort, dictionary_file
from synthedge_deploy.framingham import DICTIONARY, framingham_hospitals
from synthedge_deploy.samples import Subgroup

TEXT = dictionary_file(DICTIONARY)
MEN = Subgroup("men of 50-59", {"male": (1, 1), "age": (50, 59)})


@pytest.fixture(scope="module")
def hospitals() -> tuple[Hospital, ...]:
    return framingham_hospitals(clinical_data_dir(), 1)


def test_every_patient_is_dealt_to_one_hospital(hospitals: tuple[Hospital, ...]) -> None:
    assert sum(len(h.samples) for h in hospitals) == 4240
    assert min(int(h.samples.positive.sum()) for h in hospitals) > 60


def test_the_hospitals_patients_differ(hospitals: tuple[Hospital, ...]) -> None:
    dictionary = parse_dictionary(TEXT)
    means = {
        h.site: np.nanmean(h.samples.values, axis=0)[
            [dictionary.index("age"), dictionary.index("currentSmoker")]
        ]
        for h in hospitals
    }

    assert means["geriatric"][0] > means["general"][0] + 2
    assert means["harbour"][1] > means["general"][1] + 0.1 > means["suburb"][1]


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_a_share_of_the_subgroups_positives_is_carved(
    hospitals: tuple[Hospital, ...], share: float
) -> None:
    cohort = carved_cohort(
        hospitals,
        source="",
        dictionary_text=TEXT,
        site="geriatric",
        subgroup=MEN,
        seed=3,
        share=share,
    )
    own = cohort.recipient.samples
    left = own.positive & MEN.contains(own.values, cohort.dictionary)

    assert MEN.contains(cohort.carved.values, cohort.dictionary).all()
    assert len(cohort.carved) == round(share * (len(cohort.carved) + left.sum()))
    whole = next(h for h in hospitals if h.site == "geriatric")
    assert len(own) + len(cohort.carved) + len(cohort.held_out) == len(whole.samples)


def test_a_code_that_is_no_label_is_one_sentence(tmp_path: Path) -> None:
    names = [*parse_dictionary(TEXT).feature_names, "TenYearCHD"]
    row = ["1"] * (len(names) - 1) + ["2"]
    (tmp_path / "framingham.csv").write_text(",".join(names) + "\n" + ",".join(row) + "\n")

    with pytest.raises(TableError, match="codes other than 0 and 1"):
        framingham_hospitals(tmp_path, 0)
