"""Predicting images that a run never saw, and judging it on them where their truth is known.

All heads of a run, or of an ensemble's members, predict each image; what they say is averaged, or
combined by the ensemble's rule. On a cohort with labels this is the external test: metrics with intervals over patients
beside those that the run reached out of fold.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.atomic import atomic
from histostore.errors import OptionError
from histostore.files import public_url
from histostore.store import open_store
from histostore.views import parse_views
from zoo.bags import Bags
from zoo.external import ExternalTest, Truth, judge, read_map, read_truth_of
from zoo.labels import named
from zoo.panel import Panel, open_panel, spread
from zoo.predictions import written
from zoo.run import run_digest
from zoo.stored import usable
from zoo.targets import cohort_of
from zoo.tasks import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from zoo.run import Run

__all__ = ["ExternalTest", "Prediction", "check_output", "frame_of", "predict"]

_THERE = 0.5
"""Probability from which a label is told, as :mod:`zoo.metrics.multilabel` has it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What the heads say of each image."""

    frame: pd.DataFrame
    """``image_id``; ``prediction``, a class, or labels with ``;`` between, where there are any;
    the columns of what is predicted as in a run's own table (:mod:`zoo.predictions`);
    ``spread``: the standard deviation, over heads, of the predicted class's probability, of
    several labels the largest, of a number or risk its own; missing where there is one head."""
    run: Run
    """Who predicted."""
    feature_sets: tuple[str, ...]
    """What was read."""
    views: tuple[str, ...]
    """Views whose probabilities were averaged; empty: those of the run's own test."""
    n_heads: int
    notes: tuple[str, ...]
    """Warnings, one line each."""
    test: ExternalTest | None = None
    """Scores, where labels are known."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """``store``, ``cohort``, ``target`` and ``label_map``, as they were given."""

    def to_json(self) -> dict[str, Any]:
        """Give all but the predictions themselves as JSON values."""
        return {
            "run": self.run.name,
            "path": str(self.run.path),
            "digest": run_digest(self.run.path),
            **self.source,
            "task": self.run.task.kind,
            "n_heads": self.n_heads,
            "n_images": len(self.frame),
            "classes": list(self.run.classes),
            "predicted": self._predicted(),
            "feature_sets": list(self.feature_sets),
            "views": list(self.views),
            "notes": list(self.notes),
            "test": self.test.to_json() if self.test else None,
        }

    def to_text(self) -> str:
        """Say what was predicted, and how well, as plain text."""
        told = self._predicted()
        if self.run.task.has_classes:
            found = ", ".join(f"{count:,} {name}" for name, count in told.items())
        else:
            (column,) = self.run.task.value_columns(())
            name = column.removeprefix("pred_")
            found = f"{name} {told['least']:.4g} to {told['most']:.4g}, median {told['median']:.4g}"
        heads = f"{self.n_heads} head{'s'[: self.n_heads > 1]}"
        lines = [f"{len(self.frame):,} images predicted by {heads} of {self.run.name}: {found}"]
        if self.test is not None:
            lines += [self.test.to_text()]
        return "\n".join(lines)

    def write(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the table, and beside it ``<path>.json`` where there are scores.

        Parameters
        ----------
        path
            Ends in ``.csv``, ``.parquet`` or ``.pq``.

        Returns
        -------
        paths
            What was written.

        Raises
        ------
        OptionError
            If the name ends in anything else.
        StorageError
            If it cannot be written.
        """
        check_output(path)
        target = Path(path)
        beside = target.with_name(f"{target.name}.json")
        with atomic(target) as hidden:
            if target.suffix.lower() == ".csv":
                digits = "%.6f" if self.run.task.has_classes else None  # numbers have any scale
                self.frame.to_csv(hidden, index=False, float_format=digits)
            else:
                self.frame.to_parquet(hidden, engine="pyarrow", index=False)
            # Scores of what stood there before are never beside what stands there now.
            beside.unlink(missing_ok=True)
        if self.test is None:
            return (target,)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic(beside) as hidden:
            hidden.write_text(text, encoding="utf-8")
        return target, beside

    def _predicted(self) -> dict[str, Any]:
        """Count the images of each class or label; of numbers, tell where they lie."""
        task = self.run.task
        if task.has_classes:
            told = self.frame["prediction"].str.split(";") if not task.one_class else None
            names = self.frame["prediction"] if told is None else told.explode()
            return {name: int((names == name).sum()) for name in self.run.classes}
        values = self.frame[task.value_columns(())[0]]
        return {"least": values.min(), "median": values.median(), "most": values.max()}


def check_output(path: str | os.PathLike[str], *read: str | os.PathLike[str] | None) -> None:
    """Refuse a name that does not say how to write, or is that of a file that is read.

    Raises
    ------
    OptionError
        Before anything is computed.
    """
    if Path(path).suffix.lower() not in {".csv", ".parquet", ".pq"}:
        raise OptionError(f"{path}: give a name that ends in .csv or .parquet")
    for name in read:
        if name and Path(path).exists() and Path(name).exists() and Path(path).samefile(name):
            raise OptionError(f"{path} is what is read: give the predictions another name")


def predict(
    run: str | os.PathLike[str] | Run,
    store: str | os.PathLike[str],
    cohort: str | os.PathLike[str] | Cohort | None = None,
    *,
    feature_set: str | None = None,
    augmentation: str | None = None,
    target: str | None = None,
    label_map: str | Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Prediction:
    """Predict every image of a store, or those of a cohort, with all heads of a run.

    Parameters
    ----------
    run
        Directory of a run, or of an ensemble, whose members are where they were then.
    store
        URL of a store whose vectors were made as those of the training were.
    cohort
        Only these images. Where it has the columns of ``target``, the predictions are judged.
    feature_set
        The one to read; the one that fits where left out.
    augmentation
        Stored view, or several with commas, whose predictions are averaged; those of the
        run's own test where left out.
    target
        Column with the truth, or columns with commas between, in the order of the run's; those of
        the training where left out.
    label_map
        Labels of the cohort as classes or levels of the run: a mapping, ``OLD=NEW,OLD=NEW``, or
        the name of a map of :mod:`histostore.labels`.
    storage_options
        For the storage of store and cohort.
    progress
        Told of heads done, of how many, and whose.

    Raises
    ------
    RunError, NotSupported
        If the run cannot predict new images.
    NotFound
        If the store holds no such vectors, or images of the cohort were never built.
    OptionError
        If the cohort's columns hold anything else than what the run learned.

    Examples
    --------
    ::

        zoo.predict("runs/mil", "bach-store", "bach.csv", label_map="bach-to-breakhis")
    """
    store = os.fspath(store)
    images = None if cohort is None else cohort_of(cohort, storage_options)
    opened = open_store(store, storage_options=storage_options)
    panel = open_panel(run, opened, feature_set, averages_only=False, kinds=KINDS)
    truth = read_truth_of(panel.run, images, target=target, label_map=label_map)
    views = parse_views(augmentation) if augmentation else ()
    image_ids, left_out = _images(panel, images, views)
    said, weights, groups = _values(panel, image_ids, views, progress)
    mean = panel.pooled(said, weights, groups)
    test, unjudged = judge(panel.run, image_ids, mean, truth)
    notes = (*panel.notes, *left_out, *_overlap(panel, image_ids, store, truth), *unjudged)
    return Prediction(
        frame=frame_of(panel.run, image_ids, mean, spread(panel.pool, said, weights, groups)),
        run=panel.run,
        feature_sets=tuple(dict.fromkeys(member.features.name for member in panel.members)),
        views=views,
        n_heads=len(weights),
        notes=notes,
        test=test,
        source={
            "store": public_url(store),
            "cohort": public_url(images.url) if images is not None else None,
            "target": target or str(panel.run.document.get("target", "label")),
            "label_map": dict(read_map(label_map)) or None,
        },
    )


def _images(
    panel: Panel, images: Cohort | None, views: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose the images that all members can read, and tell of those that cannot be."""
    wanted = images.image_ids if images is not None else panel.members[0].features.image_ids
    kept = np.ones(len(wanted), dtype=bool)
    for member in panel.members:
        for view in views or member.views:
            kept &= usable(member.features, wanted, view)
    lost = [image for image, is_kept in zip(wanted, kept, strict=True) if not is_kept]
    note = f"left out {named(lost)} that failed in the build; histostore info says why"
    chosen = tuple(image for image, is_kept in zip(wanted, kept, strict=True) if is_kept)
    return chosen, (note,) if lost else ()


def _values(
    panel: Panel,
    image_ids: Sequence[str],
    views: Sequence[str],
    progress: Callable[[int, int, str], None],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Let every head predict: ``(head, image, column)``; weights and groups ``(head,)``."""
    values, weights, groups = [], [], []
    total = sum(len(member.run.head_paths()) for member in panel.members)
    known: dict[tuple[str, str], Bags] = {}  # members may share what they read
    for member in panel.members:
        asked = [(member.features.name, view) for view in views or member.views]
        for name, view in asked:
            if (name, view) not in known:
                known[name, view] = Bags.unlabelled(
                    member.features, image_ids, classes=panel.run.classes, augmentation=view
                )
        read = [known[key] for key in asked]
        for seat in member.seats():
            values.append(np.mean([seat.head.predict(bags) for bags in read], axis=0))
            weights.append(seat.weight)
            groups.append(seat.group)
            progress(len(weights), total, member.run.name)
    return np.array(values), np.array(weights), np.array(groups)


def frame_of(
    run: Run,
    image_ids: Sequence[str],
    values: NDArray[np.float64],
    spread: NDArray[np.float64],
) -> pd.DataFrame:
    """Make the table of predictions.

    Parameters
    ----------
    run
        Says what the columns mean.
    image_ids
        Images.
    values, spread
        What was predicted, and its standard deviation over heads, ``(image, column)``.
    """
    import pandas as pd

    task, rows = run.task, np.arange(len(values))
    columns: dict[str, Any] = {"image_id": list(image_ids)}
    if task.has_classes:
        told = values.argmax(axis=1) if task.one_class else values >= _THERE
        columns["prediction"] = written(told, run.classes, task).astype(object)
    columns |= {name: values[:, k] for k, name in enumerate(task.value_columns(run.classes))}
    columns["spread"] = spread[rows, told] if task.one_class else spread.max(axis=1)
    return pd.DataFrame(columns)


def _overlap(
    panel: Panel, image_ids: Sequence[str], store: str, truth: Truth | None
) -> tuple[str, ...]:
    """Warn of images that were in the cohort of the training."""
    trained = set(panel.run.predictions["image_id"])
    shared = [image for image in image_ids if image in trained]
    if not shared:
        return ()
    same_store = any(
        public_url(store) == (member.run.document.get("store") or {}).get("url")
        for member in panel.members
    )
    known = (panel.run.document.get("cohort") or {}).get("digest")
    same_cohort = truth is not None and truth.digest == known
    if same_store or same_cohort:
        were = f"{named(shared)} {'was' if len(shared) == 1 else 'were'} in the training"
        return (f"{were}: scores on them flatter; {panel.run.path} has honest ones",)
    return (
        f"{named(shared)} bear names of training images: if they are the same, scores on them "
        "flatter",
    )
