"""Which metrics a task has, and which of them comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from zoo.metrics.classes import LEVEL_METRICS, METRICS, LevelScorer, Scorer
from zoo.metrics.multilabel import LABEL_METRICS, LabelScorer
from zoo.metrics.regression import NUMBER_METRICS, NumberScorer
from zoo.metrics.survival import SURVIVAL_METRICS, SurvivalScorer
from zoo.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "AnyScorer",
    "evaluate",
    "headline",
    "higher_is_better",
    "make_scorer",
    "metric_heading",
    "metric_names",
    "metric_title",
]

_CLASSES = Task()

_LOSSES = frozenset({"log_loss", "brier", "ece", "level_mae", "hamming", "mae", "rmse"})

_TITLES = {
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "kappa": "Cohen’s κ (quadratic)",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "level_mae": "MAE in levels",
    "hamming": "Hamming loss",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "pearson": "Pearson’s r",
    "spearman": "Spearman’s ρ",
    "c_index": "C-index",
    "c_index_ipcw": "C-index (IPCW)",
}
"""Names that are not just the key with spaces; inside a sentence."""


class AnyScorer(Protocol):
    """All metrics of one set of predictions, for any number of resamples."""

    n_images: int

    @property
    def names(self) -> tuple[str, ...]:
        """Metrics, in the order of reports."""

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Map weights ``(resample, image)`` to metric name and ``(resample,)`` values."""


_SCORERS: dict[str, tuple[Callable[[ArrayLike, ArrayLike], AnyScorer], tuple[str, ...]]] = {
    "classification": (Scorer, METRICS),
    "ordinal": (LevelScorer, LEVEL_METRICS),
    "multi-label": (LabelScorer, LABEL_METRICS),
    "regression": (NumberScorer, NUMBER_METRICS),
    "survival": (SurvivalScorer, SURVIVAL_METRICS),
}


def higher_is_better(metric: str) -> bool:
    """Say which way a metric points.

    Examples
    --------
    >>> higher_is_better("macro_f1"), higher_is_better("log_loss"), higher_is_better("mae")
    (True, False, False)
    """
    return metric not in _LOSSES


def metric_names(task: Task = _CLASSES) -> tuple[str, ...]:
    """List a task's metrics in the order of reports.

    Examples
    --------
    >>> metric_names(Task.of("regression", "age"))
    ('mae', 'rmse', 'r2', 'pearson', 'spearman')
    """
    return _SCORERS[task.kind][1]


def headline(task: Task = _CLASSES) -> str:
    """Name the metric by which runs are ranked and epochs are watched.

    Examples
    --------
    >>> headline(), headline(Task.of("survival", "time,event"))
    ('macro_f1', 'c_index')
    """
    return metric_names(task)[0]


def metric_title(metric: str) -> str:
    """Write a metric's name as people do, inside a sentence.

    Examples
    --------
    >>> metric_title("c_index"), metric_title("balanced_accuracy"), metric_title("brier")
    ('C-index', 'balanced accuracy', 'Brier score')
    """
    return _TITLES.get(metric, metric.replace("_", " "))


def metric_heading(metric: str) -> str:
    """Write it as the heading of a column or a row.

    Examples
    --------
    >>> metric_heading("macro_f1"), metric_heading("balanced_accuracy"), metric_heading("auprc")
    ('Macro-F1', 'Balanced accuracy', 'AUPRC')
    """
    title = metric_title(metric)
    return title[:1].upper() + title[1:]


def make_scorer(task: Task, truth: ArrayLike, values: ArrayLike) -> AnyScorer:
    """Make the scorer of a task.

    Parameters
    ----------
    task
        What was predicted.
    truth
        Classes or levels ``(image,)`` int; else ``(image, column)`` as of
        :attr:`zoo.bags.Bags.truth`.
    values
        What a head predicts, ``(image, column)``.
    """
    return _SCORERS[task.kind][0](truth, values)


def evaluate(y_true: ArrayLike, prob: ArrayLike, task: Task = _CLASSES) -> dict[str, float]:
    """Compute all metrics of one set of predictions.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers; other tasks as of :func:`make_scorer`.
    prob
        Probabilities, ``(image, class)``; other tasks as of :func:`make_scorer`.
    task
        What was predicted.

    Examples
    --------
    >>> scores = evaluate([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> round(scores["accuracy"], 3), scores["auroc"]
    (0.667, 1.0)
    """
    scorer = make_scorer(task, y_true, prob)
    values = scorer(np.ones((1, scorer.n_images)))
    return {name: float(value[0]) for name, value in values.items()}
