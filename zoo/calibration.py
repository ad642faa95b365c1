"""How far predicted probabilities can be taken at their word."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError
from zoo.metrics import ECE_BINS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Bin", "BrierParts", "Reliability", "brier_parts", "chance_error", "reliability"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Images of about the same predicted probability."""

    low: float
    """From above this probability (from it, in the first bin)."""
    high: float
    """To this one."""
    n: int
    """Images."""
    predicted: float | None
    """Mean probability; None without images."""
    observed: float | None
    """Share of images for which it came true; None without images."""
    observed_low: float | None
    """Lower end of the Jeffreys interval of that share."""
    observed_high: float | None
    """Upper end."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """A reliability diagram as numbers."""

    bins: tuple[Bin, ...]
    """From low probabilities to high ones."""
    ece: float
    """Mean distance of predicted and observed, weighted by images."""
    mce: float
    """Largest distance."""

    def to_json(self) -> dict[str, Any]:
        """Write everything as JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BrierParts:
    """What a Brier score is made of: ``reliability - resolution + uncertainty + within``."""

    brier: float
    """The score: squared distances, summed over classes (0 to 2), mean over images."""
    reliability: float
    """How far probabilities are from what came true; 0 is best."""
    resolution: float
    """How far what came true differs between bins; more is better."""
    uncertainty: float
    """How mixed the classes are; not up to the classifier."""
    within: float
    """What bins hide: 0 where all probabilities of a bin are equal."""

    def to_json(self) -> dict[str, float]:
        """Write the five numbers as JSON."""
        return dataclasses.asdict(self)


def reliability(
    y_true: ArrayLike,
    prob: ArrayLike,
    *,
    of_class: int | None = None,
    n_bins: int = ECE_BINS,
    equal_mass: bool = False,
    level: float = 0.95,
) -> Reliability:
    """Compare predicted probabilities with what came true, bin by bin.

    The intervals are those of Jeffreys (Brown et al. 2001, §3.1.3) and take images for
    independent: where patients have several, they are too narrow.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers from 0.
    prob
        Probabilities, ``(image, class)``.
    of_class
        The class whose probability is judged; by default that of the predicted class, whichever
        it is, as for the metric ``ece``.
    n_bins
        How many bins.
    equal_mass
        Bins of equally many images rather than of equal width (Nguyen & O'Connor 2015). Equal
        probabilities stay together, so there may be fewer.
    level
        Share of samples whose interval holds the truth.

    Raises
    ------
    OptionError
        If shapes do not fit, a probability is not from 0 to 1, or a number is out of range.

    Examples
    --------
    >>> y, prob = [0, 1, 1, 1], [[0.75, 0.25], [0.25, 0.75], [0.25, 0.75], [0.75, 0.25]]
    >>> found = reliability(y, prob, of_class=1, n_bins=2)
    >>> [(bin.n, bin.predicted, bin.observed) for bin in found.bins], found.ece
    ([(2, 0.25, 0.5), (2, 0.75, 1.0)], 0.25)
    """
    truth, scores = _checked(y_true, prob)
    if n_bins < 1 or not 0 < level < 1:
        raise OptionError(f"{n_bins=} and {level=}: at least 1, and between 0 and 1")
    if of_class is not None and not 0 <= of_class < scores.shape[1]:
        raise OptionError(f"{of_class=}, but classes are 0 to {scores.shape[1] - 1}")
    told = scores.argmax(axis=1) if of_class is None else np.full(len(truth), of_class)
    said, came_true = scores[np.arange(len(truth)), told], told == truth
    edges = _edges(said, n_bins, equal_mass=equal_mass)
    place = _bin_of(said, edges)
    bins = tuple(
        _bin(said[place == k], came_true[place == k], edges[k : k + 2], level)
        for k in range(len(edges) - 1)
    )
    gaps = [(bin_.n, abs(bin_.predicted - bin_.observed)) for bin_ in bins if bin_.predicted is not None and bin_.observed is not None]  # fmt: skip
    ece = sum(n * gap for n, gap in gaps) / len(truth)
    return Reliability(bins=bins, ece=float(ece), mce=float(max(gap for _, gap in gaps)))


def _edges(said: NDArray[np.float64], n_bins: int, *, equal_mass: bool) -> NDArray[np.float64]:
    if not equal_mass:
        return np.linspace(0.0, 1.0, n_bins + 1)
    inner = np.quantile(said, np.arange(1, n_bins) / n_bins, method="inverted_cdf")
    return np.unique(np.r_[0.0, inner, 1.0])


def _bin_of(said: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """Place probabilities, each edge in the bin below it."""
    return np.clip(np.searchsorted(edges, said, side="left") - 1, 0, len(edges) - 2)


def _bin(
    said: NDArray[np.float64],
    came_true: NDArray[np.bool_],
    edges: NDArray[np.float64],
    level: float,
) -> Bin:
    n, hits = len(said), int(came_true.sum())
    low, high = _jeffreys(hits, n, level) if n else (None, None)
    return Bin(
        low=float(edges[0]),
        high=float(edges[1]),
        n=n,
        predicted=float(said.mean()) if n else None,
        observed=hits / n if n else None,
        observed_low=low,
        observed_high=high,
    )


def _jeffreys(hits: int, n: int, level: float) -> tuple[float, float]:
    from scipy.special import betaincinv

    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = betaincinv(hits + 0.5, n - hits + 0.5, ends)
    return (float(low) if hits else 0.0, float(high) if hits < n else 1.0)


def brier_parts(y_true: ArrayLike, prob: ArrayLike, *, n_bins: int = ECE_BINS) -> BrierParts:
    """Split the Brier score (Murphy 1973), class by class against the rest, summed over classes.

    Bins are of equal width. What they hide is told as ``within`` (Stephenson et al. 2008), so that
    the parts add up to the score whatever the bins.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers from 0.
    prob
        Probabilities, ``(image, class)``.
    n_bins
        How many bins.

    Raises
    ------
    OptionError
        If shapes do not fit, a probability is not from 0 to 1, or there is no bin.

    Examples
    --------
    >>> found = brier_parts([0, 0, 1, 1], [[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0, 1]])
    >>> round(found.brier, 3), round(found.reliability, 4), round(found.resolution, 4)
    (0.344, 0.0104, 0.1667)
    >>> found.uncertainty, round(found.within, 9)
    (0.5, 0.0)
    """
    truth, scores = _checked(y_true, prob)
    if n_bins < 1:
        raise OptionError(f"{n_bins=}: at least 1")
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    parts = np.zeros(4)
    for k in range(scores.shape[1]):
        said, came_true = scores[:, k], (truth == k).astype(np.float64)
        place = _bin_of(said, edges)
        n = np.bincount(place, minlength=n_bins)
        filled = n > 0
        said_mean = np.bincount(place, said, n_bins)[filled] / n[filled]
        true_mean = np.bincount(place, came_true, n_bins)[filled] / n[filled]
        base, share = came_true.mean(), n[filled] / len(truth)
        parts += [
            ((said - came_true) ** 2).mean(),
            share @ (said_mean - true_mean) ** 2,
            share @ (true_mean - base) ** 2,
            base * (1 - base),
        ]
    brier, gap, resolution, uncertainty = map(float, parts)
    return BrierParts(
        brier=brier,
        reliability=gap,
        resolution=resolution,
        uncertainty=uncertainty,
        within=brier - (gap - resolution + uncertainty),
    )


def chance_error(
    prob: ArrayLike,
    *,
    of_class: int | None = None,
    n_bins: int = ECE_BINS,
    n_draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Say how large a calibration error chance alone makes, were probabilities perfectly right.

    Few images in many bins are never where they should be. Outcomes are drawn from the
    probabilities themselves (consistency resampling, Bröcker & Smith 2007), independently.

    Parameters
    ----------
    prob
        Probabilities, ``(image, class)``.
    of_class, n_bins
        As of :func:`reliability`.
    n_draws, seed
        How often outcomes are drawn, and what decides them.
    level
        Share of draws below the second number.

    Returns
    -------
    mean, high
        Mean over draws, and what it exceeds in one of twenty.

    Examples
    --------
    >>> mean, high = chance_error(np.full((100, 2), 0.5))
    >>> 0.03 < mean < 0.05 and 0.08 < high < 0.12
    True
    """
    scores = np.asarray(prob, dtype=np.float64)
    said = scores.max(axis=1) if of_class is None else scores[:, of_class]
    place = _bin_of(said, np.linspace(0.0, 1.0, n_bins + 1))
    rng = np.random.default_rng(seed)
    member = np.eye(n_bins)[place]
    drawn = np.concatenate(
        [
            np.abs(((rng.random((size, len(said))) < said) - said) @ member).sum(axis=1)
            for size in _sizes(n_draws, max(1, 2_000_000 // len(said)))
        ]
    )
    errors = drawn / len(said)
    return float(errors.mean()), float(np.quantile(errors, level))


def _sizes(total: int, most: int) -> list[int]:
    """Cut a number into parts."""
    return [min(most, total - start) for start in range(0, total, most)]


def _checked(y_true: ArrayLike, prob: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth, scores = np.asarray(y_true), np.asarray(prob, dtype=np.float64)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not len(truth):
        raise OptionError(
            f"truth {truth.shape} and probabilities {scores.shape}: give (image,) and "
            "(image, class), one image or more"
        )
    if not ((scores >= 0) & (scores <= 1 + 1e-9)).all():
        raise OptionError("a probability is not from 0 to 1: give those of a task with classes")
    if ((truth < 0) | (truth >= scores.shape[1])).any():
        raise OptionError(
            f"true classes are {truth.min()} to {truth.max()}, but there are {scores.shape[1]} "
            "columns of probabilities"
        )
    return truth.astype(np.int64), scores
