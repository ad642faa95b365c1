"""A run whose settings were chosen anew in every outer fold, by trials inside its training part."""

from __future__ import annotations

import dataclasses
import json
import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.atomic import atomic
from histostore.errors import OptionError
from histostore.files import public_url
from zoo.claiming import begin
from zoo.errors import SplitError
from zoo.fit import (
    check_split,
    chosen_seeds,
    embedding_digest,
    history_table,
    make_split,
    predictions_table,
    run_document,
)
from zoo.jobs import Execution, Job, Task, run_jobs
from zoo.metrics import headline, metric_names
from zoo.recipes import Recipe
from zoo.run import write_run
from zoo.tuning.search import Course, Search, Trial, best, check_optuna, search_fold, trials_of
from zoo.tuning.space import Choice, Range, apply, default_space, plain, read_space

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from zoo.bags import Bags
    from zoo.heads.base import HeadSpec
    from zoo.run import Run
    from zoo.split import Fold, Split
    from zoo.tasks import Task as LearnedTask

__all__ = ["tune"]

_WATCHERS = {"recipe.keep", "recipe.patience", "recipe.schedule"}
"""Settings that decide whether a recipe looks at validation bags."""


def tune(
    bags: Bags,
    head: HeadSpec,
    *,
    out: str | os.PathLike[str],
    search: Search | None = None,
    split: Split | None = None,
    recipe: Recipe | None = None,
    seeds: int | Sequence[int] = 1,
    store_url: str = "",
    execution: Execution | None = None,
) -> Run:
    """Choose settings in every outer fold, fit its whole training part with them, and write the run.

    In each outer fold, settings are tried on folds made of its training images alone, patients
    whole and classes in like shares. Those of the best inner score are then fitted to the whole
    training part, once per seed. So neither the validation nor the test part has any say in
    the settings that predict it, and the run is compared and combined as any other.

    Beside what :func:`~zoo.fit.fit_run` writes, the run holds ``trials.parquet`` (fold, number,
    state, params as JSON, inner score, seconds, reason), and ``run.json`` says what was searched
    and chosen under ``tuning``; ``head`` and ``recipe`` there are those that were started from.

    Parameters
    ----------
    bags
        Labelled images.
    head, recipe
        What to fit and how to train it, apart from what is searched.
    out
        Directory for the run: new, empty, or a run of the same plan that was stopped, which
        goes on after its last finished trial.
    search
        Space, budget, metric and inner folds of the search.
    split
        Outer folds; five stratified, patient-grouped folds where left out.
    seeds
        How many seeds (0, 1, …), or which; trials use the first.
    store_url
        Where the store lies, for the record.
    execution
        Device, processes and progress. Side by side, it is outer folds that are searched.

    Raises
    ------
    MissingExtra
        If Optuna is not installed.
    NotSupported
        If the head cannot learn the bags' task.
    OptionError
        If the task has no such metric.
    SplitError, LeakError
        If the bags, or a training part, cannot be split.
    RecipeError
        If a setting is unknown or not allowed, or no trial of a fold went through.
    RunError, StorageError
        If ``out`` holds something else, or cannot be written.
    """
    check_optuna()
    start = time.monotonic()
    recipe = Recipe() if recipe is None else recipe
    head.check_task(bags.task, recipe)
    split = make_split(bags) if split is None else split
    check_split(bags, split)
    search = _settled(search or Search(), bags.task)
    given = default_space(head, recipe) if search.space is None else search.space
    space = read_space(given, head, recipe)
    chosen = chosen_seeds(seeds)
    head.check_recipe(recipe, has_validation=all(len(fold.validation) for fold in split))
    inner = {fold.number: _inner(fold, bags, recipe, search, space) for fold in split}
    document = run_document(bags, split, head, recipe=recipe, seeds=chosen)
    document["tuning"] = _told(search, space)
    folder, execution = Path(out), execution or Execution()
    jobs = [Job(fold=fold, seed=seed) for fold in split for seed in chosen]
    with begin(folder, {**document, "embedding": embedding_digest(bags)}) as unfinished:
        (unfinished / "trials").mkdir(exist_ok=True)
        meter = _Meter(unfinished=unfinished, jobs=jobs, trials=search.trials, outer=execution)
        task = TuningTask(
            head=head,
            recipe=recipe,
            heads=folder / "heads",
            unfinished=unfinished,
            execution=dataclasses.replace(execution, progress=meter),
            search=search,
            space=space,
            inner=inner,
            seed=chosen[0],
        )
        results = run_jobs(jobs, bags, task)
        trials = [trial for number in inner for trial in trials_of(task.trials, number)]
        document["tuning"]["chosen"] = _chosen(trials, search)
        document["name"] = folder.resolve().name
        document["store"] = {**bags.source.get("store", {}), "url": public_url(store_url)}
        document["cohort"] |= bags.source.get("cohort", {})
        document["seconds"] = round(time.monotonic() - start, 3)
        _write_trials(folder / "trials.parquet", trials)
        return write_run(
            folder, document, predictions_table(bags, results), history_table(results, bags.task)
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TuningTask(Task):
    """What all jobs of a tuned run share; a job searches first, then fits as any other."""

    search: Search
    """Budget and metric."""
    space: dict[str, Range | Choice]
    """What varies."""
    inner: dict[int, Split]
    """Outer fold to the folds inside its training part."""
    seed: int
    """Seed of the trials' fits."""

    @property
    def trials(self) -> Path:
        """Folder of the finished trials."""
        return self.unfinished / "trials"

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Group the jobs of a fold, which share its search."""
        return [list(some) for _, some in groupby(jobs, key=lambda job: job.fold.number)]

    def do(self, jobs: Sequence[Job], bags: Bags) -> list[str]:
        """Search unless that is done, then fit the best settings, predict and write."""
        fold = jobs[0].fold
        course = Course(
            plan=self.search,
            space=self.space,
            head=self.head,
            recipe=self.recipe,
            fold=fold.number,
            part=bags[fold.train],
            inner=self.inner[fold.number],
            seed=self.seed,
            device=self.execution.device,
        )
        trials = search_fold(
            course,
            self.trials,
            seconds=None if self.search.timeout is None else self.search.timeout / len(self.inner),
            tell=lambda line: self.execution.tell(0, 0, line),
        )
        head, recipe = apply(self.head, self.recipe, best(trials, self.search.metric).settings)
        final = Task(
            head=head,
            recipe=recipe,
            heads=self.heads,
            unfinished=self.unfinished,
            execution=self.execution,
        )
        return [line for unit in final.units(jobs) for line in final.do(unit, bags)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Meter:
    """Progress over trials and fits, counted from what lies finished, whoever did it."""

    unfinished: Path
    jobs: list[Job]
    trials: int
    outer: Execution

    def __call__(self, _done: int, _total: int, message: str) -> None:
        fitted = {job.name for job in self.jobs if self._there(f"{job.name}.npz")}
        # A search that ran out of time, and was followed by a fit, has no more trials to come.
        over = {job.fold.number for job in self.jobs if job.name in fitted}
        folds = {job.fold.number for job in self.jobs}
        tried = sum(
            self.trials
            if fold in over
            else len(list(self.unfinished.glob(f"trials/{fold}-*.json")))
            for fold in folds
        )
        total = len(folds) * self.trials + len(self.jobs)
        self.outer.tell(tried + len(fitted), total, message)

    def _there(self, name: str) -> bool:
        return (self.unfinished / name).is_file()


def _settled(search: Search, task: LearnedTask) -> Search:
    """Choose the task's own metric where none is named."""
    known = metric_names(task)
    if search.metric and search.metric not in known:
        raise OptionError(f"metric is {search.metric!r}: choose one of {', '.join(known)}")
    return dataclasses.replace(search, metric=search.metric or headline(task))


def _inner(
    fold: Fold, bags: Bags, recipe: Recipe, search: Search, space: Mapping[str, Range | Choice]
) -> Split:
    """Split an outer fold's training part; some of it validates if a trial may want that."""
    part = bags[fold.train]
    try:
        split = make_split(part, folds=search.inner_folds, split_seed=search.seed)
    except SplitError as error:
        raise SplitError(
            f"fold {fold.number}: its {len(part)} training images make no {search.inner_folds} "
            f"inner folds ({error}): ask for fewer inner folds, or more outer ones"
        ) from error
    if recipe.needs_validation or not _WATCHERS.isdisjoint(space):
        return split
    return dataclasses.replace(split, folds=tuple(map(_unwatched, split)), validation_share=0.0)


def _unwatched(fold: Fold) -> Fold:
    """Give the validation part to training."""
    train = np.sort(np.concatenate([fold.train, fold.validation]))
    return dataclasses.replace(fold, train=train, validation=fold.validation[:0])


def _told(search: Search, space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """Tell everything that decides what is tried."""
    told = ("trials", "timeout", "inner_folds", "metric", "prune", "seed")
    return {
        "space": {name: str(part) for name, part in space.items()},
        **{name: getattr(search, name) for name in told},
    }


def _chosen(trials: Sequence[Trial], search: Search) -> list[dict[str, Any]]:
    """Tell what each outer fold was fitted with."""
    found = []
    for number in sorted({trial.fold for trial in trials}):
        of_fold = [trial for trial in trials if trial.fold == number]
        first = best(of_fold, search.metric)
        settings = {name: _json(value) for name, value in first.settings.items()}
        told = {"fold": number, "number": first.number, "score": first.score}
        found.append({**told, "settings": settings, "trials": len(of_fold)})
    return found


def _json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _write_trials(path: Path, trials: Sequence[Trial]) -> None:
    with atomic(path) as hidden:
        _frame(trials).to_parquet(hidden, engine="pyarrow", index=False)


def _frame(trials: Sequence[Trial]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "fold": trial.fold,
            "number": trial.number,
            "state": trial.state,
            "params": json.dumps({key: plain(value) for key, value in trial.settings.items()}),
            "score": float("nan") if trial.score is None else trial.score,
            "seconds": trial.seconds,
            "reason": trial.reason,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows)
