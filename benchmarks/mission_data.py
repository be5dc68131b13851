"""Where the mission is measured: data sets, their hospitals, and subgroups fixed before anything was measured.

The subgroups are those of `severity.py` with two per data set added on clinical grounds; half of them no grid of the
dictionary describes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from synthedge_core.dictionary import Dictionary, parse_dictionary
from synthedge_core.public_dictionaries import public_dictionary
from synthedge_deploy import framingham, uci
from synthedge_deploy.cohorts import Cohort, Hospital, carved_cohort, dictionary_file
from synthedge_deploy.framingham import framingham_hospitals
from synthedge_deploy.samples import Subgroup
from synthedge_deploy.uci import uci_hospitals

INF = np.inf
# A configuration is measured where a carve removes something and the held-out half can show it.
MIN_SUBGROUP_POSITIVES = 16
MIN_NEGATIVES = 20


@dataclass(frozen=True)
class DataSet:
    """Hospitals and what is carved out of them.

    Attributes
    ----------
    name : str
    dictionary_text : str
    hospitals : callable
        Of a folder and a seed.
    subgroups : tuple of Subgroup
    """

    name: str
    dictionary_text: str
    hospitals: Callable[[Path, int], tuple[Hospital, ...]]
    subgroups: tuple[Subgroup, ...]

    @cached_property
    def dictionary(self) -> Dictionary:
        """The dictionary as a checked value."""
        return parse_dictionary(self.dictionary_text)


HEART = DataSet(
    "UCI heart",
    public_dictionary(uci.DICTIONARY),
    uci_hospitals,
    (
        Subgroup("exercise angina", {"exang": (1, 1)}),
        Subgroup("ST depression from 2 mm", {"oldpeak": (2, INF)}),
        Subgroup("men of 50-59", {"sex": (1, 1), "age": (50, 59)}),
        Subgroup("men with exercise angina", {"sex": (1, 1), "exang": (1, 1)}),
        Subgroup("asymptomatic from 60", {"cp": (3, 3), "age": (60, INF)}),
        Subgroup("from 50 with 140 mmHg", {"trestbps": (140, INF), "age": (50, INF)}),
    ),
)
FRAMINGHAM = DataSet(
    "Framingham",
    dictionary_file(framingham.DICTIONARY),
    framingham_hospitals,
    (
        Subgroup("men of 50-59", {"male": (1, 1), "age": (50, 59)}),
        Subgroup("women from 60", {"male": (0, 0), "age": (60, INF)}),
        Subgroup("smokers from 140 mmHg", {"currentSmoker": (1, 1), "sysBP": (140, INF)}),
        Subgroup("men from BMI 28", {"male": (1, 1), "BMI": (28, INF)}),
        Subgroup("women with known hypertension", {"male": (0, 0), "prevalentHyp": (1, 1)}),
        Subgroup("from 55 with 240 mg/dL", {"age": (55, INF), "totChol": (240, INF)}),
    ),
)
DATA_SETS = {data.name: data for data in (HEART, FRAMINGHAM)}


def data_folder() -> Path | None:
    """The folder of the clinical files: ``SYNTHEDGE_DATA``, else ``../shared/data``; None if there is none."""
    named = os.environ.get("SYNTHEDGE_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if (folder / framingham.FILE).is_file() else None


@dataclass(frozen=True, order=True)
class Configuration:
    """One carve: which data, site, subgroup (its position), share of the positives, and seed."""

    data: str
    site: str
    subgroup: int
    share: float
    seed: int


def configurations(
    folder: Path, shares: Sequence[float], seeds: Sequence[int]
) -> list[Configuration]:
    """List every site, subgroup, share and seed that can be measured.

    A site is carved where it has enough positives of the subgroup and enough negatives at all; the three hospitals
    beside it may have as few as they do.
    """
    found: list[Configuration] = []
    for data in DATA_SETS.values():
        for seed in seeds:
            for hospital in data.hospitals(folder, seed):
                samples = hospital.samples
                if int((~samples.positive).sum()) < MIN_NEGATIVES:
                    continue
                for i, subgroup in enumerate(data.subgroups):
                    members = subgroup.contains(samples.values, data.dictionary)
                    if int((members & samples.positive).sum()) >= MIN_SUBGROUP_POSITIVES:
                        found.extend(
                            Configuration(data.name, hospital.site, i, share, seed)
                            for share in shares
                        )
    return found


def make_cohort(configuration: Configuration, folder: Path) -> Cohort:
    """Carve it."""
    data = DATA_SETS[configuration.data]
    return carved_cohort(
        data.hospitals(folder, configuration.seed),
        source=data.name,
        dictionary_text=data.dictionary_text,
        site=configuration.site,
        subgroup=data.subgroups[configuration.subgroup],
        seed=configuration.seed,
        share=configuration.share,
    )
