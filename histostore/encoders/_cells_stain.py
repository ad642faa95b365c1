"""How much haematoxylin and eosin a pixel holds, in whole numbers, and smoothing of it.

Whole numbers add up the same in any order: what is found in a patch is found in the patch
turned or flipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UNIT", "separate", "smooth"]

UNIT = 1024
"""Of the whole numbers: what one unit of natural optical density stands as."""

_MOST = 8 * UNIT - 1  # four rounds of smoothing keep within 32 bits

_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston
2001). DAB takes up what is yellow or brown, and dark red blood with it."""

_SHARES = UNIT * np.linalg.inv(_VECTORS / np.linalg.norm(_VECTORS, axis=1, keepdims=True))
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255)
_TABLE = _DENSITY[:, None, None] * _SHARES  # (value, colour, stain)


@compiled()
def separate(
    patch: NDArray[np.uint8], haematoxylin: NDArray[np.int32], eosin: NDArray[np.int32]
) -> None:
    """Fill in the amounts of the two stains of a patch.

    Parameters
    ----------
    patch
        ``(y, x, 3)``, RGB.
    haematoxylin, eosin
        ``(y, x)``, in 1/:data:`UNIT` of natural optical density; what would be negative is 0.
    """
    for y in range(patch.shape[0]):
        for x in range(patch.shape[1]):
            r, g, b = patch[y, x, 0], patch[y, x, 1], patch[y, x, 2]
            h = _TABLE[r, 0, 0] + _TABLE[g, 1, 0] + _TABLE[b, 2, 0]
            e = _TABLE[r, 0, 1] + _TABLE[g, 1, 1] + _TABLE[b, 2, 1]
            haematoxylin[y, x] = np.int32(min(max(h, 0.0), _MOST) + 0.5)
            eosin[y, x] = np.int32(min(max(e, 0.0), _MOST) + 0.5)


@compiled()
def smooth(image: NDArray[np.int32], rounds: int) -> NDArray[np.int32]:
    """Convolve with (1, 2, 1) along both axes, some times; values grow 16-fold each time.

    Parameters
    ----------
    image
        ``(y, x)``; its border pixels are repeated outwards.
    rounds
        How often: *n* rounds are a Gaussian with a standard deviation of √(n / 2) px.

    Returns
    -------
    smooth
        ``(y, x)``, 16 ** rounds times as large.
    """
    height, width = image.shape
    image = image.copy()
    lines = np.empty_like(image)
    for _ in range(rounds):
        for y in range(height):
            above, below = image[max(y - 1, 0)], image[min(y + 1, height - 1)]
            for x in range(width):
                lines[y, x] = above[x] + 2 * image[y, x] + below[x]
        for y in range(height):
            line = lines[y]
            for x in range(width):
                left, right = line[max(x - 1, 0)], line[min(x + 1, width - 1)]
                image[y, x] = left + 2 * line[x] + right
    return image
