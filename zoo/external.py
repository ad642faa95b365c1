"""The external test: how good predictions of labelled images are, and how much worse than at home."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError
from histostore.files import public_url
from histostore.labels import parse_label_map
from histostore.text import table
from zoo.intervals import square_and_add
from zoo.labels import digest_of, objects
from zoo.metrics import higher_is_better, metric_names, metric_title
from zoo.predictions import written
from zoo.statistics import bootstrap
from zoo.targets import read_targets
from zoo.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from zoo.run import Run
    from zoo.statistics import Interval

__all__ = ["ExternalTest", "Truth", "judge", "read_map", "read_truth_of"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Truth:
    """What is known of labelled images."""

    image_ids: NDArray[np.object_]
    """``(image,)``."""
    patient_ids: NDArray[np.object_]
    """``(image,)``."""
    y_true: NDArray[Any]
    """As of :attr:`zoo.bags.Bags.truth`, in the classes of the run."""
    classes: tuple[str, ...]
    task: Task

    def select(self, rows: NDArray[Any]) -> Truth:
        """Keep some of the images."""
        kept = {name: getattr(self, name)[rows] for name in ("image_ids", "patient_ids", "y_true")}
        return replace(self, **kept)

    @property
    def digest(self) -> str:
        """What :attr:`zoo.bags.Bags.digest` is, of these images."""
        one = self.task.one_class
        told = written(self.y_true, self.classes, self.task) if one else self.y_true
        return digest_of(zip(self.image_ids, self.patient_ids, told.tolist(), strict=True))

    def to_json(self) -> dict[str, list[Any]]:
        """Give ``image_id``, ``patient_id`` and the columns of truth of a predictions table."""
        target = written(self.y_true, self.classes, self.task)
        columns = [target] if len(self.task.target_columns) == 1 else list(target.T)
        names = ("image_id", "patient_id", *self.task.target_columns)
        values = (self.image_ids, self.patient_ids, *columns)
        return {name: column.tolist() for name, column in zip(names, values, strict=True)}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExternalTest:
    """How good the predictions of labelled images are."""

    n_images: int
    """Images with a label."""
    n_patients: int
    metrics: dict[str, dict[str, float | None]]
    """Metric to ``value``, ``low``, ``high`` (95 % over patients), the same three of the run's
    images out of fold (``own``, ``own_low``, ``own_high``), and of how much worse it is here
    (``drop``, ``drop_low``, ``drop_high``; below 0: better)."""
    truth: Truth
    """Of those images."""

    def to_json(self) -> dict[str, Any]:
        """Give the scores as JSON values."""
        return {
            "n_images": self.n_images,
            "n_patients": self.n_patients,
            "metrics": self.metrics,
            "truth": self.truth.to_json(),
        }

    def to_text(self) -> str:
        """Draw the scores as a plain table."""
        rows = [
            {
                "metric": metric_title(name),
                "here": told["value"],
                "95 % interval": f"{_number(told['low'])} to {_number(told['high'])}",
                "out of fold": told["own"],
                "drop": told["drop"],
                "its interval": f"{_number(told['drop_low'])} to {_number(told['drop_high'])}",
            }
            for name, told in self.metrics.items()
        ]
        who = f"{self.n_images:,} labelled images of {self.n_patients:,} patients"
        return "\n".join([f"{who}, against the run's own out-of-fold scores:", table(rows)])


def read_map(label_map: str | Mapping[str, str] | None) -> Mapping[str, str]:
    """Give a label map as a mapping: empty where there is none."""
    return parse_label_map(label_map) if isinstance(label_map, str) else label_map or {}


def read_truth_of(
    run: Run,
    cohort: Cohort | None,
    *,
    target: str | None = None,
    label_map: str | Mapping[str, str] | None = None,
) -> Truth | None:
    """Read what a cohort tells of the task of a run.

    Parameters
    ----------
    run
        Says task and classes.
    cohort
        Table of images.
    target
        Column, or columns with commas between, in the order of the run's; those of the training
        where left out.
    label_map
        Labels of the cohort as classes or levels of the run.

    Returns
    -------
    truth
        Of the images with a label; None where the cohort lacks the columns and none was named.

    Raises
    ------
    OptionError
        If the columns hold anything else than what the run learned.
    """
    if cohort is None:
        if target is not None or label_map is not None:
            raise OptionError("target and label map are for the labels of a cohort: name one")
        return None
    task = _asked(run, target)
    if target is None and label_map is None and not any(map(cohort.has, task.targets)):
        return None
    if task.one_class:
        labels = cohort.column(task.targets[0])
        known = read_map(label_map)
        mapped = [label if label is None else known.get(label, label) for label in labels]
        _check_labels(run, cohort, task.targets[0], mapped)
        place = {name: k for k, name in enumerate(run.classes)}
        codes = np.array([-1 if label is None else place[label] for label in mapped], np.int64)
        y_true, is_known = codes, codes >= 0
    else:
        if label_map is not None:
            raise OptionError(
                f"a label map is for classes and levels, not for {task.kind}: name the columns by "
                "--target"
            )
        found = read_targets(cohort, task, to_learn=False)
        y_true, is_known = np.asarray(found.truth), found.codes >= 0
    everyone = Truth(
        image_ids=objects(cohort.image_ids),
        patient_ids=objects(cohort.patient_ids),
        y_true=y_true,
        classes=run.classes,
        task=run.task,
    )
    return everyone.select(is_known)


def _asked(run: Run, target: str | None) -> Task:
    """Give the run's task, of the columns that were asked for."""
    task = run.task
    if task.one_class:
        return replace(task, targets=(target or str(run.document.get("target", "label")),))
    if target is None:
        return task
    named = Task.of(task.kind, target).targets
    if len(named) != len(task.targets):
        raise OptionError(
            f"target names {len(named)} columns, but {run.path} learned {len(task.targets)}: name "
            f"those that stand for {', '.join(task.targets)}, in this order"
        )
    return replace(task, targets=named)


def _check_labels(run: Run, cohort: Cohort, column: str, labels: Sequence[str | None]) -> None:
    """Refuse labels that are no class of the run."""
    strange = sorted({label for label in labels if label is not None and label not in run.classes})
    if strange:
        raise OptionError(
            f"{public_url(cohort.url)}: {column} holds {', '.join(strange[:5])}, but {run.path} "
            f"knows {', '.join(run.classes)}: give --label-map {strange[0]}={run.classes[0]},…"
        )


def judge(
    run: Run, image_ids: Sequence[str], values: NDArray[np.float64], truth: Truth | None
) -> tuple[ExternalTest | None, tuple[str, ...]]:
    """Score the labelled images that were predicted.

    Parameters
    ----------
    run
        Who predicted.
    image_ids
        What was predicted.
    values
        Probabilities ``(image, class)``, or what else the task predicts.
    truth
        Of labelled images, not all of which need have been predicted.

    Returns
    -------
    test
        None where no image has a label.
    notes
        Why not, where the cohort has a column of labels.
    """
    if truth is None:
        return None, ()
    place = {image: row for row, image in enumerate(image_ids)}
    known = truth.select(np.array([image in place for image in truth.image_ids], dtype=bool))
    if not len(known.image_ids):
        return None, ("no image that was predicted has a label: nothing is judged",)
    rows = [place[image] for image in known.image_ids]
    intervals = bootstrap(known.y_true, values[rows], known.patient_ids, task=run.task)
    own = run.document["metrics"].get("test", {})
    metrics = {
        name: {**intervals[name].to_json(), **_drop(name, own.get(name) or {}, intervals[name])}
        for name in metric_names(run.task)
    }
    test = ExternalTest(
        n_images=len(rows),
        n_patients=len(set(known.patient_ids)),
        metrics=metrics,
        truth=known,
    )
    return test, ()


def _drop(name: str, own: Mapping[str, Any], here: Interval) -> dict[str, float | None]:
    """Say how much worse a metric is here than on the run's own images.

    Both sides were drawn by patient, independently; their intervals are put together by
    :func:`zoo.intervals.square_and_add`.
    """
    before = tuple(own.get(key) for key in ("value", "low", "high"))
    told = dict(zip(("own", "own_low", "own_high"), before, strict=True))
    drop: list[float | None] = [None, None, None]
    after = (here.value, here.low, here.high)
    if before[0] is not None and after[0] is not None:
        sign = 1 if higher_is_better(name) else -1
        drop[0] = sign * (before[0] - after[0])
    if None not in before and None not in after:
        # What a lower value makes better is subtracted the other way round.
        sides = (before, after) if higher_is_better(name) else (after, before)
        drop[1:] = square_and_add(*sides)
    return {**told, **dict(zip(("drop", "drop_low", "drop_high"), drop, strict=True))}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
