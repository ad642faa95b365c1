"""Predicting images that a run on pixels never saw, with all its networks.

What :func:`zoo.prediction.predict` does with a store, from the table of images itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.cohort import Cohort
from histostore.errors import ImageError
from histostore.files import public_url
from zoo.errors import NotSupported, RunError
from zoo.external import judge, read_map, read_truth_of
from zoo.finetune.checkpoint import load_network
from zoo.finetune.loader import PixelLoader
from zoo.finetune.pixels import PixelPlan, read_pixels
from zoo.finetune.predicting import predict_rows
from zoo.finetune.spec import Machine
from zoo.labels import named
from zoo.membership import on_pixels, pool_of, runs_of
from zoo.panel import pooled, spread
from zoo.prediction import Prediction, frame_of
from zoo.run import Run
from zoo.tasks import Task
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
        Table of images. Where it has the columns of ``target``, the predictions are judged.
    target, label_map
        As of :func:`zoo.prediction.predict`.
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
        If the cohort's columns hold anything else than what the run learned.
    """
    asked = run if isinstance(run, Run) else Run.load(run)
    if not on_pixels(asked):
        raise NotSupported(f"{asked.path} was fitted to stored vectors: name their store")
    images = cohort
    if not isinstance(images, Cohort):
        images = Cohort.read(images, storage_options=storage_options)
    truth = read_truth_of(asked, images, target=target, label_map=label_map)
    members = [
        (member, weight, group)
        for group, (member, weight) in enumerate(runs_of(asked, is_pooled=True))
        if weight > 0
    ]
    plans = [PixelPlan(**member.document["trained_on"]) for member, _, _ in members]
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
        (member, read[plan], weight, group)
        for (member, weight, group), plan in zip(members, plans, strict=True)
    ]
    said, weights, groups = _values(shares, kept, machine or Machine(), progress)
    pool = pool_of(asked)
    mean = pooled(pool, said, weights, groups)
    image_ids = [images.image_ids[row] for row in kept]
    test, unjudged = judge(asked, image_ids, mean, truth)
    return Prediction(
        frame=frame_of(asked, image_ids, mean, spread(pool, said, weights, groups)),
        run=asked,
        feature_sets=(),
        views=(),
        n_heads=len(weights),
        notes=(*_notes(asked, image_ids, failed), *unjudged),
        test=test,
        source={
            "store": None,
            "cohort": public_url(images.url),
            "target": target or str(asked.document.get("target", "label")),
            "label_map": dict(read_map(label_map)) or None,
        },
    )


def _values(
    members: list[tuple[Run, Pixels, float, int]],
    rows: list[int],
    machine: Machine,
    progress: Callable[[int, int, str], None],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Let every network predict: ``(network, image, column)``; weights and groups ``(network,)``."""
    device = machine.torch_device()
    values, weights, groups = [], [], []
    total = sum(len(member.head_paths()) for member, *_ in members)
    with limited(machine.threads or available()):
        for member, pixels, weight, group in members:
            paths = member.head_paths()
            if not paths:
                raise RunError(f"{member.path} holds no networks: train it again")
            loader = PixelLoader(pixels, workers=machine.loaders(device), pin=device.type == "cuda")
            views = member.document["recipe"]["test_views"]
            for path in paths.values():
                net, told = load_network(path)
                net.module.to(device)
                # What the outputs are measured by was learned with the network.
                task = Task.from_json(told.get("task"))
                values.append(predict_rows(net, loader, rows, task=task, views=views))
                weights.append(weight / len(paths))
                groups.append(group)
                progress(len(weights), total, member.name)
    return np.array(values), np.array(weights), np.array(groups)


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
