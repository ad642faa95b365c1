"""How much memory may be taken."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["memory_budget"]

_SHARE = 0.5
"""Of the memory that is available, so much may be taken where nobody says otherwise."""


def memory_budget() -> int:
    """Say how many bytes of embeddings may be held in memory: half of what is available.

    Available is what Linux says it can give without swapping, or what is left of the control
    group's limit, as in a container or a cluster's job; elsewhere all memory there is.
    """
    found = [_physical_memory(), *_linux_available(), *_cgroup_left()]
    return int(_SHARE * max(0, min(found)))


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4 * 2**30


def _linux_available() -> Iterator[int]:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        yield 1024 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1])


def _cgroup_left() -> Iterator[int]:
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        # The page cache counts as used, but goes when it has to.
        lines = (folder / "memory.stat").read_text(encoding="ascii").split("\n")
        cached = sum(int(x.split()[1]) for x in lines if x.startswith("inactive_file "))
        yield int((folder / "memory.max").read_text(encoding="ascii")) - used + cached
