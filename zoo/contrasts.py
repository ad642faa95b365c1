"""Every run against the best, by each test that fits the task; and all of them over folds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.metrics import evaluate, headline, higher_is_better
from zoo.predictions import average
from zoo.significance import delong, friedman, holm, mcnemar
from zoo.statistics import difference, metric_draws

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from zoo.predictions import Predictions
    from zoo.significance import AreaDifference, Friedman, McNemar
    from zoo.statistics import Difference
    from zoo.tasks import Task

__all__ = ["LEAST_FOLDS", "LEAST_RUNS", "Contrast", "against_best", "over_folds"]

LEAST_FOLDS = 5
"""Folds below which ranks are not tested: nothing could come of it."""

LEAST_RUNS = 3
"""Runs below which ranks are not tested: two are compared by the other tests."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """One run against the best. ``holm_p`` is corrected for all runs that are compared with it."""

    difference: Difference
    """Of the first metric, by the paired bootstrap over patients."""
    holm_p: float | None
    """Its p, corrected."""
    mcnemar: McNemar | None
    """Of predicted classes; None in tasks without them."""
    mcnemar_holm_p: float | None
    """Its mid-p, corrected."""
    delong: AreaDifference | None
    """Of AUROC; None in tasks without classes."""
    delong_holm_p: float | None
    """Its p, corrected."""

    def to_json(self) -> dict[str, Any]:
        """Write the tests as JSON values, each with its corrected p."""
        told: dict[str, Any] = {
            "bootstrap": {**self.difference.to_json(), "holm_p": self.holm_p},
        }
        if self.mcnemar is not None:
            told["mcnemar"] = {**self.mcnemar.to_json(), "holm_p": self.mcnemar_holm_p}
        if self.delong is not None:
            told["delong"] = {**self.delong.to_json(), "holm_p": self.delong_holm_p}
        return told


def against_best(
    best: Predictions, others: Sequence[Predictions], task: Task, metric: str | None = None
) -> tuple[Contrast, ...]:
    """Test every run against the best, on the same images.

    Parameters
    ----------
    best
        Predictions of the best run.
    others
        Predictions of the others for the same images in the same order.
    task
        What they learned.
    metric
        One of the task's; the first where left out.
    """
    y, patients = best.y_true, best.patient_ids
    scores, draws = metric_draws(
        y, [best.prob, *(run.prob for run in others)], patients, metric or headline(task), task=task
    )
    n_patients = len(set(map(str, patients)))
    gaps = [
        difference(float(score - scores[0]), drawn - draws[0], n_patients=n_patients)
        for score, drawn in zip(scores[1:], draws[1:], strict=True)
    ]
    swaps: list[McNemar | None] = [None] * len(others)
    areas: list[AreaDifference | None] = [None] * len(others)
    if task.one_class:
        told = best.prob.argmax(axis=1)
        swaps = [mcnemar(y, run.prob.argmax(axis=1), told, patients) for run in others]
        areas = [delong(y, run.prob, best.prob, patients) for run in others]
    corrected = (
        holm([gap.p for gap in gaps]),
        holm([None if swap is None else swap.mid_p for swap in swaps]),
        holm([None if area is None else area.p for area in areas]),
    )
    return tuple(
        Contrast(
            difference=gap,
            holm_p=gap_p,
            mcnemar=swap,
            mcnemar_holm_p=swap_p,
            delong=area,
            delong_holm_p=area_p,
        )
        for gap, swap, area, gap_p, swap_p, area_p in zip(
            gaps, swaps, areas, *corrected, strict=True
        )
    )


def over_folds(
    tables: Sequence[pd.DataFrame],
    classes: Sequence[str],
    task: Task,
    *,
    n_folds: int | None = None,
    metric: str | None = None,
) -> Friedman | None:
    """Rank runs by a metric in every fold, and test whether folds agree.

    Folds share most of their training images, so they agree more than independent data sets would:
    p is rather too small. Further repeats test the same images again and are left out.

    Parameters
    ----------
    tables
        Predictions of each run, as of :attr:`zoo.run.Run.predictions`.
    classes, task
        Of the runs.
    n_folds
        Folds of one repeat; all where None.
    metric
        One of the task's; the first where left out.

    Returns
    -------
    Friedman or None
        None with fewer than :data:`LEAST_RUNS` runs or :data:`LEAST_FOLDS` folds, if the runs do
        not share their folds, or if the metric is undefined in one.
    """
    if len(tables) < LEAST_RUNS:
        return None
    tested = [table[table["role"] == "test"] for table in tables]
    if n_folds is not None:
        tested = [table[table["fold"] < n_folds] for table in tested]
    dealt = {frozenset(zip(table["fold"], table["image_id"], strict=True)) for table in tested}
    if len(dealt) > 1 or tested[0]["fold"].nunique() < LEAST_FOLDS:
        return None
    scores = np.stack(
        [_by_fold(table, classes, task, metric or headline(task)) for table in tested], axis=1
    )
    return friedman(scores) if np.isfinite(scores).all() else None


def _by_fold(
    table: pd.DataFrame, classes: Sequence[str], task: Task, name: str
) -> NDArray[np.float64]:
    """Give a metric of a run in each fold, ``(fold,)``, more being better."""
    found = []
    for _, rows in table.groupby("fold", sort=True):
        images = average(rows, classes, task)
        found.append(evaluate(images.y_true, images.prob, task)[name])
    values = np.array(found)
    return values if higher_is_better(name) else -values
