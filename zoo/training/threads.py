"""Threads kept within the cores there are."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["available", "limited"]


def available() -> int:
    """Count the cores this process may use, or fewer where ``OMP_NUM_THREADS`` says so."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    told = _told()
    return cores if told is None else max(1, min(cores, told))


def _told() -> int | None:
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else None


@contextlib.contextmanager
def limited(threads: int | None = None) -> Iterator[int]:
    """Run with at most ``threads`` threads in torch, BLAS and OpenMP; restore them afterwards.

    Two threads beside one busy process on two cores wait for each other longer than they work:
    an epoch takes 5 to 100 times as long. So whatever trains runs in here, and on one thread
    unless somebody asks for more; then the number of cores does not change a result either.

    Parameters
    ----------
    threads
        Wanted number; never more than :func:`available`. Where left out, what
        ``OMP_NUM_THREADS`` says, or one.

    Yields
    ------
    threads
        The number in force.
    """
    from threadpoolctl import threadpool_limits

    wanted = threads if threads is not None else _told() or 1
    count = max(1, min(wanted, available()))
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else None
    # torch counts its OpenMP threads itself, so both must be told and both put back.
    with threadpool_limits(limits=count):
        try:
            if torch is not None:
                torch.set_num_threads(count)
            yield count
        finally:
            if torch is not None:
                torch.set_num_threads(before)
