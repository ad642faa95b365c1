"""Predicting images that a run on pixels never saw, with all its networks.

What :func:`zoo.prediction.predict` does with a store, from the table of images itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.cohort import Cohort
from histostore.errors import ImageError
from histostore.files import public_url
from zoo.blending.temperature import cooled
from zoo.errors import NotSupported, RunError
from zoo.external import judge
from zoo.finetune.checkpoint import load_network
from zoo.finetune.loader import PixelLoader
from zoo.finetune.pixels import PixelPlan, read_pixels
from zoo.finetune.predicting import predict_rows
from zoo.finetune.spec import Machine
from zoo.labels import named
from zoo.panel import on_pixels, runs_of, weighted_mean
from zoo.prediction import Prediction, _frame, _map, _spread, _truth
from zoo.run import Run
from zoo.training.threads import available, limited

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from zoo.finetune.pixels import Pixels

__all__ = ["predict_cohort"]


def predict_cohort(
    run: str | os.PathLike[str] | Run,
    cohort: str | os.PathLike[str] | Cohort,
    *,
    target: str | None = None,
    label_map: str | Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    machine: Machine | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Prediction:
    """Predict the images of a cohort with all networks of a run on pixels.

    Parameters
    ----------
    run
        Directory of a run of ``zoo finetune``, or of an ensemble of such runs.
    cohort
        Table of images. Where it has the column ``target``, the predictions are judged.
    target
        Column with the class; the one of the training where left out.
    label_map
        Labels of the cohort as those of the run, as of :func:`zoo.prediction.predict`.
    cache
        Folder for decoded pixels; ``$HISTOSTORE_CACHE``, or the user's folder for caches.
    machine
        Where to compute.
    storage_options
        For the storage of the images.
    progress
        Told of networks done, of how many, and whose.

    Raises
    ------
    RunError, NotSupported
        If the run cannot predict new images.
    ImageError
        If no image can be read.
    OptionError
        If a label is none of the run's classes.
    """
    asked = run if isinstance(run, Run) else Run.load(run)
    if not on_pixels(asked):
        raise NotSupported(f"{asked.path} was fitted to stored vectors: name their store")
    if asked.task.kind != "classification":
        raise NotSupported(f"{asked.path} learned {asked.task.kind}: classes alone are predicted")
    images = cohort
    if not isinstance(images, Cohort):
        images = Cohort.read(images, storage_options=storage_options)
    truth = _truth(asked, images, target=target, label_map=label_map)
    members = [(member, weight) for member, weight in runs_of(asked) if weight > 0]
    plans = [PixelPlan(**member.document["trained_on"]) for member, _ in members]
    read = {
        plan: read_pixels(
            images,
            plan,
            cache=cache,
            storage_options=storage_options,
            threads=available(),
        )
        for plan in dict.fromkeys(plans)
    }
    failed = {name: why for pixels in read.values() for name, why in pixels.failed.items()}
    kept = [row for row, name in enumerate(images.image_ids) if name not in failed]
    if not kept:
        why = [f"{name}: {reason}" for name, reason in failed.items()]
        raise ImageError(f"all of {named(images.image_ids)} cannot be read", problems=why)
    shares = [
        (member, read[plan], weight) for (member, weight), plan in zip(members, plans, strict=True)
    ]
    prob, weights = _probabilities(shares, kept, machine or Machine(), progress)
    learned = asked.document.get("learned") or {}
    temperature = float((learned.get("temperature") or {}).get("mean", 1.0))
    mean = cooled(weighted_mean(prob, weights), temperature)
    image_ids = [images.image_ids[row] for row in kept]
    known = set(image_ids)
    truth = tuple(row for row in truth if row[0] in known)
    return Prediction(
        frame=_frame(asked, image_ids, mean, _spread(prob, weights, mean)),
        run=asked,
        feature_sets=(),
        views=(),
        n_heads=len(weights),
        notes=_notes(asked, image_ids, failed),
        test=judge(asked, dict(zip(image_ids, mean, strict=True)), truth) if truth else None,
        source={
            "store": None,
            "cohort": public_url(images.url),
            "target": target or str(asked.document.get("target", "label")),
            "label_map": dict(_map(label_map)) or None,
        },
    )


def _probabilities(
    members: list[tuple[Run, Pixels, float]],
    rows: list[int],
    machine: Machine,
    progress: Callable[[int, int, str], None],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Let every network predict: ``(network, image, class)``, and the weights ``(network,)``."""
    device = machine.torch_device()
    prob, weights = [], []
    total = sum(len(member.head_paths()) for member, _, _ in members)
    with limited(machine.threads or available()):
        for member, pixels, weight in members:
            paths = member.head_paths()
            if not paths:
                raise RunError(f"{member.path} holds no networks: train it again")
            loader = PixelLoader(pixels, workers=machine.loaders(device), pin=device.type == "cuda")
            views = member.document["recipe"]["test_views"]
            for path in paths.values():
                net, _ = load_network(path)
                net.module.to(device)
                prob.append(predict_rows(net, loader, rows, task=member.task, views=views))
                weights.append(weight / len(paths))
                progress(len(weights), total, member.name)
    return np.array(prob), np.array(weights)


def _notes(run: Run, image_ids: list[str], failed: Mapping[str, str]) -> tuple[str, ...]:
    notes = [f"left out {name}: {reason}" for name, reason in failed.items()]
    trained = set(run.predictions["image_id"])
    shared = [image for image in image_ids if image in trained]
    if shared:
        notes.append(
            f"{named(shared)} bear names of training images: if they are the same, scores on them "
            f"flatter; {run.path} has honest ones"
        )
    return tuple(notes)
