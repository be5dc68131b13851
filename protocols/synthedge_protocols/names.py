"""The one spelling rule for names that enter certificates, file names and logs."""

import re

from synthedge_protocols.errors import MalformedError

__all__ = ["check_name"]

# A subset of a DNS label, so that a name fits a SPIFFE URI, a certificate and a file name as it is.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_name(kind: str, name: str) -> str:
    """Return `name` if it is a well-formed site, consortium or steward name.

    Parameters
    ----------
    kind : str
        What is named, for the message: "site", "consortium", "steward".
    name : str
        1 to 63 of a-z, 0-9 and "-", neither first nor last character a "-".

    Raises
    ------
    MalformedError
        If it is not.
    """
    if _NAME.fullmatch(name) is None:
        raise MalformedError(
            f"{kind} name {name[:80]!r} is not 1 to 63 characters of a-z, 0-9 and inner '-'; "
            f"choose one that is"
        )
    return name
