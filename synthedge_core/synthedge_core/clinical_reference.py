"""Reference values of common clinical measurements, for drafting dictionaries.

Centres and scales are round numbers for adults in care; cut points are those of the named guideline. A draft takes
them only where the table's values fit the unit, and a person decides whether they fit the consortium's patients.
"""

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class ClinicalReference:
    """What is usual for one measurement.

    Attributes
    ----------
    names : tuple of str
        What tables call it, as `normalised`.
    description : str
    unit : str
        UCUM text.
    plausible : tuple of two floats
        Closed range in `unit`.
    center, scale : float
        In `unit`.
    cut_points : tuple of float
        In `unit`; empty where no guideline has any.
    source : str
        Of the cut points.
    decimals : int
        Decimal places that mean something.
    molar_mass_g_mol : float or None
    """

    names: tuple[str, ...]
    description: str
    unit: str
    plausible: tuple[float, float]
    center: float
    scale: float
    cut_points: tuple[float, ...] = ()
    source: str = ""
    decimals: int = 0
    molar_mass_g_mol: float | None = None


SEX_NAMES: Final = frozenset({"sex", "gender", "male", "female"})

_JNC7: Final = "JNC 7, JAMA 289:2560, 2003"
_ATP3: Final = "NCEP ATP III, JAMA 285:2486, 2001"
_ADA: Final = "ADA, Diabetes Care 33:S62, 2010"
_WHO_BMI: Final = "WHO Technical Report Series 894, 2000"
_USUAL: Final = "bounds of the usual reference interval of adults"

# In the order in which a draft suggests grids of them.
REFERENCES: Final = (
    ClinicalReference(
        names=("age", "ageyears", "ageatadmission"),
        description="age",
        unit="a",
        plausible=(0, 120),
        center=50,
        scale=15,
        cut_points=(40, 50, 60, 70),
        source="by decades",
    ),
    ClinicalReference(
        names=("sbp", "sysbp", "systolic", "systolicbp", "trestbps", "aphi"),
        description="systolic blood pressure",
        unit="mm[Hg]",
        plausible=(50, 300),
        center=130,
        scale=20,
        cut_points=(120, 140, 160),
        source=_JNC7,
    ),
    ClinicalReference(
        names=("glucose", "bloodglucose", "glu", "fastingglucose"),
        description="fasting blood glucose",
        unit="mg/dL",
        plausible=(20, 1000),
        center=95,
        scale=25,
        cut_points=(100, 126),
        source=_ADA,
        molar_mass_g_mol=180.156,
    ),
    ClinicalReference(
        names=("bmi", "bodymassindex"),
        description="body mass index",
        unit="kg/m2",
        plausible=(10, 80),
        center=26,
        scale=4.5,
        cut_points=(18.5, 25, 30),
        source=_WHO_BMI,
        decimals=1,
    ),
    ClinicalReference(
        names=("chol", "totchol", "cholesterol", "totalcholesterol"),
        description="total serum cholesterol",
        unit="mg/dL",
        plausible=(50, 800),
        center=210,
        scale=45,
        cut_points=(200, 240),
        source=_ATP3,
        molar_mass_g_mol=386.65,
    ),
    ClinicalReference(
        names=("dbp", "diabp", "diastolic", "diastolicbp", "aplo"),
        description="diastolic blood pressure",
        unit="mm[Hg]",
        plausible=(30, 180),
        center=80,
        scale=12,
        cut_points=(80, 90, 100),
        source=_JNC7,
    ),
    ClinicalReference(
        names=("hba1c", "glycatedhaemoglobin", "glycatedhemoglobin"),
        description="glycated haemoglobin",
        unit="%",
        plausible=(3, 20),
        center=5.6,
        scale=0.8,
        cut_points=(5.7, 6.5),
        source=_ADA,
        decimals=1,
    ),
    ClinicalReference(
        names=("ldl", "ldlcholesterol", "ldlc"),
        description="low-density lipoprotein cholesterol",
        unit="mg/dL",
        plausible=(10, 500),
        center=120,
        scale=35,
        cut_points=(100, 130, 160),
        source=_ATP3,
        molar_mass_g_mol=386.65,
    ),
    ClinicalReference(
        names=("hdl", "hdlcholesterol", "hdlc"),
        description="high-density lipoprotein cholesterol",
        unit="mg/dL",
        plausible=(5, 200),
        center=50,
        scale=14,
        cut_points=(40, 60),
        source=_ATP3,
        molar_mass_g_mol=386.65,
    ),
    ClinicalReference(
        names=("triglycerides", "tg", "trig"),
        description="triglycerides",
        unit="mg/dL",
        plausible=(20, 5000),
        center=130,
        scale=75,
        cut_points=(150, 200),
        source=_ATP3,
        molar_mass_g_mol=885.4,
    ),
    ClinicalReference(
        names=("creatinine", "crea", "serumcreatinine"),
        description="serum creatinine",
        unit="mg/dL",
        plausible=(0.1, 30),
        center=0.9,
        scale=0.3,
        cut_points=(0.7, 1.3),
        source=_USUAL,
        decimals=2,
        molar_mass_g_mol=113.12,
    ),
    ClinicalReference(
        names=("hemoglobin", "haemoglobin", "hgb", "hb"),
        description="haemoglobin",
        unit="g/dL",
        plausible=(2, 25),
        center=13.8,
        scale=1.6,
        cut_points=(12, 13),
        source="WHO limits of anaemia, women and men (WHO/NMH/NHD/MNM/11.1)",
        decimals=1,
        molar_mass_g_mol=16114.5,
    ),
    ClinicalReference(
        names=("heartrate", "hr", "pulse", "pulserate"),
        description="heart rate at rest",
        unit="/min",
        plausible=(25, 250),
        center=75,
        scale=13,
        cut_points=(60, 100),
        source=_USUAL,
    ),
    ClinicalReference(
        names=("sodium", "na"),
        description="serum sodium",
        unit="mmol/L",
        plausible=(90, 200),
        center=140,
        scale=3.5,
        cut_points=(135, 145),
        source=_USUAL,
    ),
    ClinicalReference(
        names=("potassium", "k"),
        description="serum potassium",
        unit="mmol/L",
        plausible=(1, 10),
        center=4.2,
        scale=0.5,
        cut_points=(3.5, 5),
        source=_USUAL,
        decimals=1,
    ),
    ClinicalReference(
        names=("temperature", "temp", "bodytemperature"),
        description="body temperature",
        unit="Cel",
        plausible=(25, 45),
        center=36.8,
        scale=0.6,
        cut_points=(38,),
        source="usual limit of fever",
        decimals=1,
    ),
    ClinicalReference(
        names=("spo2", "oxygensaturation", "o2sat"),
        description="oxygen saturation",
        unit="%",
        plausible=(30, 100),
        center=97,
        scale=2.5,
        cut_points=(94,),
        source="target range 94-98 %, BTS guideline, Thorax 72:ii1, 2017",
    ),
    ClinicalReference(
        names=("weight", "bodyweight"),
        description="body weight",
        unit="kg",
        plausible=(2, 400),
        center=77,
        scale=16,
        decimals=0,
    ),
    ClinicalReference(
        names=("height", "bodyheight"),
        description="body height",
        unit="cm",
        plausible=(40, 250),
        center=169,
        scale=10,
    ),
)


def normalised(name: str) -> str:
    """A column's name as `ClinicalReference.names` has it: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def reference_of(name: str) -> ClinicalReference | None:
    """What a column's name stands for, if it is one of the usual ones."""
    wanted = normalised(name)
    return next((one for one in REFERENCES if wanted in one.names), None)
