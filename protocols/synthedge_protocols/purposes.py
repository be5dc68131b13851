"""What samples are asked for: Data Use Ontology codes, and which consent covers which request.

The codes and their meanings are those of the Data Use Ontology, https://github.com/EBISPOT/DUO (``duo.csv``); what
covers what follows from their definitions: general research use is "any research purpose", health research leaves
out only population origins and ancestry, disease research is health research about one disease.
"""

import re

__all__ = ["PERMISSIONS", "covers", "is_condition", "is_duo_code", "overlaps", "purpose_name"]

_CODE = re.compile(r"DUO:[0-9]{7}")

PERMISSIONS: dict[str, str] = {
    "DUO:0000004": "no restriction",
    "DUO:0000042": "general research use",
    "DUO:0000006": "health, medical or biomedical research",
    "DUO:0000007": "disease-specific research",
    "DUO:0000011": "population origins or ancestry research",
    "DUO:0000043": "clinical care",
}
"""Codes that permit something, with their names; every other code is a condition on a permission."""

_BROADER = {
    "DUO:0000007": "DUO:0000006",
    "DUO:0000006": "DUO:0000042",
    "DUO:0000011": "DUO:0000042",
    "DUO:0000042": "DUO:0000004",
    "DUO:0000043": "DUO:0000004",
}


def is_duo_code(text: str) -> bool:
    """Whether a text is spelled like a code, ``DUO:0000007``; it need not be a known one."""
    return _CODE.fullmatch(text) is not None


def is_condition(code: str) -> bool:
    """Whether a code permits nothing by itself, such as "not-for-profit use only"."""
    return code not in PERMISSIONS


def covers(permitted: str, asked: str) -> bool:
    """Whether a consent to `permitted` includes every use that `asked` stands for.

    A code this version does not know is covered by itself and by nothing else: what it stands for is not known.
    """
    code: str | None = asked
    while code is not None:
        if code == permitted:
            return True
        code = _BROADER.get(code)
    return False


def overlaps(denied: str, asked: str) -> bool:
    """Whether a refusal of `denied` stands in the way of `asked`: one includes the other, or either is unknown."""
    unknown = is_condition(denied) or is_condition(asked)
    return unknown or covers(denied, asked) or covers(asked, denied)


def purpose_name(code: str) -> str:
    """A code in words."""
    return PERMISSIONS.get(code, "a code without a known meaning; ask the other side")
