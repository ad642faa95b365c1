"""One heap for all threads, whose large blocks are used again.

A build allocates and frees blocks of pixels and of activations, some megabytes each, on several
threads, over and over. Left alone, glibc gives each thread a heap of its own, and there they
fragment: measured on a slide of 40,000 patches, a quarter more memory than from one heap. To map
each block by itself, and unmap it, keeps memory as low, but every page is then cleared anew:
that made the forward pass of a ViT-S half as long again.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

__all__ = ["share_one_heap"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_SETTINGS = {
    "MALLOC_ARENA_MAX": (_M_ARENA_MAX, 1),
    "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, 32 * 2**20),  # the most that glibc allows
    "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, 128 * 2**20),
}


@cache
def share_one_heap() -> bool:
    """Have the C library take all blocks up to 32 MiB from one heap, and keep 128 MiB of it.

    It is set once for the process, and only for glibc; heaps that threads have already stay, and
    what the environment names (``MALLOC_ARENA_MAX``, …) is left as it is.

    Returns
    -------
    set
        Whether all of it was.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    done = [mallopt(*setting) for name, setting in _SETTINGS.items() if name not in os.environ]
    return all(done)
