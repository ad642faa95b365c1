"""The fits of a run, one per fold and seed: here, or side by side in processes.

A worker process maps the embeddings from a file that all of them share, and uses one thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import threading
import time
from itertools import groupby
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from histostore.atomic import atomic
from histostore.errors import OptionError
from zoo.bags import Bags
from zoo.errors import RunError
from zoo.heads.base import check_together
from zoo.manyviews import all_views, predict_views, spilled
from zoo.metrics import headline, metric_title
from zoo.peaks import Peak, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import ProcessPoolExecutor
    from pathlib import Path

    from numpy.typing import NDArray

    from zoo.heads.base import Head, HeadSpec
    from zoo.recipes import Recipe
    from zoo.split import Fold

    Progress = Callable[[int, int, str], None]

__all__ = ["Execution", "Job", "Result", "Task", "run_jobs"]

_START_SECONDS = 4.0
"""What starting worker processes costs, nearly all of it importing torch."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One fit."""

    fold: Fold
    """What to learn, watch and predict."""
    seed: int
    """Decides all that is random in the fit."""

    @property
    def name(self) -> str:
        """Stem of the names of the job's files."""
        return f"{self.fold.number}-{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Result:
    """What a job leaves beside the head's file."""

    job: Job
    """Which one it was."""
    prob: dict[str, NDArray[np.float64]]
    """Role to what was predicted, ``(image, column)``, images as in the fold."""
    history: list[dict[str, Any]]
    """One row per epoch."""
    peak: Peak = dataclasses.field(default_factory=Peak)
    """Most memory while the fold was fitted and predicted."""

    def save(self, folder: Path) -> None:
        """Write to ``folder``, at once or not at all."""
        # JSON has no NaN, Python's reader and writer do; the file is ours and short-lived.
        told = np.array(json.dumps(self.history))
        peak = np.array(json.dumps(dataclasses.asdict(self.peak)))
        target = folder / f"{self.job.name}.npz"
        with atomic(target, durable=True) as hidden, hidden.open("wb") as file:
            np.savez(file, history=told, peak=peak, **self.prob)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path, job: Job) -> Result:
        """Read what :meth:`save` wrote.

        Raises
        ------
        RunError
            If the file is damaged.
        """
        path = folder / f"{job.name}.npz"
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                prob = {role: file[role] for role in job.fold.parts}
                told = json.loads(str(file["peak"])) if "peak" in file else {}
                history = json.loads(str(file["history"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunError(f"{path} is damaged: delete it, and run the same again") from error
        return cls(job=job, prob=prob, history=history, peak=Peak(**told))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Execution:
    """Where a run's fits are computed; decides the time they take, not the result."""

    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    workers: int | None = 1
    """Processes to fit in; None is one per core where that pays. With more than one, a calling
    script must be guarded by ``if __name__ == "__main__"``, for each process imports it."""
    together: str = "auto"
    """Whether all seeds of a fold are fitted as one computation: ``always``, ``never``, or
    ``auto``, on a GPU (:meth:`~zoo.heads.base.HeadSpec.fit_many`)."""
    progress: Progress | None = None
    """Called as ``progress(done, total, message)`` after each fit."""

    def __post_init__(self) -> None:
        check_together(self.together)
        if self.workers is not None and self.workers < 1:
            msg = f"workers is {self.workers}: give at least 1"
            raise OptionError(msg)

    def tell(self, done: int, total: int, message: str) -> None:
        """Report progress to whoever wants to know."""
        if self.progress is not None:
            self.progress(done, total, message)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Task:
    """What all jobs of a run share."""

    head: HeadSpec
    """What to fit."""
    recipe: Recipe
    """How to train it."""
    heads: Path
    """Folder for the heads' files."""
    unfinished: Path
    """Folder for results."""
    execution: Execution
    """Where to compute."""

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Group jobs as they are done: one by one, or all of a fold together."""
        device, together = self.execution.device, self.execution.together
        if not self.head.trains_together(device=device, together=together):
            return [[job] for job in jobs]
        return [list(some) for _, some in groupby(jobs, key=lambda job: job.fold.number)]

    def do(self, jobs: Sequence[Job], bags: Bags) -> list[str]:
        """Fit, predict and write jobs of one fold."""
        fold = jobs[0].fold
        with measured() as peak:
            heads = self.head.fit_many(
                bags[fold.train],
                validation=bags[fold.validation] if len(fold.validation) else None,
                recipe=self.recipe,
                seeds=[job.seed for job in jobs],
                together=self.execution.together,
                device=self.execution.device,
                # One thread: several jobs fill the cores better than one job does, and cores that
                # others use as well make threads that wait for each other ten times slower.
                threads=1,
            )
            told = [_predicted(job, head, bags) for job, head in zip(jobs, heads, strict=True)]
        for result, head in zip(told, heads, strict=True):
            # The head's file first, so that a result implies a head.
            head.save(self.heads / f"{result.job.name}{head.suffix}")
            dataclasses.replace(result, peak=peak).save(self.unfinished)
        return [_message(result.job, result.history, headline(bags.task)) for result in told]


def run_jobs(jobs: Sequence[Job], bags: Bags, task: Task) -> list[Result]:
    """Do all jobs that have no result yet, and collect the results in the order of the jobs.

    Parameters
    ----------
    jobs
        All fits of the run.
    bags
        What the jobs' folds index.
    task
        What to fit, how, and where to.

    Raises
    ------
    RunError
        If a worker process dies; results so far are kept.
    """
    task.heads.mkdir(exist_ok=True)
    todo = [job for job in jobs if not (task.unfinished / f"{job.name}.npz").is_file()]
    done = len(jobs) - len(todo)
    if done:
        task.execution.tell(done, len(jobs), f"{done} fits were there already")
    for message in _do_all(todo, task, bags):
        done += 1
        task.execution.tell(done, len(jobs), message)
    return [Result.load(task.unfinished, job) for job in jobs]


def _do_all(todo: list[Job], task: Task, bags: Bags) -> Iterator[str]:
    """Do the first unit here; the rest too, unless more processes are asked for or pay."""
    workers, units = task.execution.workers, task.units(todo)
    if units and workers is None:
        start = time.monotonic()
        yield from task.do(units[0], bags)
        units = units[1:]
        seconds = (time.monotonic() - start) * len(units)
        workers = _workers_that_pay(seconds, task.execution.device)
    workers = min(workers or 1, len(units))
    if workers < 2:
        for unit in units:
            yield from task.do(unit, bags)
    else:
        yield from _side_by_side(units, task, bags, workers)


def _workers_that_pay(seconds: float, device: str) -> int:
    """Count the processes worth starting for work that takes ``seconds`` here."""
    from zoo.training.threads import available

    cores = available()
    if seconds * (1 - 1 / cores) < _START_SECONDS:
        return 1
    return 1 if _uses_gpu(device) else cores


def _uses_gpu(device: str) -> bool:
    if device == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_available())


def _side_by_side(units: list[list[Job]], task: Task, bags: Bags, workers: int) -> Iterator[str]:
    """Hand units to worker processes; messages come as they end."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    here = dataclasses.replace(task.execution, progress=None)  # stays with the parent
    with _sent(bags, task.unfinished / "embedding.npy") as sent:
        pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(dataclasses.replace(task, execution=here), *sent),
        )
        with _stopped(pool):
            futures = [pool.submit(_work, unit) for unit in units]
            try:
                for future in as_completed(futures):
                    yield from future.result()
            except BrokenProcessPool as error:
                msg = (
                    "a worker process died, perhaps for want of memory: run the same again with "
                    "fewer workers; what is finished is kept"
                )
                raise RunError(msg) from error


@contextlib.contextmanager
def _sent(bags: Bags, path: Path) -> Iterator[tuple[Path | None, dict[str, Any] | Bags]]:
    """Give bags as workers get them, with the rows in a file for the time of a block."""
    if all(one.folder is not None for one in all_views(bags)):
        # They travel as the names of the files that are mapped here already.
        yield None, bags
        return
    if bags.table.others:
        with spilled(bags, path.parent) as mapped:
            yield None, mapped
        return
    np.save(path, bags.embedding, allow_pickle=False)
    try:
        yield path, _light(bags)
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _stopped(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Drop what has not begun, whatever ends the block."""
    try:
        yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _light(bags: Bags) -> dict[str, Any]:
    """Give everything of bags but the embeddings, as arguments of ``Bags.from_arrays``."""
    return {
        "offset": bags.offset,
        "labels": bags.labels,
        "classes": bags.classes,
        "image_ids": bags.image_ids,
        "patient_ids": bags.patient_ids,
        "coords": bags.coords,
        "task": bags.task,
        "truth": None if bags.task.one_class else bags.truth,
    }


_worker: dict[str, Any] = {}
"""Task and bags of a worker process; empty everywhere else."""


def _start_worker(task: Task, shared: Path | None, sent: dict[str, Any] | Bags) -> None:
    # Before torch and BLAS are loaded, which read it then.
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if shared is not None and not isinstance(sent, Bags):
        sent = Bags.from_arrays(np.load(shared, mmap_mode="r", allow_pickle=False), **sent)
    _worker.update(task=task, bags=sent)


def _end_with_parent() -> None:
    """End this process once its parent is no more, even killed: what goes on is nobody's."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(jobs: list[Job]) -> list[str]:
    messages: list[str] = _worker["task"].do(jobs, _worker["bags"])
    return messages


def _predicted(job: Job, head: Head, bags: Bags) -> Result:
    """Predict all parts of the job's fold."""
    prob = {
        role: predict_views(head, bags[rows], () if role == "train" else None)
        for role, rows in job.fold.parts.items()
    }
    history = [{key: _plain(value) for key, value in row.items()} for row in head.history]
    return Result(job=job, prob=prob, history=history)


def _plain(value: object) -> object:
    """Turn numpy scalars into Python's, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value


def _message(job: Job, history: list[dict[str, Any]], metric: str) -> str:
    where = f"fold {job.fold.number}, seed {job.seed}"
    last = history[-1].get(f"validation_{metric}") if history else None
    if last is None or last != last:  # noqa: PLR0124 (NaN where nothing validates)
        return where
    return f"{where}: validation {metric_title(metric)} {last:.3f}"
