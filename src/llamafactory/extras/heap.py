"""Memory that a training step frees is kept for the next one, instead of going back to the operating system.

glibc asks the kernel for every block above 32 MB and returns it on free, and the top of its heap as well; what comes
back are fresh zeroed pages, one fault for each 4 KB. Logits and activations on a CPU are such blocks. tcmalloc and
jemalloc keep what they have; this makes glibc do so, in the running process.
"""

import ctypes
import platform


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
NEVER = 2**31 - 1
ONE_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to serve large tensors from memory it holds; says whether it was there to be told."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = {M_MMAP_THRESHOLD: 1024 * ONE_MIB, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: 64 * ONE_MIB}
    return all(set_option(option, value) == 1 for option, value in options.items())
