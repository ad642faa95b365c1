"""Runs to plain data: reads run directories, computes what the report shows of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from zoo.comparison import check_metric, feature_sets, group_name
from zoo.contrasts import against_best
from zoo.errors import RunError
from zoo.metrics import headline, higher_is_better
from zoo.report.cost import cost
from zoo.report.judging import judge, tables
from zoo.report.learning import learning
from zoo.report.model import Difference, Interval, RunView
from zoo.report.ranking import same_images
from zoo.report.sections import Operating, Range
from zoo.thresholds import operating_points

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from zoo.contrasts import Contrast
    from zoo.predictions import Predictions
    from zoo.run import Run
    from zoo.statistics import Interval as Bounds

__all__ = ["intervals", "load_runs", "views"]

_NAN = float("nan")

_RESAMPLES = 1000
"""For each of the many intervals at operating points."""


def load_runs(
    run_paths: Iterable[str | Path], metric: str | None = None
) -> tuple[tuple[Run, ...], str]:
    """Load runs, the best by a metric first; give that metric, too.

    Raises
    ------
    RunError
        If there is nothing to report on, a directory is not a run, or tasks differ.
    OptionError
        If the task has no such metric.
    """
    from zoo.run import Run

    runs = Run.load_each(run_paths)
    if not runs:
        raise RunError("no runs were given; name at least one run directory")
    for run in runs[1:]:
        if run.task.kind != runs[0].task.kind:
            raise RunError(
                f"{run.path} and {runs[0].path} cannot stand in one report, they differ in task: "
                f"{run.task.kind} and {runs[0].task.kind}"
            )
    name = check_metric(runs[0].task, metric)
    return tuple(sorted(runs, key=lambda run: (_worse(run, name), run.name))), name


def views(
    runs: Sequence[Run], judged: Sequence[Predictions], metric: str, n_full: int
) -> tuple[RunView, ...]:
    """Compute what is shown of each run, in the order given; the first one leads.

    Parameters
    ----------
    runs, judged
        Runs of one task, with their test predictions.
    metric
        By which they are compared.
    n_full
        So many of them are shown in full.
    """
    # One seat each; what judged other images cannot be subtracted.
    alike = [i for i in range(1, len(runs)) if same_images(judged[i], judged[0])]
    tests = against_best(judged[0], [judged[i] for i in alike], runs[0].task, metric)
    gaps = dict(zip(alike, tests, strict=True))
    return tuple(
        _view(run, mine, gaps.get(i), runs, number=i + 1, is_full=i < n_full)
        for i, (run, mine) in enumerate(zip(runs, judged, strict=True))
    )


def intervals(metrics: Mapping[str, Any]) -> dict[str, Interval]:
    """Read the metrics of one role, as in ``run.json``."""
    return {key: _interval(value) for key, value in metrics.items()}


def _view(
    run: Run,
    mine: Predictions,
    gap: Contrast | None,
    others: Sequence[Run],
    *,
    number: int,
    is_full: bool,
) -> RunView:
    document = run.document
    head = document.get("head") or {}
    metrics = document.get("metrics") or {}
    test = intervals(metrics.get("test") or {})
    confusion, report = tables(mine, run.classes, run.task)
    own = document.get("augmentation")
    sets = feature_sets(run, others)
    return RunView(
        number=number,
        name=run.name,
        path=str(run.path),
        is_ensemble=run.is_ensemble,
        head=str(head.get("name") or ("ensemble" if run.is_ensemble else "")),
        settings=dict(head.get("settings") or {}),
        recipe=dict(document.get("recipe") or {}),
        members=tuple(document.get("members") or ()),
        feature_set=group_name(sets),
        feature_sets=sets,
        train_views=_names(document.get("train_views"), own),
        test_views=_names(document.get("test_views"), own),
        seeds=tuple(int(s) for s in document.get("seeds", ())),
        seconds=float(document.get("seconds") or _NAN),
        created=str(document.get("created", "")),
        classes=tuple(run.classes),
        test=test,
        validation=intervals(metrics.get("validation") or {}),
        confusion=confusion,
        report=report,
        judged=judge(mine, run.classes, run.task, test) if is_full else None,
        operating=_operating(run) if is_full else (),
        learning=learning(run.history, is_ensemble=run.is_ensemble, metric=headline(run.task)),
        difference=None if gap is None else _difference(gap),
        cost=cost(run),
    )


def _operating(run: Run) -> tuple[Operating, ...]:
    """Judge thresholds from validation images; nothing where there are none to choose on."""
    if run.task.kind not in {"classification", "multi-label"}:
        return ()
    two = run.task.kind == "classification" and len(run.classes) == 2
    found = []
    for name in run.classes[-1:] if two else run.classes:
        try:
            points = operating_points(run, positive=name, n_resamples=_RESAMPLES)
        except RunError:  # a fold without validation images of both kinds has no threshold
            continue
        found += [
            Operating(
                positive=point.positive,
                rule=point.rule,
                threshold_low=min(point.thresholds.values()),
                threshold_high=max(point.thresholds.values()),
                sensitivity=_range(point.sensitivity),
                specificity=_range(point.specificity),
                ppv=_range(point.ppv),
                npv=_range(point.npv),
            )
            for point in points
        ]
    return tuple(found)


def _difference(gap: Contrast) -> Difference:
    told = gap.difference
    return Difference(
        value=_float(told.value),
        low=_float(told.low),
        high=_float(told.high),
        p=_float(gap.holm_p),
        mcnemar_p=gap.mcnemar_holm_p,
        delong_p=gap.delong_holm_p,
    )


def _names(views: Any, own: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in views or ([own] if own else ()))


def _range(bounds: Bounds) -> Range:
    return Range(value=_float(bounds.value), low=_float(bounds.low), high=_float(bounds.high))


def _interval(metric: Any) -> Interval:
    given = metric if isinstance(metric, dict) else {"value": metric}
    numbers = {
        key: _float(given.get(key)) for key in ("value", "low", "high", "seed_mean", "seed_sd")
    }
    return Interval(**numbers, seeds=tuple(_float(v) for v in given.get("seeds") or ()))


def _float(value: Any) -> float:
    return _NAN if value is None else float(value)


def _worse(run: Run, metric: str) -> float:
    """Give the metric so that less is better, what is undefined last."""
    found = intervals((run.document.get("metrics") or {}).get("test") or {}).get(metric)
    if found is None or not math.isfinite(found.value):
        return math.inf
    return -found.value if higher_is_better(metric) else found.value
