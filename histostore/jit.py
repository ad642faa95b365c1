"""How pixel kernels are compiled: without the GIL, kept on disk, one signature each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compiled"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def compiled(*, reassociate: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a kernel: machine code on first use, from then on read from disk.

    A kernel calls compiled functions of its own file only: numba looks at the modification
    time of that one file to decide whether the stored code is still good. Numba renames
    finished files into place, so that several processes may compile at once.

    Parameters
    ----------
    reassociate
        Allow sums to be taken in the order that suits the vector unit. Values must be finite.
        Without it sums keep the order in which they are written: the same bits on every machine.

    Returns
    -------
    decorator
        Keeps the signature of what it decorates.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if reassociate:
        options["fastmath"] = {"reassoc", "nsz", "nnan"}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        try:
            kernel = numba.njit(cache=True, **options)(function)
        except RuntimeError as reason:
            # Neither the installation nor the user's cache folder can be written: a read-only
            # container. Same code, compiled anew by each process.
            logger.warning("%s will be compiled at each start: %s", function.__name__, reason)
            kernel = numba.njit(**options)(function)
        return cast("Callable[P, R]", kernel)

    return decorate
