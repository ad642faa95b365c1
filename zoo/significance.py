"""Tests of whether two classifiers differ, or several: for one's own figures and for reviewers.

Images of a patient are not independent. :func:`mcnemar` and :func:`delong` therefore count patients;
where each patient has one image they are the tests known by these names.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["AreaDifference", "Friedman", "McNemar", "delong", "friedman", "holm", "mcnemar"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class McNemar:
    """Images that one of two classifiers alone gets right, and whether chance explains them."""

    first_only: int
    """Images that only the first gets right."""
    second_only: int
    """Images that only the second gets right."""
    p: float
    """Two-sided exact p: never wrong more often than it says, hence a little slow to see."""
    mid_p: float
    """The same with half the weight of what was seen (Fagerland et al. 2013): nearer to level."""

    def to_json(self) -> dict[str, Any]:
        """Write the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AreaDifference:
    """AUROC of one classifier minus that of another on the same images; None where undefined."""

    value: float | None
    """First minus second."""
    low: float | None
    """Lower end of the normal interval."""
    high: float | None
    """Upper end."""
    p: float | None
    """Two-sided normal p of no difference."""

    def to_json(self) -> dict[str, float | None]:
        """Write the four numbers as JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Friedman:
    """Whether runs are ranked alike by all blocks, and which mean ranks lie apart."""

    n_blocks: int
    """Folds, or data sets."""
    ranks: tuple[float, ...]
    """Mean rank of each run; 1 is best."""
    statistic: float
    """Friedman's chi-square, corrected for ties."""
    p: float
    """Of that, with ``runs - 1`` degrees of freedom."""
    p_iman_davenport: float
    """By the F distribution (Iman & Davenport 1980), less slow to see."""
    critical_difference: float
    """Mean ranks this far apart differ, all pairs considered at once (Nemenyi 1963)."""
    nemenyi_p: tuple[tuple[float, ...], ...]
    """p of each pair of runs by the same; 1 on the diagonal."""

    def to_json(self) -> dict[str, Any]:
        """Write the fields as JSON values."""
        return dataclasses.asdict(self)


def mcnemar(
    y_true: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patient_ids: Sequence[str] | NDArray[Any] | None = None,
) -> McNemar:
    """Test whether two classifiers are right equally often, by the images they differ on.

    If they are equally good, each patient's surplus of images that one alone gets right could as
    well be the other's. All ways of swapping patients are counted, exactly: with one image a
    patient this is the exact test of McNemar (1947), else its like for clusters.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers.
    first, second
        Predicted classes, ``(image,)`` integers.
    patient_ids
        Patient of each image; by default every image is a patient of its own.

    Raises
    ------
    OptionError
        If lengths differ or there is no image.

    Examples
    --------
    >>> y = np.zeros(21, int)
    >>> one, other = np.repeat([0, 1, 0], [1, 7, 13]), np.repeat([1, 0, 0], [1, 7, 13])
    >>> found = mcnemar(y, one, other)
    >>> found.first_only, found.second_only, round(found.p, 3), round(found.mid_p, 3)
    (1, 7, 0.07, 0.039)
    """
    truth, a, b = (np.asarray(value) for value in (y_true, first, second))
    if not truth.shape == a.shape == b.shape or truth.ndim != 1 or not len(truth):
        raise OptionError(
            f"truth {truth.shape} and predictions {a.shape}, {b.shape}: give one class per image"
        )
    surplus = (a == truth).astype(np.int64) - (b == truth)
    per_patient = np.bincount(_places(patient_ids, len(truth)), weights=surplus)
    beyond, there = _swapped(np.abs(per_patient).astype(np.int64), abs(int(surplus.sum())))
    return McNemar(
        first_only=int((surplus > 0).sum()),
        second_only=int((surplus < 0).sum()),
        p=min(1.0, 2 * (beyond + there)),
        mid_p=min(1.0, 2 * (beyond + there / 2)),
    )


def _swapped(sizes: NDArray[np.int64], seen: int) -> tuple[float, float]:
    """Give how likely a sum of ``sizes`` with random signs is above ``seen``, and at it."""
    total = int(sizes.sum())
    # chance[s] is that of the sizes with a plus adding up to s; their sum is then 2 s - total.
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for size in sizes[sizes > 0]:
        chance /= 2
        chance[size:] += chance[:-size].copy()
    place = (total + seen) // 2
    return float(chance[place + 1 :].sum()), float(chance[place])


def delong(
    y_true: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patient_ids: Sequence[str] | NDArray[Any] | None = None,
    *,
    level: float = 0.95,
) -> AreaDifference:
    """Test whether two classifiers have the same AUROC.

    The variance is that of DeLong et al. (1988), by ranks (Sun & Xu 2014). Images of a patient
    are added up before squaring (Obuchowski 1997). With more than two classes, AUROC is the mean
    over classes against the rest, as :mod:`zoo.metrics` has it, and each image's part in it is the
    mean of its parts in those.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers.
    first, second
        Probabilities, ``(image, class)``.
    patient_ids
        Patient of each image; by default every image is a patient of its own.
    level
        Share of samples whose interval holds the truth.

    Returns
    -------
    AreaDifference
        Undefined where no class has two positives and two negatives, or where the areas differ
        and the variance of that is zero.

    Examples
    --------
    >>> y, good = [0, 0, 0, 0, 1, 1, 1, 1], np.array([1, 2, 3, 5, 4, 6, 7, 8]) / 10
    >>> fair = np.array([1, 4, 2, 6, 3, 5, 7, 8]) / 10
    >>> found = delong(y, np.c_[1 - good, good], np.c_[1 - fair, fair])
    >>> found.value, round(found.p, 3)
    (0.125, 0.221)
    """
    from scipy.special import ndtr, ndtri

    truth, a, b = np.asarray(y_true), np.asarray(first, float), np.asarray(second, float)
    if truth.ndim != 1 or a.shape != b.shape or a.ndim != 2 or len(a) != len(truth):
        raise OptionError(
            f"truth {truth.shape} and probabilities {a.shape}, {b.shape}: give (image,) and "
            "twice (image, class)"
        )
    places = _places(patient_ids, len(truth))
    (area_a, parts_a), (area_b, parts_b) = (_areas(truth, prob, places) for prob in (a, b))
    value = float(area_a - area_b)
    if np.isnan(value):
        return AreaDifference(value=None, low=None, high=None, p=None)
    error = float(np.sqrt((np.bincount(places, weights=parts_a - parts_b) ** 2).sum()))
    half = float(ndtri((1 + level) / 2)) * error
    p = None if value else 1.0
    if error > 1e-12:
        p = float(2 * ndtr(-abs(value) / error))
    return AreaDifference(value=value, low=value - half, high=value + half, p=p)


def _areas(
    truth: NDArray[Any], prob: NDArray[np.float64], places: NDArray[np.intp]
) -> tuple[np.float64, NDArray[np.float64]]:
    """Give the AUROC, mean over classes, and each image's part in its error ``(image,)``."""
    found = [_area(truth == k, prob[:, k], places) for k in range(prob.shape[1])]
    defined = [(area, parts) for area, parts in found if not np.isnan(area)]
    if not defined:
        return np.float64(np.nan), np.zeros(len(truth))
    areas, parts = zip(*defined, strict=True)
    return np.float64(np.mean(areas)), np.mean(parts, axis=0)


def _area(
    positive: NDArray[np.bool_], score: NDArray[np.float64], places: NDArray[np.intp]
) -> tuple[float, NDArray[np.float64]]:
    """Give one class's AUROC and each image's part: its placement's distance from the mean."""
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        return float("nan"), np.zeros(len(score))
    # Share of the other side that an image stands on the right side of, from midranks.
    placement = np.empty(len(score))
    everywhere = _midranks(score)
    placement[positive] = (everywhere[positive] - _midranks(score[positive])) / n
    placement[~positive] = 1 - (everywhere[~positive] - _midranks(score[~positive])) / m
    area = float(placement[positive].mean())
    parts = placement - area
    for side, count in ((positive, m), (~positive, n)):
        patients = len(np.unique(places[side]))
        # One patient tells nothing of how patients vary; m / (m - 1) makes a variance unbiased.
        parts[side] *= np.sqrt(patients / max(patients - 1, 1)) / count
    return area, parts


def friedman(scores: ArrayLike, *, level: float = 0.95) -> Friedman:
    """Test whether runs are ranked alike by all blocks, then compare all pairs (Demšar 2006).

    Parameters
    ----------
    scores
        ``(block, run)``, more is better; at least two blocks and three runs.
    level
        One minus the chance of seeing any difference where there is none.

    Raises
    ------
    OptionError
        If there are too few runs or blocks, or a score is not finite.

    Examples
    --------
    >>> found = friedman([[0.9, 0.8, 0.7], [0.8, 0.7, 0.6], [0.7, 0.6, 0.5], [0.9, 0.5, 0.6]])
    >>> found.ranks, found.statistic, round(found.p, 3), round(found.critical_difference, 2)
    ((1.0, 2.25, 2.75), 6.5, 0.039, 1.66)
    """
    from scipy.stats import chi2, f, studentized_range

    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 3 or not np.isfinite(table).all():
        raise OptionError(
            f"scores of shape {table.shape}: give finite numbers for two blocks or more and three "
            "runs or more"
        )
    n, k = table.shape
    ranked = np.stack([_midranks(-row) for row in table])
    ranks = ranked.mean(axis=0)
    spread = ((ranked - (k + 1) / 2) ** 2).sum() / (n * (k - 1))
    between = n * ((ranks - (k + 1) / 2) ** 2).sum()
    statistic = float(between / spread) if spread > 0 else 0.0
    rest = n * (k - 1) - statistic
    ratio = (n - 1) * statistic / rest if rest > 1e-9 else np.inf
    error = np.sqrt(k * (k + 1) / (6 * n))
    apart = np.abs(ranks[:, None] - ranks[None, :]) / error
    p = studentized_range.sf(apart * np.sqrt(2), k, np.inf)
    reach = float(studentized_range.ppf(level, k, np.inf)) / np.sqrt(2)
    return Friedman(
        n_blocks=n,
        ranks=tuple(ranks.tolist()),
        statistic=statistic,
        p=float(chi2.sf(statistic, k - 1)),
        p_iman_davenport=float(f.sf(ratio, k - 1, (k - 1) * (n - 1))),
        critical_difference=float(reach * error),
        nemenyi_p=tuple(map(tuple, np.clip(p, 0.0, 1.0).tolist())),
    )


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for how many there are (Holm 1979); what is undefined stays so.

    Where the corrected value is at most 0.05, the chance that any of these findings is false is at
    most 0.05, however the tests depend on each other.

    Examples
    --------
    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    least = 0.0
    for step, (value, i) in enumerate(order):
        least = max(least, min(1.0, value * (len(order) - step)))
        corrected[i] = least
    return corrected


def _places(patient_ids: Sequence[str] | NDArray[Any] | None, n: int) -> NDArray[np.intp]:
    """Give each image its patient's number."""
    if patient_ids is None:
        return np.arange(n)
    if len(patient_ids) != n:
        raise OptionError(f"{len(patient_ids)} patients for {n} images: name one for each")
    return np.unique(np.array(patient_ids, dtype=str), return_inverse=True)[1]


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank from 1 upwards, ties by their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)
