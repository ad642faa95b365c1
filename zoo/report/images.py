"""Patches on images: how many there are, and which were kept, drawn on examples."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import HistostoreError, ImageError, NotFound
from zoo.report.judging import losses
from zoo.report.model import Example, PatchCounts, Picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from histostore.grid import Placement
    from histostore.images.readers import Reader
    from histostore.store import FeatureSet
    from zoo.predictions import Predictions
    from zoo.run import Run
    from zoo.tasks import Task

__all__ = ["choose_examples", "illustrate", "patch_bins", "patch_counts", "picture"]

N_EXAMPLES = 6
"""Images shown: one per class, up to four, then the hardest."""

THUMBNAIL_PX = 480
"""Longest side of an embedded picture; six of them stay far below 1 MB."""

MOST_OUTLINES = 2500
"""Above this, outlines would be smaller than their own lines, and the page heavy."""


def choose_examples(
    run: Run, others: Sequence[Predictions] = (), n: int = N_EXAMPLES
) -> tuple[Example, ...]:
    """Choose a typical image of each class, then the hardest of all.

    Typical is the median loss among the images of the class that are predicted correctly (among
    all, where none is); hardest is the largest loss (:func:`zoo.report.judging.losses`). Of more
    than four classes, the four largest are shown; a task without classes has one typical image.

    Parameters
    ----------
    run
        The one that leads.
    others
        Test predictions of all runs shown in full on the same images, to count who misses what.
    n
        How many.
    """
    images = run.test_probabilities()
    loss, name = losses(images, run.task)
    order = np.argsort(loss, kind="stable")
    chosen: list[tuple[int, str]] = []
    if run.task.one_class:
        y_true, correct = images.y_true, images.prob.argmax(axis=1) == images.y_true
        largest = np.argsort(-np.bincount(y_true, minlength=len(run.classes)), kind="stable")
        for k in sorted(largest[:4]):
            mine = np.flatnonzero((y_true == k) & correct)
            mine = mine if len(mine) else np.flatnonzero(y_true == k)
            if len(mine):
                ranked = mine[np.argsort(loss[mine], kind="stable")]
                chosen.append((int(ranked[len(ranked) // 2]), f"typical {run.classes[k]}"))
    else:
        chosen.append((int(order[len(order) // 2]), "typical"))
    taken = {i for i, _ in chosen}
    hardest = [int(i) for i in np.argsort(-loss, kind="stable") if int(i) not in taken]
    chosen += [(i, "hardest") for i in hardest[: max(0, n - len(chosen))]]
    return tuple(
        _example(images, i, why, float(loss[i]), name, run.classes, run.task, others)
        for i, why in chosen
    )


def _example(
    images: Predictions,
    i: int,
    why: str,
    loss: float,
    loss_name: str,
    classes: Sequence[str],
    task: Task,
    others: Sequence[Predictions],
) -> Example:
    truth, told = images.y_true[i], images.prob[i]
    one_class = task.one_class
    return Example(
        image_id=str(images.image_ids[i]),
        why=why,
        target=classes[truth] if one_class else _truth(truth, classes, task),
        predicted=classes[int(told.argmax())] if one_class else _told(told, classes, task),
        loss=loss,
        loss_name=loss_name,
        p_target=float(told[truth]) if one_class else None,
        p_predicted=float(told.max()) if one_class else None,
        missed_by=sum(int(other.prob[i].argmax()) != int(truth) for other in others)
        if one_class
        else None,
    )


def _truth(truth: NDArray[np.float64], classes: Sequence[str], task: Task) -> str:
    if task.kind == "multi-label":
        return ", ".join(n for n, has in zip(classes, truth, strict=True) if has) or "no label"
    if task.kind == "survival":
        return f"{'event' if truth[1] else 'censored'} at {truth[0]:.4g}"
    return f"{truth[0]:.4g}"


def _told(told: NDArray[np.float64], classes: Sequence[str], task: Task) -> str:
    if task.kind == "multi-label":
        return ", ".join(n for n, p in zip(classes, told, strict=True) if p >= 0.5) or "no label"
    return f"risk {told[0]:.3g}" if task.kind == "survival" else f"{told[0]:.4g}"


def patch_counts(
    features: FeatureSet, image_ids: Sequence[str], augmentation: str
) -> PatchCounts | None:
    """Count the patches of each image from the store's index, without reading an embedding."""
    index = features.index
    rows = [index[key][1] for i in image_ids if (key := (i, augmentation)) in index]
    if not rows:
        return None
    sizes = np.array([row.stop - row.start for row in rows], dtype=np.int64)
    return PatchCounts(
        feature_set=features.name,
        n_images=len(sizes),
        n_patches=int(sizes.sum()),
        smallest=int(sizes.min()),
        median=float(np.median(sizes)),
        largest=int(sizes.max()),
        bins=patch_bins(sizes),
    )


def patch_bins(sizes: NDArray[np.int64], most: int = 24) -> tuple[tuple[int, int, int], ...]:
    """Bin counts of patches, one number per bar while that is legible.

    Examples
    --------
    >>> patch_bins(np.array([10, 12, 12]))
    ((10, 10, 1), (11, 11, 0), (12, 12, 2))
    """
    low, high = int(sizes.min()), int(sizes.max())
    width = -(-(high - low + 1) // most)
    if width > 1:
        power = 10 ** (len(str(width)) - 1)
        width = next(f * power for f in (1, 2, 5, 10) if f * power >= width)
        low -= low % width
    counts = np.bincount((sizes - low) // width)
    return tuple((low + i * width, low + (i + 1) * width - 1, int(n)) for i, n in enumerate(counts))


def illustrate(
    examples: Sequence[Example],
    cohort: Cohort,
    features: FeatureSet,
    *,
    augmentation: str,
    storage_options: dict[str, Any] | None = None,
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Draw the patches of each example on its image.

    Returns
    -------
    examples
        As given, with a picture and patch counts where the image could be read.
    notes
        One line per image that could not, with the reason.
    """
    from histostore.images.readers import open_image

    row = {image_id: i for i, image_id in enumerate(cohort.image_ids)}
    drawn, notes = [], []
    for example in examples:
        try:
            if example.image_id not in row:
                raise NotFound(f"{cohort.url} has no such image_id")
            i = row[example.image_id]
            coords = features.bag(example.image_id, augmentation=augmentation).coords
            with closing(open_image(cohort.urls[i], storage_options, mpp=cohort.mpp[i])) as reader:
                drawn.append(_drawn(example, reader, features, coords))
        except (HistostoreError, OSError) as error:
            drawn.append(example)
            notes.append(f"{example.image_id} is not shown: {error}")
    return tuple(drawn), tuple(notes)


def picture(reader: Reader, coords: NDArray[np.int32], placement: Placement) -> Picture:
    """Make the thumbnail, with the patches that the store holds and those it left out.

    Parameters
    ----------
    reader
        The open image.
    coords
        ``(patch, 2)`` int32, (x, y) of the stored patches, level-0 pixels.
    placement
        Every position that was considered.

    Raises
    ------
    ImageError
        If the stored patches do not lie on the grid: the image is another one by now.
    """
    from PIL import Image

    placed = {(int(x), int(y)) for x, y in zip(placement.x, placement.y, strict=True)}
    kept = {(int(x), int(y)) for x, y in coords}
    if not kept <= placed:
        raise ImageError(
            f"{len(kept - placed)} of its {len(kept)} stored patches lie off the grid of the "
            "image as it is now; it was changed after the build"
        )
    rejected = placed - kept
    pixels = np.array(reader.thumbnail(THUMBNAIL_PX))
    is_shaded = len(placed) > MOST_OUTLINES
    if is_shaded:
        share = pixels.shape[1] / reader.width_px
        pixels = _bleach(pixels, rejected, kept, edge=placement.edge_px * share, share=share)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=82, optimize=True)
    return Picture(
        jpeg=buffer.getvalue(),
        width_px=reader.width_px,
        height_px=reader.height_px,
        edge_px=placement.edge_px,
        kept=() if is_shaded else tuple(sorted(kept)),
        rejected=() if is_shaded else tuple(sorted(rejected)),
        is_shaded=is_shaded,
    )


def _drawn(
    example: Example, reader: Reader, features: FeatureSet, coords: NDArray[np.int32]
) -> Example:
    placement = features.spec.grid.place(reader.width_px, reader.height_px, reader.mpp)
    return replace(
        example,
        picture=picture(reader, coords, placement),
        n_kept=len(coords),
        n_rejected=len(placement.x) - len(coords),
    )


def _bleach(
    pixels: NDArray[np.uint8],
    rejected: set[tuple[int, int]],
    kept: set[tuple[int, int]],
    *,
    edge: float,
    share: float,
) -> NDArray[np.uint8]:
    """Blend rejected ground with white, two thirds; where patches overlap, kept wins."""
    out = np.zeros(pixels.shape[:2], dtype=bool)
    for corners, value in ((rejected, True), (kept, False)):
        for x, y in corners:
            top, left = int(y * share), int(x * share)
            out[top : int(np.ceil(y * share + edge)), left : int(np.ceil(x * share + edge))] = value
    bleached = pixels.copy()
    bleached[out] = (pixels[out] // 3 + 170).astype(np.uint8)
    return bleached
