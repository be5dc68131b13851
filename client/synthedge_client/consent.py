"""Which rows may leave: a patient's active consent, checked row by row, never assumed."""

import numpy as np
from numpy.typing import NDArray

ACTIVE = "active"


def has_consent(codes: list[str]) -> NDArray[np.bool_]:
    """Rows whose consent column says exactly ``active``.

    Parameters
    ----------
    codes : list of str
        The consent column as text; empty means that nobody asked, which is no consent.

    Returns
    -------
    ndarray of bool, shape (n_rows,)
    """
    return np.array([code.strip().lower() == ACTIVE for code in codes], dtype=np.bool_)
