"""Memory given back: what the C library keeps of what was freed, and pages of code that only starting needed."""

import ctypes
import gc
import sys
from pathlib import Path
from typing import Final

_M_ARENA_MAX: Final = -8  # <malloc.h>
_MADV_DONTNEED: Final = 4  # <sys/mman.h>


def hold_memory_small() -> None:
    """Let all threads of this process share one pool of the C library, where it is glibc.

    Sealed chunks pass through several threads; a pool for each held 20 MB more. Call before threads start.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Let go of what only starting needed: free heap, and pages of program files, which the kernel reads again at need.

    A page of code that was run once counts as this process's memory until the kernel is short of it. Does nothing but
    on Linux, apart from one thing: what starting made for good is not looked at again by the collector of cycles,
    which stopped all calls for some 40 ms each time.
    """
    gc.collect()
    gc.freeze()
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, permissions, _, _, inode, *_ = line.split()
        # Code alone: it is never written, so nothing can be lost.
        if permissions == "r-xp" and inode != "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            library.madvise(start, end - start, _MADV_DONTNEED)
