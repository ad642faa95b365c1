"""What a run's files must hold before anything relies on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.metrics import headline, metric_names
from zoo.predictions import ROLES, fixed_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from zoo.tasks import Task

__all__ = [
    "HISTORY_COLUMNS",
    "document_problem",
    "history_columns",
    "table_problems",
    "value_problems",
]

HISTORY_COLUMNS = (
    "fold",
    "seed",
    "epoch",
    "train_loss",
    "train_macro_f1",
    "train_accuracy",
    "validation_loss",
    "validation_macro_f1",
    "validation_accuracy",
    "overfit_gap",
)
"""Columns of ``history.parquet``; ``overfit_gap`` is train − validation macro-F1."""


def history_columns(task: Task) -> tuple[str, ...]:
    """List the columns of ``history.parquet``.

    ``overfit_gap`` is how much better the training bags score, in the metric that comes first.

    Examples
    --------
    >>> from zoo.tasks import Task
    >>> history_columns(Task.of("regression", "age"))[3:]
    ('train_loss', 'train_mae', 'validation_loss', 'validation_mae', 'overfit_gap')
    """
    if task.kind == "classification":
        return HISTORY_COLUMNS
    scores = [f"{role}_{name}" for role in ROLES[:2] for name in ("loss", headline(task))]
    return (*HISTORY_COLUMNS[:3], *scores, HISTORY_COLUMNS[-1])


def document_problem(document: dict[str, Any], task: Task) -> str:
    """Say what a document lacks that tables and reports rely on."""
    classes = document.get("classes")
    names = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    if not names or bool(classes) != task.has_classes:
        return "classes must be a list of names"
    if not isinstance(document.get("name"), str):
        return "it has no name"
    seeds = document.get("seeds")
    if not isinstance(seeds, list) or not seeds:
        return "it has no seeds"
    metrics = document.get("metrics")
    test = metrics.get("test") if isinstance(metrics, dict) else None
    known = test if isinstance(test, dict) else {}
    if not all(isinstance(known.get(name), dict) for name in metric_names(task)):
        return "it has no test metrics"
    return ""


def table_problems(
    predictions: pd.DataFrame, history: pd.DataFrame, classes: Sequence[str], task: Task
) -> list[str]:
    """Find what contradicts the document, or makes no sense."""
    fixed, values = fixed_columns(task), task.value_columns(classes)
    missing = [name for name in (*fixed, *values) if name not in predictions.columns]
    if missing:
        return [f"predictions.parquet lacks {', '.join(missing)}"]
    problems = []
    roles = sorted(set(predictions["role"].unique()) - set(ROLES), key=str)
    if roles:
        problems.append(f"predictions.parquet has role {roles[0]!r}, known are {', '.join(ROLES)}")
    if not (predictions["role"] == "test").any():
        problems.append("predictions.parquet has no test row")
    found = value_problems(predictions, classes, task)
    problems += [f"predictions.parquet {problem}" for problem in found]
    lacking = [name for name in history_columns(task) if name not in history.columns]
    if lacking:
        problems.append(f"history.parquet lacks {', '.join(lacking)}")
    return problems


def value_problems(frame: pd.DataFrame, classes: Sequence[str], task: Task) -> list[str]:
    """Find truth and predictions in a table that are none of the task's."""
    problems = _target_problems(frame, classes, task)
    if not _are_values(frame[list(task.value_columns(classes))], task):
        what = "probabilities" if task.has_classes else "finite numbers"
        problems.append(f"holds rows that are not {what}")
    return problems


def _target_problems(frame: pd.DataFrame, classes: Sequence[str], task: Task) -> list[str]:
    if not task.has_classes:
        numbers = _numbers(frame[list(task.target_columns)])
        sound = numbers is not None and np.isfinite(numbers).all()
        if sound and numbers is not None and task.kind == "survival":
            sound = bool(np.isin(numbers[:, 1], (0, 1)).all())
        named = ", ".join(task.target_columns)
        return [] if sound else [f"holds no {task.kind} target in {named}"]
    seen = set(frame["target"].unique())
    if task.kind == "multi-label":
        seen = {name for cell in seen for name in str(cell).split(";") if name}
    strange = sorted(seen - set(classes), key=str)
    if not strange:
        return []
    return [f"has target {strange[0]!r}, not among the classes"]


def _are_values(frame: pd.DataFrame, task: Task) -> bool:
    values = _numbers(frame)
    if values is None or not np.isfinite(values).all():
        return False
    if not task.has_classes:
        return True
    if not task.one_class:
        return bool(((values >= 0) & (values <= 1)).all())
    return bool(np.all(values >= 0) and np.allclose(values.sum(axis=1), 1.0, atol=1e-4))


def _numbers(frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    try:
        return frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        return None
