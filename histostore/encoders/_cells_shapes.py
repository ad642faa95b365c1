"""What is measured of every nucleus on its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SHAPES", "measure"]

SHAPES = (
    *("x", "y", "area", "major", "minor", "eccentricity", "angle"),
    *("solidity", "amount", "grain", "total", "cut"),
)
"""Columns: centre, px; pixels; axes of the ellipse of equal second moments, px; eccentricity of
that ellipse, 0 … 1; direction of its major axis to the x axis, 0 … π; area by area of the convex
hull; mean, standard deviation and sum over its pixels of haematoxylin, natural optical density;
1 if it touches the patch's edge, else 0."""

_UNIT = 1024.0  # of _cells_stain: compiled code sees its own file alone


@compiled()
def _sums(
    label: NDArray[np.int32], haematoxylin: NDArray[np.int32], out: NDArray[np.int64]
) -> None:
    """Add up over each label: pixels, x, y, xx, xy, yy, amount, its square; edge, rows."""
    height, width = label.shape
    for y in range(height):
        for x in range(width):
            if label[y, x] == 0:
                continue
            row = out[label[y, x] - 1]
            amount = np.int64(haematoxylin[y, x])
            if row[0] == 0:
                row[9] = y
            row[0] += 1
            row[1] += x
            row[2] += y
            row[3] += x * x
            row[4] += x * y
            row[5] += y * y
            row[6] += amount
            row[7] += amount * amount
            row[8] |= y == 0 or x == 0 or y == height - 1 or x == width - 1
            row[10] = y


@compiled()
def _half_hull(x: NDArray[np.float64], sign: float) -> float:
    """Integrate the convex chain to the left (sign 1) or right (−1) of points (x[k], k)."""
    kept = np.empty(len(x), np.int64)
    n = 0
    for k in range(len(x)):
        while n >= 2:
            a, b = kept[n - 2], kept[n - 1]
            # b stays if it lies outside the line from a to k.
            if sign * ((x[b] - x[a]) * (k - a) - (x[k] - x[a]) * (b - a)) < 0:
                break
            n -= 1
        kept[n] = k
        n += 1
    area = 0.0
    for i in range(n - 1):
        area += (x[kept[i]] + x[kept[i + 1]]) / 2 * (kept[i + 1] - kept[i])
    return area


@compiled()
def _hull_areas(label: NDArray[np.int32], sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give the areas of the convex hulls of the labels, each pixel a square of side one."""
    start = np.zeros(len(sums) + 1, np.int64)
    for k in range(len(sums)):
        start[k + 1] = start[k] + sums[k, 10] - sums[k, 9] + 2  # lines between pixel rows
    left = np.full(start[-1], 1.0e9)
    right = np.full(start[-1], -1.0e9)
    for y in range(label.shape[0]):
        for x in range(label.shape[1]):
            k = label[y, x] - 1
            if k >= 0:
                at = start[k] + y - sums[k, 9]
                for line in range(at, at + 2):
                    left[line] = min(left[line], x)
                    right[line] = max(right[line], x + 1)
    areas = np.empty(len(sums))
    for k in range(len(sums)):
        rows = slice(start[k], start[k + 1])
        areas[k] = _half_hull(right[rows], -1.0) - _half_hull(left[rows], 1.0)
    return areas


@compiled()
def measure(
    label: NDArray[np.int32], n_nuclei: int, haematoxylin: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Measure labelled nuclei.

    Sums are whole numbers, so that a nucleus gives the same wherever it lies.

    Parameters
    ----------
    label
        ``(y, x)``: 1 … ``n_nuclei``, each in one piece, or 0.
    n_nuclei
        How many.
    haematoxylin
        ``(y, x)``, in 1/1024 of natural optical density.

    Returns
    -------
    table
        ``(nucleus, column)``, as in :data:`SHAPES`.
    """
    sums = np.zeros((n_nuclei, 11), np.int64)
    _sums(label, haematoxylin, sums)
    hulls = _hull_areas(label, sums)
    table = np.empty((n_nuclei, 12))
    for k in range(n_nuclei):
        n, x, y = sums[k, 0], sums[k, 1], sums[k, 2]
        xx, xy, yy = sums[k, 3], sums[k, 4], sums[k, 5]
        amount, squares = sums[k, 6], sums[k, 7]
        area = float(n)
        # A pixel is a square: its own second moment is 1/12.
        u = (n * xx - x * x) / (area * area) + 1 / 12
        v = (n * yy - y * y) / (area * area) + 1 / 12
        w = (n * xy - x * y) / (area * area)
        spread = math.hypot((u - v) / 2, w)
        long, short = (u + v) / 2 + spread, max((u + v) / 2 - spread, 0.0)
        table[k, 0], table[k, 1], table[k, 2] = x / area, y / area, area
        table[k, 3], table[k, 4] = 4 * math.sqrt(long), 4 * math.sqrt(short)
        table[k, 5] = math.sqrt(1 - short / long)
        table[k, 6] = (math.atan2(2 * w, u - v) / 2) % math.pi
        table[k, 7] = area / hulls[k]
        table[k, 8] = amount / area / _UNIT
        table[k, 9] = math.sqrt(float(n * squares - amount * amount)) / area / _UNIT
        table[k, 10] = amount / _UNIT
        table[k, 11] = float(sums[k, 8])
    return table
