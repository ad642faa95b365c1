"""Moments and percentiles of a channel."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders._texture_names import MOMENTS, PERCENTILES
from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FLAT", "MOMENTS", "PERCENTILES", "summaries"]


FLAT = 1e-10
"""A channel that spans less than this is constant but for rounding: no spread, no shape."""

_BINS = 2048


@compiled(reassociate=True)
def _moments(values: NDArray[np.float64], out: NDArray[np.float64]) -> tuple[float, float]:
    """Write mean, sd, skewness, excess kurtosis; return the smallest and the largest value."""
    n = values.shape[0]
    low = high = values[0]
    total = 0.0
    for i in range(n):
        low = min(low, values[i])
        high = max(high, values[i])
        total += values[i]
    if high - low < FLAT:
        out[0], out[1], out[2], out[3] = low, 0.0, 0.0, 0.0
        return low, high
    mean = total / n
    second = third = fourth = 0.0
    for i in range(n):
        from_mean = values[i] - mean
        square = from_mean * from_mean
        second += square
        third += square * from_mean
        fourth += square * square
    variance = second / n
    out[0] = mean
    out[1] = np.sqrt(variance)
    out[2] = third / n / (variance * out[1])
    out[3] = fourth / n / (variance * variance) - 3.0
    return low, high


@compiled()
def _bin(
    values: NDArray[np.float64], low: float, high: float, index: NDArray[np.int16]
) -> NDArray[np.int64]:
    """Write each value's bin into ``index``, and count how many values lie below each bin.

    The extremes have a bin each of their own: clipping puts many pixels there.
    """
    scale = _BINS / (high - low)
    for i in range(values.shape[0]):
        inner = 1 + int(min((values[i] - low) * scale, _BINS - 1.0))
        inner = 0 if values[i] == low else inner
        index[i] = _BINS + 1 if values[i] == high else inner
    below = np.zeros(_BINS + 3, np.int64)
    for i in range(values.shape[0]):
        below[index[i] + 1] += 1
    for b in range(_BINS + 2):
        below[b + 1] += below[b]
    return below


@compiled()
def _sort(values: NDArray[np.float64], n: int) -> None:
    """Sort the first ``n`` values in place (Shell's method: few lines, quick to compile)."""
    gap = n
    while gap > 1:
        gap = max(gap * 5 // 11, 1)
        for i in range(gap, n):
            value = values[i]
            j = i
            while j >= gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value


@compiled()
def _ordered(
    values: NDArray[np.float64],
    low: float,
    high: float,
    ranks: NDArray[np.int64],
    found: NDArray[np.float64],
) -> None:
    """Give in ``found`` the values of the ascending ``ranks``, without sorting all values.

    A fine histogram tells which bins the ranks fall into; only what is in those is sorted.
    """
    index = np.empty(values.shape[0], np.int16)
    below = _bin(values, low, high, index)
    wanted = np.zeros(_BINS + 2, np.uint8)
    b = 0
    for k in range(ranks.shape[0]):
        while below[b + 1] <= ranks[k]:
            b += 1
        wanted[b] = 0 < b <= _BINS
    kept = np.empty(values.shape[0], np.float64)
    n_kept = 0
    for i in range(values.shape[0]):
        kept[n_kept] = values[i]  # overwritten by the next, unless counted
        n_kept += int(wanted[index[i]])
    _sort(kept, n_kept)
    b, start = 0, 0  # where the bin begins in kept
    for k in range(ranks.shape[0]):
        while below[b + 1] <= ranks[k]:
            if wanted[b]:
                start += int(below[b + 1] - below[b])
            b += 1
        if wanted[b]:
            found[k] = kept[start + int(ranks[k] - below[b])]
        else:
            found[k] = low if b == 0 else high


@compiled()
def _summaries(
    values: NDArray[np.float64],
    ranks: NDArray[np.int64],
    place: NDArray[np.int64],
    share: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Fill ``out``; see :func:`summaries` and :func:`_ranks`."""
    n_moments = len(MOMENTS)
    found = np.empty(ranks.shape[0], np.float64)
    for c in range(values.shape[0]):
        low, high = _moments(values[c], out[c])
        flat = high - low < FLAT
        if not flat:
            _ordered(values[c], low, high, ranks, found)
        for k in range(share.shape[0]):
            lower, upper = found[place[2 * k]], found[place[2 * k + 1]]
            out[c, n_moments + k] = low if flat else lower + (upper - lower) * share[k]


@lru_cache(maxsize=8)
def _ranks(
    n_pixels: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Say between which two ranks each percentile lies (numpy's default, linear).

    Returns
    -------
    ranks
        ``(2 * percentile)``, ascending: the lower and upper neighbours of all percentiles.
    place
        ``(2 * percentile)``: where in ``ranks`` the neighbours of each percentile stand.
    share
        ``(percentile)``: how far it lies from the lower to the upper one.
    """
    position = (n_pixels - 1) * np.array(PERCENTILES) / 100
    lower = position.astype(np.int64)
    ranks = np.stack([lower, np.minimum(lower + 1, n_pixels - 1)], axis=1).ravel()
    order = np.argsort(ranks, kind="stable")
    return ranks[order], np.argsort(order), position - lower


def summaries(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Describe channels.

    Parameters
    ----------
    values
        ``(channel, pixel)``, finite, one pixel at least.

    Returns
    -------
    summary
        ``(channel, 4 + percentile)``: mean, standard deviation, skewness m₃/m₂^1.5, excess
        kurtosis m₄/m₂² − 3 (population moments; zero for a constant channel), percentiles as
        in :data:`PERCENTILES`.

    Examples
    --------
    >>> summaries(np.array([[0.0, 1.0, 1.0, 2.0]]))[0, :4].round(3).tolist()
    [1.0, 0.707, 0.0, -1.0]
    """
    out = np.empty((len(values), len(MOMENTS) + len(PERCENTILES)))
    _summaries(values, *_ranks(values.shape[1]), out)
    return out
