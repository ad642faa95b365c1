"""From the columns of a cohort to what a task learns, and to strata for a split."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.cohort import Cohort
from histostore.errors import OptionError, summarise
from histostore.files import public_url
from zoo.errors import SplitError
from zoo.labels import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from zoo.tasks import Task

__all__ = ["Targets", "check_truth", "cohort_of", "read_targets", "strata"]

_MOST_BINS = 4
_NAMED = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Targets:
    """What is known of each image of a cohort."""

    codes: NDArray[np.int64]
    """Class or level, 0 for other tasks; −1 where an image has no label. ``(image,)``."""
    classes: tuple[str, ...]
    """Names of classes, levels in their order, or labels; empty for numbers and times."""
    truth: NDArray[np.float64] | None
    """Other tasks than classes and levels: ``(image, column)``, NaN where there is no label."""
    closed: bool = True
    """Whether a class stands even where no image has it."""

    def select(self, rows: NDArray[np.int64]) -> Targets:
        """Give the targets of some images, all of which have a label."""
        codes, classes = self.codes[rows], self.classes
        if not self.closed:
            seen, codes = np.unique(codes, return_inverse=True)
            classes = tuple(classes[code] for code in seen)
        truth = None if self.truth is None else self.truth[rows]
        return dataclasses.replace(self, codes=codes.astype(np.int64), classes=classes, truth=truth)


def cohort_of(
    images: Cohort | pd.DataFrame | str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
) -> Cohort:
    """Take a cohort, or make one of a data frame or of the table that a path or URL names.

    Raises
    ------
    CohortError, StorageError
        As :meth:`histostore.cohort.Cohort.read`; files are not looked for.
    """
    if isinstance(images, Cohort):
        return images
    if isinstance(images, str | os.PathLike):
        return Cohort.read(images, storage_options=storage_options, check_files=False)
    return Cohort.from_frame(images, check_files=False)


def read_targets(
    cohort: Cohort, task: Task, levels: Sequence[str] = (), *, to_learn: bool = True
) -> Targets:
    """Read what a task learns from a cohort's columns.

    An image with an empty cell in one of the columns has no label.

    Parameters
    ----------
    cohort
        Table of images.
    task
        What is learned.
    levels
        Ordered levels, the lowest first; numbers in their order where left out.
    to_learn
        Refuse what teaches nothing, such as one number throughout, which may still be judged by.

    Raises
    ------
    OptionError
        If a column is missing or holds what the task cannot learn; ``problems`` lists
        everything found.
    """
    missing = [name for name in task.targets if not cohort.has(name)]
    if missing:
        has = ", ".join(map(str, cohort.columns))
        named = ", ".join(map(repr, missing))
        raise OptionError(f"{public_url(cohort.url)} has no column {named}; its columns are {has}")
    columns = [cohort.column(name).tolist() for name in task.targets]
    known = np.array([None not in cells for cells in zip(*columns, strict=True)], dtype=bool)
    problems: list[str] = []
    if levels and task.kind != "ordinal":
        problems.append(f"levels are for task ordinal, but this is {task.kind}")
    if task.one_class:
        targets = _of_classes(columns[0], task, levels, problems)
    else:
        truth = np.full((len(cohort), len(columns)), np.nan)
        for k, (name, cells) in enumerate(zip(task.targets, columns, strict=True)):
            says, allowed = _RULES[task.kind, min(k, 1)]
            truth[:, k] = _numbers(name, cells, says, allowed, problems=problems)
        truth[~known] = np.nan
        classes = task.targets if task.kind == "multi-label" else ()
        targets = Targets(codes=np.where(known, 0, -1), classes=classes, truth=truth)
        if to_learn and known.any() and not problems:
            problems += [found] if (found := task.problem_of(truth[known])) else []
    if problems:
        raise OptionError(summarise(public_url(cohort.url), problems), problems=problems)
    return targets


def _of_classes(
    cells: list[str | None], task: Task, levels: Sequence[str], problems: list[str]
) -> Targets:
    """Give classes numbers by name, levels in their order."""
    seen = sorted({cell for cell in cells if cell is not None})
    classes = tuple(seen)
    if task.kind == "ordinal":
        if levels:
            classes = tuple(levels)
            strange = [name for name in seen if name not in levels]
            if strange:
                problems.append(f"{task.targets[0]} holds {_some(strange)}, not among the levels")
            if len(set(levels)) < len(levels):
                problems.append(f"levels {', '.join(levels)} name one twice")
        elif any(_number(name) is None for name in seen):
            texts = [name for name in seen if _number(name) is None]
            problems.append(
                f"{task.targets[0]} holds {_some(texts)}, which have no order of their own: give "
                "levels, the lowest first"
            )
        else:
            classes = tuple(sorted(seen, key=float))
            problems += [
                f"{task.targets[0]} holds {low!r} and {high!r}, one level in two spellings"
                for low, high in itertools.pairwise(classes)
                if float(low) == float(high)
            ]
        if not problems and len(classes) < 2:
            problems.append(f"{task.targets[0]} has {len(classes)} levels: two at least are needed")
    codes = np.full(len(cells), -1) if problems else encode(cells, classes, len(cells))[0]
    return Targets(codes=codes, classes=classes, truth=None, closed=task.kind == "ordinal")


_RULES: dict[tuple[str, int], tuple[str, Callable[[float], bool]]] = {
    ("multi-label", 0): ("0 or 1", lambda value: value in (0, 1)),
    ("multi-label", 1): ("0 or 1", lambda value: value in (0, 1)),
    ("regression", 0): ("a finite number", lambda _: True),
    ("survival", 0): ("a time of 0 or more", lambda value: value >= 0),
    ("survival", 1): ("an event, 0 or 1", lambda value: value in (0, 1)),
}


def _numbers(
    name: str,
    cells: list[str | None],
    says: str,
    allowed: Callable[[float], bool],
    *,
    problems: list[str],
) -> NDArray[np.float64]:
    """Read a column of numbers, NaN where empty; say once what of it is none."""
    found = [None if cell is None else _number(cell) for cell in cells]
    wrong = [
        cell
        for cell, value in zip(cells, found, strict=True)
        if cell is not None and (value is None or not allowed(value))
    ]
    if wrong:
        count = f"{len(wrong)} cell{'s'[: len(wrong) > 1]}"
        problems.append(
            f"{name} must hold {says}, seen {_some(list(dict.fromkeys(wrong)))} ({count})"
        )
    return np.array([np.nan if value is None else value for value in found], np.float64)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _some(texts: Sequence[str]) -> str:
    more = ", …" if len(texts) > _NAMED else ""
    return ", ".join(map(repr, texts[:_NAMED])) + more


def check_truth(
    task: Task, truth: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Take truth from an array, for tasks other than of classes and levels.

    Parameters
    ----------
    task
        What is learned.
    truth
        ``(image, column)``, one column per target; a row with NaN has no label.

    Returns
    -------
    codes
        0, or −1 where there is no label, ``(image,)``.
    truth
        ``(image, column)`` float64.

    Raises
    ------
    OptionError
        If it has another shape.

    Examples
    --------
    >>> from zoo.tasks import Task
    >>> check_truth(Task.of("regression", "age"), [[50.0], [np.nan]])[0].tolist()
    [0, -1]
    """
    numbers = np.empty(0) if truth is None else np.asarray(truth, np.float64)
    if numbers.ndim != 2 or numbers.shape[1] != len(task.targets):
        named = ", ".join(task.targets)
        raise OptionError(f"task {task.kind} needs truth (bag, {named}), seen {numbers.shape}")
    return np.where(np.isnan(numbers).any(axis=1), -1, 0).astype(np.int64), numbers


def strata(
    task: Task,
    truth: NDArray[np.float64],
    patient_ids: Sequence[str],
    n_folds: int,
) -> NDArray[np.str_]:
    """Sort images into groups of which each fold shall hold a like share.

    Regression: quantile bins of the number, up to four. Survival: event or censored, each in
    two halves by time where there are enough; halves alone where all had the event.
    Multi-label: an image belongs to the rarest label that it has.

    Parameters
    ----------
    task
        Not of classes or levels, which are strata themselves.
    truth
        ``(image, column)``.
    patient_ids
        Patient of each image; a group needs two at least.
    n_folds
        Folds; a group needs as many images.

    Returns
    -------
    strata
        Name of the group of each image, ``(image,)``.

    Raises
    ------
    SplitError
        If there are too few images to make two groups.

    Examples
    --------
    >>> from zoo.tasks import Task
    >>> ages = np.array([[1.0], [2.0], [30.0], [40.0]])
    >>> strata(Task.of("regression", "age"), ages, ["p", "q", "r", "s"], 2).tolist()
    ['bin 0', 'bin 0', 'bin 1', 'bin 1']
    """
    for groups in _candidates(task, truth):
        names, codes = np.unique(groups, return_inverse=True)
        patients = np.asarray(patient_ids, dtype=object).astype(str)
        enough = [
            np.count_nonzero(codes == k) >= n_folds and len(set(patients[codes == k])) > 1
            for k in range(len(names))
        ]
        if len(names) > 1 and all(enough):
            return groups
    raise SplitError(
        f"{len(truth)} images cannot be sorted into groups of like {task.kind} targets with "
        f"{n_folds} images, of two patients, each: ask for fewer folds"
    )


def _candidates(task: Task, truth: NDArray[np.float64]) -> list[NDArray[np.str_]]:
    """Give ways to group images, the finest first."""
    if task.kind == "regression":
        return [_bins(truth[:, 0], n) for n in range(_MOST_BINS, 1, -1)]
    if task.kind == "survival":
        event = np.where(truth[:, 1] > 0, "event", "censored")
        halves = _bins(truth[:, 0], 2)
        return [np.char.add(np.char.add(event, " "), halves), event, halves]
    counts = truth.sum(axis=0)
    order = np.argsort(counts, kind="stable")
    has = truth[:, order] > 0
    rarest = np.where(has.any(axis=1), has.argmax(axis=1), len(order))
    # The rarest labels are joined, one after the other, until every group is large enough.
    return [
        np.array([f"label {max(place, merged)}" for place in rarest])
        for merged in range(len(order) + 1)
    ]


def _bins(column: NDArray[np.float64], n: int) -> NDArray[np.str_]:
    """Cut a column at its quantiles."""
    cuts = np.unique(np.quantile(column, np.arange(1, n) / n))
    return np.array([f"bin {k}" for k in np.searchsorted(cuts, column, side="left")])
