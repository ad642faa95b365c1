"""Intervals and differences by resampling patients.

Images of a patient are not independent, so whole patients are drawn (the cluster bootstrap,
Davison & Hinkley 1997, §3.8). Two runs are compared on the same draws. What becomes an interval of
the draws is said in :mod:`zoo.intervals`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import OptionError
from zoo.intervals import expanded_interval, expanded_p, metric_interval
from zoo.metrics import make_scorer
from zoo.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from zoo.metrics import AnyScorer

__all__ = [
    "Difference",
    "Interval",
    "bootstrap",
    "difference",
    "metric_draws",
    "paired_bootstrap",
    "patient_draws",
]

N_RESAMPLES = 2000
"""Resamples of an interval."""

LEVEL = 0.95
"""Share of resamples inside an interval."""

_CLASSES = Task()

_CHUNK_WEIGHTS = 2_000_000
"""Weights held at a time: 16 MB, whatever the cohort's size."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A metric with its interval; None where it is undefined."""

    value: float | None
    """The metric of the images as they are."""
    low: float | None
    """Lower end."""
    high: float | None
    """Upper end."""

    def to_json(self) -> dict[str, float | None]:
        """Write the three numbers as JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far one run is from another on the same images; None where undefined."""

    value: float | None
    """First minus second."""
    low: float | None
    """Lower end of the interval, :func:`zoo.intervals.expanded_interval`."""
    high: float | None
    """Upper end."""
    p: float | None
    """Two-sided bootstrap p of no difference, :func:`zoo.intervals.expanded_p`."""

    def to_json(self) -> dict[str, float | None]:
        """Write the four numbers as JSON."""
        return dataclasses.asdict(self)


def patient_draws(
    patient_ids: Sequence[str] | NDArray[np.object_],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Iterator[NDArray[np.float64]]:
    """Draw patients with replacement; yield how often each image counts.

    Patients are numbered by name, so the order of rows plays no part.

    Parameters
    ----------
    patient_ids
        Patient of each image.
    n_resamples
        Resamples in all.
    seed
        Decides the draws.

    Yields
    ------
    weights
        ``(resample, image)``, a bounded number of resamples at a time.
    """
    patients, place = np.unique(np.array(patient_ids, dtype=str), return_inverse=True)
    if not len(patients) or n_resamples < 1:
        msg = f"{len(patients)} patients and {n_resamples=}: both must be at least 1"
        raise OptionError(msg)
    n = len(patients)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_WEIGHTS // len(place))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        yield counts[:, place].astype(np.float64)


def bootstrap(
    y_true: ArrayLike,
    prob: ArrayLike,
    patient_ids: Sequence[str] | NDArray[np.object_],
    *,
    task: Task = _CLASSES,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Interval]:
    """Compute every metric with its interval over patients.

    Which interval a metric has is said at :func:`zoo.intervals.metric_interval`.
    Resamples in which a metric is undefined are left out of its interval; where that is
    more than half of them, the interval is None.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers; or the truth of another task.
    prob
        Probabilities, ``(image, class)``; or what was predicted in another task.
    patient_ids
        Patient of each image.
    task
        What was predicted; decides the metrics.
    n_resamples, level, seed
        Resamples, share of them inside the interval, and what decides the draws.

    Examples
    --------
    >>> y, prob = [0, 0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]]
    >>> found = bootstrap(y, prob, ["p1", "p2", "p3", "p4"])["accuracy"]
    >>> found.value, round(found.low, 2), round(found.high, 2)
    (0.75, 0.26, 0.96)
    """
    scorer = make_scorer(task, y_true, prob)
    values = scorer(np.ones((1, scorer.n_images)))
    draws = _draws([scorer], patient_ids, n_resamples, seed)[0]
    n_patients = len(set(map(str, patient_ids)))
    found = {}
    for name in scorer.names:
        low, high = metric_interval(
            name,
            float(values[name][0]),
            draws[name],
            n_images=scorer.n_images,
            n_patients=n_patients,
            level=level,
        )
        found[name] = Interval(value=_number(values[name][0]), low=low, high=high)
    return found


def paired_bootstrap(
    y_true: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patient_ids: Sequence[str] | NDArray[np.object_],
    *,
    task: Task = _CLASSES,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two sets of probabilities for the same images, by the same draws of patients.

    Interval and p are made for few patients (:func:`zoo.intervals.expanded_interval`,
    :func:`zoo.intervals.expanded_p`), and agree: the interval leaves out 0 where p < 1 - level.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers; or the truth of another task.
    first, second
        Probabilities, ``(image, class)``; or what was predicted in another task.
    patient_ids
        Patient of each image.
    task
        What was predicted; decides the metrics.
    n_resamples, level, seed
        As for :func:`bootstrap`.
    """
    scorers = [make_scorer(task, y_true, first), make_scorer(task, y_true, second)]
    one = np.ones((1, scorers[0].n_images))
    value_a, value_b = (scorer(one) for scorer in scorers)
    draws_a, draws_b = _draws(scorers, patient_ids, n_resamples, seed)
    n_patients = len(set(map(str, patient_ids)))
    return {
        name: difference(
            value_a[name][0] - value_b[name][0],
            draws_a[name] - draws_b[name],
            n_patients=n_patients,
            level=level,
        )
        for name in scorers[0].names
    }


def metric_draws(
    y_true: ArrayLike,
    values: Sequence[ArrayLike],
    patient_ids: Sequence[str] | NDArray[np.object_],
    metric: str,
    *,
    task: Task = _CLASSES,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute one metric of several runs, by the same draws of patients.

    Parameters
    ----------
    y_true, patient_ids, task
        As for :func:`bootstrap`.
    values
        Of each run, probabilities ``(image, class)``, or what was predicted in another task.
    metric
        One of the task's.
    n_resamples, seed
        As for :func:`bootstrap`.

    Returns
    -------
    scores
        ``(run,)``, of the images as they are.
    draws
        ``(run, resample)``.
    """
    scorers = [make_scorer(task, y_true, each) for each in values]
    one = np.ones((1, scorers[0].n_images))
    scores = np.array([scorer(one)[metric][0] for scorer in scorers])
    draws = _draws(scorers, patient_ids, n_resamples, seed, only=metric)
    return scores, np.stack([found[metric] for found in draws])


def difference(
    value: float, draws: NDArray[np.float64], *, n_patients: int, level: float = LEVEL
) -> Difference:
    """Put a difference and its resamples ``(resample,)`` together, as :func:`paired_bootstrap` does."""
    low, high = expanded_interval(draws, n_patients=n_patients, level=level)
    p = expanded_p(draws, n_patients=n_patients)
    return Difference(value=_number(np.float64(value)), low=low, high=high, p=p)


def _draws(
    scorers: list[AnyScorer],
    patient_ids: Sequence[str] | NDArray[np.object_],
    n_resamples: int,
    seed: int,
    only: str | None = None,
) -> list[dict[str, NDArray[np.float64]]]:
    """Metrics of every resample, all or one, for each scorer on the same draws."""
    names = scorers[0].names if only is None else (only,)
    chunks: list[list[dict[str, NDArray[np.float64]]]] = [[] for _ in scorers]
    for weights in patient_draws(patient_ids, n_resamples=n_resamples, seed=seed):
        for scorer, found in zip(scorers, chunks, strict=True):
            told = scorer(weights)
            found.append({name: told[name] for name in names})
    return [
        {name: np.concatenate([chunk[name] for chunk in found]) for name in names}
        for found in chunks
    ]


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
