"""A FHIR R5 bundle of Consents, https://hl7.org/fhir/R5/consent.html, as entries of a consent register.

Rules
-----
* ``decision`` is the base; each of its provisions is the exception to it, for the purposes the provision names.
* What this module does not evaluate (actors, actions, data classes, nested provisions) makes the consent permit
  nothing. A modifier extension refuses the whole file: the standard forbids to go on without understanding it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from synthedge_client.consent import ConsentEntry, in_words
from synthedge_core.errors import TableError
from synthedge_protocols.purposes import is_duo_code

MAX_ENTRIES = 2_000_000

_STATUSES = ("draft", "active", "inactive", "not-done", "entered-in-error", "unknown")
_DUO_SYSTEM = re.compile(r"https?://purl\.obolibrary\.org/obo/duo(\.owl)?", re.IGNORECASE)
# Date, or date and time: the day is what counts.
_DAY = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(T[0-9:.]{5,18}(Z|[+-][0-9]{2}:[0-9]{2})?)?", re.ASCII
)
_EVALUATED = {"id", "extension", "period", "purpose"}
# A consent to nothing that can be told: it is on record, and stands in nobody's way.
_UNEVALUATED = ConsentEntry(permits=True, purposes=frozenset())


class _NotUnderstoodError(Exception):
    """Says in words what a resource lacks; turned into one TableError for the file."""


def parse_bundle(text: str, name: str) -> Mapping[str, Sequence[ConsentEntry]]:
    """Read a bundle of Consent resources.

    Parameters
    ----------
    text : str
        JSON. The patient is ``subject.identifier.value``, or the id in ``subject.reference`` (``Patient/ID``):
        it must be what the table's column of patient ids holds.
    name : str
        The file's, for messages.

    Returns
    -------
    mapping of patient id to sequence of ConsentEntry

    Raises
    ------
    TableError
        If it is no such bundle, or an entry is not understood; names the entries' numbers.
    """
    try:
        bundle = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise TableError(f"the consent register '{name}' is no JSON; export it again") from None
    if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
        raise TableError(f"the consent register '{name}' is no FHIR Bundle; export it as one")
    if any(relation == "next" for relation in _links(bundle)):
        raise TableError(
            f"the consent register '{name}' is one page of several; export all Consents as one Bundle"
        )
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise TableError(
            f"the consent register '{name}' must list at most {MAX_ENTRIES} entries; leave out ended consents"
        )
    register: dict[str, list[ConsentEntry]] = {}
    problems: dict[str, list[int]] = {}
    for number, entry in enumerate(entries, start=1):
        resource = entry.get("resource") if isinstance(entry, dict) else None
        try:
            patient, said = _read(resource)
        except _NotUnderstoodError as problem:
            problems.setdefault(str(problem), []).append(number)
        else:
            register.setdefault(patient, []).extend(said)
    if problems:
        raise TableError(in_words(name, "entry", problems))
    return register


def _refuse_constant(constant: str) -> None:
    raise ValueError(constant)


def _links(bundle: dict[str, Any]) -> list[Any]:
    links = bundle.get("link", [])
    return (
        [link.get("relation") for link in links if isinstance(link, dict)]
        if isinstance(links, list)
        else []
    )


def _read(resource: Any) -> tuple[str, list[ConsentEntry]]:
    if not isinstance(resource, dict) or resource.get("resourceType") != "Consent":
        raise _NotUnderstoodError("a resource that is no Consent")
    if "modifierExtension" in resource or "implicitRules" in resource:
        raise _NotUnderstoodError("a modifier this program does not know")
    patient = _patient(resource.get("subject"))
    status = resource.get("status")
    if status not in _STATUSES:
        raise _NotUnderstoodError("a status that FHIR R5 does not know")
    decision = resource.get("decision")
    if decision not in (None, "permit", "deny"):
        raise _NotUnderstoodError("a decision other than permit or deny")
    valid_from, valid_to = _period(resource.get("period"))
    provisions = resource.get("provision", [])
    if not isinstance(provisions, list) or not all(isinstance(p, dict) for p in provisions):
        raise _NotUnderstoodError("a provision that is no list of objects (R4 instead of R5?)")
    exceptions = [_exception(p, permits=decision == "deny") for p in provisions]
    if status != "active" or decision is None:
        return patient, [_UNEVALUATED]
    if decision == "deny":
        # A refusal with exceptions is a permission for exactly these; without any it is a refusal.
        said = exceptions or [ConsentEntry(permits=False)]
    else:
        said = [ConsentEntry(permits=True), *exceptions]
        if _UNEVALUATED in exceptions:
            said = [_UNEVALUATED]
    return patient, [_within(entry, valid_from, valid_to) for entry in said]


def _patient(subject: Any) -> str:
    if isinstance(subject, dict):
        identifier = subject.get("identifier")
        value = identifier.get("value") if isinstance(identifier, dict) else None
        if isinstance(value, str) and value.strip():
            return value.strip()
        reference = subject.get("reference")
        if isinstance(reference, str) and reference.startswith("Patient/") and reference[8:]:
            return reference[8:].strip()
    raise _NotUnderstoodError("a subject without patient identifier")


def _period(period: Any) -> tuple[date | None, date | None]:
    if period is None:
        return None, None
    if not isinstance(period, dict) or set(period) - {"id", "extension", "start", "end"}:
        raise _NotUnderstoodError("a period that is not understood")
    start, end = (_day(period.get(key)) for key in ("start", "end"))
    if start and end and end < start:
        raise _NotUnderstoodError("a period that ends before it begins")
    return start, end


def _day(text: Any) -> date | None:
    if text is None:
        return None
    found = _DAY.fullmatch(text) if isinstance(text, str) else None
    try:
        if found:
            return date.fromisoformat(found[1])
    except ValueError:
        pass
    # A year or month alone would have to be guessed at, one way for a start, the other for an end.
    raise _NotUnderstoodError("a date that is no full day")


def _exception(provision: dict[str, Any], *, permits: bool) -> ConsentEntry:
    if "modifierExtension" in provision:
        raise _NotUnderstoodError("a modifier this program does not know")
    valid_from, valid_to = _period(provision.get("period"))
    purposes = provision.get("purpose", [])
    if not isinstance(purposes, list) or not all(isinstance(p, dict) for p in purposes):
        raise _NotUnderstoodError("a purpose that is no list of codings")
    codes = [_duo_code(coding) for coding in purposes]
    known = frozenset(code for code in codes if code)
    # Other purposes beside ours are further permissions; a refusal of one we cannot place may concern us.
    is_evaluated = set(provision) <= _EVALUATED and bool(known) and (permits or None not in codes)
    if not is_evaluated:
        return _UNEVALUATED
    return ConsentEntry(permits, known, valid_from, valid_to)


def _duo_code(coding: dict[str, Any]) -> str | None:
    system, code = coding.get("system"), coding.get("code")
    if not (isinstance(system, str) and isinstance(code, str) and _DUO_SYSTEM.fullmatch(system)):
        return None
    spelled = code.replace("_", ":")
    if not is_duo_code(spelled):
        raise _NotUnderstoodError("a purpose that is no DUO code")
    return spelled


def _within(entry: ConsentEntry, valid_from: date | None, valid_to: date | None) -> ConsentEntry:
    """An entry inside the period of the whole consent."""
    starts = [day for day in (entry.valid_from, valid_from) if day]
    ends = [day for day in (entry.valid_to, valid_to) if day]
    return ConsentEntry(
        entry.permits, entry.purposes, max(starts, default=None), min(ends, default=None)
    )
