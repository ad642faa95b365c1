"""Predicting images that a run never saw, and judging it on them where their class is known.

All heads of a run, or of an ensemble's members, predict each image; their probabilities are
averaged. On a cohort with labels this is the external test: metrics with intervals over patients
beside those that the run reached out of fold.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.cohort import Cohort
from histostore.errors import OptionError, StorageError
from histostore.files import public_url
from histostore.labels import parse_label_map
from histostore.store import open_store
from histostore.views import parse_views
from zoo.bags import Bags
from zoo.external import ExternalTest, Truth, judge
from zoo.labels import digest_of, named
from zoo.panel import Panel, open_panel, weighted_sd
from zoo.stored import usable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from zoo.run import Run

__all__ = ["ExternalTest", "Prediction", "check_output", "predict"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What the heads say of each image."""

    frame: pd.DataFrame
    """``image_id``, ``prediction``, ``prob_<class>``…, ``spread``: the standard deviation, over
    heads, of the predicted class's probability; missing where there is one head."""
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
            "digest": hashlib.sha256((self.run.path / "run.json").read_bytes()).hexdigest(),
            **self.source,
            "n_heads": self.n_heads,
            "n_images": len(self.frame),
            "classes": list(self.run.classes),
            "predicted": {name: self._count(name) for name in self.run.classes},
            "feature_sets": list(self.feature_sets),
            "views": list(self.views),
            "notes": list(self.notes),
            "test": self.test.to_json() if self.test else None,
        }

    def to_text(self) -> str:
        """Say what was predicted, and how well, as plain text."""
        counts = ", ".join(f"{self._count(name):,} {name}" for name in self.run.classes)
        heads = f"{self.n_heads} head{'s'[: self.n_heads > 1]}"
        lines = [f"{len(self.frame):,} images predicted by {heads} of {self.run.name}: {counts}"]
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

        def fill(hidden: Path) -> None:
            if target.suffix.lower() == ".csv":
                self.frame.to_csv(hidden, index=False, float_format="%.6f")
            else:
                self.frame.to_parquet(hidden, engine="pyarrow", index=False)

        written = [_put(target, fill)]
        if self.test is not None:
            text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            beside = target.with_name(f"{target.name}.json")
            written.append(_put(beside, lambda hidden: _write_text(hidden, text)))
        return tuple(written)

    def _count(self, name: str) -> int:
        return int((self.frame["prediction"] == name).sum())


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse a name that does not say how to write, before anything is computed."""
    if Path(path).suffix.lower() not in {".csv", ".parquet", ".pq"}:
        raise OptionError(f"{path}: give a name that ends in .csv or .parquet")


def predict(
    run: str | os.PathLike[str] | Run,
    store: str,
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
        Only these images. Where it has the column ``target``, the predictions are judged.
    feature_set
        The one to read; the one that fits where left out.
    augmentation
        Stored view, or several with commas, whose probabilities are averaged; those of the
        run's own test where left out.
    target
        Column with the class; the one of the training where left out.
    label_map
        Labels of the cohort as those of the run: a mapping, ``OLD=NEW,OLD=NEW``, or the name of
        a map of :mod:`histostore.labels`.
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
        If a label is none of the run's classes.

    Examples
    --------
    ::

        zoo.predict("runs/mil", "bach-store", "bach.csv", label_map="bach-to-breakhis")
    """
    images = _cohort(cohort, storage_options)
    opened = open_store(store, storage_options=storage_options)
    panel = open_panel(run, opened, feature_set, averages_only=False)
    truth = _truth(panel.run, images, target=target, label_map=label_map)
    views = parse_views(augmentation) if augmentation else ()
    image_ids, left_out = _images(panel, images, views)
    prob, weights, groups = _probabilities(panel, image_ids, views, progress)
    mean = panel.pooled(prob, weights, groups)
    rows = dict(zip(image_ids, mean, strict=True))
    notes = (*panel.notes, *left_out, *_overlap(panel, image_ids, store, truth))
    return Prediction(
        frame=_frame(panel.run, image_ids, mean, _spread(prob, weights, mean)),
        run=panel.run,
        feature_sets=tuple(dict.fromkeys(member.features.name for member in panel.members)),
        views=views,
        n_heads=len(weights),
        notes=notes,
        test=judge(panel.run, rows, truth) if truth else None,
        source={
            "store": public_url(store),
            "cohort": public_url(images.url) if images is not None else None,
            "target": target or str(panel.run.document.get("target", "label")),
            "label_map": dict(_map(label_map)) or None,
        },
    )


def _cohort(
    cohort: str | os.PathLike[str] | Cohort | None, storage_options: Mapping[str, Any] | None
) -> Cohort | None:
    if cohort is None or isinstance(cohort, Cohort):
        return cohort
    return Cohort.read(cohort, storage_options=storage_options, check_files=False)


def _truth(
    run: Run,
    images: Cohort | None,
    *,
    target: str | None,
    label_map: str | Mapping[str, str] | None,
) -> tuple[tuple[str, str, str], ...]:
    """Give (image, patient, class) of the labelled images, in the run's own classes."""
    column = target or str(run.document.get("target", "label"))
    if images is None or (target is None and label_map is None and not images.has(column)):
        if target is not None or label_map is not None:
            raise OptionError("target and label map are for the labels of a cohort: name one")
        return ()
    labels = images.column(column)
    known = _map(label_map)
    mapped = [label if label is None else known.get(label, label) for label in labels]
    strange = sorted({label for label in mapped if label is not None and label not in run.classes})
    if strange:
        raise OptionError(
            f"{images.url}: {column} holds {', '.join(strange[:5])}, but {run.path} knows "
            f"{', '.join(run.classes)}: give --label-map {strange[0]}={run.classes[0]},…"
        )
    told = zip(images.image_ids, images.patient_ids, mapped, strict=True)
    return tuple((image, patient, label) for image, patient, label in told if label is not None)


def _map(label_map: str | Mapping[str, str] | None) -> Mapping[str, str]:
    if label_map is None:
        return {}
    return parse_label_map(label_map) if isinstance(label_map, str) else label_map


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


def _probabilities(
    panel: Panel,
    image_ids: Sequence[str],
    views: Sequence[str],
    progress: Callable[[int, int, str], None],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Let every head predict: ``(head, image, class)``; weights and groups ``(head,)``."""
    prob, weights, groups = [], [], []
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
            prob.append(np.mean([seat.head.predict_proba(bags) for bags in read], axis=0))
            weights.append(seat.weight)
            groups.append(seat.group)
            progress(len(weights), total, member.run.name)
    return np.array(prob), np.array(weights), np.array(groups)


def _spread(
    prob: NDArray[np.float64], weights: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    winner = mean.argmax(axis=1)
    return weighted_sd(prob[:, np.arange(len(winner)), winner], weights)


def _frame(
    run: Run,
    image_ids: Sequence[str],
    mean: NDArray[np.float64],
    spread: NDArray[np.float64],
) -> pd.DataFrame:
    import pandas as pd

    columns: dict[str, Any] = {
        "image_id": list(image_ids),
        "prediction": np.array(run.classes, dtype=object)[mean.argmax(axis=1)],
    }
    columns |= {f"prob_{name}": mean[:, k] for k, name in enumerate(run.classes)}
    return pd.DataFrame({**columns, "spread": spread})


def _overlap(panel: Panel, image_ids: Sequence[str], store: str, truth: Truth) -> tuple[str, ...]:
    """Warn of images that were in the cohort of the training."""
    trained = set(panel.run.predictions["image_id"])
    shared = [image for image in image_ids if image in trained]
    if not shared:
        return ()
    same_store = any(
        public_url(store) == (member.run.document.get("store") or {}).get("url")
        for member in panel.members
    )
    digest = digest_of(list(truth)) if truth else None
    same_cohort = digest == (panel.run.document.get("cohort") or {}).get("digest")
    if same_store or same_cohort:
        were = f"{named(shared)} {'was' if len(shared) == 1 else 'were'} in the training"
        return (f"{were}: scores on them flatter; {panel.run.path} has honest ones",)
    return (
        f"{named(shared)} bear names of training images: if they are the same, scores on them "
        "flatter",
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _put(path: Path, fill: Callable[[Path], None]) -> Path:
    """Write a file under a hidden name, then rename it."""
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(hidden)
        hidden.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    return path
