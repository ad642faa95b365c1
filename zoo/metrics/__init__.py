"""Scores of predictions, for one sample or for thousands of resamples at once, by task.

:mod:`~zoo.metrics.classes` for classes and levels, :mod:`~zoo.metrics.multilabel`,
:mod:`~zoo.metrics.regression` and :mod:`~zoo.metrics.survival`; :mod:`~zoo.metrics.choosing`
says which are a task's own.
"""

from __future__ import annotations

from zoo.metrics.choosing import (
    AnyScorer,
    evaluate,
    headline,
    higher_is_better,
    make_scorer,
    metric_heading,
    metric_names,
    metric_title,
)
from zoo.metrics.classes import (
    ECE_BINS,
    METRICS,
    Scorer,
    accuracy,
    confusion_matrix,
    macro_f1,
    per_class,
)

__all__ = [
    "ECE_BINS",
    "METRICS",
    "AnyScorer",
    "Scorer",
    "accuracy",
    "confusion_matrix",
    "evaluate",
    "headline",
    "higher_is_better",
    "macro_f1",
    "make_scorer",
    "metric_heading",
    "metric_names",
    "metric_title",
    "per_class",
]
