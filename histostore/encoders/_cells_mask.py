"""Which pixels are nucleus: a threshold of the patch, a threshold of the place, no specks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fill_holes", "opened", "otsu", "surroundings"]


@compiled()
def otsu(image: NDArray[np.int32], step: int) -> int:
    """Find the threshold that parts an image best (Otsu 1979).

    Parameters
    ----------
    image
        ``(y, x)``, not negative.
    step
        Width of a bin of the histogram.

    Returns
    -------
    threshold
        A multiple of ``step``: what reaches it is the upper part. 0 for a flat image.
    """
    highest = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            highest = max(highest, image[y, x])
    n_bins = highest // step + 1
    counts = np.zeros(n_bins, np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            counts[image[y, x] // step] += 1
    moment = 0
    for b in range(n_bins):
        moment += b * counts[b]
    best, found = 0.0, 0
    n_low, low = 0, 0
    for b in range(n_bins - 1):
        n_low += counts[b]
        low += b * counts[b]
        n_high = image.size - n_low
        if n_low > 0:
            apart = (moment - low) / n_high - low / n_low
            between = float(n_low) * n_high * apart * apart
            if between > best:
                best, found = between, b + 1
    return found * step


@compiled()
def surroundings(image: NDArray[np.int32], reach: int) -> NDArray[np.int32]:
    """Average over the surroundings of every pixel.

    Parameters
    ----------
    image
        ``(y, x)``, not negative.
    reach
        The surroundings are a square of 2 · reach + 1 px, or what the image holds of it.

    Returns
    -------
    mean
        ``(y, x)``, rounded down.
    """
    height, width = image.shape
    wide = np.empty(width)
    for x in range(width):
        wide[x] = min(x + reach + 1, width) - max(x - reach, 0)
    columns = np.zeros(width, np.int64)  # of the lines in reach
    sums = np.zeros(width + 2 * reach + 1, np.int64)  # of columns, none before and all after
    mean = np.empty((height, width), np.int32)
    for y in range(-reach, height):
        if y + reach < height:
            for x in range(width):
                columns[x] += image[y + reach, x]
        if y > reach:
            for x in range(width):
                columns[x] -= image[y - reach - 1, x]
        if y < 0:
            continue
        total = 0
        for x in range(width):
            total += columns[x]
            sums[x + reach + 1] = total
        sums[width + reach + 1 :] = total
        tall = min(y + reach + 1, height) - max(y - reach, 0)
        for x in range(width):
            mean[y, x] = np.int32((sums[x + 2 * reach + 1] - sums[x]) / (tall * wide[x]))
    return mean


@compiled()
def _spread(mask: NDArray[np.uint8], value: int, out: NDArray[np.uint8]) -> None:
    """Give ``value`` to the pixels that have it, and to the four next to each."""
    height, width = mask.shape
    for y in range(height):
        above, below = mask[max(y - 1, 0)], mask[min(y + 1, height - 1)]
        for x in range(width):
            left, right = mask[y, max(x - 1, 0)], mask[y, min(x + 1, width - 1)]
            near = value in (mask[y, x], above[x], below[x], left, right)
            out[y, x] = value if near else 1 - value


@compiled()
def opened(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take away what no cross of five pixels fits into; the image's edge cuts nothing.

    Parameters
    ----------
    mask
        ``(y, x)``, 0 or 1.

    Returns
    -------
    mask
        ``(y, x)``, 0 or 1.
    """
    eroded, result = np.empty_like(mask), np.empty_like(mask)
    _spread(mask, 0, eroded)
    _spread(eroded, 1, result)
    return result


@compiled()
def fill_holes(mask: NDArray[np.uint8], most: int) -> None:
    """Fill, in place, background that nuclei enclose.

    Parameters
    ----------
    mask
        ``(y, x)``, 0 or 1.
    most
        Pixels of the largest hole that is filled; what touches the image's edge is no hole.
    """
    height, width = mask.shape
    seen = mask.copy()
    stack = np.empty(mask.size, np.int64)
    flat, flat_seen = mask.reshape(-1), seen.reshape(-1)
    for start in range(mask.size):
        if flat_seen[start]:
            continue
        stack[0], n = start, 1  # all pixels of the hole, also those already done
        flat_seen[start] = 1
        done, closed = 0, True
        while done < n:
            y, x = stack[done] // width, stack[done] % width
            done += 1
            closed &= 0 < y < height - 1 and 0 < x < width - 1
            for k in range(4):
                v, u = y + (k == 0) - (k == 1), x + (k == 2) - (k == 3)
                if 0 <= v < height and 0 <= u < width and not seen[v, u]:
                    seen[v, u] = 1
                    stack[n] = v * width + u
                    n += 1
        if closed and n <= most:
            for i in range(n):
                flat[stack[i]] = 1
