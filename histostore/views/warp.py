"""Moving pixels by an affine map, in whole numbers: the same bits on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["warp"]

_ONE = 1 << 16


@compiled()
def _reflected(at: np.int64, size: int) -> np.int64:
    """Reflect a position about the first and the last pixel, as often as it takes."""
    if size == 1:
        return np.int64(0)
    around = at % np.int64(2 * size - 2)
    return around if around < size else np.int64(2 * size - 2) - around


@compiled()
def _warp(
    patch: NDArray[np.uint8],
    matrix: NDArray[np.int64],
    shift: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    height, width, channels = patch.shape
    for y in range(height):
        for x in range(width):
            # From the middle, in half pixels.
            down, along = 2 * y - (height - 1), 2 * x - (width - 1)
            at_y = (matrix[0, 0] * down + matrix[0, 1] * along) // 2
            at_x = (matrix[1, 0] * down + matrix[1, 1] * along) // 2
            at_y += shift[0] + (height - 1) * (_ONE // 2)
            at_x += shift[1] + (width - 1) * (_ONE // 2)
            top, left = at_y >> 16, at_x >> 16
            part_y, part_x = at_y - (top << 16), at_x - (left << 16)
            y0, y1 = _reflected(top, height), _reflected(top + 1, height)
            x0, x1 = _reflected(left, width), _reflected(left + 1, width)
            for k in range(channels):
                upper = patch[y0, x0, k] * (_ONE - part_x) + patch[y0, x1, k] * part_x
                lower = patch[y1, x0, k] * (_ONE - part_x) + patch[y1, x1, k] * part_x
                total = upper * (_ONE - part_y) + lower * part_y
                out[y, x, k] = np.uint8((total + (np.int64(1) << 31)) >> 32)


def warp(
    patch: NDArray[np.uint8], matrix: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Move the pixels of a patch; between pixels, interpolate linearly.

    Parameters
    ----------
    patch
        ``(y, x, channel)``, uint8.
    matrix, shift
        ``(2, 2)`` and ``(2,)``, of (y, x): a pixel of the result at *p* from the middle comes
        from matrix · *p* + shift. Rounded to 65,536ths.

    Returns
    -------
    patch
        As given, uint8; what lies outside is reflected about the last row and column.

    Examples
    --------
    >>> row = np.array([[[10], [20], [30]]], np.uint8)
    >>> warp(row, np.eye(2), np.array([0.0, 1.5]))[0, :, 0].tolist()
    [25, 25, 15]
    """
    out = np.empty(patch.shape, np.uint8)
    _warp(
        np.ascontiguousarray(patch),
        np.rint(matrix * _ONE).astype(np.int64),
        np.rint(shift * _ONE).astype(np.int64),
        out,
    )
    return out
