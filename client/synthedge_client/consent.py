"""Which patients consent to what, today: from a column of the table, or from a consent register.

Rules
-----
* A patient whom nobody asked has not consented; neither has one whose entries contradict each other.
* A consent counts only from its first to its last day, and only for the purposes it names.
* A register that cannot be read in full is refused in full: half of a register would hide withdrawals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthedge_client import store
from synthedge_protocols.purposes import PERMISSIONS, covers, is_condition, overlaps, purpose_name

ACTIVE = "active"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ConsentEntry:
    """One thing a patient said.

    Attributes
    ----------
    permits : bool
        False: a withdrawal, or a refusal; it outweighs every permission it meets.
    purposes : frozenset of str or None
        DUO codes; None: every purpose. A permission under a condition (a code that permits nothing by itself,
        such as not-for-profit use only) permits nothing here, since no program can tell whether it is met.
    valid_from, valid_to : date or None
        First and last day; None: open.
    """

    permits: bool
    purposes: frozenset[str] | None = None
    valid_from: date | None = None
    valid_to: date | None = None

    def is_in_force(self, on: date) -> bool:
        """Whether it counts on a day."""
        return (self.valid_from is None or self.valid_from <= on) and (
            self.valid_to is None or on <= self.valid_to
        )

    @property
    def is_conditional(self) -> bool:
        """Whether it permits only under a condition nobody can check here."""
        return (
            self.permits
            and self.purposes is not None
            and (not self.purposes or any(is_condition(p) for p in self.purposes))
        )

    def decides(self, purpose: str) -> bool:
        """Whether it permits (or, for a refusal, refuses) a purpose."""
        if self.purposes is None:
            return True
        if not self.permits:
            return any(overlaps(code, purpose) for code in self.purposes)
        return not self.is_conditional and any(covers(code, purpose) for code in self.purposes)


@dataclass(frozen=True)
class Consents:
    """What the patients of a table said, row by row.

    Attributes
    ----------
    by_row : sequence of sequence of ConsentEntry
        All entries of the row's patient; empty: nobody asked.
    """

    by_row: Sequence[Sequence[ConsentEntry]]

    @classmethod
    def from_column(cls, codes: Sequence[str], patient_ids: Sequence[str]) -> "Consents":
        """Read a consent column: ``active`` permits every purpose, anything else nothing.

        A patient with several rows consents only if each of them says so.
        """
        said = [ConsentEntry(permits=code.strip().lower() == ACTIVE) for code in codes]
        by_patient: dict[str, list[ConsentEntry]] = {}
        for patient, entry in zip(patient_ids, said, strict=True):
            by_patient.setdefault(patient, []).append(entry)
        return cls([by_patient[patient] for patient in patient_ids])

    @classmethod
    def from_register(
        cls, register: Mapping[str, Sequence[ConsentEntry]], patient_ids: Sequence[str]
    ) -> "Consents":
        """Look every row's patient up in a register."""
        return cls([register.get(patient, ()) for patient in patient_ids])

    def selected(self, keep: NDArray[np.bool_]) -> "Consents":
        """The rows that are kept."""
        return Consents([said for said, kept in zip(self.by_row, keep, strict=True) if kept])

    def to(self, purpose: str, on: date | None = None) -> NDArray[np.bool_]:
        """Mark the rows whose patient consents to a purpose.

        Parameters
        ----------
        purpose : str
            A DUO code.
        on : date, optional
            The day that counts; today if left out.

        Returns
        -------
        ndarray of bool, shape (n_rows,)
        """
        day = on or today()
        return np.array([_consents(said, purpose, day) for said in self.by_row], dtype=np.bool_)


def _consents(said: Iterable[ConsentEntry], purpose: str, on: date) -> bool:
    deciding = [e.permits for e in said if e.is_in_force(on) and e.decides(purpose)]
    return bool(deciding) and all(deciding)


def today() -> date:
    """This day, where the site stands: consents are given and withdrawn on local days."""
    return datetime.fromtimestamp(store.now_ms() / 1000, tz=UTC).astimezone().date()


def count_consents(
    consents: Consents, patient_ids: Sequence[str], on: date | None = None
) -> dict[str, Any]:
    """Count patients by what they said, for the site's own eyes.

    Returns
    -------
    dict
        ``patients``; ``status``: patients by active, conditional, withdrawn, expired or not yet valid, none;
        ``purposes``: patients who consent, a permission of the Data Use Ontology.
    """
    day = on or today()
    by_patient = dict(zip(patient_ids, consents.by_row, strict=True))
    patients = Consents(list(by_patient.values()))
    status = dict.fromkeys((ACTIVE, "conditional", "withdrawn", "not in force", "none"), 0)
    for said in patients.by_row:
        status[_status(said, day)] += 1
    return {
        "patients": len(patients.by_row),
        "status": status,
        "purposes": {
            f"{code} {purpose_name(code)}": int(patients.to(code, day).sum())
            for code in PERMISSIONS
        },
    }


def _status(said: Sequence[ConsentEntry], on: date) -> str:
    in_force = [entry for entry in said if entry.is_in_force(on)]
    if any(not entry.permits for entry in in_force):
        return "withdrawn"
    if any(not entry.is_conditional for entry in in_force):
        return ACTIVE
    if in_force:
        return "conditional"
    return "not in force" if said else "none"


def in_words(name: str, unit: str, problems: Mapping[str, Sequence[int]]) -> str:
    """Say what is wrong with a register: each kind of problem with its count and first places, no value."""
    said = []
    for what, places in problems.items():
        shown = ", ".join(str(place) for place in places[:_SHOWN])
        more = ", ..." if len(places) > _SHOWN else ""
        said.append(f"{what} ({len(places)} times, at {unit} {shown}{more})")
    return f"the consent register '{name}' has {'; '.join(said)}; correct it: until then nobody consents"
