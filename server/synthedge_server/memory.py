"""Memory given back: the C library keeps what threads free in pools of their own, up to the largest ever needed."""

import ctypes
import sys
from typing import Final

_M_ARENA_MAX: Final = -8  # <malloc.h>


def hold_memory_small() -> None:
    """Let all threads of this process share one pool of the C library, where it is glibc.

    Sealed chunks pass through several threads; a pool for each held 20 MB more. Call before threads start.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(_M_ARENA_MAX, 1)
