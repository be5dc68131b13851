"""Length-prefixed fields: bytes both ends build the same way, and that split only one way."""

from collections.abc import Sequence

from synthedge_protocols.errors import MalformedError

__all__ = ["join_fields", "split_fields"]


def join_fields(fields: Sequence[bytes]) -> bytes:
    """Concatenate fields, each behind its length as four big-endian bytes.

    Without the lengths ("ab", "c") and ("a", "bc") would be the same bytes under a signature.
    """
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def split_fields(data: bytes, n_fields: int) -> list[bytes]:
    """Undo `join_fields`.

    Parameters
    ----------
    data : bytes
        What `join_fields` returned, nothing before or after it.
    n_fields : int
        How many fields it must hold.

    Raises
    ------
    MalformedError
        If the lengths do not add up to exactly `n_fields` fields.
    """
    fields: list[bytes] = []
    at = 0
    for _ in range(n_fields):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if at + 4 > len(data) or end > len(data):
            raise MalformedError(f"{len(data)} bytes end inside field {len(fields) + 1}")
        fields.append(data[at + 4 : end])
        at = end
    if at != len(data):
        raise MalformedError(f"{len(data) - at} bytes follow the last of {n_fields} fields")
    return fields
