"""ROC and precision-recall curves of one class against the rest, with bands over patients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoo.intervals import area_interval
from zoo.metrics.classes import Ranking, ratio
from zoo.report.sections import ClassCurves, Line, Range
from zoo.statistics import patient_draws

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["class_curves", "pr_points", "roc_points"]

N_AREAS = 1000
"""Resamples for the interval of an area."""

N_BAND = 200
"""Resamples for a band."""

MOST_POINTS = 160
"""Points drawn of a curve."""

_GRID = np.linspace(0.0, 1.0, 51)
_NAN = float("nan")


def class_curves(
    positive: NDArray[np.bool_],
    score: NDArray[np.float64],
    patient_ids: NDArray[np.object_],
    names: Sequence[str],
) -> tuple[ClassCurves, ...]:
    """Compute both curves of every class, their areas and intervals.

    Bands are pointwise: at each false positive rate, or recall, the middle 95 % of resamples of
    patients (vertical averaging, Fawcett 2006). Intervals of areas are those of
    :func:`zoo.intervals.area_interval`.

    Parameters
    ----------
    positive
        ``(image, class)``.
    score
        The class's probability, ``(image, class)``.
    patient_ids
        ``(image,)``.
    names
        ``(class,)``. Classes without positives, or without negatives, are left out.
    """
    has_both = positive.any(axis=0) & ~positive.all(axis=0)
    known = [int(k) for k in np.flatnonzero(has_both)]
    if not known:
        return ()
    rankings = [Ranking(score[:, k], positive[:, k]) for k in known]
    areas: list[list[NDArray[np.float64]]] = [[] for _ in known]
    bands: list[list[NDArray[np.float64]]] = [[] for _ in known]
    drawn = 0
    for weights in patient_draws(patient_ids, n_resamples=N_AREAS):
        for i, k in enumerate(known):
            areas[i].append(np.stack(rankings[i].areas(weights)))
            if drawn < N_BAND:
                some = weights[: N_BAND - drawn]
                bands[i].append(_on_grid(positive[:, k], score[:, k], some))
        drawn += len(weights)
    n_patients = len(set(map(str, patient_ids)))
    return tuple(
        _curves(
            names[k], positive[:, k], score[:, k], rankings[i],
            np.concatenate(areas[i], axis=1), np.concatenate(bands[i], axis=1), n_patients,
        )
        for i, k in enumerate(known)
    )  # fmt: skip


def roc_points(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give false and true positive rates, from (0, 0) to (1, 1), tied scores as one step.

    Parameters
    ----------
    positive, score
        ``(image,)``.
    weights
        How often each image counts, ``(resample, image)``.

    Returns
    -------
    false, true
        ``(resample, point)``; NaN where a resample has one kind of image alone.
    """
    hits, misses = _cumulated(positive, score, weights)
    return _rates(misses), _rates(hits)


def pr_points(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give recall and precision at every threshold, the highest first; as for :func:`roc_points`."""
    hits, misses = _cumulated(positive, score, weights)
    told = hits + misses
    return _rates(hits)[:, 1:], ratio(hits, told, 1.0)[:, 1:]


def _cumulated(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count hits and misses at or above each score, from none, ``(resample, point)``."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    ranked = weights[:, order]
    none = np.zeros((len(weights), 1))
    hits = (ranked * positive[order]).cumsum(axis=1)[:, ends]
    misses = (ranked * ~positive[order]).cumsum(axis=1)[:, ends]
    return np.concatenate([none, hits], axis=1), np.concatenate([none, misses], axis=1)


def _rates(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return ratio(counts, np.repeat(counts[:, -1:], counts.shape[1], axis=1), _NAN)


def _on_grid(
    positive: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Read both curves of each resample on a grid, ``(2, resample, grid)``."""
    false, true = roc_points(positive, score, weights)
    recall, precision = pr_points(positive, score, weights)
    found = np.full((2, len(weights), len(_GRID)), _NAN)
    for r in range(len(weights)):
        if np.isnan(false[r]).any() or np.isnan(recall[r]).any():
            continue
        found[0, r] = np.interp(_GRID, false[r], true[r])
        place = np.searchsorted(recall[r], _GRID - 1e-12, side="left")
        found[1, r] = precision[r, np.minimum(place, len(precision[r]) - 1)]
    return found


def _curves(
    name: str,
    positive: NDArray[np.bool_],
    score: NDArray[np.float64],
    ranking: Ranking,
    areas: NDArray[np.float64],
    band: NDArray[np.float64],
    n_patients: int,
) -> ClassCurves:
    one = np.ones((1, len(positive)))
    false, true = roc_points(positive, score, one)
    recall, precision = pr_points(positive, score, one)
    values = [float(area[0]) for area in ranking.areas(one)]
    auroc, average_precision = (
        _range(value, draws, n_patients) for value, draws in zip(values, areas, strict=True)
    )
    return ClassCurves(
        name=name,
        n_positive=int(positive.sum()),
        n_negative=int((~positive).sum()),
        auroc=auroc,
        average_precision=average_precision,
        roc=_line(false[0], true[0], band[0]),
        pr=_line(recall[0], precision[0], band[1]),
    )


def _range(value: float, draws: NDArray[np.float64], n_patients: int) -> Range:
    defined = draws[~np.isnan(draws)]
    if 2 * len(defined) <= len(draws):
        return Range(value=value, low=_NAN, high=_NAN)
    low, high = area_interval(value, defined, n_patients=n_patients)
    return Range(value=value, low=low, high=high)


def _line(x: NDArray[np.float64], y: NDArray[np.float64], band: NDArray[np.float64]) -> Line:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    defined = band[~np.isnan(band).any(axis=1)]
    low = high = np.empty((0,))
    if len(defined) * 2 > len(band):
        low, high = np.quantile(defined, [0.025, 0.975], axis=0)
    return Line(
        x=_numbers(x[kept]),
        y=_numbers(y[kept]),
        band_x=_numbers(_GRID) if len(low) else (),
        band_low=_numbers(low),
        band_high=_numbers(high),
    )


def _numbers(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.round(values, 4))
