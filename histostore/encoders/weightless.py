"""What encoders without weights share: their options, and the patches that they take."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import EncoderError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BATCH_SIZE", "available_cores", "check_patches", "settle"]

BATCH_SIZE = 128
"""Patches that they like to see at once."""


def settle(
    name: str,
    *,
    weights: str | None,
    device: str,
    batch_size: int | None,
    threads: int | None,
    precision: str,
) -> tuple[int, int]:
    """Give batch size and threads, where they were left out too.

    Raises
    ------
    EncoderError
        If weights, another device than the CPU or another precision than float32 are asked for.
    OptionError
        If ``batch_size`` or ``threads`` is below one.

    Examples
    --------
    >>> options = {"weights": None, "device": "auto", "precision": "float32"}
    >>> settle("texture", batch_size=None, threads=2, **options)
    (128, 2)
    """
    if weights is not None:
        raise EncoderError(f"{name} needs no weights; leave them out")
    if device not in {"auto", "cpu"}:
        raise EncoderError(f"{name} runs on the CPU, not on {device}; use device auto or cpu")
    if precision != "float32":
        raise EncoderError(f"{name} gives float32, not {precision}; leave the precision out")
    for option, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise OptionError(f"{option} is {value}; it must be 1 or more")
    return (
        BATCH_SIZE if batch_size is None else batch_size,
        available_cores() if threads is None else threads,
    )


def check_patches(name: str, patches: NDArray[np.uint8]) -> None:
    """Refuse what is not a batch of square 8-bit RGB patches.

    Raises
    ------
    OptionError
        If the array is of another type or shape.
    """
    shape, dtype = patches.shape, patches.dtype
    if dtype != np.uint8:
        raise OptionError(f"{name} takes uint8 patches, not {dtype}; convert them to 0..255")
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or shape[1] == 0:
        raise OptionError(f"{name} takes square patches (patch, y, x, 3), not shape {shape}")


def available_cores() -> int:
    """Count the cores this process may run on, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1  # macOS and Windows have no affinity to ask for
