"""Reading a square at another scale from the level of a pyramid that is nearest and fine enough.

Slides keep smaller copies of themselves. A patch at 2 µm per pixel of a slide scanned at 0.25
is 64 times as many pixels on level 0 as it needs; on the level that is reduced eight times it
is as many as it needs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from histostore.images.readers import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["PyramidReader", "choose_level", "read_square", "reductions"]


@runtime_checkable
class PyramidReader(Reader, Protocol):
    """A reader whose file holds the image in several sizes."""

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Columns and rows of every level, level 0 first, then ever smaller."""

    def level_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Give a box of a level, in that level's own pixels: ``(height, width, 3)``, uint8."""


def reductions(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[float, float], ...]:
    """Give how many pixels of level 0 one pixel of each level spans, along x and y.

    Writers cut off the last column and row of a level, or fill them up: a whole factor to
    within one pixel is that factor.

    Examples
    --------
    >>> reductions([(4443, 3567), (2221, 1783), (1000, 800)])
    ((1.0, 1.0), (2.0, 2.0), (4.443, 4.45875))
    """
    return tuple(
        (_reduction(sizes[0][0], width), _reduction(sizes[0][1], height)) for width, height in sizes
    )


def _reduction(whole: int, length: int) -> float:
    nearest = round(whole / length)
    return float(nearest) if abs(whole / nearest - length) < 1 else whole / length


def choose_level(sizes: Sequence[tuple[int, int]], reduction: float) -> int:
    """Choose the smallest level that is reduced by no more than ``reduction``.

    Parameters
    ----------
    sizes
        Columns and rows of every level, level 0 first.
    reduction
        Pixels of level 0 per pixel of the result.

    Examples
    --------
    >>> sizes = [(4000, 4000), (2000, 2000), (1000, 1000)]
    >>> [choose_level(sizes, reduction) for reduction in (0.5, 1.9, 2.0, 3.9, 8.0)]
    [0, 0, 1, 1, 2]
    """
    fine = [
        level
        for level, each in enumerate(reductions(sizes))
        if level == 0 or max(each) <= reduction
    ]
    return min(fine, key=lambda level: sizes[level][0])


def read_square(reader: Reader, x: int, y: int, edge_px: int, size: int) -> NDArray[np.uint8]:
    """Read a square of level 0 and bring it to ``size`` pixels.

    One that hangs over the border is filled up by reflection about the last row and column
    (repeated where the image is smaller still). Pillow's bilinear filter resizes; it widens
    with the factor when reducing, and so does not alias.

    Parameters
    ----------
    reader
        The open image; of a :class:`PyramidReader` the level is read that
        :func:`choose_level` says.
    x, y
        Top-left corner in level-0 pixels, inside the image.
    edge_px
        Edge of the square in level-0 pixels.
    size
        Edge of the result.

    Returns
    -------
    pixels
        ``(size, size, 3)``, uint8; perhaps a view of the reader's own.

    Raises
    ------
    ImageError
        If the image is damaged.
    """
    if edge_px > size and isinstance(reader, PyramidReader):
        sizes = reader.level_sizes
        level = choose_level(sizes, edge_px / size)
        if level:
            return _read_level(reader, level, (x, y, edge_px), size)
    width, height = min(edge_px, reader.width_px - x), min(edge_px, reader.height_px - y)
    pixels = _filled_up(reader.region(x, y, width, height), edge_px, edge_px)
    return pixels if edge_px == size else _resized(pixels, (0, 0, edge_px, edge_px), size)


def _read_level(
    reader: PyramidReader, level: int, square: tuple[int, int, int], size: int
) -> NDArray[np.uint8]:
    """Read a square ``(x, y, edge)`` of level 0 from another level; its sides may cut pixels."""
    x, y, edge_px = square
    sizes = reader.level_sizes
    by_x, by_y = reductions(sizes)[level]
    # Where a level was cut off, the last square may begin beyond it.
    at_x, at_y = min(int(x / by_x), sizes[level][0] - 1), min(int(y / by_y), sizes[level][1] - 1)
    to_x, to_y = math.ceil((x + edge_px) / by_x), math.ceil((y + edge_px) / by_y)
    width, height = min(to_x, sizes[level][0]) - at_x, min(to_y, sizes[level][1]) - at_y
    pixels = reader.level_region(level, at_x, at_y, width, height)
    pixels = _filled_up(pixels, to_x - at_x, to_y - at_y)
    left, top = x / by_x - at_x, y / by_y - at_y
    return _resized(pixels, (left, top, left + edge_px / by_x, top + edge_px / by_y), size)


def _filled_up(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    missing = (height - pixels.shape[0], width - pixels.shape[1])
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")


def _resized(
    pixels: NDArray[np.uint8], box: tuple[float, float, float, float], size: int
) -> NDArray[np.uint8]:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    # Sums of fractions may end a hair beyond the last pixel, which Pillow refuses.
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
