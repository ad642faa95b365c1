"""Operating points: thresholds chosen on validation images, judged on test images.

A threshold chosen on the images it is judged on flatters itself. Here each fold's threshold comes
from the fold's own validation rows and decides its own test rows alone.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError
from zoo.errors import RunError
from zoo.intervals import share_interval
from zoo.predictions import average
from zoo.statistics import LEVEL, N_RESAMPLES, Interval, patient_draws

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from zoo.run import Run

__all__ = ["RULES", "OperatingPoint", "choose_threshold", "operating_points"]

RULES = ("youden", "sensitivity")
"""How a threshold may be chosen."""

SENSITIVITY = 0.95
"""What ``sensitivity`` asks of validation images."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """What deciding by thresholds does to test images."""

    rule: str
    """How the thresholds were chosen."""
    positive: str
    """The class that a probability at or above the threshold decides for."""
    thresholds: dict[int, float]
    """Threshold of each fold."""
    sensitivity: Interval
    """Share of the positive test images that are called positive."""
    specificity: Interval
    """Share of the other test images that are not."""
    ppv: Interval
    """Share of the test images called positive that are: it depends on how many are."""
    npv: Interval
    """Share of the others that are not."""

    def to_json(self) -> dict[str, Any]:
        """Write everything as JSON values."""
        told = dataclasses.asdict(self)
        return {**told, "thresholds": {str(k): v for k, v in self.thresholds.items()}}


def choose_threshold(
    positive: ArrayLike, score: ArrayLike, *, rule: str = "youden", sensitivity: float = SENSITIVITY
) -> float:
    """Choose a threshold; scores at or above it are called positive.

    It lies half-way between two scores. Of several that are equally good, it is the lowest: rather
    call one too many.

    Parameters
    ----------
    positive
        Whether each image is, ``(image,)``.
    score
        Its score, ``(image,)``.
    rule
        ``youden``: the largest sum of sensitivity and specificity (Youden 1950). ``sensitivity``:
        the largest specificity of those with at least a given sensitivity.
    sensitivity
        That one.

    Raises
    ------
    OptionError
        If a rule is unknown, lengths differ, or the images are all of one kind.

    Examples
    --------
    >>> choose_threshold([0, 0, 1, 0, 1, 1], [1, 2, 3, 4, 5, 6])
    2.5
    >>> choose_threshold([0, 0, 1, 0, 1, 1], [1, 2, 3, 4, 5, 6], rule="sensitivity", sensitivity=0.6)
    4.5
    """
    truth, values = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    if rule not in RULES or not 0 < sensitivity <= 1:
        raise OptionError(f"{rule=}, {sensitivity=}: use {' or '.join(RULES)}, and above 0 to 1")
    if truth.ndim != 1 or truth.shape != values.shape:
        raise OptionError(f"truth {truth.shape} and scores {values.shape}: give one per image")
    if truth.all() or not truth.any():
        raise OptionError(
            f"{truth.sum()} of {len(truth)} images are positive: a threshold needs both kinds"
        )
    known = np.unique(values)
    cuts = np.r_[known[0], (known[:-1] + known[1:]) / 2]
    called = values >= cuts[:, None]
    found = called[:, truth].mean(axis=1)
    spared = (~called)[:, ~truth].mean(axis=1)
    # Sums of shares that are equal may differ by rounding; argmax then takes the lowest.
    if rule == "youden":
        return float(cuts[np.argmax(np.round(found + spared, 12))])
    return float(cuts[np.argmax(np.where(found >= sensitivity - 1e-12, spared, -1.0))])


def operating_points(
    run: Run,
    *,
    positive: str | None = None,
    sensitivity: float = SENSITIVITY,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> tuple[OperatingPoint, ...]:
    """Judge a run at thresholds from validation images: one class, or label, against the rest.

    Probabilities are averaged over seeds. Where repeats test an image several times, what decides
    is the mean of its distances from the thresholds. The intervals are over patients and take
    thresholds as given: they say how these decisions would fare, not how others' would.

    Parameters
    ----------
    run
        A finished run or ensemble.
    positive
        Name of the positive class or label; of two classes, the last one where left out.
    sensitivity
        What the rule ``sensitivity`` asks of the validation images of a fold.
    n_resamples, seed
        As for :func:`zoo.statistics.bootstrap`.

    Returns
    -------
    tuple
        One for each of :data:`RULES`.

    Raises
    ------
    RunError
        If the run has no such class, more than two and none was named, or a fold has no validation
        images of both kinds.
    """
    two = run.task.kind == "classification" and len(run.classes) == 2
    name = run.classes[-1] if positive is None and two else positive
    if run.task.kind not in {"classification", "multi-label"} or name not in run.classes:
        raise RunError(
            f"{run.path} learned {run.task.kind} of {', '.join(run.classes) or 'a number'}: "
            "operating points need two classes, or the name of one, and one of them as positive"
        )
    code = run.classes.index(str(name))
    return tuple(
        _point(run, code, rule, sensitivity, n_resamples=n_resamples, seed=seed) for rule in RULES
    )


def _point(
    run: Run, code: int, rule: str, sensitivity: float, *, n_resamples: int, seed: int
) -> OperatingPoint:
    thresholds: dict[int, float] = {}
    tested: list[tuple[NDArray[np.object_], NDArray[np.float64]]] = []
    for fold, rows in run.predictions.groupby("fold", sort=True):
        thresholds[int(str(fold))] = threshold = _of_fold(run, rows, code, rule, sensitivity)
        if (rows["role"] == "test").any():
            images = average(rows[rows["role"] == "test"], run.classes, run.task)
            tested.append((images.image_ids, images.prob[:, code] - threshold))
    images = run.test_probabilities()
    place = np.searchsorted(images.image_ids.astype(str), np.concatenate([i for i, _ in tested]).astype(str))  # fmt: skip
    margin = np.bincount(place, np.concatenate([margin for _, margin in tested]))
    called, truth = margin >= 0, _is(images.y_true, code)
    draws = list(patient_draws(images.patient_ids, n_resamples=n_resamples, seed=seed))
    weights = np.concatenate(draws)
    return OperatingPoint(
        rule=rule,
        positive=run.classes[code],
        thresholds=thresholds,
        sensitivity=_share(called[truth], weights[:, truth], images.patient_ids[truth]),
        specificity=_share(~called[~truth], weights[:, ~truth], images.patient_ids[~truth]),
        ppv=_share(truth[called], weights[:, called], images.patient_ids[called]),
        npv=_share(~truth[~called], weights[:, ~called], images.patient_ids[~called]),
    )


def _is(y_true: NDArray[Any], code: int) -> NDArray[np.bool_]:
    """Tell which images have a class, or a label."""
    has: NDArray[np.bool_] = y_true == code if y_true.ndim == 1 else y_true[:, code] > 0
    return has


def _of_fold(run: Run, rows: pd.DataFrame, code: int, rule: str, sensitivity: float) -> float:
    watched = rows[rows["role"] == "validation"]
    fold = rows["fold"].iloc[0]
    if not len(watched):
        raise RunError(f"{run.path}: fold {fold} has no validation images to choose a threshold on")
    images = average(watched, run.classes, run.task)
    try:
        return choose_threshold(
            _is(images.y_true, code), images.prob[:, code], rule=rule, sensitivity=sensitivity
        )
    except OptionError as error:
        raise RunError(f"{run.path}: validation images of fold {fold}: {error}") from error


def _share(
    right: NDArray[np.bool_], weights: NDArray[np.float64], patients: NDArray[np.object_]
) -> Interval:
    """Give a share of images with its interval over patients."""
    if not len(right):
        return Interval(value=None, low=None, high=None)
    drawn = weights.sum(axis=1)
    draws = (weights @ right)[drawn > 0] / drawn[drawn > 0]
    low, high = share_interval(
        float(right.mean()),
        draws,
        n_images=len(right),
        n_patients=len(set(patients.astype(str))),
        level=LEVEL,
    )
    return Interval(value=float(right.mean()), low=low, high=high)
