"""Intervals from resamples, as sure of themselves near a bound as they may be.

Percentiles of resamples say nothing where every resample gives the same: of thirty images that are
all right, each resample is all right, and the interval would be [1, 1]. The resamples are therefore
asked for one thing alone, their variance, and :func:`metric_interval` says what is made of it:

- of shares (accuracy, F1, recall) it says of how many independent images the score is worth, and the
  interval is Wilson's for a share of so many (Wilson 1927; with an effective sample size as in
  Korn & Graubard 1998 and Dean & Pagano 2015); of kappa the same, moved from -1..1 to 0..1;
- areas under curves vary far less near 1 than shares do: their interval is normal on the logit
  scale (AUROC: Pepe 2003, Qin & Hotilovac 2008; AUPRC: Boyd et al. 2013);
- losses have no upper bound: theirs is normal on the log scale.

None of these leaves its bounds, each contains the score. What has no such rule, and every difference,
has :func:`expanded_interval`: percentiles, moved outwards as few patients ask for.
``docs/statistics.md`` shows how often all of them cover the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "AREAS",
    "SHARES",
    "area_interval",
    "basic_interval",
    "effective_size",
    "expanded_interval",
    "expanded_p",
    "loss_interval",
    "metric_interval",
    "percentile_interval",
    "share_interval",
    "square_and_add",
    "wilson",
]

SHARES = frozenset(
    {"macro_f1", "accuracy", "balanced_accuracy", "auroc", "auprc", "c_index", "c_index_ipcw"}
)
"""Scores from 0 to 1."""

AREAS = frozenset({"auroc", "auprc"})
"""Those of them whose interval is :func:`area_interval`; the others have :func:`share_interval`."""

_LOSSES = frozenset({"log_loss", "brier"})


def metric_interval(
    metric: str,
    value: float,
    draws: NDArray[np.float64],
    *,
    n_images: int,
    n_patients: int,
    level: float = 0.95,
) -> tuple[float | None, float | None]:
    """Give a metric's interval by the rule that suits it; None where it is undefined.

    Parameters
    ----------
    metric
        One of :mod:`zoo.metrics`; what is no share, area, kappa, loss or calibration error has
        :func:`expanded_interval`.
    value
        Of the images as they are; may be NaN.
    draws
        Of resamples of patients, ``(resample,)``, NaN where undefined.
    n_images, n_patients
        How many there are.
    level
        Share of samples whose interval holds the truth.
    """
    defined = draws[~np.isnan(draws)]
    if np.isnan(value) or 2 * len(defined) <= len(draws):
        return None, None
    ends: tuple[float | None, float | None]
    if metric in AREAS:
        ends = area_interval(value, defined, n_patients=n_patients, level=level)
    elif metric in _LOSSES:
        ends = loss_interval(value, defined, n_patients=n_patients, level=level)
    elif metric in SHARES or metric == "kappa":
        # Kappa goes from -1 to 1: moved, it is taken for a share.
        start, width = (-1, 2) if metric == "kappa" else (0, 1)
        share, shares = (value - start) / width, (defined - start) / width
        low, high = share_interval(
            share, shares, n_images=n_images, n_patients=n_patients, level=level
        )
        ends = start + width * low, start + width * high
    elif metric == "ece":
        ends = basic_interval(value, draws, level=level)
    else:
        ends = expanded_interval(draws, n_patients=n_patients, level=level)
    return ends


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
    variance = _variance(draws, n_patients)
    size = effective_size(value, variance, n_images=n_images, n_patients=n_patients)
    low, high = wilson(value, size, level=level)
    return float(low), float(high)


def area_interval(
    value: float, draws: NDArray[np.float64], *, n_patients: int, level: float = 0.95
) -> tuple[float, float]:
    """Give the interval of an area under a curve: Student's on the logit scale.

    ``logit(v) ± t · sd / (v (1 - v))``, with as many degrees of freedom as there are patients but
    one. Where all resamples are the same, as those of a perfect area are, it is Wilson's for as
    many as there are patients.

    Parameters
    ----------
    value, draws, n_patients, level
        As of :func:`share_interval`.

    Examples
    --------
    >>> low, high = area_interval(0.98, np.array([0.96, 0.98, 1.0]), n_patients=50)
    >>> round(low, 3), round(high, 3)
    (0.9, 0.996)
    """
    from scipy.special import expit, logit

    variance = _variance(draws, n_patients)
    if variance <= 0 or not 0 < value < 1:
        low, high = wilson(value, n_patients, level=level)
        return float(low), float(high)
    half = _student(n_patients, level) * np.sqrt(variance) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def loss_interval(
    value: float, draws: NDArray[np.float64], *, n_patients: int, level: float = 0.95
) -> tuple[float, float]:
    """Give the interval of a mean loss above 0: Student's on the log scale, ``log(v) ± t · sd / v``.

    Parameters
    ----------
    value, draws, n_patients, level
        As of :func:`share_interval`; a value of 0 is its own interval.

    Examples
    --------
    >>> low, high = loss_interval(0.5, np.array([0.4, 0.5, 0.6]), n_patients=50)
    >>> round(low, 3), round(high, 3)
    (0.359, 0.697)
    """
    if value <= 0:
        return value, value
    factor = float(
        np.exp(_student(n_patients, level) * np.sqrt(_variance(draws, n_patients)) / value)
    )
    return value / factor, value * factor


def _variance(draws: NDArray[np.float64], n_patients: int) -> float:
    """Give that of samples: resamples of n patients vary by (n - 1) / n of it."""
    return float(np.var(draws)) * n_patients / max(n_patients - 1, 1)


def _student(n_patients: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(n_patients - 1, 1), (1 + level) / 2))


def percentile_interval(
    draws: NDArray[np.float64], *, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Give percentiles of resamples; None where half of them or more are undefined (NaN)."""
    defined = draws[~np.isnan(draws)]
    if len(defined) * 2 <= len(draws):
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def expanded_interval(
    draws: NDArray[np.float64], *, n_patients: int, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Give percentiles moved outwards, as few patients ask for (Hesterberg 2015).

    Percentiles are too narrow twice: resamples of n patients vary by (n - 1) / n of what samples
    vary by, and they know no Student's t. Instead of a tail of ``a = (1 - level) / 2``, the ends
    therefore cut off ``Φ(-√(n / (n - 1)) · t)``, with t of ``n - 1`` degrees of freedom and a tail
    of ``a``. They are draws themselves, rounded outwards, so that the interval leaves out 0 where
    :func:`expanded_p` is below ``1 - level``, and only there.

    Parameters
    ----------
    draws
        Of resamples of patients, ``(resample,)``, NaN where undefined.
    n_patients
        How many patients were drawn from. They are drawn whatever their class, so it is all.
    level
        Share of samples whose interval holds the truth.

    Returns
    -------
    low, high
        None where half of the draws or more are undefined, or where there are too few to reach so
        far out: of 2,000 draws, those of four patients or fewer.

    Examples
    --------
    >>> draws = np.linspace(-1, 1, 2001)
    >>> [[round(end, 3) for end in expanded_interval(draws, n_patients=n)] for n in (10, 10**6)]
    [[-0.984, 0.984], [-0.951, 0.951]]
    >>> expanded_interval(draws, n_patients=4)
    (None, None)
    """
    from scipy.special import ndtr

    defined = np.sort(draws[~np.isnan(draws)])
    if len(defined) * 2 <= len(draws) or n_patients < 2:
        return None, None
    tail = ndtr(-_student(n_patients, level) * np.sqrt(n_patients / (n_patients - 1)))
    place = int(tail * (len(defined) + 1))
    if not place:
        return None, None
    return float(defined[place - 1]), float(defined[-place])


def expanded_p(draws: NDArray[np.float64], *, n_patients: int) -> float | None:
    """Give the two-sided p of no difference that goes with :func:`expanded_interval`.

    The smaller share of draws on one side of 0, one added to both sides of the fraction (Davison &
    Hinkley 1997, eq. 4.11), is a tail of the normal distribution; taken back to Student's,
    ``p = 2 · T(Φ⁻¹(share) · √((n - 1) / n))``. None where half of the draws or more are undefined.

    Examples
    --------
    >>> draws = np.linspace(-0.05, 1.95, 2001)  # 51 of 2,001 not above 0
    >>> [round(expanded_p(draws, n_patients=n), 3) for n in (2, 10, 10**6)]
    [0.4, 0.098, 0.052]
    """
    from scipy.special import ndtri, stdtr

    defined = draws[~np.isnan(draws)]
    if len(defined) * 2 <= len(draws):
        return None
    least = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    z = ndtri(min(0.5, (least + 1) / (len(defined) + 1)))
    shrunk = z * np.sqrt((n_patients - 1) / n_patients)
    return float(2 * stdtr(max(n_patients - 1, 1), shrunk))


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
