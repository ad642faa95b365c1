"""Runs among each other: by feature set, pair by pair, and in rank over folds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from zoo.contrasts import LEAST_FOLDS, LEAST_RUNS, over_folds
from zoo.diagrams import undivided
from zoo.report.model import Group
from zoo.report.sections import Pair, Ranks
from zoo.significance import holm
from zoo.statistics import difference, metric_draws

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.predictions import Predictions
    from zoo.report.model import RunView
    from zoo.run import Run

__all__ = ["MOST_RANKED", "groups", "pairs", "ranks", "same_images"]

MOST_RANKED = 20
"""Runs that are ranked over folds; of more, the best."""

MOST_PAIRED = 10
"""Runs that are compared pair by pair; of more, the best."""

_NAN = float("nan")


def same_images(mine: Predictions, others: Predictions) -> bool:
    """Tell whether two runs judged the same images of the same patients with the same truth."""
    return mine.prob.shape == others.prob.shape and all(
        np.array_equal(getattr(mine, what), getattr(others, what))
        for what in ("image_ids", "patient_ids", "y_true")
    )


def groups(views: Sequence[RunView], runs: Sequence[Run]) -> tuple[Group, ...]:
    """Sort runs by feature set; the group with the best run comes first."""
    specs = {}
    for run in runs:
        store = run.document.get("store") or {}
        if not run.is_ensemble:
            specs[str(store.get("feature_set"))] = dict(store.get("spec") or {})
    names = dict.fromkeys(view.feature_set for view in views)
    return tuple(
        Group(
            name=name,
            numbers=tuple(view.number for view in views if view.feature_set == name),
            spec=specs.get(name, {}),
        )
        for name in names
    )


def pairs(runs: Sequence[Run], judged: Sequence[Predictions], metric: str) -> tuple[Pair, ...]:
    """Compare the best runs pair by pair; p-values are Holm's over all pairs.

    Only runs that judged the same images as the first one take part.
    """
    places = [i for i in range(len(runs)) if same_images(judged[i], judged[0])][:MOST_PAIRED]
    if len(places) < LEAST_RUNS:
        return ()
    first = judged[0]
    scores, draws = metric_draws(
        first.y_true,
        [judged[i].prob for i in places],
        first.patient_ids,
        metric,
        task=runs[0].task,
    )
    both = list(itertools.combinations(range(len(places)), 2))
    n_patients = len(set(map(str, first.patient_ids)))
    found = [
        difference(float(scores[a] - scores[b]), draws[a] - draws[b], n_patients=n_patients)
        for a, b in both
    ]
    corrected = holm([gap.p for gap in found])
    return tuple(
        Pair(
            first=places[a] + 1,
            second=places[b] + 1,
            value=_float(gap.value),
            low=_float(gap.low),
            high=_float(gap.high),
            p=_float(p),
        )
        for (a, b), gap, p in zip(both, found, corrected, strict=True)
    )


def ranks(runs: Sequence[Run], metric: str) -> tuple[Ranks | None, str]:
    """Rank runs over folds, and say of how many, or why not."""
    best = list(runs[:MOST_RANKED])
    if len(best) < LEAST_RUNS:
        return None, f"Ranks over folds need {LEAST_RUNS} runs or more."
    alike = {(run.task.kind, run.classes) for run in best}
    if len(alike) > 1:
        return None, "There are no ranks over folds: runs differ in their classes."
    found = over_folds(
        [run.predictions for run in best],
        best[0].classes,
        best[0].task,
        n_folds=(best[0].document.get("split") or {}).get("n_folds"),
        metric=metric,
    )
    if found is None:
        return None, (
            f"Ranks over folds need {LEAST_FOLDS} folds or more, the same in all runs, with the "
            "metric defined in each."
        )
    order = sorted(range(len(best)), key=lambda i: (found.ranks[i], i))
    told = Ranks(
        runs=tuple(best[i].name for i in order),
        ranks=tuple(found.ranks[i] for i in order),
        n_folds=found.n_blocks,
        p=found.p,
        critical_difference=found.critical_difference,
        groups=tuple(undivided([found.ranks[i] for i in order], found.critical_difference)),
    )
    note = f"The best {len(best)} of {len(runs)} runs are ranked." if len(runs) > len(best) else ""
    return told, note


def _float(value: float | None) -> float:
    return _NAN if value is None else float(value)
