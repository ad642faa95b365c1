"""How pixel kernels are compiled: without the GIL, kept on disk, one signature each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compiled"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Make machine code of a kernel on first use; from then on it is read from disk.

    Sums keep the order in which they are written, so that a kernel gives the same bits on
    every machine. A kernel calls compiled functions of its own file only: numba looks at the
    modification time of that one file to decide whether the stored code is still good.
    """
    try:
        kernel = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError as reason:
        # Neither the installation nor the user's cache folder can be written: a read-only
        # container. Same code, compiled anew by each process.
        logger.warning("%s will be compiled at each start: %s", function.__name__, reason)
        kernel = numba.njit(nogil=True, error_model="numpy")(function)
    return cast("Callable[P, R]", kernel)
