"""The patches that stand out, as pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from histostore.images.readers import Reader

__all__ = ["read_patch", "standing_out"]


def standing_out(
    value: NDArray[np.float64], most: int = 6
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the heaviest patches and the lightest, none twice.

    Parameters
    ----------
    value
        ``(patch,)``.
    most
        How many of each at most; never more than a quarter of all, but one.

    Returns
    -------
    top, bottom
        Indices, the heaviest first; the lightest first.

    Examples
    --------
    >>> [chosen.tolist() for chosen in standing_out(np.array([0.1, 0.9, 0.5, 0.7, 0.2, 0.3, 0, 1]))]
    [[7, 1], [6, 0]]
    """
    order = np.argsort(-value, kind="stable")
    n = min(most, max(1, len(order) // 4))
    return order[:n], order[::-1][: min(n, len(order) - n)]


def read_patch(reader: Reader, box: NDArray[np.int64], edge_px: int, size_px: int) -> Image.Image:
    """Read one patch at the size of a tile; what hangs over the border is white.

    Parameters
    ----------
    reader
        The open image.
    box
        Left, top, right, bottom inside the image, level-0 pixels.
    edge_px
        Edge of a whole patch.
    size_px
        Edge of the tile.
    """
    from PIL import Image

    left, top, right, bottom = box.tolist()
    pixels = reader.region(left, top, right - left, bottom - top)
    share = size_px / edge_px
    size = (max(1, round((right - left) * share)), max(1, round((bottom - top) * share)))
    tile = Image.new("RGB", (size_px, size_px), (255, 255, 255))
    method = Image.Resampling.LANCZOS if share < 1 else Image.Resampling.BICUBIC
    tile.paste(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, method))
    return tile
