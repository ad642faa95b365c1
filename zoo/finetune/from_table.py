"""From a table to a finished run; what cannot work is refused before an image is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.doubts import doubts
from zoo.finetune.running import check, finetune, prepare_images
from zoo.fit import make_split

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from zoo.finetune.data import Images
    from zoo.finetune.presets import FinetuneRecipe
    from zoo.finetune.spec import FinetuneSpec, Machine
    from zoo.run import Run

__all__ = ["finetune_images"]


def finetune_images(
    images: Images,
    spec: FinetuneSpec,
    recipe: FinetuneRecipe,
    *,
    out: str | os.PathLike[str],
    seeds: int | Sequence[int] = 1,
    machine: Machine | None = None,
    storage_options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    **dealing: Any,
) -> Run:
    """Train a network on the images of a table, over all folds and seeds, and write the run.

    Parameters
    ----------
    images
        Labelled images, as :func:`~zoo.finetune.data.read_images` gives them.
    spec
        The network.
    recipe
        How to train.
    out
        Directory for the run.
    seeds, machine
        As of :func:`zoo.finetune.running.finetune`.
    storage_options
        For the storage of the images.
    say
        Told of images that are left out, and of what is odd in the table, a line each.
    progress
        Told of images read, then of epochs done.
    dealing
        Folds, as :func:`zoo.fit.make_split` takes them.

    Raises
    ------
    HistostoreError
        If the options, the network or the folds make no sense, or nothing can be read.
    """
    check(spec, recipe, images)
    make_split(images, images.cohort, **dealing)
    if images.n_unlabelled:
        count = images.n_unlabelled
        named = ", ".join(images.task.targets)
        say(f"left out {count:,} image{'s'[: count > 1]} without {named!r}")
    for doubt in doubts(images.cohort, images.task, images.classes, images.truth):
        say(doubt)
    prepared = prepare_images(
        images, spec, storage_options=storage_options, progress=_reading(progress)
    )
    for name, reason in prepared.images.failed.items():
        say(f"left out {name}: {reason}")
    split = make_split(prepared.images, prepared.images.cohort, **dealing)
    return finetune(
        prepared,
        spec,
        out=out,
        recipe=recipe,
        split=split,
        seeds=seeds,
        machine=machine,
        progress=progress,
    )


def _reading(progress: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    return lambda done, total, name: progress(done, total, f"reading {name}")
