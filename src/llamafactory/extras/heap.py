"""The C library's heap: what was freed there is not given back to the system by itself."""

import ctypes
import sys


def trim_heap() -> None:
    """Give the free pages between what is in use back to the system, where the C library can (glibc's malloc_trim)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
