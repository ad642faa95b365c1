"""Doing what an experiment asks for: runs, ensembles, report, in a folder that can be taken up.

::

    OUT/experiment.toml    the file, as it was read
    OUT/experiment.json    what became of each run and ensemble; written last
    OUT/runs/<name>/       one run per cell (zoo.run)
    OUT/ensembles/<name>/  one ensemble per rule
    OUT/report/            index.html, report.md, report.json
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.atomic import atomic
from histostore.cohort import Cohort
from histostore.errors import HistostoreError, StorageError, summarise
from zoo.doubts import doubts
from zoo.errors import RunError
from zoo.experiments.combining import combine
from zoo.experiments.outcome import Outcome
from zoo.experiments.planning import plan
from zoo.experiments.reading import read_experiment
from zoo.experiments.sources import chosen_sets
from zoo.fit import Execution, fit_run, run_document
from zoo.report import N_FULL, write_report
from zoo.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from histostore.store import FeatureSet
    from zoo.bags import Bags
    from zoo.experiments.planning import Cell, Plan
    from zoo.experiments.reading import Experiment
    from zoo.split import Split

__all__ = ["conduct", "run_experiment"]

_COPY = "experiment.toml"
_TOLD = "experiment.json"


def run_experiment(
    planned: Plan,
    out: str | os.PathLike[str],
    *,
    execution: Execution | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Outcome:
    """Fit all runs that are not there yet, make ensembles of them, and report.

    A run that fails does not end the others, nor does an ensemble: both are listed.

    Parameters
    ----------
    planned
        What to do.
    out
        Folder: new, empty, or that of an experiment, which then goes on.
    execution
        Device, processes, and progress over the fits of all runs.
    storage_options
        For stores and cohort in a bucket.

    Raises
    ------
    RunError
        If the folder holds other things, or finished runs of these names made in another way;
        ``problems`` lists them. Nothing is fitted then.
    HistostoreError
        If the cohort or a feature set cannot be opened.
    """
    told, folder, options = planned.experiment, Path(out), dict(storage_options or {})
    _check(folder)
    cohort = Cohort.read(told.cohort, storage_options=options, check_files=False)
    sets = chosen_sets(told.sources.values(), options)
    course = _Course(planned, folder, cohort, sets, execution or Execution())
    there = course.look()
    _claim(folder, told)
    runs = course.fit(there)
    ensembles, failed = combine(planned.ensembles, runs, folder / "ensembles")
    failed = [*course.failed, *failed]
    outcome = Outcome(
        folder=folder,
        plan=planned,
        runs=tuple(runs.values()),
        ensembles=tuple(ensembles),
        n_fitted=len(runs) - len(there),
        failed=tuple(failed),
        report=None,
        notes=(*planned.notes, *dict.fromkeys(course.notes)),
    )
    _tell(outcome)  # the report reads it
    if told.report and runs:
        try:
            page = _report([*ensembles, *runs.values()], told, folder, options)
            outcome = dataclasses.replace(outcome, report=page)
        except (HistostoreError, OSError) as error:
            reason = ("report", _reason(error))
            outcome = dataclasses.replace(outcome, failed=(*failed, reason))
        _tell(outcome)
    return outcome


def conduct(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    execution: Execution | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Plan | Outcome:
    """Read an experiment's file and do what it asks for, or only say what that is.

    Parameters
    ----------
    path
        The file.
    out, execution, storage_options
        As of :func:`run_experiment`.
    dry_run
        Whether the plan is all that is wanted; nothing else is opened then.

    Raises
    ------
    StorageError, RecipeError
        As of :func:`~zoo.experiments.reading.read_experiment`.
    HistostoreError
        As of :func:`run_experiment`.
    """
    planned = plan(read_experiment(path))
    if dry_run:
        return planned
    return run_experiment(planned, out, execution=execution, storage_options=storage_options)


@dataclass(slots=True)
class _Course:
    """The runs of an experiment, under way."""

    plan: Plan
    folder: Path
    cohort: Cohort
    sets: dict[str, FeatureSet]
    execution: Execution
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def path(self, cell: Cell) -> Path:
        """Say where a run lies."""
        return self.folder / "runs" / cell.name

    def look(self) -> dict[str, Run]:
        """Find the runs that are done; refuse those of these names that are something else."""
        found: dict[str, Run] = {}
        problems: list[str] = []
        done = [cell for cell in self.plan.cells if (self.path(cell) / "run.json").exists()]
        for cells in _by_source(done):
            bags, split = self._bags(cells[0])
            for cell in cells:
                try:
                    run = Run.load(self.path(cell))
                except RunError as error:
                    problems.append(str(error))
                    continue
                differing = self._differences(run, cell, bags, split)
                if differing:
                    problems.append(f"{run.path} was made with another {', '.join(differing)}")
                found[cell.name] = run
        if problems:
            msg = summarise(str(self.folder), problems)
            raise RunError(f"{msg}: delete it, or give another output", problems=problems)
        return found

    def _differences(self, run: Run, cell: Cell, bags: Bags, split: Split) -> list[str]:
        """Name what decides a result and is not as planned."""
        seeds = list(self.plan.experiment.seeds)
        wanted = run_document(bags, split, cell.head, recipe=cell.recipe, seeds=seeds)
        cohort, told = wanted.pop("cohort"), run.document
        differing = [key for key, value in wanted.items() if told.get(key) != value]
        if (told.get("cohort") or {}).get("digest") != cohort["digest"]:
            differing.append("cohort")
        if (told.get("store") or {}).get("feature_set") != bags.source["store"]["feature_set"]:
            differing.append("feature set")
        return differing

    def fit(self, there: Mapping[str, Run]) -> dict[str, Run]:
        """Fit what is not there, one feature set after another, and give all in order."""
        runs = dict(there)
        todo = [cell for cell in self.plan.cells if cell.name not in there]
        begun = 0
        for cells in _by_source(todo):
            try:
                bags, split = self._bags(cells[0])
            except (HistostoreError, OSError, MemoryError) as error:
                self.failed += [(cell.name, _reason(error)) for cell in cells]
                begun += len(cells)
                continue
            for cell in cells:
                begun += 1
                run = self._fit(cell, bags, split, place=(begun, len(todo)))
                if run is not None:
                    runs[cell.name] = run
        return {cell.name: runs[cell.name] for cell in self.plan.cells if cell.name in runs}

    def _fit(self, cell: Cell, bags: Bags, split: Split, *, place: tuple[int, int]) -> Run | None:
        """Fit one run; ``place`` is its number, of how many."""
        number, count = place

        def tell(done: int, total: int, message: str) -> None:
            said = f"run {number} of {count}: {cell.name}, {message}"
            self.execution.tell((number - 1) * total + done, count * total, said)

        try:
            return fit_run(
                bags,
                cell.head,
                split=split,
                recipe=cell.recipe,
                seeds=self.plan.experiment.seeds,
                out=self.path(cell),
                store_url=cell.source.store,
                execution=dataclasses.replace(self.execution, progress=tell),
            )
        except Exception as error:  # noqa: BLE001 (what ends one run is listed; the others go on)
            self.failed.append((cell.name, _reason(error)))
            return None

    def _bags(self, cell: Cell) -> tuple[Bags, Split]:
        """Read one feature set, and deal the folds."""
        told, alias = self.plan.experiment, cell.source.alias
        bags = told.bags_of(
            self.sets[alias],
            self.cohort,
            told.task,
            say=lambda line: self.notes.append(f"{alias}: {line}"),
        )
        self.notes += doubts(self.cohort, bags.task, bags.classes, bags.truth)
        return bags, told.split_of(bags, self.cohort)


def _by_source(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Group cells that follow each other by what they read."""
    return (list(some) for _, some in groupby(cells, key=lambda cell: cell.source.alias))


def _reason(error: BaseException) -> str:
    """Say in one line what went wrong; of an error that is not ours, its kind too."""
    line = " ".join(str(error).split())
    return line if isinstance(error, HistostoreError) else f"{type(error).__name__}: {line}"


def _check(folder: Path) -> None:
    """Refuse a folder that is none, or holds something else."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give another output")
    if not folder.is_dir() or (folder / _COPY).is_file():
        return
    held = sorted(path.name for path in folder.iterdir() if path.name != f".{_COPY}.tmp")
    if held:
        raise RunError(
            f"{folder} holds other things ({', '.join(held[:3])}): give another output, or delete it"
        )


def _claim(folder: Path, told: Experiment) -> None:
    """Keep a copy of the file, with a line that says whose."""
    said = "Copy; relative paths in it start at the folder of"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    _write(folder / _COPY, f"# {said} {told.path.resolve()}\n{told.text}")


def _report(runs: Sequence[Run], told: Experiment, folder: Path, options: dict[str, Any]) -> Path:
    return write_report(
        [run.path for run in runs],
        folder / "report",
        storage_options=options,
        metric=told.metric,
        n_full=told.n_full or N_FULL,
    )


def _tell(outcome: Outcome) -> None:
    document = json.dumps(outcome.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    _write(outcome.folder / _TOLD, document + "\n")


def _write(path: Path, text: str) -> None:
    """Write at once or not at all."""
    with atomic(path) as hidden:
        hidden.write_text(text, encoding="utf-8")
