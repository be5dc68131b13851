"""The dictionaries that come with the package: reference values from the literature, ready to be adapted."""

from importlib.resources import files
from typing import Final

from synthedge_core.errors import DictionaryError

PUBLIC_DICTIONARIES: Final = ("cardiovascular", "diabetes", "heart")
"""Names that `public_dictionary` knows."""


def public_dictionary(name: str) -> str:
    """Text of a dictionary that comes with the package, comments and sources included.

    Parameters
    ----------
    name : str
        One of `PUBLIC_DICTIONARIES`.

    Raises
    ------
    DictionaryError
        If there is none of that name.
    """
    if name not in PUBLIC_DICTIONARIES:
        known = ", ".join(PUBLIC_DICTIONARIES)
        raise DictionaryError(f"no dictionary '{name}' comes with the package; there are {known}")
    return (
        files("synthedge_core").joinpath("dictionaries", f"{name}.toml").read_text(encoding="utf-8")
    )
