"""Fitting one head over all folds and seeds, into a run directory.

Each (fold, seed) is a job of its own: it fits on the training part, watches the validation
part, and predicts all three. What a job leaves (the head's file, then its predictions in
``RUN/unfinished/``) is written at once or not at all, so a run that was stopped goes on with
the jobs that are missing. Jobs may run in several processes of one thread each; the numbers
do not depend on that beyond the order of floating-point sums.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histostore.errors import OptionError
from histostore.files import public_url
from zoo import tasks
from zoo.claiming import begin
from zoo.errors import SplitError
from zoo.jobs import Execution, Job, Task, run_jobs
from zoo.manyviews import all_views, views_told
from zoo.peaks import largest
from zoo.predictions import predictions_frame, written
from zoo.recipes import Recipe
from zoo.run import write_run
from zoo.soundness import history_columns
from zoo.split import VALIDATION_SHARE, Split
from zoo.targets import strata

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from zoo.bags import Bags
    from zoo.heads.base import HeadSpec
    from zoo.jobs import Result
    from zoo.run import Run

__all__ = [
    "Execution",
    "Labelled",
    "check_split",
    "chosen_seeds",
    "embedding_digest",
    "fit_run",
    "history_table",
    "make_split",
    "predictions_table",
    "run_document",
]

_CLASSES = tasks.Task()

LEAVE_ONE_OUT = "leave-one-patient-out"
"""The value of ``folds`` that tests each patient alone."""


class Labelled(Protocol):
    """Images with what is known of them: :class:`~zoo.bags.Bags`, or images without vectors."""

    @property
    def task(self) -> tasks.Task:
        """What is learned."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index into ``classes`` per image."""

    @property
    def truth(self) -> NDArray[Any]:
        """What the task learns, one row per image."""

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Names of the images."""

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Patients of the images."""


def make_split(
    bags: Labelled,
    cohort: Cohort | None = None,
    *,
    folds: int | str = 5,
    split_column: str | None = None,
    repeats: int = 1,
    split_seed: int = 0,
    validation_share: float = VALIDATION_SHARE,
) -> Split:
    """Split bags as the options of ``zoo fit`` say.

    Parameters
    ----------
    bags
        Labelled images.
    cohort
        Table that holds ``split_column``.
    folds
        Number of folds, or ``leave-one-patient-out``.
    split_column
        Column of the cohort with train, validation and test; goes before ``folds``.
    repeats
        How often to deal the folds anew.
    split_seed
        Decides the shuffling.
    validation_share
        Of the images that are not tested, so many are set aside in each fold: heads that stop
        early or choose an epoch watch them, and operating points are chosen on them. With 0 all
        are learned from.
    """
    labels = _strata(bags, 1 if split_column is not None else folds)
    if split_column is not None:
        if cohort is None or repeats != 1:
            msg = f"split column {split_column!r} needs a cohort, and {repeats=} must be 1"
            raise OptionError(msg)
        told = dict(zip(cohort.image_ids, cohort.column(split_column), strict=True))
        values = [told[image] for image in bags.image_ids]
        return Split.from_column(
            values,
            labels,
            bags.patient_ids,
            split_seed,
            image_ids=bags.image_ids,
            column=split_column,
            validation_share=validation_share,
        )
    if folds == LEAVE_ONE_OUT:
        if repeats != 1:
            msg = f"leave-one-patient-out has one way to be done, seen {repeats=}: leave it out"
            raise OptionError(msg)
        return Split.leave_one_patient_out(
            labels,
            bags.patient_ids,
            split_seed,
            image_ids=bags.image_ids,
            validation_share=validation_share,
        )
    if isinstance(folds, str) and not folds.isdecimal():
        msg = f"folds is {folds!r}: give a number or {LEAVE_ONE_OUT}"
        raise OptionError(msg)
    return Split.k_fold(
        labels,
        bags.patient_ids,
        int(folds),
        split_seed,
        repeats,
        image_ids=bags.image_ids,
        validation_share=validation_share,
    )


def _strata(bags: Labelled, folds: int | str) -> NDArray[np.str_]:
    """Name the group of each image of which all folds shall have a like share."""
    if bags.task.one_class:
        return np.array(bags.classes, dtype=object)[bags.labels].astype(str)
    least = int(folds) if str(folds).isdecimal() else 2
    return strata(bags.task, bags.truth, bags.patient_ids, least)


def check_split(images: Labelled, split: Split) -> None:
    """Refuse folds over other images, and folds of which nothing can be learned.

    Raises
    ------
    SplitError
        With the number of the fold, and what its training images lack.
    """
    n = len(images.image_ids)
    if split.image_ids != images.image_ids:
        raise SplitError(
            f"the split is over {len(split.image_ids)} other images than these {n} bags"
        )
    for fold in () if images.task.one_class else split:
        problem = images.task.problem_of(images.truth[fold.train])
        if problem:
            raise SplitError(
                f"fold {fold.number} has {len(fold.train)} images to train on, of which nothing can "
                f"be learned: {problem}"
            )


def fit_run(
    bags: Bags,
    head: HeadSpec,
    *,
    out: str | os.PathLike[str],
    split: Split | None = None,
    recipe: Recipe | None = None,
    seeds: int | Sequence[int] = 1,
    name: str | None = None,
    store_url: str = "",
    execution: Execution | None = None,
) -> Run:
    """Fit a head over all folds and seeds, and write the run.

    Parameters
    ----------
    bags
        Labelled images.
    head
        What to fit.
    out
        Directory for the run: new, empty, or an unfinished run of the same plan, which is
        then finished.
    split
        Folds over the same images; five stratified, patient-grouped folds where left out.
    recipe
        How to train; ``default`` where left out.
    seeds
        How many seeds (0, 1, …), or which.
    name
        What to call the run; the directory's name where left out.
    store_url
        Where the store lies, for the record.
    execution
        Device, processes and progress.

    Raises
    ------
    SplitError, LeakError
        If the bags cannot be split, or the split is over other images.
    NotSupported
        If the head cannot learn the bags' task.
    RecipeError
        If the recipe does not fit the head or the task.
    RunError
        If ``out`` holds something else, or another process is filling it.
    StorageError
        If ``out`` cannot be written.
    """
    start = time.monotonic()
    recipe = Recipe() if recipe is None else recipe
    head.check_task(bags.task, recipe)
    split = make_split(bags) if split is None else split
    check_split(bags, split)
    chosen = chosen_seeds(seeds)
    head.check_recipe(recipe, has_validation=all(len(fold.validation) for fold in split))
    document = run_document(bags, split, head, recipe=recipe, seeds=chosen)
    folder = Path(out)
    jobs = [Job(fold=fold, seed=seed) for fold in split for seed in chosen]
    with begin(folder, {**document, "embedding": embedding_digest(bags)}) as unfinished:
        task = Task(
            head=head,
            recipe=recipe,
            heads=folder / "heads",
            unfinished=unfinished,
            execution=execution or Execution(),
        )
        results = run_jobs(jobs, bags, task)
        document["name"] = name or folder.resolve().name
        document["store"] = {**bags.source.get("store", {}), "url": public_url(store_url)}
        document["cohort"] |= bags.source.get("cohort", {})
        document["seconds"] = round(time.monotonic() - start, 3)
        document |= largest([result.peak for result in results])
        return write_run(
            folder, document, predictions_table(bags, results), history_table(results, bags.task)
        )


def run_document(
    bags: Bags, split: Split, head: HeadSpec, *, recipe: Recipe, seeds: list[int]
) -> dict[str, Any]:
    """Tell everything that decides a run's result, apart from the embeddings themselves.

    Parameters
    ----------
    bags, split, head, recipe, seeds
        As of :func:`fit_run`.
    """
    told = {
        "kind": "run",
        "head": head.to_json(),
        "recipe": recipe.to_json(),
        "target": bags.target,
        "classes": list(bags.classes),
        "augmentation": bags.augmentation,
        **views_told(bags),
        "split": split.to_json(),
        "seeds": seeds,
        "cohort": {
            "digest": bags.digest,
            "n_images": len(bags),
            "n_unlabelled": bags.n_unlabelled,
            "n_failed": bags.n_failed,
        },
    }
    # Without a task it is classification, as it was before there were others.
    return told if bags.task.kind == "classification" else {**told, "task": bags.task.to_json()}


def embedding_digest(bags: Bags) -> str:
    """Digest the rows and coordinates of all bags, in all their views (SHA-256)."""
    digest = hashlib.sha256()
    for block in (block for one in all_views(bags) for block in one.blocks()):
        digest.update(np.ascontiguousarray(block.embedding).data)
        digest.update(np.ascontiguousarray(block.coords).data)
    digest.update(bags.offset.tobytes())
    return digest.hexdigest()


def chosen_seeds(seeds: int | Sequence[int]) -> list[int]:
    """List the seeds that a number of them, or a list, stands for.

    Raises
    ------
    OptionError
        If there is none, one twice, or one below 0.

    Examples
    --------
    >>> chosen_seeds(2), chosen_seeds([5, 3])
    ([0, 1], [5, 3])
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        msg = f"seeds is {seeds!r}: give a number from 1, or different numbers from 0"
        raise OptionError(msg)
    return chosen


def predictions_table(bags: Labelled, results: Sequence[Result]) -> pd.DataFrame:
    """Gather what all fits predicted, as :mod:`zoo.predictions` has it.

    Parameters
    ----------
    bags
        Images that the folds of the results index.
    results
        One per fold and seed.
    """
    import pandas as pd

    image_ids, patient_ids = np.array(bags.image_ids), np.array(bags.patient_ids)
    target = written(bags.truth, bags.classes, bags.task)
    parts = [
        predictions_frame(
            image_ids=image_ids[rows],
            patient_ids=patient_ids[rows],
            fold=result.job.fold.number,
            seed=result.job.seed,
            role=role,
            target=target[rows],
            prob=result.prob[role],
            classes=bags.classes,
            task=bags.task,
        )
        for result in results
        for role, rows in result.job.fold.parts.items()
    ]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def history_table(results: Sequence[Result], learned: tasks.Task = _CLASSES) -> pd.DataFrame:
    """Gather the epochs of all fits: fold, seed, epoch, losses and metrics.

    Parameters
    ----------
    results
        One per fold and seed.
    learned
        What was learned.
    """
    import pandas as pd

    rows = [
        {"fold": result.job.fold.number, "seed": result.job.seed, **row}
        for result in results
        for row in result.history
    ]
    return pd.DataFrame(rows).reindex(columns=list(history_columns(learned)))
