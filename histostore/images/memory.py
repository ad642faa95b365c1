"""An image that lies in memory, and how pixels are made fewer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from histostore.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MemoryReader", "check_region", "shrink", "shrink_factor"]


class MemoryReader:
    """Reader of pixels that are there already: a decoded file, or pixels made up.

    Parameters
    ----------
    rgb
        ``(y, x, 3)``, uint8; kept, not copied.
    mpp
        Micrometres per pixel, where known.

    Raises
    ------
    ImageError
        If ``rgb`` is anything else, or has no pixels.

    Examples
    --------
    >>> reader = MemoryReader(np.zeros((30, 40, 3), np.uint8))
    >>> reader.region(35, 0, 5, 2).shape, reader.thumbnail(20).shape
    ((2, 5, 3), (15, 20, 3))
    """

    def __init__(self, rgb: NDArray[np.uint8], *, mpp: float | None = None) -> None:
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
            raise ImageError(f"pixels are {rgb.dtype} {rgb.shape}; give uint8 (y, x, 3), not empty")
        self._rgb = rgb
        self._mpp = mpp

    @property
    def width_px(self) -> int:
        """Columns of level 0."""
        return int(self._rgb.shape[1])

    @property
    def height_px(self) -> int:
        """Rows of level 0."""
        return int(self._rgb.shape[0])

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of level 0, None where unknown."""
        return self._mpp

    def region(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Give a box of level 0, ``(height, width, 3)``: a view of the pixels, not a copy."""
        check_region(x, y, width, height, within=(self.width_px, self.height_px))
        return self._rgb[y : y + height, x : x + width]

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Give the whole image, box-averaged until no side is longer than ``max_px``."""
        return shrink(self._rgb, shrink_factor(self.width_px, self.height_px, max_px))

    def close(self) -> None:
        """Do nothing: the pixels go when the last reference does."""


def shrink_factor(width_px: int, height_px: int, max_px: int) -> int:
    """Give the least whole factor that makes both sides at most ``max_px``.

    Examples
    --------
    >>> shrink_factor(4443, 3567, 2048)
    3
    """
    return max(1, math.ceil(max(width_px, height_px) / max_px))


def shrink(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average boxes of ``factor`` × ``factor`` pixels; the last row and column may be partial.

    Parameters
    ----------
    rgb
        ``(y, x, 3)``, uint8.
    factor
        1 gives the argument itself.
    """
    if factor == 1:
        return rgb
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).reduce(factor))


def check_region(x: int, y: int, width: int, height: int, *, within: tuple[int, int]) -> None:
    """Refuse a box that is empty or not all inside an image of ``(width, height)``.

    Raises
    ------
    ImageError
        With both sizes.
    """
    if (
        width < 1
        or height < 1
        or not 0 <= x <= within[0] - width
        or not 0 <= y <= within[1] - height
    ):
        raise ImageError(
            f"region {width}×{height} at ({x}, {y}) is not inside the image of"
            f" {within[0]}×{within[1]} px"
        )
