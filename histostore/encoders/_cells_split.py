"""Which pixels are which nucleus: hills of a landscape, small ones joined to large ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["depth", "hills", "numbered", "squares", "weighed"]


@compiled()
def depth(mask: NDArray[np.uint8], most: int, scale: int) -> NDArray[np.int32]:
    """Measure how deep inside the mask each pixel lies.

    Parameters
    ----------
    mask
        ``(y, x)``, 0 or 1; what lies outside the image is nowhere near.
    most
        Greatest depth told, px.
    scale
        Of the result.

    Returns
    -------
    depth
        ``(y, x)``: Euclidean distance to the centre of the nearest pixel that is 0, in
        1/scale px.
    """
    height, width = mask.shape
    up = np.empty((height, width), np.int32)  # to the nearest 0 in the same column
    for x in range(width):
        run = most
        for y in range(height):
            run = min(run + 1, most) if mask[y, x] else 0
            up[y, x] = run
        run = most
        for y in range(height - 1, -1, -1):
            run = min(run + 1, most) if mask[y, x] else 0
            up[y, x] = min(up[y, x], run)
    out = np.zeros((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                continue
            best = up[y, x] * up[y, x]
            k = 1
            while k * k < best:
                if x >= k:
                    best = min(best, k * k + up[y, x - k] * up[y, x - k])
                if x + k < width:
                    best = min(best, k * k + up[y, x + k] * up[y, x + k])
                k += 1
            out[y, x] = np.int32(scale * np.sqrt(best) + 0.5)
    return out


@compiled()
def squares(relief: NDArray[np.int32], mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Square heights inside the mask, in steps of 64: squares keep within 32 bits."""
    out = np.zeros_like(relief)
    for y in range(relief.shape[0]):
        for x in range(relief.shape[1]):
            if mask[y, x]:
                step = relief[y, x] >> 6
                out[y, x] = step * step
    return out


@compiled()
def weighed(
    fine: NDArray[np.int32],
    coarse: NDArray[np.int32],
    fine_power: NDArray[np.int32],
    coarse_power: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Weigh two reliefs by the fourth power of how strongly each varies about a place.

    Parameters
    ----------
    fine, coarse
        ``(y, x)``, heights of either sign.
    fine_power, coarse_power
        ``(y, x)``: mean of their :func:`squares` about each pixel.

    Returns
    -------
    relief
        ``(y, x)``, between the two.
    """
    out = np.empty_like(fine)
    for y in range(fine.shape[0]):
        for x in range(fine.shape[1]):
            f = (fine_power[y, x] + 1.0) * (fine_power[y, x] + 1.0)
            c = (coarse_power[y, x] + 1.0) * (coarse_power[y, x] + 1.0)
            share = c * c / (c * c + f * f)
            out[y, x] = np.int32(np.floor(fine[y, x] + share * (coarse[y, x] - fine[y, x])))
    return out


@compiled()
def _root(parent: NDArray[np.int32], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled()
def _descending(land: NDArray[np.int32], mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """List the pixels of the mask, highest first, those of one height as they stand."""
    highest = 0
    for i in range(land.size):
        highest = max(highest, land[i])
    start = np.zeros(highest + 1, np.int64)
    for i in range(land.size):
        if mask[i]:
            start[land[i]] += 1
    total = 0
    for level in range(len(start) - 1, -1, -1):
        start[level], total = total, total + start[level]
    order = np.empty(total, np.int32)
    for i in range(land.size):
        if mask[i]:
            order[start[land[i]]] = i
            start[land[i]] += 1
    return order


@compiled()
def _join(land: NDArray[np.int32], parent: NDArray[np.int32], i: int, j: int, share: float) -> None:
    """Make the hills that meet at pixel ``i``, of one of which it is part, one if they are."""
    own, other = _root(parent, i), _root(parent, j)
    low, high = (own, other) if land[own] < land[other] else (other, own)
    if low != high and land[i] >= share * land[low]:
        parent[low] = high


@compiled()
def hills(land: NDArray[np.int32], mask: NDArray[np.uint8], share: float) -> NDArray[np.int32]:
    """Part a landscape into hills.

    Water falls: every pixel belongs to the summit that it would climb to. Where two hills meet
    at a saddle higher than ``share`` of the lower summit, the two are one (persistence, as in
    ToMATo, Chazal et al. 2013, with a relative threshold).

    Parameters
    ----------
    land
        ``(y, x)``, heights, not negative; up to some millions, as there is a list of them.
    mask
        ``(y, x)``: 0 is sea.
    share
        Of the lower summit's height, 0 … 1.

    Returns
    -------
    hill
        ``(y, x)``: pixel number of the summit, −1 for sea.
    """
    height, width = land.shape
    flat = land.reshape(-1)
    parent = np.full(land.size, -1, np.int32)
    order = _descending(flat, mask.reshape(-1))
    for i in order:
        y, x = i // width, i % width
        steepest, highest = -1, -1
        for v in range(max(y - 1, 0), min(y + 2, height)):
            for u in range(max(x - 1, 0), min(x + 2, width)):
                j = v * width + u
                if parent[j] >= 0 and flat[j] > highest:
                    steepest, highest = j, flat[j]
        if steepest < 0:
            parent[i] = i
            continue
        parent[i] = steepest
        for v in range(max(y - 1, 0), min(y + 2, height)):
            for u in range(max(x - 1, 0), min(x + 2, width)):
                j = v * width + u
                if parent[j] >= 0:
                    _join(flat, parent, i, j, share)
    for i in order:
        parent[i] = _root(parent, i)
    return parent.reshape(land.shape)


@compiled()
def numbered(hill: NDArray[np.int32], least: int, most: int) -> tuple[NDArray[np.int32], int]:
    """Give numbers from 1 to the hills of a fitting size, in the order of their first pixels.

    Parameters
    ----------
    hill
        ``(y, x)``, as :func:`hills` gives them.
    least, most
        Size, in pixels.

    Returns
    -------
    label
        ``(y, x)``: 0 for none.
    n_hills
        How many fit.
    """
    flat = hill.reshape(-1)
    size = np.zeros(hill.size, np.int32)
    for i in range(hill.size):
        if flat[i] >= 0:
            size[flat[i]] += 1
    number = np.zeros(hill.size, np.int32)
    label = np.zeros(hill.size, np.int32)
    n = 0
    for i in range(hill.size):
        summit = flat[i]
        if summit < 0 or not least <= size[summit] <= most:
            continue
        if number[summit] == 0:
            n += 1
            number[summit] = n
        label[i] = number[summit]
    return label.reshape(hill.shape), n
