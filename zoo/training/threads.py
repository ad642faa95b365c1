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
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(told))) if told.isdigit() else cores


@contextlib.contextmanager
def limited(threads: int | None = None) -> Iterator[int]:
    """Run with at most ``threads`` threads in torch, BLAS and OpenMP; restore them afterwards.

    Two threads each in two processes on two cores wait for each other a hundred times longer
    than they work, so whatever trains runs in here.

    Parameters
    ----------
    threads
        Wanted number; never more than :func:`available`, which is also the default.

    Yields
    ------
    threads
        The number in force.
    """
    from threadpoolctl import threadpool_limits

    count = available() if threads is None else max(1, min(threads, available()))
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
