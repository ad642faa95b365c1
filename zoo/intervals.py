"""Intervals from resamples, as sure of themselves near a bound as they may be.

Percentiles of resamples say nothing where every resample gives the same: of thirty images that are
all right, each resample is all right, and the interval would be [1, 1]. For scores between 0 and 1
that are averages of a kind (shares, areas under curves) the resamples are therefore asked for one
thing alone, their variance: it says of how many independent images the score is worth, and the
interval is Wilson's for a share of so many (Wilson 1927; with an effective sample size as in
Korn & Graubard 1998 and Dean & Pagano 2015). It never leaves 0 to 1, contains the score,
and does not shrink to a point. ``docs/statistics.md`` shows how often each of these covers the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "SHARES",
    "basic_interval",
    "effective_size",
    "percentile_interval",
    "share_interval",
    "square_and_add",
    "wilson",
]

SHARES = frozenset(
    {"macro_f1", "accuracy", "balanced_accuracy", "auroc", "auprc", "c_index", "c_index_ipcw"}
)
"""Metrics whose interval is :func:`share_interval`; the others take percentiles."""


def wilson(share: ArrayLike, n: ArrayLike, *, level: float = 0.95) -> NDArray[np.float64]:
    """Give Wilson's score interval of a share of ``n`` (Wilson 1927; Brown et al. 2001, eq. 4).

    Parameters
    ----------
    share
        Share or shares, 0 to 1.
    n
        Of how many; need not be whole.
    level
        Share of samples whose interval holds the truth.

    Returns
    -------
    interval
        ``(2, ...)``: lower and upper ends.

    Examples
    --------
    >>> wilson(1.0, 30).round(3).tolist(), wilson(0.5, 100).round(3).tolist()
    ([0.886, 1.0], [0.404, 0.596])
    """
    from scipy.special import ndtri

    v, size = np.asarray(share, np.float64), np.asarray(n, np.float64)
    z2 = float(ndtri((1 + level) / 2)) ** 2
    middle = (v + z2 / (2 * size)) / (1 + z2 / size)
    half = np.sqrt(z2 * (v * (1 - v) / size + z2 / (4 * size**2))) / (1 + z2 / size)
    # Rounding must not push an end past the share or a bound.
    return np.stack([np.clip(middle - half, 0.0, v), np.clip(middle + half, v, 1.0)])


def effective_size(share: float, variance: float, *, n_images: int, n_patients: int) -> float:
    """Say of how many independent images a score is worth: ``v (1 - v) / variance``.

    A variance found near a bound is too small: there the size is at most the number of images.
    Towards the middle this limit fades, to four times as many at 0.5, as a mean over several
    classes may be worth more than its images. Where all resamples are the same, how much images of
    a patient have in common is not known, and the size is the number of patients.

    Examples
    --------
    >>> effective_size(0.5, 0.0025, n_images=200, n_patients=100)
    100.0
    >>> effective_size(1.0, 0.0, n_images=60, n_patients=30)
    30.0
    """
    if variance <= 0 or not 0 < share < 1:
        return float(n_patients)
    spread = share * (1 - share)
    return min(max(spread / variance, 1.0), n_images * max(1.0, 16 * spread))


def share_interval(
    value: float,
    draws: NDArray[np.float64],
    *,
    n_images: int,
    n_patients: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Give the interval of a score between 0 and 1 from its resamples' variance.

    Parameters
    ----------
    value
        The score of the images as they are.
    draws
        The same of resamples of patients, ``(resample,)``, all defined.
    n_images, n_patients
        How many there are.
    level
        Share of samples whose interval holds the truth.

    Examples
    --------
    >>> low, high = share_interval(1.0, np.ones(100), n_images=30, n_patients=30)
    >>> round(low, 3), high
    (0.886, 1.0)
    """
    # Resamples of n patients vary by (n - 1) / n of what samples do.
    variance = float(np.var(draws)) * n_patients / max(n_patients - 1, 1)
    size = effective_size(value, variance, n_images=n_images, n_patients=n_patients)
    low, high = wilson(value, size, level=level)
    return float(low), float(high)


def percentile_interval(
    draws: NDArray[np.float64], *, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Give percentiles of resamples; None where half of them or more are undefined (NaN)."""
    defined = draws[~np.isnan(draws)]
    if len(defined) * 2 <= len(draws):
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def basic_interval(
    value: float, draws: NDArray[np.float64], *, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Give the basic bootstrap interval, for what resamples overstate (Davison & Hinkley 1997, eq. 5.6).

    A mean of distances, such as the calibration error, grows when images are drawn twice: resamples
    lie above the value, and percentiles may leave it out. Here they are reflected at the value,
    ``2 value - percentile``, and so moved down by as much as they are too high. The interval does
    not go below 0, and is widened to the value where that would lie outside.

    Examples
    --------
    >>> low, high = basic_interval(0.1, np.linspace(0.1, 0.18, 1001))
    >>> round(low, 3), round(high, 3)
    (0.022, 0.1)
    """
    low, high = percentile_interval(draws, level=level)
    if low is None or high is None or np.isnan(value):
        return None, None
    ends = (max(0.0, 2 * value - high), max(0.0, 2 * value - low))
    return float(min(ends[0], value)), float(max(ends[1], value))


def square_and_add(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Give the interval of first minus second from those of two independent samples.

    The limits are put together as in Newcombe (1998, method 10, for shares with Wilson's intervals)
    and, for any two, Zou & Donner (2008): ``d - sqrt((a - a_low)² + (b_high - b)²)`` and its mirror
    image. It does not shrink to a point where both are perfect.

    Parameters
    ----------
    first, second
        Value, lower and upper end of each.

    Examples
    --------
    >>> first, second = (56 / 70, *wilson(56 / 70, 70)), (48 / 80, *wilson(48 / 80, 80))
    >>> low, high = square_and_add(first, second)
    >>> round(float(low), 4), round(float(high), 4)  # Newcombe 1998, table II, (a), method 10
    (0.0524, 0.3339)
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    low = a - b - float(np.hypot(a - a_low, b_high - b))
    high = a - b + float(np.hypot(a_high - a, b - b_low))
    return low, high
