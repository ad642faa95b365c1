"""Grey-level co-occurrence (Haralick et al. 1973)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders._texture_names import DISTANCES, PROPERTIES
from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DISTANCES", "PROPERTIES", "properties"]


_LEVELS = 16
_OUTSIDE = _LEVELS
"""Level of what lies beyond the border: pairs with it fall into columns that nobody reads."""

_WIDTH = 2 * _LEVELS
_MARGIN = max(DISTANCES)


@compiled()
def _count(
    levels: NDArray[np.uint8], rows: int, columns: int, distance: int, counts: NDArray[np.uint32]
) -> None:
    """Count the pairs of one distance at 0, 45, 90 and 135 degrees, all in one go.

    Four independent counters keep the processor busy where neighbours are alike and one
    counter would wait for its own last increment.
    """
    for angle in range(4):
        for k in range(counts.shape[1]):
            counts[angle, k] = 0
    slant = np.int64(distance * np.sqrt(0.5) + 0.5)
    for r in range(rows):
        here = levels[r, _MARGIN:]
        east = levels[r, _MARGIN + distance :]
        south = levels[r + distance, _MARGIN:]
        south_east = levels[r + slant, _MARGIN + slant :]
        south_west = levels[r + slant, _MARGIN - slant :]
        for c in range(columns):
            first = np.int64(here[c]) * _WIDTH
            counts[0, first + east[c]] += 1
            counts[1, first + south_east[c]] += 1
            counts[2, first + south[c]] += 1
            counts[3, first + south_west[c]] += 1


@compiled()
def _describe(counts: NDArray[np.uint32], out: NDArray[np.float64]) -> None:
    """Give the five properties of one matrix, made symmetric and normed.

    Sums are of integers, so exact. No pairs at all give 0, 0, 0, 1, 0 and a single level
    a correlation of 1, as ``skimage.feature.graycoprops`` does.
    """
    pairs = first = second = product = squares = np.int64(0)
    apart = np.zeros(_LEVELS, np.int64)
    for i in range(_LEVELS):
        for j in range(i + 1):
            both = np.int64(counts[i * _WIDTH + j]) + np.int64(counts[j * _WIDTH + i])
            both_sides = both * (2 if i != j else 1)
            apart[i - j] += both_sides
            pairs += both_sides
            first += both * (i + j if i != j else i)
            second += both * (i * i + j * j if i != j else i * i)
            product += both_sides * i * j
            squares += both * both_sides
    out[0], out[1], out[2], out[3], out[4] = 0.0, 0.0, 0.0, 1.0, 0.0
    if pairs == 0:
        return
    for d in range(_LEVELS):
        share = apart[d] / pairs
        out[0] += share * d * d
        out[1] += share / (1.0 + d * d)
        out[4] += share * d
    out[2] = np.sqrt(squares) / pairs
    spread = pairs * second - first * first
    if spread > 0:
        out[3] = (pairs * product - first * first) / spread


@compiled()
def properties(image: NDArray[np.uint8], distances: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give mean and spread over four angles of the properties at each distance.

    Parameters
    ----------
    image
        ``(y, x)``, 8 bits; the upper four are the level.
    distances
        ``(distance)``, in px, at most 8.

    Returns
    -------
    summary
        ``(distance, property, 2)``: mean and population standard deviation over 0, 45, 90 and
        135 degrees. A slanted step is rounded to whole pixels, as scikit-image does.
    """
    rows, columns = image.shape
    levels = np.empty((rows + _MARGIN, columns + 2 * _MARGIN), np.uint8)
    for r in range(levels.shape[0]):
        for c in range(levels.shape[1]):
            levels[r, c] = _OUTSIDE
    for r in range(rows):
        for c in range(columns):
            levels[r, _MARGIN + c] = image[r, c] >> np.uint8(4)
    counts = np.empty((4, _LEVELS * _WIDTH), np.uint32)
    values = np.empty((4, 5), np.float64)
    out = np.empty((distances.shape[0], 5, 2), np.float64)
    for d in range(distances.shape[0]):
        _count(levels, rows, columns, distances[d], counts)
        for angle in range(4):
            _describe(counts[angle], values[angle])
        for p in range(5):
            mean = (values[0, p] + values[1, p] + values[2, p] + values[3, p]) / 4.0
            variance = 0.0
            for angle in range(4):
                variance += (values[angle, p] - mean) ** 2 / 4.0
            out[d, p, 0] = mean
            out[d, p, 1] = np.sqrt(variance)
    return out
