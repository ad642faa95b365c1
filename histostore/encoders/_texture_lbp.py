"""Uniform local binary patterns in exact fixed-point arithmetic (Ojala et al. 2002)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders._texture_names import CIRCLES
from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CIRCLES", "N_PATTERNS", "histograms", "sampling"]


N_PATTERNS = tuple(points + 2 for points, _ in CIRCLES)
"""Uniform patterns by their number of ones, 0..points, and one bin for all others."""

_BITS = 22
"""Fraction bits of a weight: 255 in 8 bits, times a weight, fits an int32."""

_BORDER = max(radius for _, radius in CIRCLES) + 1


@cache
def sampling() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Say where the points of all circles lie, and how to interpolate there.

    Positions are rounded to five decimals as scikit-image rounds them. The largest weight
    takes up the rounding, so that weights sum to one exactly and a flat neighbourhood is a
    tie, whatever its value; and so that points that mirror each other have mirrored weights.

    Returns
    -------
    corner
        ``(point, 2)``: row and column of the upper left of four pixels, from the centre.
    weight
        ``(point, 4)``: of upper left, upper right, lower left, lower right, in 2⁻²².

    Examples
    --------
    >>> corner, weight = sampling()
    >>> corner[0].tolist(), weight[0].tolist() == [2**22, 0, 0, 0]
    ([0, 1], True)
    """
    corners, weights = [], []
    for points, radius in CIRCLES:
        angle = 2 * np.pi * np.arange(points) / points
        row = np.round(-radius * np.sin(angle), 5)
        column = np.round(radius * np.cos(angle), 5)
        corner = np.floor(np.stack([row, column], axis=1))
        down, right = row - corner[:, 0], column - corner[:, 1]
        exact = np.stack(
            [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1
        )
        fixed = np.round(exact * 2**_BITS).astype(np.int32)
        every = np.arange(points)
        fixed[every, fixed.argmax(axis=1)] += 2**_BITS - fixed.sum(axis=1, dtype=np.int32)
        corners.append(corner.astype(np.int64))
        weights.append(fixed)
    return np.concatenate(corners), np.concatenate(weights)


@compiled()
def _count_bits(word: np.uint32) -> np.uint32:
    """Count the ones of 32 bits, in parallel within the word.

    Numba widens every sum of 32-bit integers; the casts keep the vector lanes narrow.
    """
    pairs = np.uint32(word - ((word >> np.uint32(1)) & np.uint32(0x55555555)))
    fours = np.uint32(
        (pairs & np.uint32(0x33333333)) + ((pairs >> np.uint32(2)) & np.uint32(0x33333333))
    )
    eights = np.uint32(fours + (fours >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.uint32(eights * np.uint32(0x01010101)) >> np.uint32(24)


@compiled()
def _mark(
    upper: NDArray[np.int32],
    lower: NDArray[np.int32],
    centre: NDArray[np.int32],
    weight: NDArray[np.int32],
    bit: int,
    word: NDArray[np.uint32],
) -> None:
    """Set ``bit`` of the words of one row where the point is at least as bright as the centre."""
    w0, w1, w2, w3 = weight[0], weight[1], weight[2], weight[3]
    shift = np.uint32(bit)
    if w1 == 0 and w2 == 0 and w3 == 0:  # on a pixel
        for c in range(word.shape[0]):
            word[c] |= np.uint32(upper[c] >= centre[c]) << shift
        return
    for c in range(word.shape[0]):
        value = upper[c] * w0 + upper[c + 1] * w1 + lower[c] * w2 + lower[c + 1] * w3
        word[c] |= np.uint32(np.int32(value) >= np.int32(centre[c] << np.int32(_BITS))) << shift


@compiled()
def _tally(word: NDArray[np.uint32], points: int, counts: NDArray[np.int64]) -> None:
    """Count the patterns of one row: by their ones if uniform, else in the last bin."""
    kind = np.empty(word.shape[0], np.uint32)
    last = np.uint32(points - 1)
    for c in range(word.shape[0]):
        turned = np.uint32((word[c] >> np.uint32(1)) | ((word[c] & np.uint32(1)) << last))
        changes = _count_bits(np.uint32(word[c] ^ turned))
        kind[c] = _count_bits(word[c]) if changes <= 2 else np.uint32(points + 1)
    for c in range(word.shape[0]):
        counts[kind[c]] += 1


@compiled()
def histograms(
    image: NDArray[np.uint8],
    corner: NDArray[np.int64],
    weight: NDArray[np.int32],
    circles: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Give the share of each uniform, rotation-invariant pattern, circle by circle.

    Outside the image is black, as in ``skimage.feature.local_binary_pattern``.
    NOTE[DIFF]: scikit-image interpolates in floating point, where a flat neighbourhood may
    come out a rounding error darker than its own centre, depending on its value; here a tie
    is a tie and counts as one.

    Parameters
    ----------
    image
        ``(y, x)``.
    corner, weight
        From :func:`sampling`.
    circles
        ``(circle)``: points of each.
    out
        ``(sum of points + 2)``: filled; each circle's part sums to one.
    """
    rows, columns = image.shape
    padded = np.zeros((rows + 2 * _BORDER, columns + 2 * _BORDER), np.int32)
    for r in range(rows):
        for c in range(columns):
            padded[_BORDER + r, _BORDER + c] = image[r, c]
    counts = np.zeros(out.shape[0], np.int64)
    word = np.empty(columns, np.uint32)
    for r in range(rows):
        centre = padded[r + _BORDER, _BORDER:]
        point, start = 0, 0
        for k in range(circles.shape[0]):
            for c in range(columns):
                word[c] = 0
            for bit in range(circles[k]):
                upper = r + _BORDER + corner[point, 0]
                left = _BORDER + corner[point, 1]
                _mark(
                    padded[upper, left:], padded[upper + 1, left:], centre, weight[point], bit, word
                )
                point += 1
            stop = start + circles[k] + 2
            _tally(word, circles[k], counts[start:stop])
            start = stop
    for k in range(out.shape[0]):
        out[k] = counts[k] / (rows * columns)
