"""Where vectors go as they come from the encoder: into memory, or straight into the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histostore.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HELD_BYTES", "HeldRows", "Rows", "to_stored"]

HELD_BYTES = 32 * 2**20
"""An image whose embedding is larger is written while it is computed, as a fragment of its own.
The memory of a build grows with an image up to this, and then no more."""


class Rows(Protocol):
    """Takes the vectors of one image."""

    def put(self, view: int, start: int, rows: NDArray[Any]) -> None:
        """Take rows ``start`` to ``start + len(rows)`` of a view, of the stored type."""

    def discard(self) -> None:
        """Let go of all: the image has failed."""


class HeldRows:
    """The vectors of a small image, in memory.

    Parameters
    ----------
    shape
        ``(augmentation, patch, feature)``.
    dtype
        The stored type.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: str) -> None:
        self.values: NDArray[Any] = np.empty(shape, dtype)
        """``(augmentation, patch, feature)``, full once every row was put."""

    def put(self, view: int, start: int, rows: NDArray[Any]) -> None:
        """Take some rows of a view."""
        self.values[view, start : start + len(rows)] = rows

    def discard(self) -> None:
        """Do nothing: nobody else has seen them."""


def to_stored(vectors: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Convert vectors to the stored type, which must hold every value.

    Raises
    ------
    OptionError
        If it does not.

    Examples
    --------
    >>> to_stored(np.array([1.5], np.float32), "float16")
    array([1.5], dtype=float16)
    """
    limit = float(np.finfo(dtype).max)
    largest = float(np.abs(vectors).max(initial=0.0))
    if largest > limit:
        raise OptionError(
            f"an embedding reaches {largest:.3g}, {dtype} ends at {limit:.3g}: use --dtype float32"
        )
    return vectors.astype(dtype, copy=False)
