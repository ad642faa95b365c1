"""What a report shows of one set of predictions beside their metrics, by task."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from zoo.calibration import brier_parts, chance_error, reliability
from zoo.metrics import confusion_matrix
from zoo.report.curves import class_curves
from zoo.report.scores import classification_report, label_report
from zoo.report.sections import Calibration, Judged, Range, RiskGroup, Scatter, Survival
from zoo.report.svg import ticks as round_ticks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from zoo.predictions import Predictions
    from zoo.report.model import Interval
    from zoo.report.sections import ClassCurves, ClassRow
    from zoo.tasks import Task

__all__ = ["agreement", "judge", "losses", "risk_groups", "tables"]

MOST_CLASSES = 12
"""Classes with curves; of more, the largest."""

MOST_POINTS = 600
"""Points of a scatter plot; of more, every so-manieth of those sorted by truth."""

_NAN = float("nan")


def judge(
    images: Predictions,
    classes: Sequence[str],
    task: Task,
    metrics: Mapping[str, Interval | Range],
) -> Judged:
    """Compute what is shown of predictions.

    Parameters
    ----------
    images
        One prediction per image.
    classes, task
        Of the run.
    metrics
        Those of the same predictions; the intervals of calibration error and Brier score are
        taken from them.
    """
    bare = Judged(n_images=len(images.image_ids), n_patients=len(set(images.patient_ids)))
    if task.kind == "regression":
        return replace(bare, scatter=agreement(images, task.targets[0]))
    if task.kind == "survival":
        return replace(bare, survival=risk_groups(images, task.targets[0]))
    if task.kind == "multi-label":
        positive = images.y_true > 0
        return replace(
            bare,
            curves=_curves(positive, images, classes),
            calibration=_of_labels(positive, images.prob),
        )
    positive = images.y_true[:, None] == np.arange(len(classes))
    if len(classes) == 2:  # the first class's curve is the second's mirror image
        positive[:, 0] = False
    return replace(
        bare,
        curves=_curves(positive, images, classes),
        calibration=_of_classes(images, metrics),
    )


def tables(
    images: Predictions, classes: Sequence[str], task: Task
) -> tuple[tuple[tuple[int, ...], ...], tuple[ClassRow, ...]]:
    """Count images by truth and prediction, and judge every class; both empty for numbers."""
    if task.kind == "multi-label":
        return (), label_report(images.y_true > 0, images.prob, classes)
    if not task.one_class:
        return (), ()
    counts = confusion_matrix(images.y_true, images.prob.argmax(axis=1), len(classes))
    matrix = tuple(tuple(int(n) for n in row) for row in counts)
    return matrix, classification_report(images.y_true, images.prob, classes)


def losses(images: Predictions, task: Task) -> tuple[NDArray[np.float64], str]:
    """Say how wrong each image is, ``(image,)``, and what that is called.

    Log loss for classes and labels (mean over labels), the distance for numbers; for survival the
    share of the images it can be compared with whose order of risk is wrong.
    """
    truth, told = images.y_true, images.prob
    tiny = np.finfo(np.float64).eps
    if task.one_class:
        likelihood = told[np.arange(len(truth)), truth]
        return -np.log(np.clip(likelihood, tiny, 1.0)), "log loss"
    if task.kind == "multi-label":
        likelihood = np.where(truth > 0, told, 1 - told)
        return -np.log(np.clip(likelihood, tiny, 1.0)).mean(axis=1), "log loss"
    if task.kind == "regression":
        return np.abs(told[:, 0] - truth[:, 0]), "error"
    return _misplaced(truth[:, 0], truth[:, 1] > 0, told[:, 0]), "share of wrong order"


def agreement(images: Predictions, target: str) -> Scatter:
    """Hold predicted numbers against true ones."""
    truth, told = images.y_true[:, 0], images.prob[:, 0]
    off = told - truth
    sd = float(off.std(ddof=1)) if len(off) > 1 else _NAN
    bias = float(off.mean())
    order = np.argsort(truth, kind="stable")
    kept = order[:: max(1, -(-len(order) // MOST_POINTS))]
    return Scatter(
        target=target,
        truth=_rounded(truth[kept]),
        predicted=_rounded(told[kept]),
        n_images=len(truth),
        bias=bias,
        sd=sd,
        limits=(bias - 1.96 * sd, bias + 1.96 * sd),
    )


def risk_groups(images: Predictions, time_name: str) -> Survival | None:
    """Draw up Kaplan-Meier curves of images below and above the median risk.

    Intervals are Greenwood's on the log-log scale, the test is the log-rank test (both SciPy's);
    images are taken for independent. None where all risks are equal.
    """
    from scipy.stats import CensoredData, ecdf, logrank

    time, event, risk = images.y_true[:, 0], images.y_true[:, 1] > 0, images.prob[:, 0]
    high = risk > np.median(risk)
    if not high.any() or high.all():
        return None
    ticks = tuple(t for t in round_ticks(0, float(time.max()), most=4) if t <= time.max())
    samples, groups = [], []
    for name, mine in (("low risk", ~high), ("high risk", high)):
        sample = CensoredData.right_censored(time[mine], ~event[mine])
        samples.append(sample)
        curve = ecdf(sample).sf
        with warnings.catch_warnings():  # where nobody or everybody had the event there is none
            warnings.simplefilter("ignore", RuntimeWarning)
            band = curve.confidence_interval(method="log-log")
        low, top = (
            np.where(np.isfinite(side.probabilities), side.probabilities, curve.probabilities)
            for side in (band.low, band.high)
        )
        below = np.flatnonzero(curve.probabilities <= 0.5)
        groups.append(
            RiskGroup(
                name=name,
                n_images=int(mine.sum()),
                n_events=int(event[mine].sum()),
                median=float(curve.quantiles[below[0]]) if len(below) else _NAN,
                time=_rounded(np.r_[0.0, curve.quantiles]),
                share=_rounded(np.r_[1.0, curve.probabilities]),
                low=_rounded(np.r_[1.0, low]),
                high=_rounded(np.r_[1.0, top]),
                at_risk=tuple(int((time[mine] >= tick).sum()) for tick in ticks),
            )
        )
    p = float(logrank(*samples).pvalue) if event.any() else _NAN
    return Survival(time_name=time_name, groups=tuple(groups), logrank_p=p, ticks=ticks)


def _curves(
    positive: NDArray[np.bool_], images: Predictions, classes: Sequence[str]
) -> tuple[ClassCurves, ...]:
    largest = np.sort(np.argsort(-positive.sum(axis=0), kind="stable")[:MOST_CLASSES])
    return class_curves(
        positive[:, largest],
        images.prob[:, largest],
        images.patient_ids,
        [classes[k] for k in largest],
    )


def _of_classes(images: Predictions, metrics: Mapping[str, Interval | Range]) -> Calibration:
    found = reliability(images.y_true, images.prob)
    chance, high = chance_error(images.prob)
    return Calibration(
        of="the predicted class",
        bins=found.bins,
        ece=_range(metrics.get("ece"), found.ece),
        mce=found.mce,
        chance=chance,
        chance_high=high,
        brier=_range(metrics.get("brier"), _NAN) if "brier" in metrics else None,
        parts=brier_parts(images.y_true, images.prob),
    )


def _of_labels(positive: NDArray[np.bool_], prob: NDArray[np.float64]) -> Calibration:
    """Judge the probability that a label is there, all labels together."""
    there, said = positive.ravel().astype(np.int64), prob.ravel()
    both = np.stack([1 - said, said], axis=1)
    found = reliability(there, both, of_class=1)
    chance, high = chance_error(both, of_class=1)
    return Calibration(
        of="each label",
        bins=found.bins,
        ece=Range(value=found.ece, low=_NAN, high=_NAN),
        mce=found.mce,
        chance=chance,
        chance_high=high,
        brier=None,
        parts=None,
    )


def _range(interval: Interval | Range | None, value: float) -> Range:
    if interval is None:
        return Range(value=value, low=_NAN, high=_NAN)
    return Range(value=interval.value, low=interval.low, high=interval.high)


def _misplaced(
    time: NDArray[np.float64], event: NDArray[np.bool_], risk: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give the share of comparable pairs of each image that are in wrong order; 0 without pairs."""
    pairs, wrong = np.zeros(len(time)), np.zeros(len(time))
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & ~event)
        lost = later & (risk > risk[i])
        pairs[i] += later.sum()
        wrong[i] += lost.sum()
        pairs += later
        wrong += lost
    return np.divide(wrong, pairs, out=np.zeros(len(time)), where=pairs > 0)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Keep six digits: more would only make files larger."""
    return tuple(float(f"{value:.6g}") for value in values)
