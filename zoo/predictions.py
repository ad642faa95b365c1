"""Predictions as a table, what they say of each image, and how good they are.

The table has the columns ``image_id, patient_id, fold, seed, role``, then the truth, then what was
predicted:

==============  ========================================  ============================
task            truth                                     predicted
==============  ========================================  ============================
classification  ``target``, a class                       ``prob_<class>``, sum 1
ordinal         ``target``, a level                       ``prob_<level>``, sum 1
multi-label     ``target``, labels with ``;`` between     ``prob_<label>``
regression      ``target``, a number                      ``pred_<column>``
survival        ``target_time``, ``target_event`` (0, 1)  ``pred_risk``
==============  ========================================  ============================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.metrics import evaluate
from zoo.statistics import bootstrap
from zoo.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "FIXED_COLUMNS",
    "ROLES",
    "Predictions",
    "average",
    "fixed_columns",
    "measure",
    "predictions_frame",
    "read_truth",
    "written",
]

ROLES = ("train", "validation", "test")
"""What a fold used an image for."""

FIXED_COLUMNS = ("image_id", "patient_id", "fold", "seed", "role", "target")
"""Columns of ``predictions.parquet`` before the probabilities, where the target is one column."""

_CLASSES = Task()


class Predictions(NamedTuple):
    """One prediction per image, in the order of image ids."""

    image_ids: NDArray[np.object_]
    """Images ``(image,)``, sorted."""
    patient_ids: NDArray[np.object_]
    """Their patients."""
    y_true: NDArray[Any]
    """True classes, indices into the run's classes; of other tasks ``(image, column)`` float64."""
    prob: NDArray[np.float64]
    """Probabilities ``(image, class)``; of other tasks what was predicted, ``(image, column)``."""


def fixed_columns(task: Task) -> tuple[str, ...]:
    """List the columns before what was predicted.

    Examples
    --------
    >>> fixed_columns(Task.of("survival", "time,event"))[-3:]
    ('role', 'target_time', 'target_event')
    """
    return (*FIXED_COLUMNS[:-1], *task.target_columns)


def written(truth: NDArray[Any], classes: Sequence[str], task: Task = _CLASSES) -> NDArray[Any]:
    """Write truth as a table has it.

    Parameters
    ----------
    truth
        As of :attr:`zoo.bags.Bags.truth`.
    classes, task
        Of the run.

    Returns
    -------
    target
        ``(image,)``, or ``(image, column)`` where a task has several columns of truth.

    Examples
    --------
    >>> task = Task.of("multi-label", "er,pr")
    >>> written(np.array([[1, 0], [1, 1], [0, 0]]), ("er", "pr"), task).tolist()
    ['er', 'er;pr', '']
    """
    if task.one_class:
        names: NDArray[Any] = np.array(classes)[truth]
        return names
    if task.kind == "multi-label":
        named = np.array(classes, dtype=object)
        return np.array([";".join(named[row > 0]) for row in truth], dtype=object)
    return truth[:, 0] if len(task.target_columns) == 1 else truth


def read_truth(frame: pd.DataFrame, classes: Sequence[str], task: Task) -> NDArray[Any]:
    """Invert :func:`written`, from the columns of a table.

    Returns
    -------
    truth
        As of :attr:`zoo.bags.Bags.truth`.
    """
    if not task.has_classes:
        return frame[list(task.target_columns)].to_numpy(dtype=np.float64)
    cells = frame["target"].to_numpy(dtype=object)
    if task.one_class:
        known = {name: k for k, name in enumerate(classes)}
        return np.array([known[cell] for cell in cells], dtype=np.int64)
    told = [set(cell.split(";")) for cell in cells]
    return np.array([[float(name in names) for name in classes] for names in told])


def predictions_frame(
    *,
    image_ids: Sequence[str] | NDArray[Any],
    patient_ids: Sequence[str] | NDArray[Any],
    fold: int,
    seed: int,
    role: str,
    target: Sequence[str] | NDArray[Any],
    prob: NDArray[np.float64],
    classes: Sequence[str],
    task: Task = _CLASSES,
) -> pd.DataFrame:
    """Make the rows of ``predictions.parquet`` for one fold, seed and role.

    Parameters
    ----------
    image_ids, patient_ids, target
        Image, patient and true class of each row; other tasks as of :func:`written`.
    fold, seed, role
        The same for all rows.
    prob
        Probabilities ``(image, class)``; of other tasks what was predicted.
    classes
        Names of the classes.
    task
        What was predicted.
    """
    import pandas as pd

    truth = [list(target)] if len(task.target_columns) == 1 else list(np.asarray(target).T)
    values = (list(image_ids), list(patient_ids), fold, seed, role, *truth)
    columns: dict[str, Any] = dict(zip(fixed_columns(task), values, strict=True))
    columns |= {name: prob[:, k] for k, name in enumerate(task.value_columns(classes))}
    return pd.DataFrame(columns)


def average(frame: pd.DataFrame, classes: Sequence[str], task: Task = _CLASSES) -> Predictions:
    """Average a table's probabilities, or what else was predicted, over all rows of each image.

    Parameters
    ----------
    frame
        Rows of one role.
    classes, task
        Of the run.
    """
    images, first, place = np.unique(
        frame["image_id"].to_numpy(dtype=object).astype(str),
        return_index=True,
        return_inverse=True,
    )
    prob = frame[list(task.value_columns(classes))].to_numpy(dtype=np.float64)
    total = np.zeros((len(images), prob.shape[1]))
    np.add.at(total, place, prob)
    return Predictions(
        image_ids=images.astype(object),
        patient_ids=frame["patient_id"].to_numpy(dtype=object)[first],
        y_true=read_truth(frame.iloc[first], classes, task),
        prob=total / np.bincount(place, minlength=len(images))[:, None],
    )


def measure(
    predictions: pd.DataFrame, classes: Sequence[str], task: Task = _CLASSES
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of a predictions table, for validation and test.

    Returns
    -------
    dict
        Role to metric to ``value``, ``low``, ``high`` (averaged probabilities, interval over
        patients), ``seeds`` (one value per seed), ``seed_mean`` and ``seed_sd`` (None for a
        single seed). A role without rows is left out.
    """
    found = {}
    for role in ("test", "validation"):
        frame = predictions[predictions["role"] == role]
        if len(frame) == 0:
            continue
        images = average(frame, classes, task)
        intervals = bootstrap(images.y_true, images.prob, images.patient_ids, task=task)
        by_seed = []
        for seed in sorted(frame["seed"].unique()):
            one = average(frame[frame["seed"] == seed], classes, task)
            by_seed.append(evaluate(one.y_true, one.prob, task))
        found[role] = {
            name: {**intervals[name].to_json(), **_spread([scores[name] for scores in by_seed])}
            for name in intervals
        }
    return found


def _spread(values: list[float]) -> dict[str, Any]:
    """Tell mean and standard deviation (n − 1) over seeds; None where undefined."""
    numbers = [None if np.isnan(value) else float(value) for value in values]
    defined = [value for value in numbers if value is not None]
    whole = len(defined) == len(numbers)
    return {
        "seed_mean": float(np.mean(defined)) if whole else None,
        "seed_sd": float(np.std(defined, ddof=1)) if whole and len(defined) > 1 else None,
        "seeds": numbers,
    }
